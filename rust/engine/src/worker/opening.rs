//! From an admitted connection to a tunnel: who the client is, which backend takes it.
//!
//! Until a backend has taken it, a client's bytes stay in its socket's receive buffer. So a connect
//! that fails can go on to the key's next choice with nothing lost, and a flood of connections to
//! dead backends holds no memory of ours.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pybalancer_core::endpoint::{Endpoint, canonical};
use pybalancer_core::pool::{Draw, Policy};
use pybalancer_core::proxy::{self, Origin, Parsed};
use pybalancer_core::record::Reason;
use pybalancer_core::route::key_hash;
use pybalancer_core::time::Tick;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};

use super::Worker;
use super::ending::How;
use crate::deployment::DeployedPool;
use crate::poller::{EventFlags, Interest, Side};
use crate::ports::Held;
use crate::registry::BackendEntry;
use crate::relay;
use crate::socket::{self, DialError, From};
use crate::stats::field;
use crate::tunnel::{Moment, Opening, Phase};

/// So many ports of one way in use cost the kernel no search yet: it looks at every second one first.
const UNCROWDED: u32 = 1000;
/// Pause before a backend with a full queue is asked again.
const BUSY_WAIT: Duration = Duration::from_millis(10);
/// How long that goes on where connects have no deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What became of the attempt to reach one backend.
enum Attempt {
    /// The kernel is connecting.
    UnderWay(OwnedFd, Option<Held>),
    /// Not this one.
    Failed,
    /// It is there, but its queue of connections is full (Unix sockets; TCP would wait by itself).
    Busy,
    /// Nobody could be reached now.
    Hopeless,
}

impl Worker {
    /// It is this connection's turn.
    pub(super) fn begin(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        if !opening.announced {
            return self.go_on(slot);
        }
        opening.phase = Phase::Header;
        let timeout = opening.front.listener.proxy_timeout;
        if self.watch(slot, Side::Client, Interest::NEWS) {
            self.wheel.set(slot, self.now + timeout);
        }
    }

    /// It is known who the client is: what it wants is read, or is none of our business.
    fn go_on(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let reads = (tunnel.opening.as_ref()).is_some_and(|opening| opening.exchange.is_some());
        if reads {
            self.await_request(slot);
        } else {
            self.dial(slot);
        }
    }

    pub(super) fn phase(&self, slot: u32) -> Option<Phase> {
        let tunnel = self.tunnels.get(slot as usize)?;
        tunnel.opening.as_ref().map(|opening| opening.phase)
    }

    pub(super) fn on_opening(&mut self, slot: u32, side: Side, flags: EventFlags) {
        if self.is_away(slot) {
            return self.on_away(slot, side, flags);
        }
        match (self.phase(slot), side) {
            (Some(Phase::Header), Side::Client) => self.read_header(slot, flags),
            (Some(Phase::Dialing), Side::Backend) => self.connected(slot, flags),
            (Some(Phase::Request), Side::Client) => self.read_request(slot),
            (Some(Phase::Request), Side::Backend) => self.heard_unasked(slot),
            (Some(Phase::Exchange), side) => self.on_exchange(slot, side, flags),
            (Some(Phase::Lingering), Side::Client) => self.on_lingering(slot, flags),
            (Some(Phase::Dialing | Phase::Held), Side::Client)
                if flags.contains(EventFlags::ERR) =>
            {
                self.end(slot, Reason::ClientGone, How::Abort);
            }
            (Some(Phase::Dialing | Phase::Held), Side::Client)
                if flags.contains(EventFlags::HUP) =>
            {
                // Reported without end; whoever takes the connection will see it.
                self.watch(slot, Side::Client, Interest::UNWATCHED);
            }
            // A client that goes on talking while its backend is dialed: later.
            (Some(Phase::Dialing | Phase::Held), Side::Client) => {
                self.watch(slot, Side::Client, Interest::ENDS);
            }
            _ => {}
        }
    }

    /// Whether it stood already and looks for another backend.
    pub(super) fn is_away(&self, slot: u32) -> bool {
        (self.tunnels.get(slot as usize)).is_some_and(|tunnel| tunnel.away().is_some())
    }

