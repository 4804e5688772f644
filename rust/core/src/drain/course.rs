//! How far a drain is, and whether one more may be told to go.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::cap::take;
use super::{Cap, Pace};
use crate::time::Tick;

/// One drain or shed on its way. Many workers share it: when the next of all their tunnels is told to go is
/// one number.
#[derive(Debug)]
pub struct Course {
    pace: Pace,
    next: AtomicU64,
    deadline: Option<Tick>,
    cap: Option<Cap>,
    cancelled: AtomicBool,
}

/// What a worker is to do for it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Tell those to go whose time has come.
    Tell,
    /// Cut what is left: it is over.
    Cut,
    /// Nothing any more: it was called off.
    Nothing,
}

impl Course {
    /// One that begins at `now`, and cuts what is left at `deadline`, if it has one. Where within its
    /// interval the first close falls is for `draw` to say.
    pub fn new(pace: Pace, deadline: Option<Tick>, now: Tick, draw: u64) -> Course {
        Course {
            next: AtomicU64::new(pace.first(now, draw)),
            pace,
            deadline,
            cap: None,
            cancelled: AtomicBool::new(false),
        }
    }

    /// The same, within what several keep to together.
    pub fn within(self, cap: Option<Cap>) -> Course {
        Course { cap, ..self }
    }

    /// What is to be done at `now`.
    pub fn duty(&self, now: Tick) -> Duty {
        if self.cancelled() {
            Duty::Nothing
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Duty::Cut
        } else {
            Duty::Tell
        }
    }

    /// Whether one more may be told to go now; else when to ask again.
    pub fn admit(&self, now: Tick, draw: u64) -> Result<(), Tick> {
        let Some(cap) = &self.cap else {
            return take(&self.next, &self.pace, now, draw);
        };
        // First, so that its own turn is not spent in vain.
        cap.room(now)?;
        take(&self.next, &self.pace, now, draw)?;
        cap.take(now)
    }

    /// When what is left is cut; None for what cuts nothing.
    pub fn deadline(&self) -> Option<Tick> {
        self.deadline
    }

    /// Call it off: nobody else is told.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was called off.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
