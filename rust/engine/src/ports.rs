//! How many outgoing ports are left, per source address and destination.
//!
//! One source address reaches one destination (address and port) once per port of the system's
//! range: 28,232 times by default. That is the "64k limit" of people who put a balancer before one
//! big server, and it is a limit per *pair*: a second source address doubles it. The kernel keeps
//! the truth; this ledger counts what we hold so that the emptiest source is tried first, the
//! operator sees how many are left, and a full one is not asked again and again: a connect that
//! searches in vain walks the whole range.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pybalancer_core::endpoint::Endpoint;
use pybalancer_core::time::Tick;

/// How long a source that had no port left is passed over: ports come back when tunnels end, and
/// others on this machine may use and free them unseen.
const RETRY: Duration = Duration::from_millis(100);

/// Outgoing ports of this network namespace (`net.ipv4.ip_local_port_range`; used for IPv6 too).
pub fn local_port_range() -> RangeInclusive<u16> {
    let parse = |text: String| {
        let mut ends = text.split_whitespace().map(str::parse::<u16>);
        match (ends.next(), ends.next()) {
            (Some(Ok(low)), Some(Ok(high))) if low > 0 && low <= high => Some(low..=high),
            _ => None,
        }
    };
    // The kernel's default where /proc is hidden.
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(parse)
        .unwrap_or(32768..=60999)
}

/// Ports in use from one source to one destination.
#[derive(Debug)]
pub struct Ports {
    /// Where they are; unspecified where the kernel chooses.
    source: IpAddr,
    used: AtomicU32,
    /// Passed over until then, in ticks.
    full_until: AtomicU64,
    /// Not for want of ports, but since the source cannot be used.
    unusable: AtomicBool,
}

impl Ports {
    /// How many we hold.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// The source's address; unspecified where the kernel chooses.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The kernel found none.
    pub fn exhausted(&self, now: Tick) {
        self.unusable.store(false, Ordering::Relaxed);
        self.full_until.store((now + RETRY).0, Ordering::Relaxed);
    }

    /// The source is not an address of this machine.
    pub fn unusable(&self, now: Tick) {
        self.exhausted(now);
        self.unusable.store(true, Ordering::Relaxed);
    }

    fn may_have_some(&self, now: Tick) -> bool {
        self.full_until.load(Ordering::Relaxed) <= now.0
    }
}

/// One port held, given back when dropped.
#[derive(Debug)]
pub struct Held(Arc<Ports>);

impl Held {
    fn new(ports: &Arc<Ports>) -> Held {
        ports.used.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(ports))
    }

    /// The count it belongs to.
    pub fn ports(&self) -> &Ports {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A way to a destination: through this source address, or through whichever the kernel chooses.
#[derive(Clone, Debug)]
pub struct Way {
    source: Option<IpAddr>,
    ports: Arc<Ports>,
}

/// All ways to one destination.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    ways: Vec<Way>,
    ports_each: u32,
}

impl Ways {
    /// The way with the most ports left, or None if every one is known to be used up.
    pub fn choose(&self, now: Tick) -> Option<(Option<IpAddr>, Held)> {
        self.ways
            .iter()
            .filter(|way| way.ports.may_have_some(now))
            .min_by_key(|way| way.ports.used())
            .map(|way| (way.source, Held::new(&way.ports)))
    }

    /// Whether every way is known to lead nowhere.
    pub fn full(&self, now: Tick) -> bool {
        self.counted() && !self.ways.iter().any(|way| way.ports.may_have_some(now))
    }

    /// Whether some way leads nowhere for want of ports.
    pub fn out_of_ports(&self, now: Tick) -> bool {
        let usable = |way: &Way| !way.ports.unusable.load(Ordering::Relaxed);
        self.full(now) && self.ways.iter().any(usable)
    }

    /// Whether ports can run out on this way at all (they cannot on Unix sockets).
    pub fn counted(&self) -> bool {
        !self.ways.is_empty()
    }

    /// How many attempts can differ: one per way, and one where ports do not matter.
    pub fn attempts(&self) -> usize {
        self.ways.len().max(1)
    }

