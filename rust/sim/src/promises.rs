//! What can be checked of a state as a whole.

use pybalancer_core::shed::Load;

/// A shed takes from nobody who has no more than its share, and leaves nobody with less; in whole numbers,
/// and so in another way than it was reckoned.
pub fn surplus_is_fair(loads: &[Load], of: Load, wanted: u32, skew: f64) {
    let tunnels: u64 = loads.iter().map(|load| u64::from(load.tunnels)).sum();
    let weights: u64 = loads.iter().map(|load| u64::from(load.weight)).sum();
    if wanted > 0 {
        let left = u64::from(of.tunnels - wanted);
        assert!(
            left * weights > tunnels * u64::from(of.weight),
            "{wanted} of {of:?} are to go: that is its share, or less"
        );
    }
    // And as much as there is to take.
    assert!(
        is_within(loads, of, wanted, skew),
        "{wanted} of {of:?} are to go: too few for {skew}"
    );
}

/// Whether a backend is within `skew` times its share, or has no more than one above it.
pub fn is_within(loads: &[Load], of: Load, less: u32, skew: f64) -> bool {
    let tunnels: u64 = loads.iter().map(|load| u64::from(load.tunnels)).sum();
    let weights: u64 = loads.iter().map(|load| u64::from(load.weight)).sum();
    let left = u64::from(of.tunnels - less);
    let share = tunnels * u64::from(of.weight);
    let one_above = left * weights <= share + weights;
    of.weight == 0 || one_above || left as f64 * weights as f64 <= skew * share as f64 + 1e-6
}
