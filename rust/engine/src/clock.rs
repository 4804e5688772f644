//! One monotonic clock for all workers of an engine.

use pybalancer_core::time::Tick;
use rustix::time::{ClockId, clock_gettime};

/// The system's monotonic clock as the ticks that core reckons with.
///
/// Its origin is the system's own and not the start of the engine: so a tick means the same to the process
/// that takes over when this one is upgraded, and what is in a tunnel need not be converted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// A clock.
    pub fn new() -> Clock {
        Clock
    }

    /// The present.
    #[inline]
    pub fn now(&self) -> Tick {
        let now = clock_gettime(ClockId::Monotonic);
        // Never negative; 2^64 ns are 584 years.
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        Tick(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default())
    }
}