    /// Ports in use and ports there are, over all ways.
    pub fn usage(&self) -> (u32, u32) {
        let used = self.ways.iter().map(|way| way.ports.used()).sum();
        (
            used,
            self.ports_each
                .saturating_mul(u32::try_from(self.ways.len()).unwrap_or(u32::MAX)),
        )
    }
}

/// Counts by source and destination. Pools with the same backend share them, and a reload keeps them.
#[derive(Debug)]
pub struct Ledger {
    counts: Mutex<Counts>,
    range: RangeInclusive<u16>,
}

impl Ledger {
    /// An empty one, over the system's port range.
    pub fn new() -> Ledger {
        Ledger {
            counts: Mutex::default(),
            range: local_port_range(),
        }
    }

    /// The ports that connects may use.
    pub fn range(&self) -> RangeInclusive<u16> {
        self.range.clone()
    }

    /// The ways to `destination`: one per source of its family, or the kernel's own choice.
    pub fn ways(&self, destination: &Endpoint, sources: &[IpAddr]) -> Ways {
        let Endpoint::Tcp(address) = destination else {
            return Ways::default();
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, ports| ports.strong_count() > 0);
        let mut ports_of = |source: IpAddr| ports_of(&mut counts, *address, source);
        let mut ways: Vec<Way> = sources
            .iter()
            .filter(|source| source.is_ipv4() == address.is_ipv4())
            .map(|source| Way {
                source: Some(*source),
                ports: ports_of(*source),
            })
            .collect();
        if ways.is_empty() {
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            ways.push(Way {
                source: None,
                ports: ports_of(any),
            });
        }
        let ports_each = u32::from(*self.range.end()) - u32::from(*self.range.start()) + 1;
        Ways { ways, ports_each }
    }
}

impl Ledger {
    /// Count one port more from `source` to `destination`: a tunnel brings it along.
    pub fn hold(&self, destination: &Endpoint, source: IpAddr) -> Option<Held> {
        let Endpoint::Tcp(address) = destination else {
            return None;
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Held::new(&ports_of(&mut counts, *address, source)))
    }
}

type Counts = HashMap<(SocketAddr, IpAddr), Weak<Ports>>;

fn ports_of(counts: &mut Counts, destination: SocketAddr, source: IpAddr) -> Arc<Ports> {
    let count = counts.entry((destination, source)).or_default();
    count.upgrade().unwrap_or_else(|| {
        let ports = Arc::new(Ports {
            source,
            used: AtomicU32::new(0),
            full_until: AtomicU64::new(0),
            unusable: AtomicBool::new(false),
        });
        *count = Arc::downgrade(&ports);
        ports
    })
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger {
            counts: Mutex::default(),
            range: 40000..=40009,
        }
    }

    #[test]
    fn the_emptiest_source_is_chosen_and_full_ones_are_passed_over() {
        let ledger = ledger();
        let to: Endpoint = "127.0.0.1:80".parse().unwrap();
        let sources = [
            "127.0.0.2".parse().unwrap(),
            "127.0.0.3".parse().unwrap(),
            "::1".parse().unwrap(),
        ];
        let ways = ledger.ways(&to, &sources);
        assert_eq!(ways.usage(), (0, 20));
        let now = Tick(5);
        let (first, held) = ways.choose(now).unwrap();
        let (second, other) = ways.choose(now).unwrap();
        assert_ne!(first, second);
        assert_eq!(ledger.ways(&to, &sources).usage(), (2, 20));
        held.ports().exhausted(now);
        drop(held);
        // Emptier by count, but known to be full.
        assert_eq!(ways.choose(now).unwrap().0, second);
        other.ports().exhausted(now);
        assert!(ways.choose(now).is_none());
        assert!(ways.choose(now + RETRY).is_some());
    }

    #[test]
    fn unix_sockets_have_no_ports() {
        let ways = ledger().ways(&"unix:/x".parse().unwrap(), &[]);
        assert!(!ways.counted() && ways.usage() == (0, 0));
    }
}
