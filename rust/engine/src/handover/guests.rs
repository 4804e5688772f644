//! Tunnels that come from another process: what they refer to here, and how many have come.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pybalancer_core::endpoint::Endpoint;

use super::{BackendName, Manifest, TermsPassport};
use crate::deployment::Deployment;
use crate::ports::{Held, Ledger};
use crate::registry::{BackendEntry, ListenerEntry, Registry};
use crate::tunnel::Terms;

/// What has come so far.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// Tunnels that are held.
    pub tunnels: u64,
    /// Channels over which all has come.
    pub ended: usize,
    /// What went wrong.
    pub error: Option<String>,
}

/// One hand-over, as all workers of the new process see it.
///
/// It keeps the entries of what its plan does not name any more, for the tunnels that still use them.
pub struct Guests {
    deployment: Arc<Deployment>,
    listeners: HashMap<Box<str>, Arc<ListenerEntry>>,
    backends: HashMap<BackendName, Arc<BackendEntry>>,
    ledger: Arc<Ledger>,
    channels: usize,
    arrivals: Mutex<Arrivals>,
    changed: Condvar,
}

impl Guests {
    /// Find or make an entry for all that the manifest names; None if there are too many.
    pub fn new(
        manifest: &Manifest,
        deployment: &Arc<Deployment>,
        registry: &mut Registry,
        ledger: &Arc<Ledger>,
        channels: usize,
    ) -> Option<Guests> {
        let generation = deployment.generation;
        let mut listeners = HashMap::new();
        for name in &manifest.listeners {
            let entry = registry.listener(generation, &Arc::from(&**name), "")?;
            listeners.insert(name.clone(), entry);
        }
        let mut backends = HashMap::new();
        for name in &manifest.backends {
            let endpoint: Endpoint = name.endpoint.parse().ok()?;
            let (pool, own) = (Arc::from(&*name.pool), Arc::from(&*name.name));
            let entry = registry.backend(generation, &pool, &own, &endpoint)?;
            backends.insert(name.clone(), entry);
        }
        Some(Guests {
            deployment: Arc::clone(deployment),
            listeners,
            backends,
            ledger: Arc::clone(ledger),
            channels,
            arrivals: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The entry of a backend.
    pub fn backend(&self, name: &BackendName) -> Option<Arc<BackendEntry>> {
        self.backends.get(name).cloned()
    }

    /// One more port in use.
    pub fn hold(&self, destination: &Endpoint, source: IpAddr) -> Option<Held> {
        self.ledger.hold(destination, source)
    }

    /// Connections that one source may have at `listener`; 0 for any number.
    pub fn most_per_source(&self, listener: &ListenerEntry) -> u32 {
        let mut fronts = self.deployment.fronts.iter();
        let front = fronts.find(|front| front.listener.name == listener.name);
        front.map_or(0, |front| front.listener.max_connections_per_source)
    }

    /// The terms of this process's plan; where it knows listener or route no more, those that were.
    pub fn terms(&self, passport: &TermsPassport) -> Option<Arc<Terms>> {
        let entry = self.listeners.get(&passport.listener)?;
        let mut fronts = self.deployment.fronts.iter();
        let front = fronts.find(|front| *front.listener.name == *passport.listener);
        if let Some(front) = front {
            let terms = match (&passport.route, &front.listener.web) {
                (None, None) => Some(&front.terms),
                (Some(name), Some(web)) => (web.routes.iter().zip(&front.routes))
                    .find(|(route, _)| *route.name == **name)
                    .map(|(_, branch)| &branch.terms),
                _ => None,
            };
            if let Some(terms) = terms {
                return Some(Arc::clone(terms));
            }
        }
        let [
            idle_ms,
            half_closed_ms,
            guard_ms,
            ping_ms,
            ping_timeout_ms,
            close_ms,
            max_message,
        ] = passport.values;
        Some(Arc::new(Terms {
            listener: Arc::clone(entry),
            route: passport.route.as_deref().map(Arc::from),
            idle_ms,
            half_closed_ms,
            guard_ms,
            ping_ms,
            ping_timeout_ms,
            close_ms,
            max_message,
            // Of a route that is gone: there is nobody to ask for another backend.
            reattach: None,
        }))
    }

    /// Note what has come.
    pub fn note(&self, change: impl FnOnce(&mut Arrivals)) {
        change(&mut self.arrivals());
        self.changed.notify_all();
    }

    /// Wait until all has come, or something went wrong; None if neither within `patience`.
    pub fn wait(&self, patience: Duration) -> Option<Arrivals> {
        let deadline = Instant::now() + patience;
        let mut arrivals = self.arrivals();
        loop {
            if arrivals.ended >= self.channels || arrivals.error.is_some() {
                return Some(arrivals.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            arrivals = self
                .changed
                .wait_timeout(arrivals, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
