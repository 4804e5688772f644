//! Who takes the next tunnel: pool states and the four policies.
//!
//! A pick is a pure function of the plan, the key, the live loads and what was tried before. The
//! Maglev table holds every backend that has weight, whatever its health: a backend that goes down
//! is passed over by its own keys only, each of which goes to the next different backend in the
//! table, and comes back to where it was. All other keys stay.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::endpoint::Endpoint;
use crate::flow::Secret;
use crate::maglev::Table;
use crate::plan::check_name;

pub use crate::route::Key;

/// How a backend is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// By hash of the key: the same key goes to the same backend (Eisenbud et al., NSDI 2016).
    Maglev,
    /// The fewest live tunnels in proportion to weight.
    LeastConnections,
    /// In turn, in proportion to weight, evenly interleaved.
    RoundRobin,
    /// The less loaded of two drawn at random (Mitzenmacher, 2001).
    RandomTwo,
}

/// Whether a backend takes new tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes new tunnels.
    Up,
    /// Does not answer.
    Down,
    /// Keeps what it has, takes nothing new.
    Draining,
}

/// Full ramp: a backend that takes all of its keys.
pub const FULL_RAMP: u32 = 1 << 16;

/// One server of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Known by this name over reloads; its place in the table depends on nothing else.
    pub name: Arc<str>,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Share relative to the others; 0 takes nothing new.
    pub weight: u32,
    /// Health and administrative state in one.
    pub state: State,
    /// Share of its keys that it takes during slow start, of [`FULL_RAMP`].
    pub ramp: u32,
}

impl Backend {
    fn takes_new(&self) -> bool {
        self.state == State::Up && self.weight > 0
    }

    /// Weight scaled by slow start, never 0 for a backend that takes new tunnels.
    fn effective_weight(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.ramp.max(1))
    }
}

/// Backends that serve the same thing.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Known by this name over reloads.
    pub name: Arc<str>,
    /// How one is picked.
    pub policy: Policy,
    /// What is hashed.
    pub key: Key,
    /// Bounded loads: a backend above this many times its fair share passes keys on
    /// (Mirrokni, Thorup, Zadimoghaddam, SODA 2018).
    pub max_skew: Option<f64>,
    /// In configuration order; the table's entries index it.
    pub backends: Vec<Backend>,
    /// Every backend with weight, whatever its health.
    pub table: Arc<Table>,
    /// Those that take new tunnels, repeated by weight and evenly interleaved.
    rotation: Vec<u16>,
}

/// What a pick depends on besides the plan.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Hash of the client's key.
    pub hash: u64,
    /// For round-robin a running count, for random-two a random number.
    pub entropy: u64,
}

/// What a backend has to do at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Live tunnels, and clients that were sent to it a while ago.
    pub tunnels: u32,
    /// How much of it is free by its own account, of [`FULL_RAMP`]: its weight counts by that much
    /// where loads are compared.
    pub free: u32,
}

impl From<u32> for Load {
    /// Of one that has told nothing of itself.
    fn from(tunnels: u32) -> Load {
        let free = FULL_RAMP;
        Load { tunnels, free }
    }
}

impl Load {
    /// What is free of a backend that says it is this busy: 0 is idle, 1 full. The fullest counts as a
    /// sixty-fourth of its weight, so that of backends that are all full the emptier one is still told.
    pub fn free_of(busy: f64) -> u32 {
        let free = (1.0 - busy).clamp(1.0 / 64.0, 1.0);
        // A number that is none clamps to none, and none casts to 0.
        ((free * f64::from(FULL_RAMP)) as u32).max(FULL_RAMP / 64)
    }
}

/// Why a backend stands where it stands in a key's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Takes the key.
    Picked,
    /// Would be asked if those before it refused.
    Next,
    /// Passed over: down.
    Down,
    /// Passed over: draining.
    Draining,
    /// Passed over: weight 0.
    Weightless,
    /// Passed over: above `max_skew` times its fair share.
    OverSkew,
    /// Passed over: this key is not yet among those it takes while it warms up.
    SlowStart,
}

