//! What several drains and sheds of one pool keep to together.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::Pace;
use crate::time::Tick;

/// A rate that several courses share, whoever's turn it is.
#[derive(Debug)]
pub struct Cap {
    pace: Pace,
    next: Arc<AtomicU64>,
}

impl Cap {
    /// `rate` per second; `next` is theirs together, and 0 to begin with.
    pub fn new(rate: f64, next: Arc<AtomicU64>) -> Cap {
        Cap {
            pace: Pace::new(1, Duration::ZERO, rate),
            next,
        }
    }

    /// Whether it has room now; else when.
    pub(super) fn room(&self, now: Tick) -> Result<(), Tick> {
        let next = self.next.load(Ordering::Relaxed);
        self.pace.admit(next, now, 0).map(drop)
    }

    pub(super) fn take(&self, now: Tick) -> Result<(), Tick> {
        take(&self.next, &self.pace, now, 0)
    }
}

/// Take what is due at `next`, by `pace`; else when to ask again.
pub(super) fn take(next: &AtomicU64, pace: &Pace, now: Tick, draw: u64) -> Result<(), Tick> {
    let mut due = next.load(Ordering::Relaxed);
    loop {
        let after = pace.admit(due, now, draw)?;
        match next.compare_exchange_weak(due, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(()),
            Err(newer) => due = newer,
        }
    }
}