    /// No tunnel will come of this: say so in the client's language.
    pub(super) fn give_up(&mut self, slot: u32, reason: Reason) {
        if self.is_away(slot) {
            return self.round_over(slot);
        }
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let speaks = (tunnel.opening.as_ref()).is_some_and(|opening| opening.exchange.is_some());
        if !speaks {
            return self.end(slot, reason, How::Abort);
        }
        let why = match reason {
            Reason::NoBackend => "no backend is up",
            Reason::ConnectFailed => "no backend could be reached",
            Reason::PortsExhausted => "no outgoing port is left",
            Reason::Shutdown => "shutting down",
            Reason::BackendRemoved | Reason::BackendDown => "the backend is gone",
            Reason::DrainDeadline | Reason::Draining => "draining",
            _ => "no room",
        };
        self.turn_away(slot, why, reason);
    }

    /// A deadline of the opening has passed.
    pub(super) fn opening_late(&mut self, slot: u32) {
        if self.is_away(slot) {
            return self.away_late(slot);
        }
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        match tunnel.opening.as_ref().map(|opening| opening.phase) {
            Some(Phase::Queued) => self.give_up(slot, Reason::RateLimited),
            Some(Phase::Held) => self.held_late(slot),
            Some(Phase::Request) => self.request_late(slot),
            Some(Phase::Exchange) => self.exchange_late(slot),
            Some(Phase::Lingering) => self.linger_late(slot),
            Some(Phase::Header) => self.end(slot, Reason::ProxyTimeout, How::Abort),
            Some(Phase::Dialing) if tunnel.backend.is_none() => self.dial(slot),
            Some(Phase::Dialing) => {
                self.note_failure(slot, "connect timed out");
                self.dial_elsewhere(slot);
            }
            Some(Phase::Resuming) | None => {}
        }
    }

    /// A trusted peer is to say whom it brings. The header is only peeked at until it is complete, so
    /// that not one byte after it is taken from the stream.
    fn read_header(&mut self, slot: u32, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let listener = &opening.front.listener;
        let Some(accept) = listener.accept_proxy else {
            return;
        };
        let window = self
            .tools
            .scratch
            .get_mut(..proxy::MAX_HEADER)
            .unwrap_or_default();
        let (parsed, ended) = match rustix::net::recv(&tunnel.client, &mut *window, RecvFlags::PEEK)
        {
            Ok((_, 0)) => (Parsed::Incomplete, true),
            Ok((_, got)) => {
                let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                (
                    proxy::parse(window.get(..got).unwrap_or_default(), accept),
                    ended,
                )
            }
            Err(Errno::AGAIN | Errno::INTR) => (Parsed::Incomplete, false),
            Err(_) => return self.end(slot, Reason::ClientGone, How::Abort),
        };
        let (consumed, origin) = match parsed {
            Parsed::Header { consumed, origin } => (consumed, origin),
            Parsed::Incomplete if !ended => return,
            Parsed::Incomplete | Parsed::Invalid(_) => {
                return self.end(slot, Reason::ProxyInvalid, How::Abort);
            }
        };
        // What was peeked is there to be taken.
        let header = self.tools.scratch.get_mut(..consumed).unwrap_or_default();
        if !matches!(rustix::net::recv(&tunnel.client, header, RecvFlags::empty()), Ok((_, got)) if got == consumed)
        {
            return self.end(slot, Reason::ProxyInvalid, How::Abort);
        }
        match origin {
            Origin::Local if !listener.serve_proxy_local => {
                return self.end(slot, Reason::ProxyLocal, How::Clean);
            }
            Origin::Local | Origin::Unknown => {}
            Origin::Proxied {
                source,
                destination,
            } => {
                tunnel.story.get_or_insert_default().proxied_by = tunnel.peer.address();
                tunnel.peer = Some(canonical(source)).into();
                opening.destination = Some(canonical(destination));
            }
        }
        let most = listener.max_connections_per_source;
        if let (Some(address), 1..) = (tunnel.peer.address(), most) {
            tunnel.counted = tunnel.terms.listener.enter(address.ip(), most);
            if !tunnel.counted {
                return self.give_up(slot, Reason::SourceFull);
            }
        }
        self.go_on(slot);
    }

