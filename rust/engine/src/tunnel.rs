//! A client's connection, from accept to end, and its way to a backend.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pybalancer_core::time::Tick;

use crate::deployment::Front;
use crate::poller::{Interest, Side};
use crate::ports::Held;
use crate::registry::{BackendEntry, ListenerEntry};
use crate::relay::Flow;

/// How far an opening tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Admitted, but the rate of admission has no room yet.
    Queued,
    /// A trusted proxy is to tell whom it brings.
    Header,
    /// A connect is under way.
    Dialing,
}

/// What is needed only until a tunnel stands. Boxed, so that an established one does not pay for it.
pub struct Opening {
    /// The listener it came through, as it was then.
    pub front: Arc<Front>,
    /// How far it is.
    pub phase: Phase,
    /// Whether the peer announces its clients (PROXY protocol).
    pub announced: bool,
    /// Where the client believes to be connected, if a proxy has told.
    pub destination: Option<SocketAddr>,
    /// Indexes of the entries of backends that have not taken it.
    pub tried: Vec<u32>,
    /// When the connect under way began.
    pub dialed_at: Tick,
    /// A backend was passed over because its outgoing ports are used up.
    pub short_of_ports: bool,
    /// A backend's queue is full; how long it makes sense to wait for a place in it.
    pub busy_until: Option<Tick>,
}

/// Two sockets and what flows between them.
///
/// A million of these may rest at the same time, so every field counts: a test holds the size.
pub struct Tunnel {
    /// Towards whoever connected.
    pub client: OwnedFd,
    /// Towards the backend, once a connect is under way.
    pub backend: Option<OwnedFd>,
    /// Distinguishes it from those that had its slot before.
    pub generation: u32,
    /// Time from connect to connected, in microseconds.
    pub connect_us: u32,
    /// From the client to the backend.
    pub to_backend: Flow,
    /// From the backend to the client.
    pub to_client: Flow,
    /// Present until it stands.
    pub opening: Option<Box<Opening>>,
    /// The listener's counts.
    pub listener: Arc<ListenerEntry>,
    /// The backend's counts, of which it is one.
    pub entry: Option<Arc<BackendEntry>>,
    /// The outgoing port that it uses.
    pub port: Option<Held>,
    /// Who the client is; None on a Unix socket.
    pub address: Option<SocketAddr>,
    /// The proxy that announced it.
    pub proxied_by: Option<Box<SocketAddr>>,
    /// When it was accepted.
    pub accepted_at: Tick,
    /// When something last happened.
    pub active_at: Tick,
    /// Quiet time after which it is ended, in ms; 0 for never.
    pub idle_ms: u32,
    /// The same once one side has ended its direction.
    pub half_closed_ms: u32,
    /// How long ambiguous first bytes are held back, in ms.
    pub guard_ms: u32,
    /// Backends asked.
    pub tries: u8,
    /// The client's first bytes may still turn out to be a PROXY header that nobody asked for.
    pub guarded: bool,
    /// They were looked at and are too few to tell.
    pub held: bool,
    /// Such a header is an untrusted peer's, where trusted ones may send it.
    pub untrusted: bool,
    /// It is one of its source's connections.
    pub counted: bool,
    /// What the client's socket is watched for.
    pub client_interest: Interest,
    /// What the backend's socket is watched for.
    pub backend_interest: Interest,
}

impl Tunnel {
    /// The flow that `side` sends.
    #[inline]
    pub fn flow_from(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.to_backend,
            Side::Backend => &mut self.to_client,
        }
    }

    /// What can be done at `side` now, and so is waited for.
    pub fn wanted(&self, side: Side) -> Interest {
        let (from, to) = match side {
            Side::Client => (&self.to_backend, &self.to_client),
            Side::Backend => (&self.to_client, &self.to_backend),
        };
        let read = if from.eof || from.blocked() {
            Interest::ENDS
        } else if self.guarded && self.held && side == Side::Client {
            Interest::NEWS
        } else {
            Interest::READ
        };
        let write = if to.blocked() {
            Interest::WRITE
        } else {
            Interest::ENDS
        };
        read.and(write)
    }

    /// What `side` is watched for.
    pub fn interest(&self, side: Side) -> Interest {
        match side {
            Side::Client => self.client_interest,
            Side::Backend => self.backend_interest,
        }
    }

    /// Whether the sockets are watched for something else than what can be done with them.
    #[inline]
    pub fn interests_differ(&self) -> bool {
        self.client_interest != self.wanted(Side::Client)
            || self.backend_interest != self.wanted(Side::Backend)
    }

    /// Whether one side has ended its direction.
    #[inline]
    pub fn half_closed(&self) -> bool {
        self.to_backend.done || self.to_client.done
    }

    /// When it will have been quiet for too long, if nothing happens until then.
    pub fn quiet_until(&self) -> Option<Tick> {
        let ms = if self.half_closed() {
            self.half_closed_ms
        } else {
            self.idle_ms
        };
        (ms > 0).then(|| self.active_at + Duration::from_millis(u64::from(ms)))
    }

    /// When first bytes that look like the beginning of a PROXY header are let through after all.
    pub fn guarded_until(&self) -> Option<Tick> {
        self.guarded
            .then(|| self.accepted_at + Duration::from_millis(u64::from(self.guard_ms)))
    }

    /// When its timer is due.
    pub fn due(&self) -> Option<Tick> {
        match (self.quiet_until(), self.guarded_until()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// A duration in the milliseconds that tunnels keep; one that is too long is as good as the longest.
pub fn milliseconds(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_tunnel_is_small() {
        // With the 16 bytes of its timer this stays within 256, slab overhead included.
        assert!(size_of::<Tunnel>() <= 216, "{}", size_of::<Tunnel>());
    }
}
