//! The end of a tunnel: sockets, counts and the record of what it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use pybalancer_core::record::Reason;

use super::Worker;
use crate::log::Line;
use crate::socket;
use crate::stats::field;
use crate::tunnel::{Phase, Story, Tunnel};

/// How the sockets are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Both directions had their end: nothing is missing.
    Clean,
    /// Something may be missing: the peers see an abort, never an end that lies.
    Abort,
}

/// Now, for people: the only use of the wall clock.
pub fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

impl Worker {
    pub(super) fn is_current(&self, slot: u32, generation: u32) -> bool {
        self.tunnels
            .get(slot as usize)
            .is_some_and(|tunnel| tunnel.generation == generation)
    }

    /// Close the sockets and the books of a tunnel.
    pub(super) fn end(&mut self, slot: u32, reason: Reason, how: How) {
        let Some(mut tunnel) = self.tunnels.try_remove(slot as usize) else {
            return;
        };
        self.wheel.cancel(slot);
        self.sockets -= 1 + usize::from(tunnel.backend.is_some());
        let listener = tunnel.terms.listener.index();
        if tunnel
            .opening
            .as_ref()
            .is_none_or(|opening| opening.admitted)
        {
            tunnel.terms.listener.live().fetch_sub(1, Ordering::Relaxed);
        }
        if let (true, Some(address)) = (tunnel.counted, tunnel.peer.address()) {
            tunnel.terms.listener.leave(address.ip());
        }
        if let Some(entry) = &tunnel.entry {
            entry.load().fetch_sub(1, Ordering::Relaxed);
        }
        let away = tunnel.away().is_some();
        if let Some(opening) = &tunnel.opening {
            self.left_seekers(opening);
        }
        let opened = match &tunnel.opening {
            // One that looks for another backend stood, and stands with its client still.
            opening if opening.is_none() || away => {
                self.counters.worker(field!(WorkerSlot, closed), 1);
                self.counters
                    .listener(listener, field!(ListenerSlot, closed), 1);
                if let (Some(entry), false) = (&tunnel.entry, away) {
                    self.counters
                        .backend(entry.index(), field!(BackendSlot, closed), 1);
                    if reason == Reason::BackendReset {
                        self.counters
                            .backend(entry.index(), field!(BackendSlot, resets), 1);
                    }
                }
                if tunnel.framed {
                    self.count_frames(&tunnel);
                }
                true
            }
            None => true,
            Some(opening) => {
                self.opening -= 1;
                match opening.phase {
                    Phase::Queued => {
                        tunnel
                            .terms
                            .listener
                            .queued()
                            .fetch_sub(1, Ordering::Relaxed);
                    }
                    Phase::Held => {
                        let held = tunnel.terms.listener.handshakes_held();
                        held.fetch_sub(1, Ordering::Relaxed);
                    }
                    _ => {}
                }
                self.count_refusal(listener, reason);
                false
            }
        };
        tunnel.to_backend.release(&mut self.tools.pipes);
        tunnel.to_client.release(&mut self.tools.pipes);
        // A connection whose requests have all left their own records needs none for its end.
        let told = opened || !told_by_requests(&tunnel, reason);
        if told && self.shared.outbox.logging() {
            let line = self.line(&mut tunnel, opened, reason);
            self.log(line);
        }
        if how == How::Abort {
            socket::abort(tunnel.client);
            if let Some(backend) = tunnel.backend {
                socket::abort(backend);
            }
        }
    }

    /// The record of a tunnel, or of what did not become one.
    fn line(&self, tunnel: &mut Tunnel, opened: bool, reason: Reason) -> Line {
        let recall = tunnel.recall.as_deref_mut();
        let (moved, left) = recall.map_or((0, None), |recall| (recall.moved, recall.left.take()));
        if left.is_some() {
            // What was dialed in its place never had it.
            tunnel.entry = left;
        }
        let pool = match (&tunnel.entry, &tunnel.opening) {
            (Some(entry), _) => Arc::clone(&entry.pool),
            (None, Some(opening)) => Arc::clone(&opening.pool.planned.pool.name),
            (None, None) => "".into(),
        };
        let exchange = (tunnel.opening.as_mut()).and_then(|opening| opening.exchange.as_mut());
        let (mut blamed, mut denied) = (None, None);
        let inflight = exchange.and_then(|exchange| {
            (blamed, denied) = (exchange.blamed.take(), exchange.denied.take());
            exchange.inflight.as_mut()
        });
        let before = inflight.as_ref().map_or((0, 0), |inflight| inflight.before);
        let began = inflight.as_ref().map(|inflight| inflight.began);
        let asked = inflight
            .and_then(|inflight| inflight.line.take())
            .or(denied);
        // Whoever came before the log was switched on has none.
        let story = tunnel.story.take().unwrap_or_else(|| {
            Box::new(Story {
                accepted_at: self.now,
                ..Story::default()
            })
        });
        let began = began.unwrap_or(story.accepted_at);
        let mut request = story.request.or(asked);
        if let (true, Some(request)) = (tunnel.framed, &mut request) {
            let (client, backend) = (&tunnel.from_client, &tunnel.from_backend);
            request.messages = (client.messages(), backend.messages());
            request.close = (client.closed(), backend.closed());
            request.moved = moved;
        }
        Line {
            unix_ns: unix_ns(),
            listener: Arc::clone(&tunnel.terms.listener),
            client: tunnel.peer.address(),
            proxied_by: story.proxied_by,
            pool,
            backend: tunnel.entry.clone().or(blamed),
            connect_ns: opened.then_some(story.connect.as_nanos() as u64),
            duration_ns: self.now.since(began).as_nanos() as u64,
            to_backend: tunnel.to_backend.bytes - before.0,
            to_client: tunnel.to_client.bytes - before.1,
            tries: tunnel.tries,
            reason,
            request,
        }
    }

