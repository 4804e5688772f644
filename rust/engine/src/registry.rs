//! What outlives a plan: counts and statistics of listeners and backends, known by name.
//!
//! A reload builds a new plan; the live tunnels of a backend, and so its load, go on. So each
//! backend (pool, name, address) and each listener (name) has one entry, shared by every plan that
//! names it and every tunnel that uses it, and gone when the last of them is. Its index is also
//! that of its counters in shared memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pybalancer_core::directory::{self, Handed};
use pybalancer_core::endpoint::{Endpoint, source_group};
use pybalancer_core::pool::FULL_RAMP;
use pybalancer_core::rate::Gcra;
use pybalancer_core::time::Tick;

use crate::stats::{ENTRIES, Kind, Stats};

/// A place in the statistics, given back when dropped.
struct Slot {
    index: u32,
    stats: Arc<Stats>,
    free: Arc<Mutex<Vec<u32>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.stats.forget(self.index as usize);
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.index);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.index.fmt(f)
    }
}

/// What shall become of a backend's live tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// They go on.
    Keep,
    /// It was removed, and its pool closes such tunnels.
    Removed,
    /// It is down, and its pool closes such tunnels.
    Down,
}

/// A backend over all plans that name it.
#[derive(Debug)]
pub struct BackendEntry {
    /// Its pool.
    pub pool: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub endpoint: Endpoint,
    /// When the next tunnel of its pool may be told to go, by any drain that keeps to the pool's cap.
    pub told: Arc<AtomicU64>,
    slot: Slot,
    fate: AtomicU8,
    handed: AtomicU64,
    free: AtomicU32,
}

impl BackendEntry {
    /// Index of its counters.
    #[inline]
    pub fn index(&self) -> u32 {
        self.slot.index
    }

    /// Tunnels and connects under way, over all workers.
    #[inline]
    pub fn load(&self) -> &AtomicU32 {
        self.slot.stats.active(self.slot.index as usize)
    }

    /// Clients that were sent to it straight and whose answers, good for `span`, are good still.
    pub fn handed(&self, now: Tick, span: Duration) -> u32 {
        Handed(self.handed.load(Ordering::Relaxed)).count(now, span)
    }

    /// One more is sent there.
    pub fn hand(&self, now: Tick, span: Duration) {
        let add = |before: u64| Some(Handed(before).add(now, span).0);
        let _ = (self.handed).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// How much of it is free by its own account, of [`FULL_RAMP`].
    pub fn free(&self) -> &AtomicU32 {
        &self.free
    }

    /// What becomes of its tunnels.
    pub fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Relaxed) {
            1 => Fate::Removed,
            2 => Fate::Down,
            _ => Fate::Keep,
        }
    }

    /// Decide it.
    pub fn set_fate(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Relaxed);
    }
}

/// Per-source counts are spread over this many locks.
const SHARDS: usize = 16;

/// A listener over all plans that name it.
#[derive(Debug)]
pub struct ListenerEntry {
    /// Its name.
    pub name: Arc<str>,
    slot: Slot,
    arrival: AtomicU64,
    queued: AtomicU32,
    handshake_arrival: AtomicU64,
    handshakes_held: AtomicU32,
    told: AtomicU64,
    sources: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
}

impl ListenerEntry {
    /// Index of its counters.
    #[inline]
    pub fn index(&self) -> u32 {
        self.slot.index
    }

    /// Connections that it has, over all workers.
    pub fn live(&self) -> &AtomicU32 {
        self.slot.stats.active(self.slot.index as usize)
    }

    /// Those of them that wait for their turn.
    pub fn queued(&self) -> &AtomicU32 {
        &self.queued
    }

