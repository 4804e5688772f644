//! What would become of a client, without one; and what backends say of their load.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pybalancer_core::directory::{self, Action};
use pybalancer_core::http::{self, Upgrade};
use pybalancer_core::pool::{Draw, FULL_RAMP, Load, Verdict};
use pybalancer_core::route::{Facts, key_hash};
use pybalancer_core::web::strip;

use super::Engine;
use crate::asking;
use crate::deployment::DeployedPool;

/// Where a request goes.
pub struct Told {
    /// Its route.
    pub route: Arc<str>,
    /// That route's pool.
    pub pool: Arc<DeployedPool>,
    /// Indexes of backends, verdicts, loads.
    pub order: Vec<(u16, Verdict, u32)>,
    /// What the route does instead of relaying, and the URLs that are named; without their tickets.
    pub direct: Option<(Action, Vec<String>)>,
}

impl Engine {
    /// How busy a backend says it is: 0 is idle, 1 full, None nothing. False if it is not there.
    pub fn report_load(&self, pool: &str, backend: &str, busy: Option<f64>) -> bool {
        let free = busy.map_or(FULL_RAMP, Load::free_of);
        let Some(deployment) = self.deployment() else {
            return false;
        };
        let pools = deployment.pools.iter();
        let mut entries = pools
            .flat_map(|deployed| &deployed.backends)
            .filter(|entry| *entry.pool == *pool && *entry.name == *backend);
        let entry = entries.next();
        if let Some(entry) = entry {
            entry.free().store(free, Ordering::Relaxed);
        }
        entry.is_some()
    }

    /// For every backend of `pool`, in the order in which `source` would try them: its index in the
    /// pool's list, its verdict, its load. None if there is no such pool.
    pub fn explain(&self, pool: &str, source: SocketAddr) -> Option<Vec<(u16, Verdict, u32)>> {
        let deployment = self.deployment()?;
        let deployed = deployment
            .pools
            .iter()
            .find(|deployed| &*deployed.planned.pool.name == pool)?;
        let planned = &deployed.planned.pool;
        let hasher = &deployment.fronts.first()?.hasher;
        let hash = key_hash(&planned.key, hasher, Some(source), None, 0);
        Some(self.preferences(deployed, hash))
    }

    /// Where a request goes: its route, its pool, and the order of that pool's backends. An error says
    /// why it goes nowhere.
    pub fn explain_request(
        &self,
        listener: &str,
        source: SocketAddr,
        head: &[u8],
    ) -> Result<Told, String> {
        let none = || format!("no listener {listener:?} of mode \"websocket\"");
        let deployment = self.deployment().ok_or_else(none)?;
        let front = (deployment.fronts.iter())
            .find(|front| &*front.listener.name == listener)
            .ok_or_else(none)?;
        let web = front.listener.web.as_ref().ok_or_else(none)?;
        let mut storage = http::storage();
        let request = http::parse_request(head, &mut storage, &web.limits)
            .map_err(|refusal| format!("{} {}", refusal.status, refusal.why))?;
        let facts = Facts {
            path: request.path,
            host: request.host,
            query: request.query,
            fields: request.fields,
        };
        let (route, branch) = (web.routes.iter().zip(&front.routes))
            .find(|(route, _)| route.matching.matches(&facts))
            .ok_or("404 no route matches")?;
        let pool = Arc::clone(&branch.pool);
        let prefix = route.strip_prefix.as_deref();
        let stripped = prefix.and_then(|prefix| strip(request.target, prefix));
        let target = match stripped {
            Some(rest) if rest.starts_with('/') => rest.to_owned(),
            Some(rest) => format!("/{rest}"),
            None => request.target.to_owned(),
        };
        let handshake = request.upgrade != Upgrade::No;
        let asked = asking::place(route, &request, &target, handshake);
        let facts = asked.as_ref().map_or(facts, |asked| asked.facts(&facts));
        let key = route.key.as_ref().unwrap_or(&pool.planned.pool.key);
        let hash = key_hash(key, &front.hasher, Some(source), Some(&facts), 0);
        let direct = route.direct.as_ref().zip(asked).map(|(direct, asked)| {
            let (nodes, planned) = (&direct.nodes, &pool.planned.pool);
            let most = match asked.action {
                Action::Directory => 1 + usize::from(nodes.alternatives),
                Action::Redirect => 1,
            };
            let page = asked.action == Action::Redirect && !asked.handshake;
            let now = self.shared.clock.now();
            let load = |index: usize| pool.load_at(index, now);
            let chosen = directory::choose(planned, nodes, draw(&pool, hash), load, None, most);
            let url = |index: u16| {
                let url = nodes.urls.get(usize::from(index))?.as_ref()?;
                Some(asked.place().at(&url.origin(page), None))
            };
            (asked.action, chosen.into_iter().filter_map(url).collect())
        });
        Ok(Told {
            route: Arc::clone(&route.name),
            order: self.preferences(&pool, hash),
            pool,
            direct,
        })
    }

    fn preferences(&self, pool: &DeployedPool, hash: u64) -> Vec<(u16, Verdict, u32)> {
        let now = self.shared.clock.now();
        let load = |index: usize| pool.load_at(index, now);
        let order = pool.planned.pool.explain_by(draw(pool, hash), load);
        (order.into_iter())
            .map(|(index, verdict)| (index, verdict, pool.load(usize::from(index))))
            .collect()
    }
}

fn draw(pool: &DeployedPool, hash: u64) -> Draw {
    let entropy = pool.next_turn(false);
    Draw { hash, entropy }
}
