//! Admission: who gets in, who waits, who is told at once that there is no room.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;
use rustix::io::Errno;

use super::Worker;
use crate::deployment::Front;
use crate::log::Line;
use crate::outbox::Event;
use crate::poller::Interest;
use crate::registry::ListenerEntry;
use crate::relay::Flow;
use crate::socket;
use crate::stats::field;
use crate::tunnel::{Moment, Opening, Phase, Story, Tunnel};

/// Connections accepted in a turn; the rest stays ready, and tunnels get their turn first.
const BATCH: usize = 64;
/// Connections that did not stand yet when others are still told why they are turned away.
const MOST_TOLD: usize = 2048;
/// After this time a worker that ran out of descriptors or memory looks again.
const PAUSE: Duration = Duration::from_millis(100);

impl Worker {
    pub(super) fn on_listener(&mut self, socket: u32) {
        for _ in 0..BATCH {
            if !self.accept_one(socket) {
                break;
            }
        }
    }

    /// Take what waits in the kernel's queue: as many as fit into it, since a flood refills it.
    pub(super) fn drain_accept_queue(&mut self, socket: u32) {
        let front = (self.listening.get(&socket)).and_then(|listening| listening.front.as_ref());
        let most = front.map_or(0, |front| front.listener.backlog.max(1));
        for _ in 0..most {
            if !self.accept_one(socket) {
                break;
            }
        }
    }

