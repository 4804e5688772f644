//! Maglev's table: consistent hashing with one look-up (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Every backend has its own preference order of the slots, derived from its name. In rounds, each
//! takes the first slot of its order that is still free, until all are taken. So slots spread
//! evenly, and when a backend goes, few slots change hands but its own.
//!
//! Four deviations from the paper:
//!
//! - Orders are keyed by the fleet's secret: nobody outside can compute who owns a slot.
//! - The paper's order is an arithmetic progression, offset and step. Two steps in a small ratio follow
//!   each other's tracks, and then a removal moves several times as many slots as it should: measured
//!   here, 2 % too many instead of 0.4 % in one table of 250. A generator of pseudo-random numbers
//!   costs as little per probe and has no tracks. It may name a slot twice; that is harmless.
//! - A backend of lower weight sits out rounds: its accumulated weight must pass the highest for a claim.
//! - The rounds of all claims are worked out first and sorted by counting, which makes the cost one
//!   step per claim even with extreme weights, where walking all backends in every round would mostly
//!   find ones that sit out.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hasher;

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::flow::{Secret, slot};

/// Entries are 16 bits wide, and one value means "free" while a table is filled.
pub const MAX_BACKENDS: usize = 65_534;
/// The largest table: the packet program's maps have this many entries.
pub const MAX_SIZE: u32 = 655_373;

/// Why a table cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The table size is not prime. Any would do here; fleets and the packet program agree on primes.
    NotPrime(u32),
    /// Larger than [`MAX_SIZE`].
    TooLarge(u32),
    /// Fewer slots than backends.
    TooSmall {
        /// The size asked for.
        size: u32,
        /// Backends with weight.
        backends: usize,
    },
    /// More than [`MAX_BACKENDS`].
    TooManyBackends(usize),
    /// Two backends would claim the same slots.
    DuplicateName,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableError::NotPrime(size) => {
                write!(f, "the table size must be a prime number, {size} is not")
            }
            TableError::TooLarge(size) => {
                write!(f, "the table size is at most {MAX_SIZE}, not {size}")
            }
            TableError::TooSmall { size, backends } => {
                write!(f, "{backends} backends need a table larger than {size}")
            }
            TableError::TooManyBackends(count) => {
                write!(f, "{count} backends are more than {MAX_BACKENDS}")
            }
            TableError::DuplicateName => f.write_str("two backends have the same name"),
        }
    }
}

impl core::error::Error for TableError {}

/// Who owns which slot. Entries are indexes of backends in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    slots: Vec<u16>,
    size: u32,
    counts: Vec<u32>,
    owners: usize,
    digest: u128,
}

impl Table {
    /// Build from names and weights, in any order: slots depend on names, weights, size and secret
    /// only. Weight 0 owns nothing; with no weight at all the table is empty.
    pub fn build(
        secret: &Secret,
        backends: &[(&str, u32)],
        size: u32,
    ) -> Result<Table, TableError> {
        if size > MAX_SIZE {
            return Err(TableError::TooLarge(size));
        }
        if !is_prime(size) {
            return Err(TableError::NotPrime(size));
        }
        if backends.len() > MAX_BACKENDS {
            return Err(TableError::TooManyBackends(backends.len()));
        }
        let mut sorted: Vec<(&str, u32, u16)> = (0..)
            .zip(backends)
            .map(|(index, (name, weight))| (*name, *weight, index))
            .collect();
        sorted.sort_unstable();
        if sorted
            .iter()
            .zip(sorted.iter().skip(1))
            .any(|(a, b)| a.0 == b.0)
        {
            return Err(TableError::DuplicateName);
        }
        let claimants: Vec<Claimant> = sorted
            .iter()
            .filter(|(_, weight, _)| *weight > 0)
            .map(|entry| Claimant::new(secret, entry))
            .collect();
        if claimants.len() > size as usize {
            return Err(TableError::TooSmall {
                size,
                backends: claimants.len(),
            });
        }
        let slots = if claimants.is_empty() {
            Vec::new()
        } else {
            fill(claimants, size)
        };
        let mut counts = vec![0; backends.len()];
        for index in &slots {
            if let Some(count) = counts.get_mut(usize::from(*index)) {
                *count += 1;
            }
        }
        let owners = counts.iter().filter(|count| **count > 0).count();
        let digest = digest(&sorted, &slots, size);
        Ok(Table {
            slots,
            size,
            counts,
            owners,
            digest,
        })
    }

