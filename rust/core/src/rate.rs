//! Rates: the generic cell rate algorithm in its virtual scheduling form (ITU-T I.371, annex A).
//!
//! One number holds the whole state: the theoretical arrival time (TAT), when the next event would be
//! due if events came evenly. An event may come earlier than that by the burst's worth of time. No
//! bucket has to be refilled, and the state fits an atomic.

use core::time::Duration;

use crate::time::Tick;

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    interval_ns: u64,
    tolerance_ns: u64,
}

impl Gcra {
    /// `rate` events per second, and `burst` at once after a pause. None unless the rate is between
    /// one in a million seconds and a thousand million a second, and the burst at least 1.
    pub fn new(rate: f64, burst: u32) -> Option<Gcra> {
        if !(1e-6..=1e9).contains(&rate) || burst == 0 {
            return None;
        }
        // Rounded up: rather a little less than promised than more. (Without std there is no ceil.)
        let exact = 1e9 / rate;
        let whole = exact as u64;
        let interval_ns = whole + u64::from(exact > whole as f64);
        Some(Gcra {
            interval_ns,
            tolerance_ns: interval_ns.saturating_mul(u64::from(burst - 1)),
        })
    }

    /// Whether an event may happen at `now`: the new theoretical arrival time, or when to ask again.
    /// `tat` starts as 0.
    #[inline]
    pub fn admit(&self, tat: u64, now: Tick) -> Result<u64, Tick> {
        if tat > now.0.saturating_add(self.tolerance_ns) {
            return Err(Tick(tat - self.tolerance_ns));
        }
        Ok(tat.max(now.0).saturating_add(self.interval_ns))
    }

    /// The time between two events at the steady rate.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Pauses in tenths of the interval: none, about one, or many.
    fn pauses() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(
            prop_oneof![3 => Just(0), 4 => 1..20_u64, 1 => 0..1000_u64],
            1..300,
        )
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_rate_and_burst(
            rate in 0.01..1e6_f64, burst in 1..20_u32, pauses in pauses(),
        ) {
            let gcra = Gcra::new(rate, burst).unwrap();
            let (mut tat, mut now) = (0, 1_000_000_000_000);
            let mut admitted: Vec<u64> = Vec::new();
            for pause in pauses {
                now += pause * gcra.interval_ns / 10;
                match gcra.admit(tat, Tick(now)) {
                    Ok(next) => { tat = next; admitted.push(now); }
                    Err(at) => prop_assert!(at.0 > now),
                }
            }
            for (i, start) in admitted.iter().enumerate() {
                for (count, end) in admitted[i..].iter().enumerate() {
                    let most = (end - start) as f64 * rate / 1e9 + f64::from(burst);
                    prop_assert!((count + 1) as f64 <= most + 1e-6);
                }
            }
        }

        #[test]
        fn who_comes_back_when_told_is_admitted(rate in 0.001..1e6_f64, burst in 1..9_u32, tat: u32, now: u32) {
            let gcra = Gcra::new(rate, burst).unwrap();
            if let Err(at) = gcra.admit(u64::from(tat), Tick(u64::from(now))) {
                prop_assert!(gcra.admit(u64::from(tat), at).is_ok());
            }
        }
    }

    #[test]
    fn a_burst_is_admitted_at_once_and_then_one_an_interval() {
        let gcra = Gcra::new(10.0, 3).unwrap();
        let (mut tat, second) = (0, 1_000_000_000);
        for _ in 0..3 {
            tat = gcra.admit(tat, Tick(second)).unwrap();
        }
        let next = Tick(second + 100_000_000);
        assert_eq!(gcra.admit(tat, Tick(second)), Err(next));
        tat = gcra.admit(tat, next).unwrap();
        assert_eq!(gcra.admit(tat, next), Err(next + gcra.interval()));
    }

    #[test]
    fn no_rate_is_no_rate() {
        for (rate, burst) in [
            (0.0, 1),
            (-1.0, 1),
            (f64::NAN, 1),
            (f64::INFINITY, 1),
            (5.0, 0),
        ] {
            assert_eq!(Gcra::new(rate, burst), None);
        }
    }
}