    /// The record of a request whose response has been taken.
    pub(super) fn log_request(&mut self, slot: u32, reason: Reason) {
        if !self.shared.outbox.logging() {
            return;
        }
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let proxied_by = tunnel.story.as_ref().and_then(|story| story.proxied_by);
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let Some(exchange) = &mut opening.exchange else {
            return;
        };
        let blamed = exchange.blamed.take();
        let Some(inflight) = &mut exchange.inflight else {
            return;
        };
        let line = Line {
            unix_ns: unix_ns(),
            listener: Arc::clone(&tunnel.terms.listener),
            client: tunnel.peer.address(),
            proxied_by,
            pool: Arc::clone(&opening.pool.planned.pool.name),
            backend: tunnel.entry.clone().or(blamed),
            connect_ns: None,
            duration_ns: self.now.since(inflight.began).as_nanos() as u64,
            to_backend: tunnel.to_backend.bytes - inflight.before.0,
            to_client: tunnel.to_client.bytes - inflight.before.1,
            tries: tunnel.tries,
            reason,
            request: inflight.line.take(),
        };
        self.log(line);
    }

    /// Messages and the ways in which WebSockets end.
    fn count_frames(&self, tunnel: &Tunnel) {
        let listener = tunnel.terms.listener.index();
        let (client, backend) = (&tunnel.from_client, &tunnel.from_backend);
        for (field, messages) in [
            (field!(ListenerSlot, messages_in), client.messages()),
            (field!(ListenerSlot, messages_out), backend.messages()),
        ] {
            self.counters.listener(listener, field, u64::from(messages));
        }
        let place = match client.closed().or(backend.closed()) {
            Some(code @ 1000..=1015) => code - 1000,
            Some(3000..=3999) => 16,
            Some(4000..=4999) => 17,
            Some(_) => 18,
            None => 19,
        };
        let field = field!(ListenerSlot, closes) + usize::from(place) * 8;
        self.counters.listener(listener, field, 1);
    }

    pub(super) fn log(&self, line: Line) {
        if !self.shared.outbox.log(line) {
            self.counters.worker(field!(WorkerSlot, log_dropped), 1);
        }
    }

    /// Count a connection that did not become a tunnel.
    pub(super) fn count_refusal(&self, listener: u32, reason: Reason) {
        let field = match reason {
            Reason::ListenerFull => field!(ListenerSlot, refused_full),
            Reason::SourceFull => field!(ListenerSlot, refused_source),
            Reason::RateLimited | Reason::HandshakeLimited => field!(ListenerSlot, refused_rate),
            Reason::ProxyInvalid
            | Reason::ProxyUntrusted
            | Reason::ProxyUnexpected
            | Reason::ProxyLocal
            | Reason::ProxyTimeout => field!(ListenerSlot, refused_proxy),
            Reason::NoBackend
            | Reason::ConnectFailed
            | Reason::PortsExhausted
            | Reason::OutOfResources => {
                field!(ListenerSlot, refused_no_backend)
            }
            _ => return,
        };
        self.counters.listener(listener, field, 1);
    }
}

/// Whether nothing is left to be said of a connection in mode "websocket": it ended between requests.
fn told_by_requests(tunnel: &Tunnel, reason: Reason) -> bool {
    let exchange = (tunnel.opening.as_ref()).and_then(|opening| opening.exchange.as_ref());
    exchange.is_some_and(|exchange| exchange.served > 0 && reason == Reason::Finished)
}