    /// The owner of the slot that `hash` falls into.
    #[inline]
    pub fn pick(&self, hash: u64) -> Option<u16> {
        self.slots.get(slot(hash, self.size) as usize).copied()
    }

    /// The preference order of a key: its slot's owner, then each other owner in the order in which
    /// they come up in the slots that follow.
    ///
    /// The first costs what [`pick`](Table::pick) costs. Those after it are wanted only when a backend
    /// is down or refuses, and pay for remembering who has been met.
    #[inline]
    pub fn walk(&self, hash: u64) -> Walk<'_> {
        Walk {
            table: self,
            at: slot(hash, self.size) as usize,
            first: None,
            met: Vec::new(),
            unmet: self.owners,
        }
    }

    /// The number of slots, a prime.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The owner of every slot; empty if no backend has weight.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// How many slots each backend owns.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// A fingerprint (SipHash-2-4-128 under a public key) of size, names, weights and slots that does
    /// not depend on the order of the configuration: equal on every balancer that decides equally.
    pub fn digest(&self) -> u128 {
        self.digest
    }
}

/// The distinct owners along a key's slots, see [`Table::walk`].
pub struct Walk<'a> {
    table: &'a Table,
    at: usize,
    first: Option<u16>,
    /// A bit for each backend that came up, empty until a second one is asked for.
    met: Vec<u64>,
    unmet: usize,
}

impl Walk<'_> {
    /// Note that `index` came up; false if it had before.
    fn meet(&mut self, index: u16) -> bool {
        let Some(word) = self.met.get_mut(usize::from(index >> 6)) else {
            return false;
        };
        let bit = 1 << (index & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Go on to the next owner that has not come up. There is one while `unmet` is above 0.
    #[cold]
    fn go_on(&mut self, first: u16) -> Option<u16> {
        if self.met.is_empty() {
            self.met = vec![0; self.table.counts.len().div_ceil(64)];
            self.meet(first);
        }
        for _ in 0..self.table.slots.len() {
            self.at += 1;
            if self.at == self.table.slots.len() {
                self.at = 0;
            }
            let index = self.table.slots.get(self.at).copied()?;
            if self.meet(index) {
                return Some(index);
            }
        }
        None
    }
}

impl Iterator for Walk<'_> {
    type Item = u16;

    #[inline]
    fn next(&mut self) -> Option<u16> {
        self.unmet = self.unmet.checked_sub(1)?;
        match self.first {
            Some(first) => self.go_on(first),
            None => {
                self.first = self.table.slots.get(self.at).copied();
                self.first
            }
        }
    }
}

/// A backend while the table is filled.
pub(crate) struct Claimant {
    index: u16,
    weight: u32,
    state: u64,
    increment: u64,
}

/// Knuth's multiplier for linear congruences modulo 2^64 (MMIX; TAOCP 2, 3.3.4, table 1).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

impl Claimant {
    pub(crate) fn new(secret: &Secret, (name, weight, index): &(&str, u32, u16)) -> Claimant {
        let hash = |domain: &[u8]| {
            let mut hasher = SipHasher13::new_with_key(secret.as_bytes());
            hasher.write(domain);
            hasher.write(name.as_bytes());
            hasher.finish()
        };
        // Odd, so that the period is 2^64 and every slot comes up.
        Claimant {
            index: *index,
            weight: *weight,
            state: hash(b"maglev state\0"),
            increment: hash(b"maglev increment\0") | 1,
        }
    }

    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// The next slot of its order: the high half of the state, scaled down.
    #[inline]
    pub(crate) fn next(&mut self, size: u32) -> u32 {
        self.state = self
            .state
            .wrapping_mul(MULTIPLIER)
            .wrapping_add(self.increment);
        slot(self.state, size)
    }
}

/// Slots taken, a bit each: 8 KiB for 65537 slots, so that probing stays in the first-level cache.
struct Occupancy(Vec<u64>);

impl Occupancy {
    /// Take `slot`; false if it was taken.
    #[inline]
    fn take(&mut self, slot: u32) -> bool {
        let Some(word) = self.0.get_mut((slot >> 6) as usize) else {
            return false;
        };
        let bit = 1 << (slot & 63);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }
}

