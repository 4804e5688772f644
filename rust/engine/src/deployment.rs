//! A plan joined with what outlives it: what the workers look at when they decide.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pybalancer_core::drain;
use pybalancer_core::endpoint::Endpoint;
use pybalancer_core::flow::{FlowHasher, Secret};
use pybalancer_core::plan::{Listener, Orphans, Plan, PlannedPool};
use pybalancer_core::pool::{Load, State};
use pybalancer_core::time::Tick;
use pybalancer_core::web::{Route, TunnelRules};

use crate::drains::Kind;
use crate::ports::{Ledger, Ways};
use crate::registry::{BackendEntry, Fate, ListenerEntry, Registry};
use crate::tunnel::{Terms, milliseconds};

/// A pool, its live counts and the ways to its backends.
pub struct DeployedPool {
    /// As planned.
    pub planned: PlannedPool,
    /// By the pool's own index.
    pub backends: Vec<Arc<BackendEntry>>,
    /// By the same index.
    pub ways: Vec<Ways>,
    /// Turns taken by round-robin, over all workers and reloads.
    pub turn: Arc<AtomicU64>,
    /// How long clients that are sent to its backends straight count as load; zero if none are.
    pub span: Duration,
}

impl DeployedPool {
    /// Tunnels and connects of backend `index`.
    #[inline]
    pub fn load(&self, index: usize) -> u32 {
        self.backends
            .get(index)
            .map_or(0, |entry| entry.load().load(Ordering::Relaxed))
    }

    /// What backend `index` has to do: tunnels, clients that were sent there, what it says itself.
    #[inline]
    pub fn load_at(&self, index: usize, now: Tick) -> Load {
        let Some(entry) = self.backends.get(index) else {
            return Load::from(0);
        };
        let tunnels = entry.load().load(Ordering::Relaxed);
        Load {
            tunnels: tunnels.saturating_add(entry.handed(now, self.span)),
            free: entry.free().load(Ordering::Relaxed),
        }
    }

    /// The turn of round-robin; the next client's is another one.
    pub fn next_turn(&self, taken: bool) -> u64 {
        match taken {
            true => self.turn.fetch_add(1, Ordering::Relaxed),
            false => self.turn.load(Ordering::Relaxed),
        }
    }

    /// Whether `entry` is one of its backends and takes requests.
    pub fn takes(&self, entry: &Arc<BackendEntry>) -> bool {
        let known = self.backends.iter().zip(&self.planned.pool.backends);
        known
            .into_iter()
            .any(|(ours, backend)| Arc::ptr_eq(ours, entry) && backend.state == State::Up)
    }
}

/// A listener, and where its connections go.
pub struct Front {
    /// As planned.
    pub listener: Listener,
    /// Its live counts.
    pub entry: Arc<ListenerEntry>,
    /// Its pool, or that of its first route.
    pub pool: Arc<DeployedPool>,
    /// Deadlines of its tunnels in mode "tcp".
    pub terms: Arc<Terms>,
    /// Where its routes lead, by their index.
    pub routes: Vec<Branch>,
    /// Which of the engine's sockets it accepts from.
    pub socket: u32,
    /// Hashes the keys of clients.
    pub hasher: FlowHasher,
    /// Signs what clients bring back.
    pub secret: Secret,
}

impl Front {
    /// Whether what this peer says of others is believed. On a Unix socket permissions decide that.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let trusted = &self.listener.trusted;
        trusted.iter().any(|network| network.contains(peer))
    }
}

/// Where a route leads.
pub struct Branch {
    /// Its pool.
    pub pool: Arc<DeployedPool>,
    /// Deadlines and rules of its tunnels.
    pub terms: Arc<Terms>,
}

fn terms(
    listener: &Listener,
    entry: &Arc<ListenerEntry>,
    pool: &DeployedPool,
    route: Option<&Route>,
) -> Arc<Terms> {
    let rules = route.map_or_else(TunnelRules::default, |route| route.rules);
    let timeouts = &pool.planned.dialing.timeouts;
    Arc::new(Terms {
        listener: Arc::clone(entry),
        route: route.map(|route| Arc::clone(&route.name)),
        idle_ms: milliseconds(timeouts.idle),
        half_closed_ms: milliseconds(timeouts.half_closed),
        guard_ms: milliseconds(listener.proxy_timeout),
        ping_ms: milliseconds(rules.ping),
        ping_timeout_ms: milliseconds(rules.ping_timeout),
        close_ms: milliseconds(rules.close_timeout),
        max_message: rules.max_message,
        reattach: rules.reattach,
    })
}

/// What every worker runs until the next one.
pub struct Deployment {
    /// Counts the deployments of this engine from 1.
    pub generation: u64,
    /// In the plan's order.
    pub fronts: Vec<Arc<Front>>,
    /// In the plan's order.
    pub pools: Vec<Arc<DeployedPool>>,
    /// Whether tunnels of backends that are gone or down have to be closed.
    pub orphans: bool,
    /// Backends whose tunnels are to be drained, and how.
    pub leaving: Vec<Leaving>,
}

/// A backend that is gone or down, and whose pool drains such tunnels.
pub struct Leaving {
    /// Which.
    pub entry: Arc<BackendEntry>,
    /// Why.
    pub kind: Kind,
    /// How.
    pub terms: drain::Terms,
}