impl Pool {
    /// Check the parts and build the table, or share `previous`' one where names and weights agree.
    #[allow(
        clippy::too_many_arguments,
        reason = "these are the fields of one record"
    )]
    pub fn new(
        name: Arc<str>,
        policy: Policy,
        key: Key,
        max_skew: Option<f64>,
        backends: Vec<Backend>,
        table_size: u32,
        secret: &Secret,
        previous: Option<&Pool>,
    ) -> Result<Pool, String> {
        let mut names = BTreeSet::new();
        for backend in &backends {
            check_name("backend", &backend.name)?;
            if !names.insert(&backend.name) {
                return Err(format!(
                    "pool {name:?}: two backends are named {:?}",
                    backend.name
                ));
            }
        }
        if max_skew.is_some_and(|skew| !(skew > 1.0 && skew.is_finite())) {
            return Err(format!(
                "pool {name:?}: max_skew is a number above 1, such as 1.25"
            ));
        }
        let reusable = previous.filter(|old| {
            old.table.size() == table_size
                && old.backends.len() == backends.len()
                && old
                    .backends
                    .iter()
                    .zip(&backends)
                    .all(|(a, b)| a.name == b.name && a.weight == b.weight)
        });
        let table = match reusable {
            Some(old) => Arc::clone(&old.table),
            None => {
                let weighted: Vec<(&str, u32)> =
                    backends.iter().map(|b| (&*b.name, b.weight)).collect();
                let table = Table::build(secret, &weighted, table_size)
                    .map_err(|error| format!("pool {name:?}: {error}"))?;
                Arc::new(table)
            }
        };
        let rotation = match policy {
            Policy::RoundRobin | Policy::RandomTwo => interleave(&backends),
            Policy::Maglev | Policy::LeastConnections => Vec::new(),
        };
        Ok(Pool {
            name,
            policy,
            key,
            max_skew,
            backends,
            table,
            rotation,
        })
    }

    /// The index of the backend of that name, if it keeps clients that are bound to it: also one that
    /// takes no new ones.
    pub fn bound_to(&self, name: &str) -> Option<u16> {
        let found = (self.backends.iter()).position(|backend| &*backend.name == name)?;
        let there = (self.backends.get(found)).is_some_and(|backend| backend.state != State::Down);
        u16::try_from(found).ok().filter(|_| there)
    }

    /// The backend for the next tunnel, as an index, or None if none can take it.
    ///
    /// `load` tells the live tunnels of a backend; `tried` are those that have refused this client.
    pub fn pick(&self, draw: Draw, load: impl Fn(usize) -> u32, tried: &[u16]) -> Option<u16> {
        self.pick_by(draw, |index| Load::from(load(index)), tried)
    }

    /// The same where backends tell of their load themselves.
    pub fn pick_by(&self, draw: Draw, load: impl Fn(usize) -> Load, tried: &[u16]) -> Option<u16> {
        let open = |index: u16| {
            !tried.contains(&index)
                && self
                    .backends
                    .get(usize::from(index))
                    .is_some_and(Backend::takes_new)
        };
        match self.policy {
            Policy::Maglev => self.pick_by_table(draw.hash, load, open),
            Policy::LeastConnections => self.least_loaded(draw.hash, load, open),
            Policy::RoundRobin => self.rotate(draw.entropy, open),
            Policy::RandomTwo => {
                let first = self.rotate(draw.entropy & 0xffff_ffff, open)?;
                let second = self.rotate(draw.entropy >> 32, |index| index != first && open(index));
                Some(
                    second
                        .filter(|second| self.lighter(*second, first, &load))
                        .unwrap_or(first),
                )
            }
        }
    }

    /// Whether a tunnel `here` would be placed elsewhere today. Where loads or turns decide, any other place
    /// is as good.
    pub fn is_misplaced(
        &self,
        draw: Draw,
        load: impl Fn(usize) -> u32,
        here: impl Fn(u16) -> bool,
    ) -> bool {
        self.policy != Policy::Maglev || self.pick(draw, load, &[]).is_some_and(|at| !here(at))
    }

    fn pick_by_table(
        &self,
        hash: u64,
        load: impl Fn(usize) -> Load,
        open: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let bound = self.bound(&load);
        let mut second_best = None;
        for index in self.preference(hash) {
            if !open(index) {
                continue;
            }
            let Some(backend) = self.backends.get(usize::from(index)) else {
                continue;
            };
            if admits(backend, hash) && bound.admits(backend, load(usize::from(index))) {
                return Some(index);
            }
            // Slow start and bounded loads shift keys while there is somewhere to shift them to;
            // they never turn a client away.
            second_best = second_best.or(Some(index));
        }
        second_best
    }

    /// The order in which a key would try backends: as the table says, then those whose weight is so
    /// small beside the others' that they own no slot. Nobody prefers them, but they are there.
    fn preference(&self, hash: u64) -> impl Iterator<Item = u16> {
        let count = u16::try_from(self.backends.len()).unwrap_or(u16::MAX);
        let start = crate::flow::slot(hash, u32::from(count)) as u16;
        let slotless = move |index: &u16| {
            let place = usize::from(*index);
            self.table.counts().get(place) == Some(&0)
                && self.backends.get(place).is_some_and(|b| b.weight > 0)
        };
        let rest = (start..count).chain(0..start).filter(slotless);
        self.table.walk(hash).chain(rest)
    }

    fn bound(&self, load: &impl Fn(usize) -> Load) -> Bound {
        let Some(skew) = self.max_skew else {
            return Bound {
                per_weight: f64::INFINITY,
            };
        };
        let (mut tunnels, mut weight) = (1.0, 0.0);
        for (index, backend) in self.backends.iter().enumerate() {
            if backend.takes_new() {
                let load = load(index);
                tunnels += f64::from(load.tunnels);
                weight += weight_of(backend, load);
            }
        }
        Bound {
            per_weight: skew * tunnels / weight,
        }
    }

    fn least_loaded(
        &self,
        hash: u64,
        load: impl Fn(usize) -> Load,
        open: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        // Ties are common (all idle): start the scan at a place that the key chooses, so that they
        // do not all go to the first backend of the file.
        let count = self.backends.len();
        let start = crate::flow::slot(hash, u32::try_from(count).ok()?) as usize;
        let order = (start..count).chain(0..start);
        let mut best: Option<u16> = None;
        for index in order {
            let index = u16::try_from(index).ok()?;
            if open(index) && best.is_none_or(|best| self.lighter(index, best, &load)) {
                best = Some(index);
            }
        }
        best
    }

    /// Whether `a` would be less loaded than `b`, in proportion to weight, with one more tunnel.
    fn lighter(&self, a: u16, b: u16, load: &impl Fn(usize) -> Load) -> bool {
        let cost = |index: u16| {
            let load = load(usize::from(index));
            let backend = self.backends.get(usize::from(index));
            let weight = backend.map_or(1, Backend::effective_weight) * u64::from(load.free);
            (u128::from(load.tunnels) + 1, u128::from(weight.max(1)))
        };
        let ((load_a, weight_a), (load_b, weight_b)) = (cost(a), cost(b));
        load_a * weight_b < load_b * weight_a
    }

    fn rotate(&self, turn: u64, open: impl Fn(u16) -> bool) -> Option<u16> {
        let length = self.rotation.len();
        let start = usize::try_from(turn % u64::try_from(length).ok().filter(|n| *n > 0)?).ok()?;
        let (before, after) = self.rotation.split_at(start);
        after
            .iter()
            .chain(before)
            .copied()
            .find(|index| open(*index))
    }

    /// Every backend in the order in which this key would try them, and why.
    ///
    /// For policies that depend on load or turn the order is that of this moment.
    pub fn explain(&self, draw: Draw, load: impl Fn(usize) -> u32) -> Vec<(u16, Verdict)> {
        self.explain_by(draw, |index| Load::from(load(index)))
    }

    /// The same where backends tell of their load themselves.
    pub fn explain_by(&self, draw: Draw, load: impl Fn(usize) -> Load) -> Vec<(u16, Verdict)> {
        let mut order = Vec::with_capacity(self.backends.len());
        let mut tried = Vec::new();
        if self.policy == Policy::Maglev {
            let bound = self.bound(&load);
            let picked = self.pick_by(draw, &load, &[]);
            for index in self.preference(draw.hash) {
                let Some(backend) = self.backends.get(usize::from(index)) else {
                    continue;
                };
                let verdict = match backend.state {
                    State::Down => Verdict::Down,
                    State::Draining => Verdict::Draining,
                    State::Up if picked == Some(index) => Verdict::Picked,
                    State::Up if !admits(backend, draw.hash) => Verdict::SlowStart,
                    State::Up if !bound.admits(backend, load(usize::from(index))) => {
                        Verdict::OverSkew
                    }
                    State::Up => Verdict::Next,
                };
                order.push((index, verdict));
                tried.push(index);
            }
        } else {
            while let Some(index) = self.pick_by(draw, &load, &tried) {
                order.push((
                    index,
                    if tried.is_empty() {
                        Verdict::Picked
                    } else {
                        Verdict::Next
                    },
                ));
                tried.push(index);
            }
        }
        for (index, backend) in self.backends.iter().enumerate() {
            let Ok(index) = u16::try_from(index) else {
                break;
            };
            if !tried.contains(&index) {
                let verdict = match backend.state {
                    _ if backend.weight == 0 => Verdict::Weightless,
                    State::Draining => Verdict::Draining,
                    State::Up | State::Down => Verdict::Down,
                };
                order.push((index, verdict));
            }
        }
        order
    }
}

