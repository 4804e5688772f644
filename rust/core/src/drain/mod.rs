//! Drain: when the next live tunnel of many is told to go.
//!
//! Closes are spread evenly over a time, with jitter, so that clients who come back do not come in step;
//! and never more of them than the cap in any second. One number holds the state, when the next close
//! is due, so it fits an atomic that many workers share.

mod cap;
mod course;
mod queue;

use core::time::Duration;

pub use cap::Cap;
pub use course::{Course, Duty};
pub use queue::{Queue, Standing, Turn};

use crate::time::Tick;

/// A worker that wakes this late may make up for it. The cap's interval is longer by as much, so that no
/// second holds more than the cap all the same.
const LATENESS: u64 = 10_000_000;
const SECOND: u64 = 1_000_000_000;

/// What a drain is to keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Closes are spread over this time.
    pub over: Duration,
    /// What is left then is cut.
    pub deadline: Duration,
    /// The code of the Close (RFC 6455 section 7.4).
    pub code: u16,
    /// Closes in a second at most; 0 for no cap.
    pub rate: f64,
}

/// The distance between two closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    shortest: u64,
    spread: u64,
}

impl Pace {
    /// That of `count` closes over `over`, at most `rate` in any second (0: no cap). With a cap that is too
    /// low for that, it takes longer.
    pub fn new(count: u64, over: Duration, rate: f64) -> Pace {
        let over = u64::try_from(over.as_nanos()).unwrap_or(u64::MAX);
        let mean = over / count.max(1);
        let capped = if rate > 0.0 {
            // Half-open windows of a second hold at most ceil((second + lateness) / interval) closes.
            // Rounded up. (Without std there is no ceil; a float that is too large becomes the largest.)
            (((SECOND + LATENESS) as f64 / rate) as u64).saturating_add(1)
        } else {
            0
        };
        // Evenly from half the mean to one and a half of it, unless the cap forbids the shorter half.
        let mean = mean.max(capped);
        let shortest = (mean / 2).max(capped);
        Pace {
            shortest,
            spread: (mean - shortest).saturating_mul(2),
        }
    }

    /// When the first close is due, of a drain that begins at `now`. `draw` is any number, drawn evenly.
    pub fn first(&self, now: Tick, draw: u64) -> u64 {
        now.0.saturating_add(self.jitter(draw))
    }

    /// Whether a close may happen at `now`, where the next one is due at `next`: when the one after it is,
    /// or when to ask again.
    pub fn admit(&self, next: u64, now: Tick, draw: u64) -> Result<u64, Tick> {
        if now.0 < next {
            return Err(Tick(next));
        }
        let began = next.max(now.0.saturating_sub(LATENESS));
        let gap = self.shortest.saturating_add(self.jitter(draw));
        Ok(began.saturating_add(gap))
    }

    fn jitter(&self, draw: u64) -> u64 {
        // The high bits of the product: a fraction of `spread`.
        ((u128::from(draw) * u128::from(self.spread)) >> 64) as u64
    }
}

/// How many of `count` will not have been told to go at the deadline, whatever happens.
pub fn cut_at_deadline(count: u64, terms: &Terms) -> u64 {
    let pace = Pace::new(count, terms.over, terms.rate);
    let mean = pace.shortest.saturating_add(pace.spread / 2);
    let deadline = u64::try_from(terms.deadline.as_nanos()).unwrap_or(u64::MAX);
    match deadline.checked_div(mean) {
        Some(told) => count.saturating_sub(told),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Times of `count` closes, by a worker that wakes up to `lateness` ns late.
    fn run(pace: Pace, count: u64, lateness: u64, seed: u64) -> Vec<u64> {
        let mut random = seed | 1;
        let mut draw = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut now = Tick(SECOND);
        let mut next = pace.first(now, draw());
        let mut times = Vec::new();
        while (times.len() as u64) < count {
            match pace.admit(next, now, draw()) {
                Ok(after) => {
                    times.push(now.0 - SECOND);
                    next = after;
                }
                Err(at) => {
                    assert!(at > now);
                    now = Tick(at.0 + if lateness > 0 { draw() % lateness } else { 0 });
                }
            }
        }
        times
    }

    proptest! {
        #[test]
        fn no_second_holds_more_than_the_cap(
            rate in 0.2..2000_f64, count in 1..3000_u64, over in 0..20_000_u64, lateness in 0..60_000_000_u64, seed: u64,
        ) {
            let pace = Pace::new(count, Duration::from_millis(over), rate);
            let times = run(pace, count.min(5000), lateness, seed);
            let most = (rate as usize + usize::from(rate as usize as f64 != rate)).max(1);
            for (at, time) in times.iter().enumerate() {
                let within = times[at..].iter().take_while(|later| **later < time + SECOND).count();
                prop_assert!(within <= most, "{within} of {most} from {time}");
            }
        }

        #[test]
        fn closes_are_spread_over_the_whole_time(count in 50..5000_u64, over in 500..60_000_u64, seed: u64) {
            let span = Duration::from_millis(over);
            let times = run(Pace::new(count, span, 0.0), count, 0, seed);
            let all = span.as_nanos() as u64;
            let last = times.last().copied().unwrap_or_default();
            // Sums of jitter: within a tenth, or a few intervals where there are few.
            let slack = all / 10 + 6 * all / count;
            prop_assert!(last.abs_diff(all) <= slack, "{last} of {all}");
            let half = times.iter().filter(|time| **time < all / 2).count() as u64;
            prop_assert!(half.abs_diff(count / 2) <= count / 10 + 6);
        }

        #[test]
        fn what_the_deadline_cuts_is_foretold(count in 1..100_000_u64, rate in 1..10_000_u32, seconds in 1..100_u64) {
            let terms = Terms {
                over: Duration::from_secs(seconds),
                deadline: Duration::from_secs(2 * seconds),
                code: 1012,
                rate: f64::from(rate),
            };
            let cut = cut_at_deadline(count, &terms);
            let can = 2 * seconds * u64::from(rate);
            // An interval is longer than the cap's by its lateness.
            let exact = count.saturating_sub(can);
            prop_assert!(cut >= exact && cut <= exact + can / 90 + 1, "{cut} {exact}");
        }
    }

    #[test]
    fn extremes_are_borne() {
        for (count, over, rate) in [
            (0, Duration::ZERO, 0.0),
            (u64::MAX, Duration::MAX, f64::MAX),
            (1, Duration::MAX, 1e-300),
            (1, Duration::ZERO, f64::INFINITY),
        ] {
            let pace = Pace::new(count, over, rate);
            let next = pace.first(Tick(u64::MAX), u64::MAX);
            assert!(pace.admit(next, Tick(u64::MAX), u64::MAX).is_ok());
            let terms = Terms {
                over,
                deadline: over,
                code: 1012,
                rate,
            };
            let _ = cut_at_deadline(count, &terms);
        }
    }
}
