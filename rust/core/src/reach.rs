//! In what order backends reach slots: who would own a slot if those before were not there.
//!
//! A table's backends walk their own orders of the slots, and who comes first has the slot. Let them walk
//! on, and a slot's second is nearly always who owns it in the table without the first, its third who does
//! without both, and so on: one walk says it for every set of backends that may be missing. It is not quite
//! exact, since in a table a walk goes from claim to claim and here from step to step; measured for 6 that
//! are missing of 30, the first that is there is the owner for 97 of 100 slots, and one of the first five is for
//! all but 1 of 1,600.

use alloc::vec;
use alloc::vec::Vec;

use crate::flow::Secret;
use crate::maglev::{Claimant, claims};

/// As many are told of each slot.
pub const DEPTH: usize = 8;
/// Nobody.
pub const NONE: u16 = u16::MAX;

/// Steps of the walk for each slot. Among many backends eight have been everywhere after 25; of few, and of light ones
/// beside heavy ones, some have not been everywhere by then, and are told in the order of names.
const STEPS: u64 = 40;

/// For each slot the first [`DEPTH`] backends in the order in which they reach it, as indexes into
/// `backends`, then [`NONE`]. Weights are speeds, and who has none comes nowhere.
///
/// Names are different ones, and they are fewer than [`NONE`].
pub fn reach(secret: &Secret, backends: &[(&str, u32)], size: u32) -> Vec<[u16; DEPTH]> {
    let mut sorted: Vec<(&str, u32, u16)> = (0..)
        .zip(backends)
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(index, (name, weight))| (*name, *weight, index))
        .collect();
    sorted.sort_unstable();
    let mut walkers: Vec<Claimant> = sorted
        .iter()
        .map(|entry| Claimant::new(secret, entry))
        .collect();
    let mut slots = vec![[NONE; DEPTH]; size as usize];
    if walkers.is_empty() {
        return slots;
    }
    let last = walkers.len().min(DEPTH) - 1;
    let mut unmet = slots.len();
    let turns = claims(&walkers, size);
    for turn in turns
        .iter()
        .cycle()
        .take((STEPS * u64::from(size)) as usize)
    {
        let Some(walker) = walkers.get_mut(*turn as usize) else {
            continue;
        };
        let place = walker.next(size) as usize;
        let index = walker.index();
        if slots
            .get_mut(place)
            .is_some_and(|slot| note(slot, index) == Some(last))
        {
            unmet -= 1;
            if unmet == 0 {
                break;
            }
        }
    }
    // Whoever is slow, or has been unlucky.
    for slot in slots.iter_mut().filter(|_| unmet > 0) {
        for (_, _, index) in &sorted {
            if slot.last() != Some(&NONE) {
                break;
            }
            note(slot, *index);
        }
    }
    slots
}

/// Where `index` was put down; None if it was there, or there is no room.
fn note(slot: &mut [u16; DEPTH], index: u16) -> Option<usize> {
    for (place, entry) in slot.iter_mut().enumerate() {
        if *entry == NONE {
            *entry = index;
            return Some(place);
        }
        if *entry == index {
            return None;
        }
    }
    None
}