    /// Take one from `counter` unless that would make it more than `most` (0: any number).
    pub fn take(counter: &AtomicU32, most: u32) -> bool {
        let before = counter.fetch_add(1, Ordering::Relaxed);
        let admitted = most == 0 || before < most;
        if !admitted {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Handshakes that wait for their turn.
    pub fn handshakes_held(&self) -> &AtomicU32 {
        &self.handshakes_held
    }

    /// Whether `accept_rate` has room for one more now; else when to ask again.
    pub fn admit(&self, rate: &Gcra, now: Tick) -> Result<(), Tick> {
        Self::admit_by(&self.arrival, rate, now)
    }

    /// The same for the rate of handshakes.
    pub fn admit_handshake(&self, rate: &Gcra, now: Tick) -> Result<(), Tick> {
        Self::admit_by(&self.handshake_arrival, rate, now)
    }

    fn admit_by(at: &AtomicU64, rate: &Gcra, now: Tick) -> Result<(), Tick> {
        let mut arrival = at.load(Ordering::Relaxed);
        loop {
            let next = rate.admit(arrival, now)?;
            match at.compare_exchange_weak(arrival, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(newer) => arrival = newer,
            }
        }
    }

    /// How long a client that `handshakes` has no room for is to wait: until a turn of its own, or for a
    /// time that `random` draws, and for `most` at most.
    pub fn turn(&self, rate: &Gcra, now: Tick, most: Duration, random: u64) -> Duration {
        let mut told = self.told.load(Ordering::Relaxed);
        loop {
            let (next, wait) = directory::turn(told, now.0, rate.interval(), most, random);
            let swapped =
                (self.told).compare_exchange_weak(told, next, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return wait,
                Err(newer) => told = newer,
            }
        }
    }

    /// Count a connection from `source`, unless it has `most` already.
    pub fn enter(&self, source: IpAddr, most: u32) -> bool {
        let group = source_group(source);
        let mut counts = self
            .shard(group)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(group).or_default();
        let admitted = *count < most;
        if admitted {
            *count += 1;
        }
        admitted
    }

    /// A connection that `enter` counted has ended.
    pub fn leave(&self, source: IpAddr) {
        let group = source_group(source);
        let mut counts = self
            .shard(group)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&group);
            }
        }
    }

    fn shard(&self, group: IpAddr) -> &Mutex<HashMap<IpAddr, u32>> {
        let bits = match group {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        // Spread neighbours; which lock a source gets is no secret worth keying.
        let mixed = (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize;
        &self.sources[mixed % SHARDS]
    }
}

type BackendName = (Arc<str>, Arc<str>, Endpoint);

/// All entries.
pub struct Registry {
    stats: Arc<Stats>,
    free: Arc<Mutex<Vec<u32>>>,
    backends: HashMap<BackendName, Weak<BackendEntry>>,
    listeners: HashMap<Arc<str>, Weak<ListenerEntry>>,
    turns: HashMap<Arc<str>, Weak<AtomicU64>>,
    told: HashMap<Arc<str>, Weak<AtomicU64>>,
}

impl Registry {
    /// An empty one.
    pub fn new(stats: Arc<Stats>) -> Registry {
        // The vector is a stack: low indexes, at its end, are used first.
        let free = (0..ENTRIES as u32).rev().collect();
        Registry {
            stats,
            free: Arc::new(Mutex::new(free)),
            backends: HashMap::new(),
            listeners: HashMap::new(),
            turns: HashMap::new(),
            told: HashMap::new(),
        }
    }

    /// Forget the names of what is gone.
    pub fn prune(&mut self) {
        self.backends.retain(|_, entry| entry.strong_count() > 0);
        self.listeners.retain(|_, entry| entry.strong_count() > 0);
        self.turns.retain(|_, turn| turn.strong_count() > 0);
        self.told.retain(|_, told| told.strong_count() > 0);
    }

    /// The entry of a backend; None if there are too many.
    pub fn backend(
        &mut self,
        generation: u64,
        pool: &Arc<str>,
        name: &Arc<str>,
        endpoint: &Endpoint,
    ) -> Option<Arc<BackendEntry>> {
        let key = (Arc::clone(pool), Arc::clone(name), endpoint.clone());
        if let Some(entry) = self.backends.get(&key).and_then(Weak::upgrade) {
            return Some(entry);
        }
        let slot = self.slot(Kind::Backend, generation, pool, name, &endpoint.to_string())?;
        let told = shared(&mut self.told, pool);
        let entry = Arc::new(BackendEntry {
            pool: Arc::clone(pool),
            name: Arc::clone(name),
            endpoint: endpoint.clone(),
            told,
            slot,
            fate: AtomicU8::new(Fate::Keep as u8),
            handed: AtomicU64::new(0),
            free: AtomicU32::new(FULL_RAMP),
        });
        self.backends.insert(key, Arc::downgrade(&entry));
        Some(entry)
    }

    /// Every listener that a plan or a tunnel still uses.
    pub fn listeners(&self) -> impl Iterator<Item = Arc<ListenerEntry>> + '_ {
        self.listeners.values().filter_map(Weak::upgrade)
    }

    /// Every backend that a plan or a tunnel still uses.
    pub fn backends(&self) -> impl Iterator<Item = Arc<BackendEntry>> + '_ {
        self.backends.values().filter_map(Weak::upgrade)
    }

    /// The entry of a listener; None if there are too many.
    pub fn listener(
        &mut self,
        generation: u64,
        name: &Arc<str>,
        address: &str,
    ) -> Option<Arc<ListenerEntry>> {
        if let Some(entry) = self.listeners.get(name).and_then(Weak::upgrade) {
            return Some(entry);
        }
        let slot = self.slot(Kind::Listener, generation, "", name, address)?;
        let entry = Arc::new(ListenerEntry {
            name: Arc::clone(name),
            slot,
            arrival: AtomicU64::new(0),
            queued: AtomicU32::new(0),
            handshake_arrival: AtomicU64::new(0),
            handshakes_held: AtomicU32::new(0),
            told: AtomicU64::new(0),
            sources: Default::default(),
        });
        self.listeners
            .insert(Arc::clone(name), Arc::downgrade(&entry));
        Some(entry)
    }

    /// Connections of all listeners.
    pub fn connections(&self) -> u64 {
        let entries = self.listeners.values().filter_map(Weak::upgrade);
        entries
            .map(|entry| u64::from(entry.live().load(Ordering::Relaxed)))
            .sum()
    }

    /// The running count behind a pool's round-robin.
    pub fn turn(&mut self, pool: &Arc<str>) -> Arc<AtomicU64> {
        shared(&mut self.turns, pool)
    }

    fn slot(
        &self,
        kind: Kind,
        generation: u64,
        pool: &str,
        name: &str,
        address: &str,
    ) -> Option<Slot> {
        let index = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()?;
        self.stats
            .describe(index as usize, kind, generation, pool, name, address);
        Some(Slot {
            index,
            stats: Arc::clone(&self.stats),
            free: Arc::clone(&self.free),
        })
    }
}

