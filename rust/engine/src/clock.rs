//! One monotonic clock for all workers of an engine.

use std::time::Instant;

use pybalancer_core::time::Tick;

/// Turns the system's monotonic clock into the ticks that core reckons with.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is now.
    pub fn new() -> Clock {
        Clock {
            origin: Instant::now(),
        }
    }

    /// The present.
    #[inline]
    pub fn now(&self) -> Tick {
        // 2^64 ns are 584 years.
        Tick(self.origin.elapsed().as_nanos() as u64)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}