/// The load above which a backend passes keys on.
struct Bound {
    per_weight: f64,
}

impl Bound {
    /// Whether one more tunnel keeps `backend` within ⌈skew · mean⌉ by weight.
    fn admits(&self, backend: &Backend, load: Load) -> bool {
        // load + 1 <= ceil(limit) is load < limit for a whole number load.
        f64::from(load.tunnels) < self.per_weight * weight_of(backend, load)
    }
}

/// Its weight, as far as it is free.
fn weight_of(backend: &Backend, load: Load) -> f64 {
    f64::from(backend.weight) * f64::from(load.free) / f64::from(FULL_RAMP)
}

/// Whether slow start lets `backend` take the key: the low half of the hash decides, since the
/// table looks at the high half, so that each backend warms up with a stable, growing set of keys.
fn admits(backend: &Backend, hash: u64) -> bool {
    backend.ramp >= FULL_RAMP || (hash & u64::from(FULL_RAMP - 1)) < u64::from(backend.ramp)
}

/// Longest rotation kept; weights beyond it are scaled down, to within one part in this many.
const MAX_ROTATION: u64 = 16_384;

/// Smooth weighted round-robin: each backend as often as its weight says, spread evenly.
fn interleave(backends: &[Backend]) -> Vec<u16> {
    let open: Vec<(u16, u64)> = backends
        .iter()
        .enumerate()
        .filter(|(_, backend)| backend.takes_new())
        .filter_map(|(index, backend)| {
            Some((u16::try_from(index).ok()?, backend.effective_weight()))
        })
        .collect();
    let divisor = open
        .iter()
        .fold(0, |divisor, (_, weight)| gcd(divisor, *weight))
        .max(1);
    let total: u64 = open.iter().map(|(_, weight)| weight / divisor).sum();
    let scale = total.div_ceil(MAX_ROTATION).max(1);
    // The k-th turn (from 0) of a backend with n turns belongs at (k + 1/2) / n of the round:
    // sorting all turns by that place interleaves them without a running state per pick.
    let mut turns: Vec<(u64, u16)> = Vec::new();
    for (index, weight) in open {
        let count = (weight / divisor / scale).max(1);
        turns.extend(
            (0..count).map(|turn| ((2 * turn + 1) * (u64::from(u32::MAX) / (2 * count)), index)),
        );
    }
    turns.sort_unstable();
    let mut rotation = vec![0; turns.len()];
    for (place, (_, index)) in rotation.iter_mut().zip(turns) {
        *place = index;
    }
    rotation
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn pool(policy: Policy, weights: &[u32], max_skew: Option<f64>) -> Pool {
        let backends = weights
            .iter()
            .enumerate()
            .map(|(index, weight)| Backend {
                name: format!("b{index}").into(),
                endpoint: "127.0.0.1:1".to_string().parse().unwrap(),
                weight: *weight,
                state: State::Up,
                ramp: FULL_RAMP,
            })
            .collect();
        let secret = Secret::from_bytes([7; 16]);
        Pool::new(
            "p".into(),
            policy,
            Key::Source,
            max_skew,
            backends,
            1009,
            &secret,
            None,
        )
        .unwrap()
    }

    fn draw(n: u64) -> Draw {
        let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Draw { hash, entropy: n }
    }

    const POLICIES: [Policy; 4] = [
        Policy::Maglev,
        Policy::LeastConnections,
        Policy::RoundRobin,
        Policy::RandomTwo,
    ];

    fn with_states(mut pool: Pool, states: &[State]) -> Pool {
        for (backend, state) in pool.backends.iter_mut().zip(states) {
            backend.state = *state;
        }
        let secret = Secret::from_bytes([7; 16]);
        let old = pool.clone();
        Pool::new(
            pool.name,
            pool.policy,
            pool.key,
            pool.max_skew,
            pool.backends,
            1009,
            &secret,
            Some(&old),
        )
        .unwrap()
    }

    #[test]
    fn only_keys_of_a_down_backend_move_and_they_come_back() {
        let all = pool(Policy::Maglev, &[1, 1, 1, 1], None);
        let one_down = with_states(all.clone(), &[State::Up, State::Down, State::Up, State::Up]);
        assert!(Arc::ptr_eq(&all.table, &one_down.table));
        for n in 0..2000 {
            let (before, after) = (
                all.pick(draw(n), |_| 0, &[]),
                one_down.pick(draw(n), |_| 0, &[]),
            );
            if before == Some(1) {
                assert_eq!(
                    after,
                    all.pick(draw(n), |_| 0, &[1]),
                    "down and refused fall back alike"
                );
            } else {
                assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn a_backend_too_light_for_a_slot_is_there_when_no_other_is() {
        let light = pool(Policy::Maglev, &[65_535, 65_535, 1], None);
        assert_eq!(light.table.counts()[2], 0);
        let alone = with_states(light, &[State::Down, State::Down]);
        for n in 0..50 {
            assert_eq!(alone.pick(draw(n), |_| 0, &[]), Some(2));
            let order = alone.explain(draw(n), |_| 0);
            assert!(order.contains(&(2, Verdict::Picked)), "{order:?}");
        }
    }

    #[test]
    fn no_policy_picks_what_is_down_draining_weightless_or_tried() {
        for policy in POLICIES {
            let pool = with_states(
                pool(policy, &[1, 1, 1, 0, 1], None),
                &[State::Down, State::Draining],
            );
            for n in 0..200 {
                assert_eq!(pool.pick(draw(n), |_| 0, &[2]), Some(4), "{policy:?}");
                assert_eq!(pool.pick(draw(n), |_| 0, &[2, 4]), None, "{policy:?}");
            }
        }
    }

    #[test]
    fn round_robin_keeps_weights_exactly_and_evenly() {
        let pool = pool(Policy::RoundRobin, &[3, 1, 2], None);
        let picks: Vec<u16> = (0..6)
            .map(|n| pool.pick(draw(n), |_| 0, &[]).unwrap())
            .collect();
        for (index, weight) in [(0, 3), (1, 1), (2, 2)] {
            assert_eq!(picks.iter().filter(|pick| **pick == index).count(), weight);
        }
        assert!(picks.windows(2).all(|pair| pair[0] != pair[1]), "{picks:?}");
    }

    #[test]
    fn least_connections_fills_by_weight() {
        let pool = pool(Policy::LeastConnections, &[1, 3], None);
        let mut loads = [0_u32; 2];
        for n in 0..400 {
            let pick = pool.pick(draw(n), |index| loads[index], &[]).unwrap();
            loads[usize::from(pick)] += 1;
        }
        assert_eq!(loads, [100, 300]);
    }

    #[test]
    fn who_says_that_it_is_busy_gets_less() {
        let half = |index: usize| {
            if index == 0 {
                Load::free_of(0.75)
            } else {
                FULL_RAMP
            }
        };
        for policy in [Policy::LeastConnections, Policy::RandomTwo, Policy::Maglev] {
            let pool = pool(policy, &[1, 1], Some(1.05));
            let mut tunnels = [0_u32; 2];
            for n in 0..1000_u64 {
                let load = |index: usize| Load {
                    tunnels: tunnels[index],
                    free: half(index),
                };
                let draw = Draw {
                    hash: draw(n).hash,
                    entropy: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                };
                tunnels[usize::from(pool.pick_by(draw, load, &[]).unwrap())] += 1;
            }
            // A quarter of one and all of the other: one fifth.
            assert!((180..=215).contains(&tunnels[0]), "{policy:?} {tunnels:?}");
        }
        assert_eq!(Load::free_of(0.0), FULL_RAMP);
        for busy in [1.0, 7.0, f64::INFINITY, f64::NAN] {
            assert_eq!(Load::free_of(busy), FULL_RAMP / 64);
        }
        assert_eq!(Load::free_of(-1.0), FULL_RAMP);
    }

    #[test]
    fn random_two_prefers_the_lighter() {
        let pool = pool(Policy::RandomTwo, &[1, 1], None);
        for n in 0..100_u64 {
            let entropy = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            assert_eq!(
                pool.pick(Draw { hash: 0, entropy }, |index| [9, 1][index], &[]),
                Some(1)
            );
        }
    }

    #[test]
    fn slow_start_grows_with_the_ramp_and_never_refuses() {
        let mut warming = pool(Policy::Maglev, &[1, 1], None);
        warming.backends[0].ramp = FULL_RAMP / 4;
        let full = pool(Policy::Maglev, &[1, 1], None);
        let share = |pool: &Pool| {
            (0..4000)
                .filter(|n| pool.pick(draw(*n), |_| 0, &[]) == Some(0))
                .count()
        };
        let (cold, warm) = (share(&warming), share(&full));
        assert!(
            (0.15..0.35).contains(&(cold as f64 / warm as f64)),
            "{cold} of {warm}"
        );
        assert!((0..400).all(|n| warming.pick(draw(n), |_| 0, &[1]) == Some(0)));
    }

    #[test]
    fn explain_names_every_backend_once_and_the_one_that_is_picked() {
        for policy in POLICIES {
            let pool = with_states(pool(policy, &[1, 1, 1, 0], None), &[State::Up, State::Down]);
            for n in 0..50 {
                let order = pool.explain(draw(n), |_| 0);
                let mut seen: Vec<u16> = order.iter().map(|(index, _)| *index).collect();
                seen.sort_unstable();
                assert_eq!(seen, [0, 1, 2, 3]);
                let picked: Vec<_> = order
                    .iter()
                    .filter(|(_, v)| *v == Verdict::Picked)
                    .collect();
                assert_eq!(Some(picked[0].0), pool.pick(draw(n), |_| 0, &[]));
                assert_eq!(picked.len(), 1);
                assert!(
                    order.contains(&(1, Verdict::Down))
                        && order.contains(&(3, Verdict::Weightless))
                );
            }
        }
    }

    proptest! {
        #[test]
        fn bounded_loads_stay_bounded(keys in proptest::collection::vec(0_u64..20, 1..400)) {
            // Few distinct keys, so that plain hashing would pile them up.
            let pool = pool(Policy::Maglev, &[1, 1, 2], Some(1.25));
            let mut loads = [0_u32; 3];
            for key in keys {
                let pick = pool.pick(draw(key), |index| loads[index], &[]).unwrap();
                loads[usize::from(pick)] += 1;
                let total: u32 = loads.iter().sum();
                for (load, weight) in loads.iter().zip([1.0, 1.0, 2.0]) {
                    prop_assert!(f64::from(*load) <= (1.25 * f64::from(total) * weight / 4.0).ceil());
                }
            }
        }
    }
}
