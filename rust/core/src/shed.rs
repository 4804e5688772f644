//! Shed: how many tunnels each of the fullest backends has too many.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// Of a backend that takes tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its tunnels.
    pub tunnels: u32,
    /// Its share relative to the others.
    pub weight: u32,
}

/// How many tunnels a shed is to take from a backend. All workers take from the same.
#[derive(Debug, Default)]
pub struct Quota {
    wanted: u32,
    found: AtomicU32,
    left: AtomicU32,
}

impl Quota {
    /// So many are to go.
    pub fn new(wanted: u32) -> Quota {
        Quota {
            wanted,
            found: AtomicU32::new(0),
            left: AtomicU32::new(wanted),
        }
    }

    /// As ordered.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Tunnels that may be taken, as far as workers have counted.
    pub fn found(&self) -> u32 {
        self.found.load(Ordering::Relaxed)
    }

    /// One more may be taken.
    pub fn find(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }

    /// Still to be taken.
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }

    /// Take one, if there is one.
    pub fn take(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        (self.left)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
    }

    /// Not this one after all.
    pub fn give_back(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
}

/// For each backend how many of its tunnels are above `skew` times its fair share, which is that part of
/// all tunnels that its weight is of all weights. Nobody is over who has one more than its share: that
/// much no placement can avoid. Backends of weight 0 are to have none of their own, but keep what they have.
pub fn surplus(loads: &[Load], skew: f64) -> Vec<u32> {
    let tunnels: u64 = loads.iter().map(|load| u64::from(load.tunnels)).sum();
    let weights: u64 = loads.iter().map(|load| u64::from(load.weight)).sum();
    let skew = if skew > 1.0 { skew } else { 1.0 };
    let over = |load: &Load| {
        if load.weight == 0 || weights == 0 {
            return 0;
        }
        let fair = tunnels as f64 * f64::from(load.weight) / weights as f64;
        // Whole tunnels: one above a share that is no whole number is no surplus.
        let allowed = ((fair * skew) as u64).max(fair as u64 + 1);
        let surplus = u64::from(load.tunnels).saturating_sub(allowed);
        u32::try_from(surplus).unwrap_or(u32::MAX)
    };
    loads.iter().map(over).collect()
}

/// The load of the fullest over its fair share: 1 is even, 0 where there is nothing to compare.
pub fn skew(loads: &[Load]) -> f64 {
    let tunnels: u64 = loads.iter().map(|load| u64::from(load.tunnels)).sum();
    let weights: u64 = loads.iter().map(|load| u64::from(load.weight)).sum();
    if tunnels == 0 || weights == 0 {
        return 0.0;
    }
    let of = |load: &Load| {
        let fair = tunnels as f64 * f64::from(load.weight) / weights as f64;
        if fair > 0.0 {
            f64::from(load.tunnels) / fair
        } else {
            0.0
        }
    };
    loads.iter().map(of).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn loads() -> impl Strategy<Value = Vec<Load>> {
        let load = (0..10_000_u32, 0..5_u32);
        let load = load.prop_map(|(tunnels, weight)| Load { tunnels, weight });
        prop::collection::vec(load, 1..20)
    }

    #[test]
    fn a_backend_that_came_back_empty_is_given_room_by_the_others() {
        let full = |tunnels| Load { tunnels, weight: 1 };
        let loads = [full(400), full(400), full(400), full(0)];
        assert_eq!(surplus(&loads, 1.0), vec![99, 99, 99, 0]);
        assert_eq!(surplus(&loads, 1.2), vec![40, 40, 40, 0]);
        assert_eq!(surplus(&loads, 1.5), vec![0; 4]);
        assert!((skew(&loads) - 4.0 / 3.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn nobody_below_its_share_sheds_and_nobody_sheds_below_it(loads in loads(), by in 1.0..3.0_f64) {
            let tunnels: u32 = loads.iter().map(|load| load.tunnels).sum();
            let weights: u32 = loads.iter().map(|load| load.weight).sum();
            for (load, over) in loads.iter().zip(surplus(&loads, by)) {
                let fair = f64::from(tunnels) * f64::from(load.weight) / f64::from(weights.max(1));
                prop_assert!(over == 0 || f64::from(load.tunnels - over) >= fair);
                prop_assert!(f64::from(load.tunnels - over) <= (fair * by).max(fair + 1.0) || load.weight == 0);
            }
        }

        #[test]
        fn an_even_pool_sheds_nothing(count in 1..50_usize, tunnels: u16) {
            let loads = vec![Load { tunnels: u32::from(tunnels), weight: 3 }; count];
            prop_assert!(surplus(&loads, 1.0).iter().all(|over| *over == 0));
        }
    }
}
