//! The end of a tunnel: sockets, counts and the record of what it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use pybalancer_core::record::Reason;

use super::Worker;
use crate::log::Line;
use crate::socket;
use crate::stats::field;
use crate::tunnel::Phase;

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
        let listener = tunnel.listener.index();
        tunnel.listener.live().fetch_sub(1, Ordering::Relaxed);
        if let (true, Some(address)) = (tunnel.counted, tunnel.address) {
            tunnel.listener.leave(address.ip());
        }
        if let Some(entry) = &tunnel.entry {
            entry.load().fetch_sub(1, Ordering::Relaxed);
        }
        let opened = match &tunnel.opening {
            None => {
                self.counters.worker(field!(WorkerSlot, closed), 1);
                self.counters
                    .listener(listener, field!(ListenerSlot, closed), 1);
                if let Some(entry) = &tunnel.entry {
                    self.counters
                        .backend(entry.index(), field!(BackendSlot, closed), 1);
                    if reason == Reason::BackendReset {
                        self.counters
                            .backend(entry.index(), field!(BackendSlot, resets), 1);
                    }
                }
                true
            }
            Some(opening) => {
                self.opening -= 1;
                if opening.phase == Phase::Queued {
                    tunnel.listener.queued().fetch_sub(1, Ordering::Relaxed);
                }
                self.count_refusal(listener, reason);
                false
            }
        };
        tunnel.to_backend.release(&mut self.tools.pipes);
        tunnel.to_client.release(&mut self.tools.pipes);
        if self.shared.outbox.logging() {
            let pool = match (&tunnel.entry, &tunnel.opening) {
                (Some(entry), _) => Arc::clone(&entry.pool),
                (None, Some(opening)) => Arc::clone(&opening.front.pool.planned.pool.name),
                (None, None) => "".into(),
            };
            let line = Line {
                unix_ns: unix_ns(),
                listener: Arc::clone(&tunnel.listener),
                client: tunnel.address,
                proxied_by: tunnel.proxied_by.as_deref().copied(),
                pool,
                backend: tunnel.entry.clone(),
                connect_ns: opened.then(|| u64::from(tunnel.connect_us) * 1000),
                duration_ns: self.now.since(tunnel.accepted_at).as_nanos() as u64,
                to_backend: tunnel.to_backend.bytes,
                to_client: tunnel.to_client.bytes,
                tries: tunnel.tries,
                reason,
            };
            self.log(line);
        }
        if how == How::Abort {
            socket::abort(tunnel.client);
            if let Some(backend) = tunnel.backend {
                socket::abort(backend);
            }
        }
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
            Reason::RateLimited => field!(ListenerSlot, refused_rate),
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