fn fill(mut claimants: Vec<Claimant>, size: u32) -> Vec<u16> {
    let order = claims(&claimants, size);
    let mut slots = vec![0; size as usize];
    let mut taken = Occupancy(vec![0; (size as usize).div_ceil(64)]);
    for place in order {
        let Some(claimant) = claimants.get_mut(place as usize) else {
            continue;
        };
        // Ends: there are as many claims as slots, and each slot comes up again and again.
        let claimed = loop {
            let candidate = claimant.next(size);
            if taken.take(candidate) {
                break candidate;
            }
        };
        if let Some(entry) = slots.get_mut(claimed as usize) {
            *entry = claimant.index;
        }
    }
    slots
}

/// Who claims, in order: `size` places in `claimants`.
///
/// Each round adds every weight to its owner's accumulator; one that reaches the highest weight claims
/// and pays it. So the k-th claim (from 1) of weight w falls into round ceil(k * highest / w).
pub(crate) fn claims(claimants: &[Claimant], size: u32) -> Vec<u32> {
    let highest = claimants
        .iter()
        .map(|claimant| u64::from(claimant.weight))
        .max()
        .unwrap_or(1);
    let total: u64 = claimants
        .iter()
        .map(|claimant| u64::from(claimant.weight))
        .sum();
    // After r rounds there are at least r * total / highest - n claims.
    let enough = u64::from(size) + claimants.len() as u64;
    let rounds = (enough * highest)
        .div_ceil(total.max(1))
        .min(u64::from(size))
        + 1;
    // Claims by round: count, sum up, place. Ties within a round keep the order of names.
    let mut starts = vec![0_u32; rounds as usize + 2];
    let each = |claimant: &Claimant, mut visit: &mut dyn FnMut(u64)| {
        let weight = u64::from(claimant.weight);
        if weight == highest {
            (1..=rounds).for_each(&mut visit);
            return;
        }
        // ceil(k * highest / weight) for k = 1, 2, …, without a division for each.
        let (quotient, remainder) = (highest / weight, highest % weight);
        let (mut round, mut excess) = (0, 0);
        loop {
            round += quotient;
            excess += remainder;
            if excess >= weight {
                excess -= weight;
                round += 1;
            }
            let claim = round + u64::from(excess > 0);
            if claim > rounds {
                return;
            }
            visit(claim);
        }
    };
    for claimant in claimants {
        each(claimant, &mut |round| {
            if let Some(count) = starts.get_mut(round as usize + 1) {
                *count += 1;
            }
        });
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    let mut order = vec![0_u32; size as usize];
    for (place, claimant) in (0_u32..).zip(claimants) {
        each(claimant, &mut |round| {
            if let Some(next) = starts.get_mut(round as usize) {
                // Claims after the last free slot fall off the end.
                if let Some(entry) = order.get_mut(*next as usize) {
                    *entry = place;
                }
                *next += 1;
            }
        });
    }
    order
}

fn digest(sorted: &[(&str, u32, u16)], slots: &[u16], size: u32) -> u128 {
    let mut hasher = SipHasher24::new_with_key(b"pybalancer table");
    hasher.write(&size.to_le_bytes());
    let mut ranks = vec![0_u16; sorted.len()];
    for (rank, (name, weight, index)) in (0..).zip(sorted) {
        hasher.write(&(name.len() as u64).to_le_bytes());
        hasher.write(name.as_bytes());
        hasher.write(&weight.to_le_bytes());
        if let Some(place) = ranks.get_mut(usize::from(*index)) {
            *place = rank;
        }
    }
    let bytes: Vec<u8> = slots
        .iter()
        .flat_map(|index| {
            ranks
                .get(usize::from(*index))
                .copied()
                .unwrap_or(u16::MAX)
                .to_le_bytes()
        })
        .collect();
    hasher.write(&bytes);
    hasher.finish128().as_u128()
}

fn is_prime(number: u32) -> bool {
    let divides = |divisor: &u32| number.is_multiple_of(*divisor);
    number >= 2
        && !(2..)
            .take_while(|divisor| u64::from(*divisor).pow(2) <= u64::from(number))
            .any(|d| divides(&d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::format;
    use std::string::String;

    const PRIMES: [u32; 4] = [251, 1021, 4093, 16381];

    fn secret(seed: u8) -> Secret {
        Secret::from_bytes([seed; 16])
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("backend-{index}")).collect()
    }

    fn build(seed: u8, names: &[String], weights: &[u32], size: u32) -> Table {
        let backends: Vec<(&str, u32)> = names
            .iter()
            .map(String::as_str)
            .zip(weights.iter().copied())
            .collect();
        Table::build(&secret(seed), &backends, size).unwrap()
    }

    proptest! {
        #[test]
        fn equal_weights_differ_by_one_slot_at_most(seed: u8, count in 1..200_usize, prime in 0..4_usize) {
            let table = build(seed, &names(count), &std::vec![7; count], PRIMES[prime]);
            let counts = table.counts();
            prop_assert_eq!(counts.len(), count);
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        }

        #[test]
        fn order_of_the_list_does_not_matter(seed: u8, weights in prop::collection::vec(0..9_u32, 1..30), turn in 0..30_usize) {
            let all = names(weights.len());
            let mut backends: Vec<(&str, u32)> = all.iter().map(String::as_str).zip(weights.iter().copied()).collect();
            let one = Table::build(&secret(seed), &backends, 1021).unwrap();
            let owner = |table: &Table, list: &[(&str, u32)]| -> Vec<String> {
                table.slots().iter().map(|index| String::from(list[usize::from(*index)].0)).collect()
            };
            let first = owner(&one, &backends);
            backends.rotate_left(turn % weights.len());
            backends.reverse();
            let two = Table::build(&secret(seed), &backends, 1021).unwrap();
            prop_assert_eq!(first, owner(&two, &backends));
            prop_assert_eq!(one.digest(), two.digest());
        }

        #[test]
        fn a_walk_meets_every_owner_once(seed: u8, hash: u64, count in 1..50_usize) {
            let table = build(seed, &names(count), &std::vec![1; count], 251);
            let order: Vec<u16> = table.walk(hash).collect();
            prop_assert_eq!(order.first().copied(), table.pick(hash));
            prop_assert_eq!(order.len(), count);
            prop_assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), count);
        }
    }

    proptest! {
        // Each case builds tables of the default size.
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn slots_follow_weights(seed: u8, weights in prop::collection::vec(0..65_535_u32, 1..40)) {
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assume!(total > 0);
            let table = build(seed, &names(weights.len()), &weights, 65537);
            let counts = table.counts();
            for (index, weight) in weights.iter().enumerate() {
                let share = f64::from(counts.get(index).copied().unwrap_or(0)) / 65537.0;
                let wanted = f64::from(*weight) / total as f64;
                prop_assert!((share - wanted).abs() <= 0.01, "{share} for {wanted}");
            }
        }

        #[test]
        fn a_removal_moves_little_but_its_own(seed: u8, count in 2..60_usize, gone in 0..60_usize) {
            let gone = gone % count;
            let all = names(count);
            let mut weights = std::vec![1; count];
            let before = build(seed, &all, &weights, 65537);
            weights[gone] = 0;
            let after = build(seed, &all, &weights, 65537);
            let moved = before.slots().iter().zip(after.slots()).filter(|(a, b)| a != b).count();
            prop_assert!(moved as f64 / 65537.0 <= 1.0 / count as f64 + 0.01, "{moved} of {count}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let try_build =
            |backends: &[(&str, u32)], size| Table::build(&secret(0), backends, size).unwrap_err();
        assert_eq!(try_build(&[("a", 1)], 1000), TableError::NotPrime(1000));
        assert_eq!(
            try_build(&[("a", 1)], 655_379),
            TableError::TooLarge(655_379)
        );
        assert_eq!(
            try_build(&[("a", 1), ("a", 2)], 251),
            TableError::DuplicateName
        );
        assert_eq!(
            try_build(&[("a", 1), ("b", 1), ("c", 1)], 2),
            TableError::TooSmall {
                size: 2,
                backends: 3
            }
        );
    }

    #[test]
    fn without_weight_there_is_nobody() {
        let table = Table::build(&secret(0), &[("a", 0)], 251).unwrap();
        assert_eq!(
            (table.pick(9), table.walk(9).next(), table.counts()),
            (None, None, [0].as_slice())
        );
    }

    #[test]
    fn the_digest_tells_weights_names_and_secrets_apart() {
        let digest = |seed, name, weight| {
            Table::build(&secret(seed), &[(name, weight), ("b", 1)], 251)
                .unwrap()
                .digest()
        };
        let digests = BTreeSet::from([
            digest(0, "a", 1),
            digest(1, "a", 1),
            digest(0, "c", 1),
            digest(0, "a", 2),
        ]);
        assert_eq!(digests.len(), 4);
    }
}