impl Deployment {
    /// Join `plan` with its entries. None if there are more listeners and backends than the
    /// statistics have room for.
    pub fn new(
        plan: &Plan,
        generation: u64,
        registry: &mut Registry,
        ledger: &Ledger,
        before: Option<&Deployment>,
        sockets: &[(u32, String)],
    ) -> Option<Deployment> {
        registry.prune();
        let mut pools = Vec::with_capacity(plan.pools.len());
        for (index, planned) in plan.pools.iter().enumerate() {
            let pool = &planned.pool;
            let routes = plan.listeners.iter().flat_map(|listener| &listener.web);
            let spans = (routes.flat_map(|web| &web.routes))
                .filter(|route| route.pool == index)
                .filter_map(|route| Some(route.direct.as_ref()?.nodes.expires_in));
            let mut backends = Vec::with_capacity(pool.backends.len());
            let mut ways = Vec::with_capacity(pool.backends.len());
            for backend in &pool.backends {
                backends.push(registry.backend(
                    generation,
                    &pool.name,
                    &backend.name,
                    &backend.endpoint,
                )?);
                ways.push(ledger.ways(&backend.endpoint, &planned.dialing.sources));
            }
            let turn = registry.turn(&pool.name);
            pools.push(Arc::new(DeployedPool {
                planned: planned.clone(),
                backends,
                ways,
                turn,
                span: spans.max().unwrap_or_default(),
            }));
        }
        let mut fronts = Vec::with_capacity(plan.listeners.len());
        for (listener, (socket, address)) in plan.listeners.iter().zip(sockets) {
            let pool = Arc::clone(pools.get(listener.pool)?);
            let entry = registry.listener(generation, &listener.name, address)?;
            let routes = listener.web.iter().flat_map(|web| &web.routes);
            let branch = |route: &Route| {
                let pool = Arc::clone(pools.get(route.pool)?);
                let terms = terms(listener, &entry, &pool, Some(route));
                Some(Branch { pool, terms })
            };
            fronts.push(Arc::new(Front {
                listener: listener.clone(),
                terms: terms(listener, &entry, &pool, None),
                routes: routes.map(branch).collect::<Option<_>>()?,
                entry,
                pool,
                secret: plan.secret.clone(),
                socket: *socket,
                hasher: FlowHasher::new(&plan.secret),
            }));
        }
        let (orphans, leaving) = decide_fates(&pools, registry, before);
        Some(Deployment {
            generation,
            fronts,
            pools,
            orphans,
            leaving,
        })
    }
}

impl Deployment {
    /// Where the listener of `front`, an earlier one, is now, if clients of the one address may come to
    /// the other: from one address of a port to all, say.
    pub fn moved(&self, front: &Front) -> Option<&Arc<Front>> {
        let same = |new: &&Arc<Front>| {
            new.listener.name == front.listener.name
                && overlap(&new.listener.bind, &front.listener.bind)
        };
        self.fronts.iter().find(same)
    }
}

/// Decide what becomes of every backend's tunnels: whether any are to be closed, and which are drained.
pub fn decide_fates(
    pools: &[Arc<DeployedPool>],
    registry: &Registry,
    before: Option<&Deployment>,
) -> (bool, Vec<Leaving>) {
    let mut orphans = false;
    let mut leaving = Vec::new();
    for entry in registry.backends() {
        let named = |pool: &&Arc<DeployedPool>| pool.planned.pool.name == entry.pool;
        let pool = pools.iter().find(named);
        let place = pool.and_then(|pool| {
            let mut known = pool.backends.iter();
            known.position(|known| Arc::ptr_eq(known, &entry))
        });
        let state = pool.zip(place).and_then(|(pool, place)| {
            let backend = pool.planned.pool.backends.get(place)?;
            Some(backend.state)
        });
        // Of a pool that is gone itself, the last word counts.
        let last = || before?.pools.iter().find(named);
        let dialing = pool.or_else(last).map(|pool| &pool.planned.dialing);
        let (kind, orphan) = match (state, dialing) {
            (Some(State::Down), Some(dialing)) => (Kind::Down, dialing.on_down),
            (Some(_), _) => (Kind::Removed, Orphans::Keep),
            (None, Some(dialing)) => (Kind::Removed, dialing.on_remove),
            (None, None) => {
                orphans |= entry.fate() != Fate::Keep;
                continue;
            }
        };
        let fate = match (orphan, kind) {
            (Orphans::Close, Kind::Down) => Fate::Down,
            (Orphans::Close, _) => Fate::Removed,
            (Orphans::Keep | Orphans::Drain, _) => Fate::Keep,
        };
        entry.set_fate(fate);
        orphans |= fate != Fate::Keep;
        if let (Orphans::Drain, Some(dialing)) = (orphan, dialing) {
            let terms = dialing.drain;
            leaving.push(Leaving { entry, kind, terms });
        }
    }
    (orphans, leaving)
}

/// Whether two addresses may share clients, so that one of ours would be taken for somebody else's.
pub fn overlap(ours: &Endpoint, wanted: &Endpoint) -> bool {
    match (ours, wanted) {
        (Endpoint::Tcp(a), Endpoint::Tcp(b)) => {
            a.port() == b.port()
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        }
        _ => ours == wanted,
    }
}
