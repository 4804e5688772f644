//! The plan: everything that workers need to know, immutable, with a generation.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use crate::drain::Terms;
use crate::endpoint::{Endpoint, Network};
use crate::flow::Secret;
use crate::pool::Pool;
use crate::rate::Gcra;
use crate::web::Web;

/// Which versions of the PROXY protocol a listener takes.
pub use crate::proxy::Accept as AcceptProxy;
/// Which version of the PROXY protocol a pool sends.
pub use crate::proxy::Version as SendProxy;

/// Names become labels in metrics and fixed-size fields in shared memory.
pub const MAX_NAME: usize = 63;

/// An address that clients connect to, and what it admits.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Known by this name over reloads.
    pub name: Arc<str>,
    /// Where it listens.
    pub bind: Endpoint,
    /// Index into [`Plan::pools`].
    pub pool: usize,
    /// Length of the kernel's accept queue.
    pub backlog: i32,
    /// Permissions of a Unix socket.
    pub unix_mode: u32,
    /// PROXY protocol expected from `trusted` peers.
    pub accept_proxy: Option<AcceptProxy>,
    /// Whether a PROXY LOCAL connection (a front proxy's health check) is relayed, not closed.
    pub serve_proxy_local: bool,
    /// Who may say on whose behalf it connects.
    pub trusted: Vec<Network>,
    /// How long the PROXY header may take.
    pub proxy_timeout: Duration,
    /// Refuse a client that begins with a PROXY header where none is expected.
    pub refuse_unexpected_proxy: bool,
    /// Live connections at most; 0 for no limit.
    pub max_connections: u32,
    /// Live connections per source (IPv4 address or IPv6 /64) at most; 0 for no limit.
    pub max_connections_per_source: u32,
    /// Rate of admission, if limited.
    pub accept_rate: Option<Gcra>,
    /// How many connections may wait for `accept_rate`.
    pub accept_queue: u32,
    /// How long one may wait.
    pub queue_timeout: Duration,
    /// It takes no new tunnels.
    pub draining: bool,
    /// Mode "websocket"; without it bytes are relayed whatever they mean.
    pub web: Option<Web>,
}

/// How tunnels of a pool are made and when they are given up. Zero means never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one attempt to connect.
    pub connect: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// Without a byte after one side has ended its direction.
    pub half_closed: Duration,
    /// Idle time before the kernel probes a peer (TCP keepalive).
    pub keepalive: Duration,
    /// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482).
    pub user: Duration,
    /// From a request to the head of its response.
    pub response: Duration,
    /// Without a byte of a body.
    pub body: Duration,
}

/// What happens to live tunnels of a backend that is removed or goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    /// They go on until one side ends them.
    Keep,
    /// They are told to go, as a drain does it.
    Drain,
    /// They are ended at once.
    Close,
}

/// How the backends of a pool are reached, and left.
#[derive(Clone, Debug)]
pub struct Dialing {
    /// Deadlines and kernel timers.
    pub timeouts: Timeouts,
    /// Outgoing addresses; empty lets the kernel choose.
    pub sources: Vec<IpAddr>,
    /// Backends tried for one client before it is refused.
    pub tries: u8,
    /// PROXY header sent to the backend.
    pub send_proxy: Option<SendProxy>,
    /// Connect from the client's own address (IP_TRANSPARENT).
    pub transparent: bool,
    /// When a backend leaves the pool.
    pub on_remove: Orphans,
    /// When a backend goes down.
    pub on_down: Orphans,
    /// How a drain is done that nobody gave other terms.
    pub drain: Terms,
}

/// A pool and how to reach its backends.
#[derive(Clone, Debug)]
pub struct PlannedPool {
    /// Who is picked.
    pub pool: Pool,
    /// How it is reached.
    pub dialing: Dialing,
}

/// Listeners, pools and the secret that keys every hash.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In configuration order.
    pub listeners: Vec<Listener>,
    /// In configuration order.
    pub pools: Vec<PlannedPool>,
    /// Keys the flow hash and the Maglev permutations.
    pub secret: Secret,
}

impl Plan {
    /// Check what the parts cannot see alone: names and addresses used twice, pools that are not there.
    pub fn new(
        listeners: Vec<Listener>,
        pools: Vec<PlannedPool>,
        secret: Secret,
    ) -> Result<Plan, String> {
        let mut names = BTreeSet::new();
        let mut binds = BTreeSet::new();
        for listener in &listeners {
            check_name("listener", &listener.name)?;
            if !names.insert(&listener.name) {
                return Err(format!("two listeners are named {:?}", listener.name));
            }
            let any_port = matches!(listener.bind, Endpoint::Tcp(address) if address.port() == 0);
            if !any_port && !binds.insert(&listener.bind) {
                return Err(format!("two listeners bind {}", listener.bind));
            }
            let routes = listener.web.iter().flat_map(|web| &web.routes);
            let mut named = routes.map(|route| route.pool).chain([listener.pool]);
            if named.any(|pool| pool >= pools.len()) {
                return Err(format!(
                    "listener {:?} names a pool that is not there",
                    listener.name
                ));
            }
            let key = pools.get(listener.pool).map(|planned| &planned.pool.key);
            if listener.web.is_none() && key.is_some_and(|key| key.reads_request()) {
                return Err(format!(
                    "listener {:?} reads no requests, but its pool's key is made of them",
                    listener.name
                ));
            }
        }
        let mut names = BTreeSet::new();
        for planned in &pools {
            check_name("pool", &planned.pool.name)?;
            if !names.insert(&planned.pool.name) {
                return Err(format!("two pools are named {:?}", planned.pool.name));
            }
        }
        Ok(Plan {
            listeners,
            pools,
            secret,
        })
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&PlannedPool> {
        self.pools
            .iter()
            .find(|planned| &*planned.pool.name == name)
    }
}

/// Names go into fixed-size fields and logs: 1 to [`MAX_NAME`] bytes, no control characters.
pub fn check_name(kind: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!(
            "the name of a {kind} has 1 to {MAX_NAME} bytes, {name:?} has {}",
            name.len()
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(format!(
            "the name of a {kind} has no control characters, but {name:?} does"
        ));
    }
    Ok(())
}