    /// False when there is nothing more to accept, or no room.
    fn accept_one(&mut self, socket: u32) -> bool {
        let Some(listening) = self.listening.get(&socket) else {
            return false;
        };
        let Some(front) = listening.front.clone() else {
            return false;
        };
        if !self.has_room() {
            self.pause_accepting("its open files are used up (see ulimit -n)");
            return false;
        }
        // Mostly there is one. Of several the first that has somebody.
        let accepted = (listening.sockets.iter())
            .map(socket::accept)
            .find(|accepted| !matches!(accepted, Err(Errno::AGAIN)));
        match accepted.unwrap_or(Err(Errno::AGAIN)) {
            Ok((client, peer)) => {
                if self.pause_told {
                    self.pause_told = false;
                    self.shared
                        .outbox
                        .tell(Event::AcceptResumed { worker: self.index });
                }
                self.admit(front, client, peer);
                true
            }
            Err(Errno::AGAIN) => false,
            Err(Errno::MFILE | Errno::NFILE) => {
                self.pause_accepting("open files are used up (see ulimit -n)");
                false
            }
            Err(Errno::NOBUFS | Errno::NOMEM) => {
                self.pause_accepting("the system has no memory for sockets");
                false
            }
            // Errors of the connection itself (accept(2)): it died in the queue. The next one.
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM,
            ) => true,
            Err(error) => {
                self.pause_accepting(&error.to_string());
                false
            }
        }
    }

    /// Stop asking for connections, so that a listener that stays ready does not spin; look again soon.
    fn pause_accepting(&mut self, why: &str) {
        for listening in self.listening.values_mut() {
            if listening.watched {
                listening.watched = !listening.unwatch(&self.poller);
            }
        }
        self.resume_at = self.accepting.then(|| self.now + PAUSE);
        if !self.pause_told {
            self.pause_told = true;
            self.counters.worker(field!(WorkerSlot, accept_pauses), 1);
            self.shared.outbox.tell(Event::AcceptPaused {
                worker: self.index,
                message: why.to_owned(),
            });
        }
    }

    pub(super) fn resume_accepting(&mut self) {
        if !self.accepting {
            return;
        }
        if !self.has_room() {
            self.resume_at = Some(self.now + PAUSE);
            return;
        }
        self.resume_at = None;
        for (socket, listening) in &mut self.listening {
            if !listening.watched && listening.front.is_some() {
                listening.watch(&self.poller, *socket);
            }
        }
    }

    fn admit(&mut self, front: Arc<Front>, client: OwnedFd, peer: Option<SocketAddr>) {
        let listener = &front.listener;
        let entry = &front.entry;
        self.counters.worker(field!(WorkerSlot, accepted), 1);
        self.counters
            .listener(entry.index(), field!(ListenerSlot, accepted), 1);
        if listener.draining && listener.web.is_none() {
            return self.refuse(front, client, peer, Reason::Draining);
        }
        if !ListenerEntry::take(entry.live(), listener.max_connections) {
            return self.refuse(front, client, peer, Reason::ListenerFull);
        }
        // A Unix socket's permissions are its list of trusted peers.
        let trusted = peer.is_none_or(|peer| front.trusts(peer.ip()));
        let announced = listener.accept_proxy.is_some() && trusted;
        let mut counted = false;
        if let (false, Some(peer), most @ 1..) =
            (announced, peer, listener.max_connections_per_source)
        {
            if !entry.enter(peer.ip(), most) {
                entry.live().fetch_sub(1, Ordering::Relaxed);
                return self.refuse(front, client, peer.into(), Reason::SourceFull);
            }
            counted = true;
        }
        let turn = self.ask_for_a_turn(&front);
        if turn == Turn::Never {
            entry.live().fetch_sub(1, Ordering::Relaxed);
            if let (true, Some(peer)) = (counted, peer) {
                entry.leave(peer.ip());
            }
            return self.refuse(front, client, peer, Reason::RateLimited);
        }
        let queued = turn != Turn::Now;
        let slot = self.take_in(&front, client, peer, announced, counted, queued);
        match turn {
            Turn::Now => self.begin(slot),
            Turn::Wait(until) => {
                let generation = self.generation;
                self.counters
                    .listener(entry.index(), field!(ListenerSlot, queued), 1);
                self.wheel.set(slot, self.now + listener.queue_timeout);
                self.admit_at = Some(self.admit_at.map_or(until, |at| at.min(until)));
                if let Some(listening) = self.listening.get_mut(&front.socket) {
                    listening.waiting.push_back((slot, generation));
                }
            }
            Turn::Never => {}
        }
    }

    /// Give a connection its slot.
    pub(super) fn take_in(
        &mut self,
        front: &Arc<Front>,
        client: OwnedFd,
        peer: Option<SocketAddr>,
        announced: bool,
        counted: bool,
        queued: bool,
    ) -> u32 {
        let listener = &front.listener;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let opening = Opening {
            front: Arc::clone(front),
            pool: Arc::clone(&front.pool),
            phase: if queued {
                Phase::Queued
            } else {
                Phase::Dialing
            },
            admitted: true,
            announced,
            destination: None,
            hash: None,
            preferred: None,
            tried: Vec::new(),
            dialed_at: self.now,
            short_of_ports: false,
            busy: None,
            busy_tries: 0,
            exchange: listener.web.is_some().then(Box::default),
            away: None,
        };
        let slot = self.tunnels.insert(Tunnel {
            client,
            backend: None,
            generation: self.generation,
            active: Moment::of(self.now),
            to_backend: Flow::default(),
            to_client: Flow::default(),
            from_client: Default::default(),
            from_backend: Default::default(),
            opening: Some(Box::new(opening)),
            closing: None,
            recall: None,
            entry: None,
            port: None,
            terms: Arc::clone(&front.terms),
            story: self.shared.outbox.logging().then(|| {
                Box::new(Story {
                    accepted_at: self.now,
                    ..Story::default()
                })
            }),
            peer: peer.into(),
            heard: Moment::of(self.now),
            hash: 0,
            tries: 0,
            framed: false,
            pinged: false,
            // Where requests are read, such a header is no request.
            guarded: listener.refuse_unexpected_proxy && !announced && listener.web.is_none(),
            held: false,
            untrusted: listener.accept_proxy.is_some(),
            counted,
            client_interest: Interest::UNWATCHED,
            backend_interest: Interest::UNWATCHED,
        }) as u32;
        self.sockets += 1;
        self.opening += 1;
        slot
    }

    /// Whether `accept_rate` has room for one more.
    fn ask_for_a_turn(&self, front: &Front) -> Turn {
        let Some(rate) = &front.listener.accept_rate else {
            return Turn::Now;
        };
        // Whoever waits longer goes first.
        let queue_stands = self
            .listening
            .get(&front.socket)
            .is_some_and(|listening| !listening.waiting.is_empty());
        let until = match (queue_stands, self.admit_at) {
            (true, Some(at)) => at,
            _ => match front.entry.admit(rate, self.now) {
                Ok(()) => return Turn::Now,
                Err(until) => until,
            },
        };
        let most = front.listener.accept_queue;
        if most > 0 && ListenerEntry::take(front.entry.queued(), most) {
            Turn::Wait(until)
        } else {
            Turn::Never
        }
    }

    /// Let in those whose turn it is.
    pub(super) fn admit_waiting(&mut self) {
        self.admit_at = None;
        self.admit_handshakes();
        let sockets: Vec<u32> = self.listening.keys().copied().collect();
        for socket in sockets {
            while let Some(listening) = self.listening.get_mut(&socket) {
                let Some((slot, generation)) = listening.waiting.front().copied() else {
                    break;
                };
                let waits = self.tunnels.get(slot as usize).is_some_and(|tunnel| {
                    let queued = |opening: &Opening| opening.phase == Phase::Queued;
                    tunnel.generation == generation && tunnel.opening.as_deref().is_some_and(queued)
                });
                if !waits {
                    listening.waiting.pop_front();
                    continue;
                }
                // A reload may have lifted the limit.
                let rate = listening
                    .front
                    .as_ref()
                    .and_then(|front| front.listener.accept_rate.as_ref());
                let entry = listening.front.as_ref().map(|front| &front.entry);
                if let (Some(rate), Some(entry)) = (rate, entry)
                    && let Err(until) = entry.admit(rate, self.now)
                {
                    self.admit_at = Some(self.admit_at.map_or(until, |at: Tick| at.min(until)));
                    break;
                }
                listening.waiting.pop_front();
                self.leave_queue(slot);
                self.begin(slot);
            }
        }
    }

    /// No longer one of those that wait for their turn.
    fn leave_queue(&mut self, slot: u32) {
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize)
            && let Some(opening) = &mut tunnel.opening
        {
            opening.phase = Phase::Dialing;
            tunnel
                .terms
                .listener
                .queued()
                .fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Turn away a connection that never became a tunnel, and fast: RST costs neither side anything more.
    /// Who speaks HTTP is told when to come again; but not everybody in a flood.
    fn refuse(
        &mut self,
        front: Arc<Front>,
        client: OwnedFd,
        peer: Option<SocketAddr>,
        reason: Reason,
    ) {
        if front.listener.web.is_some() && self.opening < MOST_TOLD {
            let slot = self.take_in(&front, client, peer, false, false, false);
            if let Some(opening) =
                (self.tunnels.get_mut(slot as usize)).and_then(|tunnel| tunnel.opening.as_mut())
            {
                opening.admitted = false;
            }
            return self.turn_away(slot, "too many connections", reason);
        }
        socket::abort(client);
        self.count_refusal(front.entry.index(), reason);
        if self.shared.outbox.logging() {
            let line = Line {
                unix_ns: super::ending::unix_ns(),
                listener: Arc::clone(&front.entry),
                client: peer,
                proxied_by: None,
                pool: Arc::clone(&front.pool.planned.pool.name),
                backend: None,
                connect_ns: None,
                duration_ns: 0,
                to_backend: 0,
                to_client: 0,
                tries: 0,
                reason,
                request: None,
            };
            self.log(line);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Now,
    Wait(Tick),
    Never,
}
