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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maglev::Table;
    use std::format;
    use std::string::String;

    const SIZE: u32 = 4099;

    fn secret() -> Secret {
        Secret::from_bytes([7; 16])
    }

    fn named(names: &[String], weight: impl Fn(usize) -> u32) -> Vec<(&str, u32)> {
        (0..)
            .zip(names)
            .map(|(number, name)| (name.as_str(), weight(number)))
            .collect()
    }

    #[test]
    fn each_backend_is_told_once_and_all_of_few_are() {
        for (count, light) in [(1, 1), (3, 1), (8, 1), (8, 100_000), (30, 1)] {
            let names: Vec<String> = (0..count).map(|number| format!("app-{number}")).collect();
            let backends = named(&names, |number| if number == 0 { light } else { 1 });
            for slot in reach(&secret(), &backends, SIZE) {
                let mut told: Vec<u16> = slot.into_iter().filter(|index| *index != NONE).collect();
                assert_eq!(told.len(), DEPTH.min(count));
                told.sort_unstable();
                told.dedup();
                assert_eq!(told.len(), DEPTH.min(count));
            }
        }
    }

    #[test]
    fn who_has_no_weight_comes_nowhere() {
        let names: Vec<String> = (0..5).map(|number| format!("app-{number}")).collect();
        let without = |slots: Vec<[u16; DEPTH]>| slots.iter().all(|slot| !slot.contains(&2));
        assert!(without(reach(
            &secret(),
            &named(&names, |number| u32::from(number != 2)),
            SIZE
        )));
        let nobody = reach(&secret(), &named(&names, |_| 0), SIZE);
        assert!(nobody.iter().all(|slot| *slot == [NONE; DEPTH]));
    }

    #[test]
    fn orders_do_not_depend_on_the_order_of_backends() {
        let names: Vec<String> = (0..9).map(|number| format!("app-{number}")).collect();
        let mut reversed = names.clone();
        reversed.reverse();
        let one = reach(&secret(), &named(&names, |_| 1), SIZE);
        let other = reach(&secret(), &named(&reversed, |_| 1), SIZE);
        for (one, other) in one.iter().zip(&other) {
            assert!(one.iter().zip(other).all(|(a, b)| *a == 8 - *b));
        }
    }

    /// Of 30 with weights of 1 to 3, 6 at a time are missing.
    #[test]
    fn the_first_that_is_there_is_nearly_always_the_owner() {
        const LARGE: u32 = 65537;
        let names: Vec<String> = (0..30).map(|number| format!("app-{number}")).collect();
        let weight = |number: usize| 1 + number as u32 % 3;
        let orders = reach(&secret(), &named(&names, weight), LARGE);
        let (mut slots, mut first, mut among) = (0, 0, 0);
        for missing in 0..5 {
            let gone = |index: usize| index / 6 == missing;
            let all = Table::build(&secret(), &named(&names, weight), LARGE).unwrap();
            let there = named(
                &names,
                |number| if gone(number) { 0 } else { weight(number) },
            );
            let table = Table::build(&secret(), &there, LARGE).unwrap();
            for ((order, owner), now) in orders.iter().zip(all.slots()).zip(table.slots()) {
                if gone(usize::from(*owner)) {
                    slots += 1;
                    first += u32::from(
                        order.iter().find(|index| !gone(usize::from(**index))) == Some(now),
                    );
                    among += u32::from(order.iter().take(6).any(|index| index == now));
                }
            }
        }
        assert!(slots > LARGE * 9 / 10);
        assert!(
            f64::from(first) > 0.95 * f64::from(slots),
            "{first} of {slots}"
        );
        assert!(
            f64::from(among) > 0.995 * f64::from(slots),
            "{among} of {slots}"
        );
    }
}
