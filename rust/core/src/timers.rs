//! A hierarchical timing wheel (Varghese and Lauck, SOSP 1987) with at most one timer per id.
//!
//! Setting, moving and cancelling cost a few stores whatever the number of timers, and finding the
//! next one to fire a few bit scans. Ids are the indexes of the caller's slab, so the links of the
//! lists live in one dense array, 16 bytes an id.
//!
//! Time is counted in units of about 8 ms. Nothing fires early; it may fire up to a unit late.

use alloc::vec;
use alloc::vec::Vec;

use crate::time::Tick;

/// Nanoseconds in a unit: 2^23.
const UNIT_SHIFT: u32 = 23;
/// Slots of a level: 2^6, one bit each in a word.
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Six levels of 64 slots span 18 years; what is farther is re-filed on the way.
const LEVELS: usize = 6;

const NONE: u32 = u32::MAX;
/// A `previous` with this bit is not an id but the list whose head the node is.
const HEAD: u32 = 1 << 31;

#[derive(Clone, Copy)]
struct Node {
    /// In units; 0 means not set.
    at: u64,
    next: u32,
    previous: u32,
}

const UNSET: Node = Node {
    at: 0,
    next: NONE,
    previous: NONE,
};

/// Timers by id.
pub struct Wheel {
    nodes: Vec<Node>,
    heads: Vec<u32>,
    occupied: [u64; LEVELS],
    /// Units up to which everything has fired.
    elapsed: u64,
}

