//! A client's connection, from accept to end, and its way to a backend.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pybalancer_core::reattach::Rules;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::Tracker;
use pybalancer_core::ws::close::Farewell;
use serde::{Deserialize, Serialize};

use crate::deployment::{DeployedPool, Front};
use crate::exchange::Exchange;
use crate::log::RequestLine;
use crate::poller::{Interest, Side};
use crate::ports::Held;
use crate::recall::{Away, Recall};
use crate::registry::{BackendEntry, ListenerEntry};
use crate::relay::Flow;

/// How far an opening tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Admitted, but the rate of admission has no room yet.
    Queued,
    /// A trusted proxy is to tell whom it brings.
    Header,
    /// A request is to come.
    Request,
    /// A handshake has come, but the rate of handshakes has no room yet.
    Held,
    /// A connect is under way.
    Dialing,
    /// A request is at its backend, its response on the way.
    Exchange,
    /// The handshake of a tunnel was repeated to another backend.
    Resuming,
    /// The client has got its last answer and is to read it.
    Lingering,
}

impl Phase {
    /// Whether it stands in a queue.
    pub fn waits(self) -> bool {
        matches!(self, Phase::Queued | Phase::Held)
    }
}

/// What is needed only until a tunnel stands. Boxed, so that an established one does not pay for it.
pub struct Opening {
    /// The listener it came through, as it was then.
    pub front: Arc<Front>,
    /// The pool that it goes to.
    pub pool: Arc<DeployedPool>,
    /// How far it is.
    pub phase: Phase,
    /// It is one of its listener's connections; one that is only told why it is turned away is not.
    pub admitted: bool,
    /// Whether the peer announces its clients (PROXY protocol).
    pub announced: bool,
    /// Where the client believes to be connected, if a proxy has told.
    pub destination: Option<SocketAddr>,
    /// Hash of the key, where it is not the client's address alone.
    pub hash: Option<u64>,
    /// The backend that a cookie asks for, by its name.
    pub preferred: Option<Arc<str>>,
    /// Indexes of the entries of backends that have not taken it.
    pub tried: Vec<u32>,
    /// When the connect under way began.
    pub dialed_at: Tick,
    /// A backend was passed over because its outgoing ports are used up.
    pub short_of_ports: bool,
    /// A backend whose queue is full, and how long it makes sense to wait for a place in it.
    pub busy: Option<(Arc<BackendEntry>, Tick)>,
    /// How often it was asked again.
    pub busy_tries: u8,
    /// In mode "websocket": requests and responses.
    pub exchange: Option<Box<Exchange>>,
    /// It stood already, and looks for another backend.
    pub away: Option<Box<Away>>,
}

/// What many tunnels share: their listener, deadlines, rules. Times are in ms; 0 means never.
#[derive(Debug)]
pub struct Terms {
    /// The listener's counts.
    pub listener: Arc<ListenerEntry>,
    /// The route, in mode "websocket".
    pub route: Option<Arc<str>>,
    /// Quiet time after which a tunnel is ended.
    pub idle_ms: u32,
    /// The same once one side has ended its direction.
    pub half_closed_ms: u32,
    /// How long ambiguous first bytes are held back.
    pub guard_ms: u32,
    /// Quiet time of a client after which it is pinged.
    pub ping_ms: u32,
    /// How long it may take to answer.
    pub ping_timeout_ms: u32,
    /// How long peers may take to answer a Close.
    pub close_ms: u32,
    /// Bytes of a message at most; 0 for no limit.
    pub max_message: u32,
    /// Whether and how a client is kept whose backend goes away.
    pub reattach: Option<Rules>,
}

/// A client's address in 20 bytes instead of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    ip: [u8; 16],
    port: u16,
    known: bool,
}

impl From<Option<SocketAddr>> for Peer {
    fn from(address: Option<SocketAddr>) -> Peer {
        let ip = match address.map(|address| address.ip()) {
            Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped(),
            Some(IpAddr::V6(v6)) => v6,
            None => Ipv6Addr::UNSPECIFIED,
        };
        Peer {
            ip: ip.octets(),
            port: address.map_or(0, |address| address.port()),
            known: address.is_some(),
        }
    }
}

impl Peer {
    /// As everybody else writes it; None on a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(self.ip).to_canonical();
        self.known.then(|| SocketAddr::new(ip, self.port))
    }
}

/// A time in units of 2^23 ns (8 ms), which wraps after a year: for how long ago something was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(u32);

impl Moment {
    /// That of a tick.
    #[inline]
    pub fn of(now: Tick) -> Moment {
        Moment((now.0 >> 23) as u32)
    }

    /// `ms` after this moment, which was not long before `now`; rounded up.
    pub fn plus(self, ms: u32, now: Tick) -> Tick {
        let ago = Moment::of(now).0.wrapping_sub(self.0);
        let began = (now.0 >> 23).saturating_sub(u64::from(ago)) << 23;
        Tick(began) + Duration::from_millis(u64::from(ms)) + Duration::from_millis(9)
    }
}

