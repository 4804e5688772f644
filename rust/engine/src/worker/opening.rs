//! From an admitted connection to a tunnel: who the client is, which backend takes it.
//!
//! Until a backend has taken it, a client's bytes stay in its socket's receive buffer. So a connect
//! that fails can go on to the key's next choice with nothing lost, and a flood of connections to
//! dead backends holds no memory of ours.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pybalancer_core::endpoint::canonical;
use pybalancer_core::pool::{Draw, Key, Policy};
use pybalancer_core::proxy::{self, Origin, Parsed};
use pybalancer_core::record::Reason;
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};

use super::ending::How;
use super::{FOLD, Folded, Worker};
use crate::deployment::{DeployedPool, Front};
use crate::outbox::Event;
use crate::poller::{EventFlags, Interest, Side};
use crate::ports::Held;
use crate::registry::BackendEntry;
use crate::relay;
use crate::socket::{self, DialError, From};
use crate::stats::field;
use crate::tunnel::Phase;

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
            self.dial(slot);
            return;
        }
        opening.phase = Phase::Header;
        let timeout = opening.front.listener.proxy_timeout;
        if self.watch(slot, Side::Client, Interest::NEWS) {
            self.wheel.set(slot, self.now + timeout);
        }
    }

    pub(super) fn on_opening(&mut self, slot: u32, side: Side, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let phase = tunnel.opening.as_ref().map(|opening| opening.phase);
        match (phase, side) {
            (Some(Phase::Header), Side::Client) => self.read_header(slot, flags),
            (Some(Phase::Dialing), Side::Backend) => self.connected(slot, flags),
            // An announced client may go on talking while its backend is dialed: later.
            _ => {}
        }
    }

    /// A deadline of the opening has passed.
    pub(super) fn opening_late(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        match tunnel.opening.as_ref().map(|opening| opening.phase) {
            Some(Phase::Queued) => self.end(slot, Reason::RateLimited, How::Abort),
            Some(Phase::Header) => self.end(slot, Reason::ProxyTimeout, How::Abort),
            Some(Phase::Dialing) if tunnel.backend.is_none() => self.dial(slot),
            Some(Phase::Dialing) => {
                self.note_failure(slot, "connect timed out");
                self.dial_elsewhere(slot);
            }
            None => {}
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
                tunnel.proxied_by = tunnel.address.map(Box::new);
                tunnel.address = Some(canonical(source));
                opening.destination = Some(canonical(destination));
            }
        }
        let most = listener.max_connections_per_source;
        if let (Some(address), 1..) = (tunnel.address, most) {
            tunnel.counted = tunnel.listener.enter(address.ip(), most);
            if !tunnel.counted {
                return self.end(slot, Reason::SourceFull, How::Abort);
            }
        }
        self.dial(slot);
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
    fn dial(&mut self, slot: u32) {
        loop {
            let entropy = self.entropy();
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return;
            };
            let Some(opening) = &mut tunnel.opening else {
                return;
            };
            // A reload since it was accepted counts: its plan knows better who is up.
            let newest = self
                .listening
                .get(&opening.front.socket)
                .and_then(|listening| listening.front.clone());
            let front = newest.unwrap_or_else(|| Arc::clone(&opening.front));
            let pool = Arc::clone(&front.pool);
            let dialing = &pool.planned.dialing;
            // Those without a port left are not asked, and so not counted as tries; but a client of a
            // large pool must not cost a walk through all of it.
            let passed_over = opening.tried.len() >= 4 * usize::from(dialing.tries);
            let picked = if tunnel.tries >= dialing.tries || passed_over {
                None
            } else {
                pick(&front, tunnel.address, entropy, &opening.tried)
            };
            let Some((index, entry)) = picked else {
                if opening.busy_until.is_some_and(|until| self.now < until) {
                    // Nobody else takes it: ask those with a full queue again in a moment.
                    opening.phase = Phase::Dialing;
                    opening.tried.clear();
                    self.wheel.set(slot, self.now + BUSY_WAIT);
                    return;
                }
                let reason = match (opening.short_of_ports, tunnel.tries) {
                    (true, _) => Reason::PortsExhausted,
                    (false, 0) => Reason::NoBackend,
                    (false, _) => Reason::ConnectFailed,
                };
                return self.end(slot, reason, How::Abort);
            };
            let from = match (dialing.transparent, tunnel.address, entry.endpoint.ip()) {
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
                    opening.front = front;
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
                    opening.busy_until.get_or_insert(self.now + patience);
                    opening.tried.push(entry.index());
                }
                Attempt::Hopeless => return self.end(slot, Reason::OutOfResources, How::Abort),
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
            match socket::dial(&entry.endpoint, from, self.shared.ports.clone(), timeouts) {
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
    fn connected(&mut self, slot: u32, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(backend) = &tunnel.backend else {
            return;
        };
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            // No error: it took the connection, spoke and closed already (a Unix socket hangs up then).
            if let Ok(Err(error)) | Err(error) = sockopt::socket_error(backend) {
                self.note_failure(slot, &error.to_string());
                return self.dial_elsewhere(slot);
            }
        } else if !flags.contains(EventFlags::OUT) {
            return;
        }
        let Some(opening) = tunnel.opening.take() else {
            return;
        };
        let dialing = &opening.front.pool.planned.dialing;
        if let Some(version) = dialing.send_proxy {
            let destination = opening
                .destination
                .or_else(|| socket::local_address(&tunnel.client));
            let header = proxy::encode(version, tunnel.address, destination);
            // A new connection's send buffer always has room for it.
            if relay::send_all(backend, header.as_slice()).is_err() {
                tunnel.opening = Some(opening);
                self.note_failure(slot, "did not take the PROXY header");
                return self.dial_elsewhere(slot);
            }
        }
        let took = self.now.since(opening.dialed_at);
        tunnel.connect_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        tunnel.active_at = self.now;
        self.opening -= 1;
        self.counters.worker(field!(WorkerSlot, opened), 1);
        self.counters
            .listener(tunnel.listener.index(), field!(ListenerSlot, opened), 1);
        if let Some(entry) = &tunnel.entry {
            self.counters
                .backend(entry.index(), field!(BackendSlot, opened), 1);
            self.counters.backend(
                entry.index(),
                field!(BackendSlot, connect_ns),
                took.as_nanos() as u64,
            );
        }
        match tunnel.due() {
            Some(at) => self.wheel.set(slot, at),
            None => self.wheel.cancel(slot),
        }
        // Also what has come meanwhile is reported then.
        let _ = self.watch(slot, Side::Client, Interest::READ)
            && self.watch(slot, Side::Backend, Interest::READ);
    }

    fn note_failure(&mut self, slot: u32, message: &str) {
        if let Some(entry) = self
            .tunnels
            .get(slot as usize)
            .and_then(|tunnel| tunnel.entry.clone())
        {
            self.fold_failure(&entry, message);
        }
    }

    fn fold_failure(&mut self, entry: &Arc<BackendEntry>, message: &str) {
        self.counters
            .backend(entry.index(), field!(BackendSlot, connect_failures), 1);
        let folded = self.folded(entry);
        folded.connects += 1;
        message.clone_into(&mut folded.message);
    }

    fn fold_exhaustion(&mut self, entry: &Arc<BackendEntry>) {
        self.counters
            .backend(entry.index(), field!(BackendSlot, ports_exhausted), 1);
        self.folded(entry).ports += 1;
    }

    fn folded(&mut self, entry: &Arc<BackendEntry>) -> &mut Folded {
        self.tell_at.get_or_insert(self.now + FOLD);
        self.folded.entry(entry.index()).or_insert_with(|| Folded {
            entry: Arc::clone(entry),
            connects: 0,
            ports: 0,
            message: String::new(),
        })
    }

    fn fold_source_failure(&mut self, pool: &Arc<str>, from: From, error: Errno) {
        self.tell_at.get_or_insert(self.now + FOLD);
        let (From::Source(ip) | From::Client(ip)) = from else {
            return;
        };
        let folded = self.source_failures.entry(Arc::clone(pool)).or_default();
        *folded = (folded.0 + 1, format!("{ip}: {error}"));
    }

    /// Tell policy what failed since the last time.
    pub(super) fn tell_failures(&mut self) {
        self.tell_at = None;
        let worker = self.index;
        for (_, folded) in self.folded.drain() {
            let (pool, backend) = (
                Arc::clone(&folded.entry.pool),
                Arc::clone(&folded.entry.name),
            );
            if folded.ports > 0 {
                let (pool, backend) = (Arc::clone(&pool), Arc::clone(&backend));
                self.shared.outbox.tell(Event::PortsExhausted {
                    worker,
                    pool,
                    backend,
                    count: folded.ports,
                });
            }
            if folded.connects > 0 {
                let (count, message) = (folded.connects, folded.message);
                self.shared.outbox.tell(Event::ConnectFailed {
                    worker,
                    pool,
                    backend,
                    count,
                    message,
                });
            }
        }
        for (pool, (count, message)) in self.source_failures.drain() {
            self.shared.outbox.tell(Event::SourceFailed {
                worker,
                pool,
                count,
                message,
            });
        }
    }
}