/// The one number of this pool.
fn shared(all: &mut HashMap<Arc<str>, Weak<AtomicU64>>, pool: &Arc<str>) -> Arc<AtomicU64> {
    let kept = all.get(pool).and_then(Weak::upgrade);
    kept.unwrap_or_else(|| {
        let fresh = Arc::new(AtomicU64::new(0));
        all.insert(Arc::clone(pool), Arc::downgrade(&fresh));
        fresh
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_as_long_as_somebody_uses_it() {
        let (stats, _file) = Stats::new(1, None).unwrap();
        let mut registry = Registry::new(stats);
        let (pool, name): (Arc<str>, Arc<str>) = ("p".into(), "b".into());
        let at = "127.0.0.1:1".parse().unwrap();
        let first = registry.backend(1, &pool, &name, &at).unwrap();
        first.load().store(3, Ordering::Relaxed);
        let again = registry.backend(2, &pool, &name, &at).unwrap();
        assert_eq!(
            (again.index(), again.load().load(Ordering::Relaxed)),
            (first.index(), 3)
        );
        let moved = registry
            .backend(2, &pool, &name, &"127.0.0.1:2".parse().unwrap())
            .unwrap();
        assert_ne!(moved.index(), first.index());
        let index = first.index();
        drop((first, again));
        let fresh = registry.backend(3, &pool, &name, &at).unwrap();
        assert_eq!(
            (fresh.index(), fresh.load().load(Ordering::Relaxed)),
            (index, 0)
        );
    }

    #[test]
    fn sources_are_counted_up_to_the_limit() {
        let (stats, _file) = Stats::new(1, None).unwrap();
        let entry = Registry::new(stats).listener(1, &"l".into(), "").unwrap();
        let (a, b): (IpAddr, IpAddr) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
        );
        assert!(entry.enter(a, 2) && entry.enter(b, 2) && !entry.enter(a, 2));
        entry.leave(b);
        assert!(entry.enter(a, 2));
    }
}