    /// The backend under way is none: drop it and ask the next.
    pub(super) fn dial_elsewhere(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.backend.take().is_some() {
            self.sockets -= 1;
        }
        // Closed with it.
        tunnel.backend_interest = Interest::UNWATCHED;
        tunnel.port = None;
        if let Some(entry) = tunnel.entry.take() {
            entry.load().fetch_sub(1, Ordering::Relaxed);
            if let Some(opening) = &mut tunnel.opening {
                opening.tried.push(entry.index());
            }
        }
        self.dial(slot);
    }

    /// Pick a backend and connect to it; on failure the key's next choice.
    pub(super) fn dial(&mut self, slot: u32) {
        loop {
            let entropy = self.entropy();
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return;
            };
            let Some(opening) = &mut tunnel.opening else {
                return;
            };
            // A reload since it was accepted counts: its plan knows better who is up.
            let newest = self.deployment.as_ref().and_then(|deployment| {
                let name = &opening.pool.planned.pool.name;
                let mut pools = deployment.pools.iter();
                pools.find(|pool| pool.planned.pool.name == *name)
            });
            if let Some(newest) = newest {
                opening.pool = Arc::clone(newest);
            }
            let pool = Arc::clone(&opening.pool);
            let dialing = &pool.planned.dialing;
            // Those without a port left are not asked, and so not counted as tries; but a client of a
            // large pool must not cost a walk through all of it.
            let passed_over = opening.tried.len() >= 4 * usize::from(dialing.tries);
            let picked = if tunnel.tries >= dialing.tries || passed_over {
                None
            } else {
                pick(opening, tunnel.peer.address(), entropy, self.now)
            };
            let Some((index, entry)) = picked else {
                if opening
                    .busy
                    .as_ref()
                    .is_some_and(|(_, until)| self.now < *until)
                {
                    // Nobody else takes it: ask those with a full queue again in a moment, and less and
                    // less often, since many may be waiting.
                    opening.phase = Phase::Dialing;
                    opening.tried.clear();
                    let wait = BUSY_WAIT * (1 << opening.busy_tries.min(5));
                    opening.busy_tries = opening.busy_tries.saturating_add(1);
                    self.wheel.set(slot, self.now + wait);
                    return;
                }
                let full = opening.busy.take().map(|(entry, _)| entry);
                let asked = tunnel.tries > 0 || !opening.tried.is_empty() || full.is_some();
                let reason = match (opening.short_of_ports, asked) {
                    (true, _) => Reason::PortsExhausted,
                    (false, false) => Reason::NoBackend,
                    (false, true) => Reason::ConnectFailed,
                };
                if let Some(entry) = full {
                    self.fold_failure(&entry, "its queue of connections stays full");
                }
                return self.give_up(slot, reason);
            };
            let from = match (
                dialing.transparent,
                tunnel.peer.address(),
                entry.endpoint.ip(),
            ) {
                (true, Some(client), Some(to)) if client.is_ipv4() == to.is_ipv4() => {
                    From::Client(client.ip())
                }
                _ => From::Any,
            };
            match self.attempt(&pool, index, &entry, from) {
                Attempt::UnderWay(backend, port) => {
                    let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                        return;
                    };
                    let Some(opening) = &mut tunnel.opening else {
                        return;
                    };
                    if !opening.tried.is_empty() {
                        self.counters
                            .backend(entry.index(), field!(BackendSlot, fallbacks), 1);
                    }
                    opening.phase = Phase::Dialing;
                    opening.dialed_at = self.now;
                    entry.load().fetch_add(1, Ordering::Relaxed);
                    tunnel.entry = Some(entry);
                    tunnel.backend = Some(backend);
                    tunnel.port = port;
                    tunnel.tries = tunnel.tries.saturating_add(1);
                    self.sockets += 1;
                    if !self.watch(slot, Side::Backend, Interest::WRITE) {
                        return;
                    }
                    let connect = pool.planned.dialing.timeouts.connect;
                    if connect.is_zero() {
                        self.wheel.cancel(slot);
                    } else {
                        self.wheel.set(slot, self.now + connect);
                    }
                    return;
                }
                Attempt::Failed => {
                    let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                        return;
                    };
                    let Some(opening) = &mut tunnel.opening else {
                        return;
                    };
                    let ways = pool.ways.get(usize::from(index));
                    let full = ways.is_some_and(|ways| ways.full(self.now));
                    let out_of_ports = ways.is_some_and(|ways| ways.out_of_ports(self.now));
                    opening.short_of_ports |= out_of_ports;
                    // A backend that was not even asked does not count as one that refused.
                    tunnel.tries = tunnel.tries.saturating_add(u8::from(!full));
                    opening.tried.push(entry.index());
                }
                Attempt::Busy => {
                    let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                        return;
                    };
                    let Some(opening) = &mut tunnel.opening else {
                        return;
                    };
                    let patience = match pool.planned.dialing.timeouts.connect {
                        Duration::ZERO => LONGEST_WAIT,
                        connect => connect,
                    };
                    let until = self.now + patience;
                    opening
                        .busy
                        .get_or_insert_with(|| (Arc::clone(&entry), until));
                    opening.tried.push(entry.index());
                }
                Attempt::Hopeless => return self.give_up(slot, Reason::OutOfResources),
            }
        }
    }

    /// Begin to connect to one backend, from whichever source has a port left.
    fn attempt(
        &mut self,
        pool: &DeployedPool,
        index: u16,
        entry: &Arc<BackendEntry>,
        from: From,
    ) -> Attempt {
        let Some(ways) = pool.ways.get(usize::from(index)) else {
            return Attempt::Failed;
        };
        let timeouts = &pool.planned.dialing.timeouts;
        self.counters
            .backend(entry.index(), field!(BackendSlot, connects), 1);
        for _ in 0..ways.attempts() {
            let (from, port) = match (from, ways.counted()) {
                (From::Client(_), _) | (_, false) => (from, None),
                _ => match ways.choose(self.now) {
                    Some((source, port)) => (source.map_or(From::Any, From::Source), Some(port)),
                    None => break,
                },
            };
            let crowded = port
                .as_ref()
                .is_none_or(|port| port.ports().used() > UNCROWDED);
            let ports = crowded.then(|| self.shared.ports.clone());
            match socket::dial(&entry.endpoint, from, ports, timeouts) {
                Ok(backend) => return Attempt::UnderWay(backend, port),
                Err(DialError::Ports) => match &port {
                    Some(port) => port.ports().exhausted(self.now),
                    None => break,
                },
                Err(DialError::Shortage(_)) => return Attempt::Hopeless,
                Err(DialError::Source(error)) => {
                    // Not the backend's fault: say so, and try the other sources.
                    if let Some(port) = &port {
                        port.ports().unusable(self.now);
                    }
                    self.fold_source_failure(&pool.planned.pool.name, from, error);
                }
                Err(DialError::Busy) => return Attempt::Busy,
                Err(DialError::Backend(error)) => {
                    self.fold_failure(entry, &error.to_string());
                    return Attempt::Failed;
                }
            }
        }
        if ways.out_of_ports(self.now) {
            self.fold_exhaustion(entry);
        }
        Attempt::Failed
    }

    /// The connect is decided.
    pub(super) fn connected(&mut self, slot: u32, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(backend) = &tunnel.backend else {
            return;
        };
        // An event of the turn in which it was dialed is about the socket that it had before.
        if (tunnel.opening.as_ref()).is_some_and(|opening| opening.dialed_at == self.now) {
            return;
        }
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            // No error: it took the connection, spoke and closed already (a Unix socket hangs up then).
            if let Ok(Err(error)) | Err(error) = sockopt::socket_error(backend) {
                self.note_failure(slot, &error.to_string());
                return self.dial_elsewhere(slot);
            }
        } else if !flags.contains(EventFlags::OUT) {
            return;
        }
        if (tunnel.entry.as_ref())
            .is_some_and(|entry| to_itself(backend, &entry.endpoint, &self.shared.ports))
        {
            self.note_failure(slot, "nobody listens there: connected to itself");
            return self.dial_elsewhere(slot);
        }
        let Some(opening) = &tunnel.opening else {
            return;
        };
        let dialing = &opening.pool.planned.dialing;
        if let Some(version) = dialing.send_proxy {
            let destination = opening
                .destination
                .or_else(|| socket::local_address(&tunnel.client));
            let header = proxy::encode(version, tunnel.peer.address(), destination);
            // A new connection's send buffer always has room for it.
            if relay::send_all(backend, header.as_slice()).is_err() {
                self.note_failure(slot, "did not take the PROXY header");
                return self.dial_elsewhere(slot);
            }
        }
        let took = self.now.since(opening.dialed_at);
        if self.shared.outbox.logging() {
            tunnel.story.get_or_insert_default().connect = took;
        }
        let (reads, away) = (opening.exchange.is_some(), opening.away.is_some());
        if let Some(entry) = &tunnel.entry {
            self.counters.backend(
                entry.index(),
                field!(BackendSlot, connect_ns),
                took.as_nanos() as u64,
            );
        }
        if away {
            return self.repeat_handshake(slot);
        }
        if reads {
            return self.begin_exchange(slot);
        }
        tunnel.hash = tunnel
            .opening
            .take()
            .and_then(|opening| opening.hash)
            .unwrap_or_default();
        self.stand(slot);
        // Also what has come meanwhile is reported then.
        let _ = self.watch(slot, Side::Client, Interest::READ)
            && self.watch(slot, Side::Backend, Interest::READ);
    }

    /// A tunnel stands: count it, and set its timer.
    pub(super) fn stand(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        tunnel.active = Moment::of(now);
        self.opening -= 1;
        self.counters.worker(field!(WorkerSlot, opened), 1);
        self.counters.listener(
            tunnel.terms.listener.index(),
            field!(ListenerSlot, opened),
            1,
        );
        if let Some(entry) = &tunnel.entry {
            self.counters
                .backend(entry.index(), field!(BackendSlot, opened), 1);
        }
        match tunnel.due(now) {
            Some(at) => self.wheel.set(slot, at),
            None => self.wheel.cancel(slot),
        }
        if !self.drains.is_empty() {
            self.join_drains(slot);
        }
    }
}