/// The backend that the pool's policy gives this client, other than those tried.
fn pick(
    front: &Front,
    client: Option<SocketAddr>,
    entropy: u64,
    tried: &[u32],
) -> Option<(u16, Arc<BackendEntry>)> {
    let pool = &front.pool.planned.pool;
    // Clients on a Unix socket have no address: any backend is as good.
    let hash = match (client, pool.key) {
        (Some(client), Key::Source) => front.hasher.source(client),
        (Some(client), Key::SourceIp) => front.hasher.source_ip(client.ip()),
        (None, _) => entropy,
    };
    let entropy = match pool.policy {
        Policy::RoundRobin if tried.is_empty() => front.pool.turn.fetch_add(1, Ordering::Relaxed),
        Policy::RoundRobin => front.pool.turn.load(Ordering::Relaxed),
        _ => entropy,
    };
    let tried: Vec<u16> = if tried.is_empty() {
        Vec::new()
    } else {
        let was_tried = |entry: &BackendEntry| tried.contains(&entry.index());
        (0_u16..)
            .zip(&front.pool.backends)
            .filter(|(_, entry)| was_tried(entry))
            .map(|(index, _)| index)
            .collect()
    };
    let index = pool.pick(
        Draw { hash, entropy },
        |index| front.pool.load(index),
        &tried,
    )?;
    Some((
        index,
        Arc::clone(front.pool.backends.get(usize::from(index))?),
    ))
}