/// What only the log wants to know. Boxed, and absent where nothing is logged.
#[derive(Debug, Default)]
pub struct Story {
    /// When the connection was accepted.
    pub accepted_at: Tick,
    /// The proxy that announced the client.
    pub proxied_by: Option<SocketAddr>,
    /// Time from connect to connected.
    pub connect: Duration,
    /// The request that it began with.
    pub request: Option<Box<RequestLine>>,
}

/// A tunnel on its way to an end that the balancer asked for.
#[derive(Debug)]
pub struct Closing {
    /// Who is still to be told what, and whose words count no more.
    pub farewell: Farewell,
    /// Who has ended its stream, by [`Side`].
    pub ended: [bool; 2],
    /// What the log will say.
    pub reason: pybalancer_core::record::Reason,
    /// When patience ends.
    pub until: Tick,
    /// How long the client may take to answer.
    pub patience: Duration,
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
    /// When something last happened.
    pub active: Moment,
    /// From the client to the backend.
    pub to_backend: Flow,
    /// From the backend to the client.
    pub to_client: Flow,
    /// Frames of the client, on a WebSocket.
    pub from_client: Tracker,
    /// Frames of the backend.
    pub from_backend: Tracker,
    /// Present until it stands.
    pub opening: Option<Box<Opening>>,
    /// Present once the balancer ends it.
    pub closing: Option<Box<Closing>>,
    /// Present if it may go on at another backend.
    pub recall: Option<Box<Recall>>,
    /// The backend's counts, of which it is one.
    pub entry: Option<Arc<BackendEntry>>,
    /// The outgoing port that it uses.
    pub port: Option<Held>,
    /// What it has to keep to.
    pub terms: Arc<Terms>,
    /// For the log.
    pub story: Option<Box<Story>>,
    /// Who the client is.
    pub peer: Peer,
    /// When the client last sent something that was passed on, or was pinged; at first its beginning.
    pub heard: Moment,
    /// Hash of its key: where the table would put it today.
    pub hash: u64,
    /// Backends asked.
    pub tries: u8,
    /// A WebSocket whose frames are followed.
    pub framed: bool,
    /// The client was pinged and has not sent anything since.
    pub pinged: bool,
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
        let read = if from.eof || from.blocked() || self.withheld(side) {
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
    pub fn quiet_until(&self, now: Tick) -> Option<Tick> {
        let ms = if self.leaving().is_some() {
            // It has a deadline of its own.
            0
        } else if self.half_closed() {
            self.terms.half_closed_ms
        } else {
            self.terms.idle_ms
        };
        (ms > 0).then(|| self.active.plus(ms, now))
    }

    /// When first bytes that look like the beginning of a PROXY header are let through after all.
    pub fn guarded_until(&self, now: Tick) -> Option<Tick> {
        self.guarded
            .then(|| self.heard.plus(self.terms.guard_ms, now))
    }

    /// When its client is to be pinged; or, if it was, to have answered.
    pub fn heard_until(&self, now: Tick) -> Option<Tick> {
        let ms = if self.pinged {
            self.terms.ping_timeout_ms
        } else {
            self.terms.ping_ms
        };
        // Nobody reads its answer while its backend goes away.
        let heard = self.closing.is_none() && self.leaving().is_none();
        (self.framed && self.terms.ping_ms > 0 && heard).then(|| self.heard.plus(ms, now))
    }

    /// When its timer is due.
    pub fn due(&self, now: Tick) -> Option<Tick> {
        let times = [
            self.quiet_until(now),
            self.guarded_until(now),
            self.heard_until(now),
            self.closing.as_ref().map(|closing| closing.until),
            self.leaving().map(|leaving| leaving.due(now)),
        ];
        times.into_iter().flatten().min()
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
        assert!(size_of::<Tunnel>() <= 232, "{}", size_of::<Tunnel>());
        assert_eq!(size_of::<Option<Tunnel>>(), size_of::<Tunnel>());
    }

    #[test]
    fn a_peer_is_whom_it_was_made_of() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "0.0.0.0:0"] {
            let address = Some(text.parse().unwrap());
            assert_eq!(Peer::from(address).address(), address);
        }
        assert_eq!(Peer::from(None).address(), None);
    }

    #[test]
    fn a_moment_is_never_over_too_early_nor_much_too_late() {
        for start in [0, 1 << 22, 77 << 23, (1 << 55) - 5] {
            for ms in [0, 1, 50, 3_600_000] {
                let (then, span) = (Tick(start), Duration::from_millis(u64::from(ms)));
                let now = then + span;
                let at = Moment::of(then).plus(ms, now);
                assert!(
                    at >= now && at <= now + Duration::from_millis(18),
                    "{start} {ms}"
                );
            }
        }
    }
}