impl Wheel {
    /// An empty one that begins at `now`.
    pub fn new(now: Tick) -> Wheel {
        Wheel {
            nodes: Vec::new(),
            heads: vec![NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            elapsed: now.0 >> UNIT_SHIFT,
        }
    }

    /// Have room for so many timers without moving any.
    pub fn reserve(&mut self, count: usize) {
        self.nodes.reserve(count.saturating_sub(self.nodes.len()));
    }

    /// Set the timer of `id` (below 2^31) to fire at `at`, in place of what was set before.
    pub fn set(&mut self, id: u32, at: Tick) {
        self.cancel(id);
        let index = id as usize;
        if index >= self.nodes.len() {
            self.nodes.resize(index + 1, UNSET);
        }
        // Rounded up, since nothing fires early; and never into the past.
        let units = (at.0 >> UNIT_SHIFT) + u64::from(at.0 & ((1 << UNIT_SHIFT) - 1) != 0);
        self.file(id, units.max(self.elapsed + 1));
    }

    /// Forget the timer of `id`, if it is set.
    pub fn cancel(&mut self, id: u32) {
        let Some(node) = self.nodes.get_mut(id as usize) else {
            return;
        };
        if node.at == 0 {
            return;
        }
        let Node { next, previous, .. } = *node;
        *node = UNSET;
        if let Some(follower) = self.nodes.get_mut(next as usize) {
            follower.previous = previous;
        }
        if previous & HEAD == 0 {
            if let Some(leader) = self.nodes.get_mut(previous as usize) {
                leader.next = next;
            }
            return;
        }
        let list = (previous & !HEAD) as usize;
        if let Some(head) = self.heads.get_mut(list) {
            *head = next;
        }
        if next == NONE {
            self.mark(list, false);
        }
    }

    /// When to call [`expire`](Wheel::expire) next: not later than the earliest timer, and after all
    /// that has been expired. May come before any timer is due, to re-file some.
    pub fn next(&self) -> Option<Tick> {
        // Saturating: rounded up, the very last unit begins after the end of time.
        self.upcoming()
            .map(|(_, deadline)| Tick(deadline.saturating_mul(1 << UNIT_SHIFT)))
    }

    /// Collect the ids whose time has come; they are no longer set.
    pub fn expire(&mut self, now: Tick, due: &mut Vec<u32>) {
        let now = now.0 >> UNIT_SHIFT;
        while let Some((list, deadline)) = self.upcoming().filter(|(_, deadline)| *deadline <= now)
        {
            self.elapsed = deadline;
            let Some(head) = self.heads.get_mut(list) else {
                return;
            };
            let mut id = core::mem::replace(head, NONE);
            self.mark(list, false);
            while let Some(node) = self.nodes.get_mut(id as usize) {
                let Node { at, next, .. } = *node;
                *node = UNSET;
                if at <= deadline {
                    due.push(id);
                } else {
                    self.file(id, at);
                }
                id = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    /// The first list to look at, and when.
    fn upcoming(&self) -> Option<(usize, u64)> {
        // All of a level's timers lie within the current slot of the level above: the first level
        // that has any has the earliest.
        (0..)
            .zip(&self.occupied)
            .find(|(_, occupied)| **occupied != 0)
            .map(|(level, occupied)| {
                let shift = SLOT_BITS * level;
                // The slot of the present comes last: only a timer a whole round away can be in it.
                let first = ((self.elapsed >> shift) as u32 + 1) & (SLOTS as u32 - 1);
                let slot =
                    (occupied.rotate_right(first).trailing_zeros() + first) & (SLOTS as u32 - 1);
                let span = 1 << (shift + SLOT_BITS);
                let start = self.elapsed & !(span - 1);
                let deadline = start + (u64::from(slot) << shift);
                // Only on the top level, which wraps around, can a slot lie behind.
                let deadline = if deadline <= self.elapsed {
                    deadline + span
                } else {
                    deadline
                };
                (level as usize * SLOTS + slot as usize, deadline)
            })
    }

    fn file(&mut self, id: u32, at: u64) {
        // What lies rounds of the top level away is looked at once a round and filed again.
        let differing = 63 - ((self.elapsed ^ at) | (SLOTS as u64 - 1)).leading_zeros();
        let level = (differing / SLOT_BITS).min(LEVELS as u32 - 1);
        let slot = (at >> (SLOT_BITS * level)) as usize & (SLOTS - 1);
        let list = level as usize * SLOTS + slot;
        let Some(head) = self.heads.get_mut(list) else {
            return;
        };
        let next = core::mem::replace(head, id);
        if let Some(node) = self.nodes.get_mut(id as usize) {
            *node = Node {
                at,
                next,
                previous: HEAD | list as u32,
            };
        }
        if let Some(follower) = self.nodes.get_mut(next as usize) {
            follower.previous = id;
        }
        self.mark(list, true);
    }

    fn mark(&mut self, list: usize, occupied: bool) {
        let bit = 1 << (list % SLOTS);
        if let Some(word) = self.occupied.get_mut(list / SLOTS) {
            *word = if occupied { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Spans from nanoseconds to lifetimes, longer than the wheel's range.
        let span = (3..64_u32, any::<u64>()).prop_map(|(bits, value)| value >> bits);
        prop::collection::vec(
            prop_oneof![
                (0..40_u32, span.clone()).prop_map(|(id, span)| Step::Set(id, span)),
                (0..40_u32).prop_map(Step::Cancel),
                span.prop_map(Step::Pass),
            ],
            1..200,
        )
    }

    proptest! {
        #[test]
        fn fires_what_a_sorted_map_would(steps in steps(), start in 0..(1_u64 << 40)) {
            let mut now = Tick(start);
            let mut wheel = Wheel::new(now);
            let mut model: BTreeMap<u32, Tick> = BTreeMap::new();
            let unit = Duration::from_nanos(1 << UNIT_SHIFT);
            let after = |now: Tick, span: u64| Tick((now.0 + span).min(1 << 63));
            for step in steps {
                match step {
                    Step::Set(id, span) => {
                        let at = after(now, span);
                        wheel.set(id, at);
                        model.insert(id, at);
                    }
                    Step::Cancel(id) => {
                        wheel.cancel(id);
                        model.remove(&id);
                    }
                    Step::Pass(span) => {
                        now = after(now, span);
                        let mut due = Vec::new();
                        wheel.expire(now, &mut due);
                        for id in due {
                            let at = model.remove(&id);
                            prop_assert!(at.is_some_and(|at| at <= now), "{id} early or twice");
                        }
                        // Late by a unit at most (two if it was set for the unit under way).
                        prop_assert!(model.values().all(|at| *at + unit + unit > now));
                        if let Some(next) = wheel.next() {
                            prop_assert!(next > now);
                        }
                    }
                }
                let earliest = model.values().min().copied();
                prop_assert_eq!(earliest.is_some(), wheel.next().is_some());
                if let (Some(earliest), Some(next)) = (earliest, wheel.next()) {
                    prop_assert!(next.0 <= earliest.0 + 2 * (1 << UNIT_SHIFT));
                }
            }
        }
    }

    #[test]
    fn a_timer_costs_16_bytes() {
        assert_eq!(size_of::<Node>(), 16);
    }

    #[test]
    fn the_end_of_time_is_not_its_beginning() {
        let mut wheel = Wheel::new(Tick(u64::MAX - 1));
        wheel.set(0, Tick(u64::MAX));
        assert_eq!(wheel.next(), Some(Tick(u64::MAX)));
    }

    #[test]
    fn what_is_late_already_fires_with_the_next_unit() {
        let (now, unit) = (Tick(1 << 40), Duration::from_nanos(1 << UNIT_SHIFT));
        let mut wheel = Wheel::new(now);
        wheel.set(5, Tick(7));
        let mut due = Vec::new();
        wheel.expire(now, &mut due);
        assert_eq!((due.len(), wheel.next()), (0, Some(now + unit)));
        wheel.expire(now + unit, &mut due);
        assert_eq!((due, wheel.next()), (Vec::from([5]), None));
    }

    #[test]
    fn a_leap_in_time_does_not_count_every_tick() {
        let mut wheel = Wheel::new(Tick(0));
        wheel.set(3, Tick(1));
        wheel.set(4, Tick(u64::MAX));
        let mut due = Vec::new();
        wheel.expire(Tick(1 << 62), &mut due);
        assert_eq!(due, [3]);
        wheel.expire(Tick(1 << 62), &mut due);
        assert_eq!(due, [3]);
    }
}
