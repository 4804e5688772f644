//! Answers of our own, and closing so that the client can read them.
//!
//! A socket that is closed with bytes unread in it sends RST, and RST makes the client's kernel throw
//! away what the client has not read yet: our answer. So after the last answer the sending direction
//! is ended, and what the client still sends is read and dropped, for a while and up to a bound
//! (RFC 9112, section 9.6).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pybalancer_core::http;
use pybalancer_core::record::Reason;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};

use super::Worker;
use super::ending::How;
use crate::poller::{EventFlags, Interest, Side};
use crate::relay;
use crate::socket;
use crate::stats::field;
use crate::tunnel::Phase;

/// How long a client may take to read its last answer and end.
const LINGER: Duration = Duration::from_secs(2);
/// How many bytes are read from it meanwhile.
const LINGER_BYTES: usize = 16 << 20;
/// Seconds after which those who found no room are told to come again, and by how much that varies:
/// the same number for all would bring them back all at once.
const RETRY: (u32, u32) = (1, 4);

impl Worker {
    /// Give the client an answer of ours and close, whatever its backend is doing.
    pub(super) fn answer(
        &mut self,
        slot: u32,
        status: u16,
        why: &str,
        retry_after: Option<u32>,
        reason: Reason,
        to_head: bool,
    ) {
        let tunnel = self.tunnels.get(slot as usize);
        let blamed = tunnel
            .filter(|_| status >= 500)
            .and_then(|tunnel| tunnel.entry.clone());
        self.abort_backend(slot);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let Some(exchange) = &mut opening.exchange else {
            return self.end(slot, reason, How::Abort);
        };
        exchange.blamed = blamed;
        let begun =
            (exchange.inflight.as_ref()).is_some_and(|inflight| inflight.response.is_some());
        if begun || tunnel.to_client.blocked() {
            // Half of another answer is on its way: a second one would be read as its rest.
            return self.end(slot, reason, How::Abort);
        }
        let asked = (exchange.inflight.as_mut()).and_then(|inflight| inflight.line.as_mut());
        if let Some(line) = asked.or(exchange.denied.as_mut()) {
            line.status = status;
        }
        if (400..500).contains(&status) {
            let listener = tunnel.terms.listener.index();
            self.counters
                .listener(listener, field!(ListenerSlot, refused_request), 1);
        }
        let extra: &[(&str, &str)] = match status {
            405 => &[("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")],
            426 => &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            _ => &[],
        };
        let mut out = Vec::with_capacity(512);
        http::write_answer(status, why, retry_after, extra, to_head, &mut out);
        exchange.lingering = Some((reason, LINGER_BYTES));
        // It leaves the queue that it stood in.
        match opening.phase {
            Phase::Queued => tunnel
                .terms
                .listener
                .queued()
                .fetch_sub(1, Ordering::Relaxed),
            Phase::Held => {
                (tunnel.terms.listener.handshakes_held()).fetch_sub(1, Ordering::Relaxed)
            }
            _ => 0,
        };
        opening.phase = Phase::Lingering;
        if relay::inject(&mut tunnel.to_client, &out, &tunnel.client).is_err() {
            return self.end(slot, reason, How::Abort);
        }
        self.settle_linger(slot);
    }

    /// No room, or nobody there: the client is to come again, and not at the same time as all others.
    pub(super) fn turn_away(&mut self, slot: u32, why: &str, reason: Reason) {
        let (least, spread) = RETRY;
        let after = least + (self.entropy() >> 40) as u32 % (spread + 1);
        let to_head = self.inflight(slot).is_some_and(|inflight| inflight.to_head);
        self.answer(slot, 503, why, Some(after), reason, to_head);
    }

    /// The response was whole, and nothing follows it.
    pub(super) fn linger(&mut self, slot: u32, reason: Reason) {
        self.drop_backend(slot);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let Some(exchange) = &mut opening.exchange else {
            return;
        };
        exchange.lingering = Some((reason, LINGER_BYTES));
        opening.phase = Phase::Lingering;
        self.settle_linger(slot);
    }

