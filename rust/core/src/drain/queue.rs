//! Whose turn it is among a worker's tunnels.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::time::Tick;

/// Tunnels looked at for one that can be told at once, before one is told that cannot.
const LOOKS: usize = 16;
/// Turns are not shorter than this: a drain of millions wakes nobody for each of them. Less than what
/// the pace lets a worker make up for.
const STRIDE: Duration = Duration::from_millis(1);
/// When none can be told in this moment, they are looked at again after this time.
const AGAIN: Duration = Duration::from_millis(10);

/// Tunnels that are still to be told to go.
#[derive(Clone, Debug, Default)]
pub struct Queue<T> {
    waiting: VecDeque<T>,
}

/// What can be said of one of them now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not there any more, on its way already, or need not go.
    Gone,
    /// It can be told at once.
    Ready,
    /// It can be told, and hears it at the end of a frame or when it takes more.
    Later,
    /// It cannot be told in this moment.
    Busy,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn<T> {
    /// This one is to be told now.
    Tell(T),
    /// None is, before then.
    Wait(Tick),
    /// None is left.
    Empty,
}

impl<T: Copy> Queue<T> {
    /// In no order that anybody could know: neighbours in the table came at the same time.
    pub fn new(mut members: Vec<T>, mut entropy: impl FnMut() -> u64) -> Queue<T> {
        for at in (1..members.len()).rev() {
            let other = (entropy() % (at as u64 + 1)) as usize;
            members.swap(at, other);
        }
        Queue {
            waiting: members.into(),
        }
    }

    /// One more.
    pub fn join(&mut self, member: T) {
        self.waiting.push_back(member);
    }

    /// It could not be told after all, and is asked about later. When to go on.
    pub fn put_back(&mut self, member: T, now: Tick) -> Tick {
        self.waiting.push_back(member);
        now + AGAIN
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whose turn it is at `now`, if `admit` lets one more go.
    pub fn next(
        &mut self,
        now: Tick,
        look: impl FnMut(T) -> Standing,
        admit: impl FnOnce() -> Result<(), Tick>,
    ) -> Turn<T> {
        let Some(member) = self.choose(look) else {
            return match self.waiting.is_empty() {
                true => Turn::Empty,
                false => Turn::Wait(now + AGAIN),
            };
        };
        match admit() {
            Ok(()) => Turn::Tell(member),
            Err(at) => {
                self.waiting.push_front(member);
                Turn::Wait(at.max(now + STRIDE))
            }
        }
    }

    /// Rather one that can be told at once. None if none is left, or none can be told in this moment.
    fn choose(&mut self, mut look: impl FnMut(T) -> Standing) -> Option<T> {
        let mut looks = 0;
        let most = LOOKS.min(self.waiting.len());
        while let Some(member) = self.waiting.pop_front() {
            let standing = look(member);
            match standing {
                Standing::Gone => continue,
                Standing::Ready => return Some(member),
                Standing::Later | Standing::Busy => looks += 1,
            }
            if looks >= most && standing == Standing::Later {
                return Some(member);
            }
            self.waiting.push_back(member);
            if looks >= most {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec;

    const GO: fn() -> Result<(), Tick> = || Ok(());

    #[test]
    fn one_that_can_be_told_at_once_goes_first() {
        let mut queue = Queue {
            waiting: VecDeque::from([1, 2, 3]),
        };
        let look = |one| match one {
            2 => Standing::Ready,
            _ => Standing::Later,
        };
        assert_eq!(queue.next(Tick(0), look, GO), Turn::Tell(2));
        let wait = queue.next(Tick(0), look, || Err(Tick(5)));
        assert_eq!(wait, Turn::Wait(Tick(0) + STRIDE));
        assert!(matches!(queue.next(Tick(0), look, GO), Turn::Tell(1 | 3)));
        let busy = queue.next(Tick(0), |_| Standing::Busy, GO);
        assert_eq!(busy, Turn::Wait(Tick(0) + AGAIN));
        assert!(matches!(queue.next(Tick(0), look, GO), Turn::Tell(1 | 3)));
        assert_eq!(queue.next(Tick(0), look, GO), Turn::Empty);
    }

    proptest! {
        #[test]
        fn everyone_has_one_turn(count in 0..100_u64, seed: u64, busy in 1..5_u64) {
            let mut random = seed | 1;
            let mut draw = move || {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                random >> 11
            };
            let mut queue = Queue::new((0..count).collect(), &mut draw);
            let mut told = BTreeMap::new();
            let mut rounds = 0;
            loop {
                let standing = |_| [Standing::Ready, Standing::Later, Standing::Busy][(draw() % busy.min(3)) as usize];
                match queue.next(Tick(rounds), standing, GO) {
                    Turn::Tell(one) => *told.entry(one).or_insert(0) += 1,
                    Turn::Wait(at) => prop_assert!(at > Tick(rounds)),
                    Turn::Empty => break,
                }
                rounds += 1;
                prop_assert!(rounds < 100_000);
            }
            prop_assert_eq!(told.into_values().collect::<Vec<u64>>(), vec![1; count as usize]);
        }
    }
}
