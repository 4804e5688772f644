//! How many clients were sent to a backend of late.
//!
//! A client that connects directly is none of our tunnels, and comes a moment after it was told where.
//! So that all who ask meanwhile are not sent to the same backend, each answer counts as load for as long
//! as it is good for: fully at first, and less and less until it has expired.

use core::time::Duration;

use crate::time::Tick;

const COUNT: u64 = (1 << 20) - 1;
const EPOCH: u64 = (1 << 24) - 1;

/// Answers of the span under way and of the one before it, in one number, so that it fits an atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handed(pub u64);

impl Handed {
    fn parts(self, now: Tick, span: Duration) -> Option<(u64, u64, u64, u64)> {
        let span = u64::try_from(span.as_nanos())
            .ok()
            .filter(|span| *span > 0)?;
        let epoch = (now.0 / span) & EPOCH;
        let (current, previous) = (self.0 >> 20 & COUNT, self.0 & COUNT);
        let (current, previous) = match epoch.wrapping_sub(self.0 >> 40) & EPOCH {
            0 => (current, previous),
            1 => (0, current),
            _ => (0, 0),
        };
        // Thousandths of the span that are still to come.
        let left = 1000 - (now.0 % span).saturating_mul(1000) / span;
        Some((epoch, current, previous, left))
    }

    /// One more, that is good for `span`.
    pub fn add(self, now: Tick, span: Duration) -> Handed {
        let Some((epoch, current, previous, _)) = self.parts(now, span) else {
            return self;
        };
        Handed(epoch << 40 | (current + 1).min(COUNT) << 20 | previous)
    }

    /// How many they are at `now`.
    pub fn count(self, now: Tick, span: Duration) -> u32 {
        if self.0 == 0 {
            return 0;
        }
        let counted = self
            .parts(now, span)
            .map_or(0, |(_, current, previous, left)| {
                current + (previous * left).div_ceil(1000)
            });
        u32::try_from(counted).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(30);

    fn at(seconds: f64) -> Tick {
        Tick((seconds * 1e9) as u64)
    }

    #[test]
    fn answers_count_until_they_have_expired() {
        let mut handed = Handed::default();
        assert_eq!(handed.count(at(5.0), SPAN), 0);
        for _ in 0..100 {
            handed = handed.add(at(301.0), SPAN);
        }
        for (second, count) in [
            (301.0, 100),
            (329.9, 100),
            (330.0, 100),
            (345.0, 50),
            (359.0, 4),
        ] {
            assert_eq!(handed.count(at(second), SPAN), count, "{second}");
        }
        assert_eq!(handed.count(at(360.0), SPAN), 0);
        assert_eq!(handed.add(at(345.0), SPAN).count(at(345.0), SPAN), 51);
        assert_eq!(handed.add(at(500.0), SPAN).count(at(500.0), SPAN), 1);
    }

    #[test]
    fn nothing_overflows() {
        let full = Handed(u64::MAX);
        assert!(full.add(Tick(u64::MAX), SPAN).count(Tick(u64::MAX), SPAN) <= 2 * COUNT as u32);
        assert_eq!(full.add(Tick(9), Duration::ZERO), full);
        assert_eq!(full.count(Tick(9), Duration::ZERO), 0);
        let span = Duration::from_nanos(1);
        assert_eq!(
            Handed(0)
                .add(Tick(u64::MAX), span)
                .count(Tick(u64::MAX), span),
            1
        );
    }
}