    /// Once all has been taken, end the sending direction.
    fn settle_linger(&mut self, slot: u32) {
        self.wheel.set(slot, self.now + LINGER);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.to_client.blocked() {
            self.watch(slot, Side::Client, Interest::WRITE);
            return;
        }
        let ended = tunnel.to_client.done;
        tunnel.to_client.done = true;
        if !ended && rustix::net::shutdown(&tunnel.client, Shutdown::Write).is_err() {
            return self.end_lingering(slot, How::Abort);
        }
        if self.watch(slot, Side::Client, Interest::READ) {
            self.read_lingering(slot);
        }
    }

    /// Something happened to a client that lingers.
    pub(super) fn on_lingering(&mut self, slot: u32, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.to_client.done {
            return self.read_lingering(slot);
        }
        if flags.contains(EventFlags::ERR) {
            return self.end_lingering(slot, How::Abort);
        }
        match relay::flush_owed(&mut tunnel.to_client, &tunnel.client, &mut self.tools) {
            Ok(true) => self.settle_linger(slot),
            Ok(false) => {}
            Err(_) => self.end_lingering(slot, How::Abort),
        }
    }

    fn read_lingering(&mut self, slot: u32) {
        loop {
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return;
            };
            let exchange = (tunnel.opening.as_mut()).and_then(|opening| opening.exchange.as_mut());
            let Some((_, left)) = exchange.and_then(|exchange| exchange.lingering.as_mut()) else {
                return;
            };
            match rustix::net::recv(&tunnel.client, &mut *self.tools.scratch, RecvFlags::empty()) {
                Ok((_, 0)) => return self.end_lingering(slot, How::Clean),
                Ok((_, got)) if got >= *left => return self.end_lingering(slot, How::Abort),
                Ok((_, got)) => *left -= got,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.end_lingering(slot, How::Abort),
            }
        }
    }

    /// The time for lingering is over.
    pub(super) fn linger_late(&mut self, slot: u32) {
        let taken = (self.tunnels.get(slot as usize)).is_some_and(|tunnel| tunnel.to_client.done);
        self.end_lingering(slot, if taken { How::Clean } else { How::Abort });
    }

    fn end_lingering(&mut self, slot: u32, how: How) {
        let reason = (self.tunnels.get_mut(slot as usize))
            .and_then(|tunnel| tunnel.opening.as_mut())
            .and_then(|opening| opening.exchange.as_mut())
            .and_then(|exchange| exchange.lingering)
            .map_or(Reason::Finished, |(reason, _)| reason);
        self.end(slot, reason, how);
    }

    /// Close the backend's socket, if there is one, and give back what was counted for it.
    pub(super) fn drop_backend(&mut self, slot: u32) {
        if let Some(backend) = self.take_backend(slot) {
            drop(backend);
        }
    }

    /// The same, with an abort: it shall not take what it got for something whole.
    pub(super) fn abort_backend(&mut self, slot: u32) {
        if let Some(backend) = self.take_backend(slot) {
            socket::abort(backend);
        }
    }

    fn take_backend(&mut self, slot: u32) -> Option<OwnedFd> {
        let tunnel = self.tunnels.get_mut(slot as usize)?;
        let backend = tunnel.backend.take();
        if backend.is_some() {
            self.sockets -= 1;
        }
        tunnel.backend_interest = Interest::UNWATCHED;
        tunnel.port = None;
        tunnel.to_backend.release(&mut self.tools.pipes);
        if let Some(entry) = tunnel.entry.take() {
            entry.load().fetch_sub(1, Ordering::Relaxed);
        }
        backend
    }

    /// Whether the backend that this connection has is the one that the request under way belongs to.
    pub(super) fn still_belongs(&mut self, slot: u32) -> bool {
        let (entropy, now) = (self.entropy(), self.now);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let (Some(opening), Some(entry)) = (&mut tunnel.opening, &tunnel.entry) else {
            return false;
        };
        // Policies that count or draw would move a client with each of its requests.
        if opening.pool.planned.pool.policy != pybalancer_core::pool::Policy::Maglev {
            return opening.pool.takes(entry);
        }
        super::opening::pick(opening, tunnel.peer.address(), entropy, now)
            .is_some_and(|(_, picked)| Arc::ptr_eq(&picked, entry))
    }
}