/// Whether a connect met itself: two ends that choose the same port of one address open at the same time
/// (RFC 9293, section 3.5), and where nobody listens on a port of the outgoing range, one end can be both.
fn to_itself(backend: &OwnedFd, to: &Endpoint, ports: &RangeInclusive<u16>) -> bool {
    match to {
        Endpoint::Tcp(to) if ports.contains(&to.port()) => {
            socket::local_address(backend) == Some(canonical(*to))
        }
        _ => false,
    }
}

/// The backend that the pool's policy gives this client, other than those tried.
pub(super) fn pick(
    opening: &mut Opening,
    client: Option<SocketAddr>,
    entropy: u64,
    now: Tick,
) -> Option<(u16, Arc<BackendEntry>)> {
    let (deployed, front) = (Arc::clone(&opening.pool), Arc::clone(&opening.front));
    let tried = &opening.tried;
    let pool = &deployed.planned.pool;
    let tried: Vec<u16> = if tried.is_empty() {
        Vec::new()
    } else {
        let was_tried = |entry: &BackendEntry| tried.contains(&entry.index());
        (0_u16..)
            .zip(&deployed.backends)
            .filter(|(_, entry)| was_tried(entry))
            .map(|(index, _)| index)
            .collect()
    };
    let chosen = |index: u16| {
        Some((
            index,
            Arc::clone(deployed.backends.get(usize::from(index))?),
        ))
    };
    if let Some(name) = &opening.preferred
        && let Some(index) = pool.bound_to(name)
        && !tried.contains(&index)
    {
        return chosen(index);
    }
    // Kept: however often it has to be picked, now or when it stands, the key stays the same.
    let hash = *opening
        .hash
        .get_or_insert_with(|| key_hash(&pool.key, &front.hasher, client, None, entropy));
    let entropy = match pool.policy {
        Policy::RoundRobin => deployed.next_turn(tried.is_empty()),
        _ => entropy,
    };
    let draw = Draw { hash, entropy };
    chosen(pool.pick_by(draw, |index| deployed.load_at(index, now), &tried)?)
}
