//! Ending a WebSocket in its own language (RFC 6455, section 7).
//!
//! What is said when is decided in `core::ws::close`; here it is said, and patience has its end: peers who do
//! not answer are waited for, what they still send is read and dropped, for a bounded time.

use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::close::{Culprit, Farewell, Partner, Stream};
use pybalancer_core::ws::{close_frame, ping_frame};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use std::time::Duration;

use super::Worker;
use super::ending::How;
use crate::poller::{EventFlags, Interest, Side};
use crate::relay::{self, Flow};
use crate::stats::field;
use crate::tunnel::{Closing, Moment, Terms, Tunnel};

/// Reads of a turn from a side whose words do not count any more.
const DISCARDS: usize = 16;
/// For answers to a Close, where the configuration says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

impl Worker {
    /// Begin to end a WebSocket: Close with `code` to the client, whose answer goes to the backend.
    pub(super) fn close_websocket(&mut self, slot: u32, code: u16, reason: Reason) {
        self.close_until(slot, code, reason, None);
    }

    /// `from` sent what the rules do not let pass. What came before it has gone on.
    pub(super) fn violated(&mut self, slot: u32, from: Side) {
        if (self.tunnels.get(slot as usize)).is_some_and(|tunnel| tunnel.closing.is_some()) {
            // No violation: the boundary has been reached that the Close was waiting for.
            return self.continue_closing(slot);
        }
        let limited = (self.tunnels.get(slot as usize)).is_some_and(|t| t.terms.max_message > 0);
        let culprit = match from {
            Side::Client => Culprit::Client,
            Side::Backend => Culprit::Backend,
        };
        let reason = Reason::MessageTooBig;
        let farewell = |partner| Farewell::because_of(culprit, limited, partner);
        self.begin_closing(slot, farewell, reason, None);
    }

    /// The same, where it may take until then before a frame ends and the Close can be sent.
    pub(super) fn close_until(
        &mut self,
        slot: u32,
        code: u16,
        reason: Reason,
        until: Option<Tick>,
    ) {
        let farewell = |partner| Farewell::new(Some(code), None, partner);
        self.begin_closing(slot, farewell, reason, until);
    }

    /// End this one's patience earlier.
    pub(super) fn hurry(&mut self, slot: u32, until: Tick) {
        let tunnel = self.tunnels.get_mut(slot as usize);
        if let Some(closing) = tunnel.and_then(|tunnel| tunnel.closing.as_mut()) {
            closing.until = closing.until.min(until);
            closing.patience = closing.patience.min(until.since(self.now));
            self.wheel.set(slot, closing.until);
        }
    }

    fn begin_closing(
        &mut self,
        slot: u32,
        farewell: impl FnOnce(Partner) -> Farewell,
        reason: Reason,
        until: Option<Tick>,
    ) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.closing.is_some() || !tunnel.framed {
            return;
        }
        let latest = tunnel.latest(now);
        let told = self.stop_reattaching(slot);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        // Without a backend there is the client alone.
        let alone = tunnel.backend.is_none();
        let partner = match (alone, told) {
            (true, _) => Partner::Absent,
            (false, true) => Partner::Told,
            (false, false) => Partner::There,
        };
        tunnel.to_backend.done |= alone;
        let patience = patience(&tunnel.terms);
        let mut until = until.unwrap_or_default().max(now + patience);
        if let Some(latest) = latest {
            until = until.min(latest);
        }
        tunnel.closing = Some(Box::new(Closing {
            farewell: farewell(partner),
            ended: [false, alone],
            reason,
            until,
            patience,
        }));
        self.wheel.set(slot, until);
        self.continue_closing(slot);
    }

    /// Send what can be sent now.
    pub(super) fn continue_closing(&mut self, slot: u32) {
        let mask = self.entropy().to_le_bytes();
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(closing) = &mut tunnel.closing else {
            return;
        };
        let towards = |flow: &Flow| Stream {
            blocked: flow.blocked(),
            ended: flow.eof,
        };
        let (client, backend) = (&tunnel.client, tunnel.backend.as_ref());
        let (to_client, to_backend) = (&mut tunnel.to_client, &mut tunnel.to_backend);
        let waits = !closing.farewell.client_told();
        let (to_them, to_us) = (towards(to_client), towards(to_backend));
        let say =
            closing
                .farewell
                .advance(&tunnel.from_client, &tunnel.from_backend, to_them, to_us);
        let mut failed = false;
        if let Some(code) = say.to_client {
            let frame = close_frame(code, "", None);
            failed |= relay::inject(to_client, frame.as_slice(), client).is_err();
        }
        if let (Some(code), Some(backend)) = (say.to_backend, backend) {
            let [a, b, c, d, ..] = mask;
            let frame = close_frame(code, "", Some([a, b, c, d]));
            failed |= relay::inject(to_backend, frame.as_slice(), backend).is_err();
        }
        if failed {
            let reason = closing.reason;
            return self.end(slot, reason, How::Abort);
        }
        if waits && closing.farewell.client_told() {
            // From now on it is the client's answer that is waited for.
            closing.until = closing.until.min(now + closing.patience);
            self.wheel.set(slot, closing.until);
        }
        // Whoever has had a Close and is owed nothing gets the end of the stream behind it.
        if say.over {
            let sockets = [(to_client, Some(client)), (to_backend, backend)];
            for (flow, socket) in sockets {
                if let Some(socket) = socket
                    && !flow.done
                    && !flow.blocked()
                {
                    flow.done = true;
                    let _ = rustix::net::shutdown(socket, Shutdown::Write);
                }
            }
        }
        self.watch_closing(slot);
    }

    /// Something happened on a WebSocket that is being ended.
    pub(super) fn on_closing(&mut self, slot: u32, side: Side, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(closing) = &tunnel.closing else {
            return;
        };
        let reason = closing.reason;
        let mute = match side {
            Side::Client => closing.farewell.client_mute,
            Side::Backend => closing.farewell.backend_mute,
        };
        if flags.contains(EventFlags::ERR) {
            let blocked = tunnel.to_client.blocked();
            let heard_out = mute || closing.farewell.client_told() || blocked;
            if side == Side::Backend && !heard_out && !self.drive(slot, side) {
                return;
            }
            if side != Side::Backend || !self.outlives_backend(slot) {
                self.end(slot, reason, How::Abort);
            }
            return;
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP) {
            let (flow, socket) = match side {
                Side::Client => (&mut tunnel.to_client, Some(&tunnel.client)),
                Side::Backend => (&mut tunnel.to_backend, tunnel.backend.as_ref()),
            };
            if let Some(socket) = socket
                && flow.blocked()
                && relay::flush_owed(flow, socket, &mut self.tools).is_err()
            {
                return self.end(slot, reason, How::Abort);
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP) {
            if mute {
                if !self.discard(slot, side) {
                    return;
                }
            } else if !self.drive(slot, side) {
                return;
            } else if let Some(tunnel) = self.tunnels.get_mut(slot as usize) {
                let ended = tunnel.flow_from(side).eof;
                if let (true, Some(closing)) = (ended, &mut tunnel.closing) {
                    if tunnel.framed {
                        // It will answer no more.
                        closing.farewell.answer_in_its_place();
                    }
                    self.note_ended(slot, side);
                }
            }
        }
        self.continue_closing(slot);
        self.end_if_both_ended(slot);
        if flags.contains(EventFlags::HUP)
            && (self.tunnels.get(slot as usize))
                .is_some_and(|tunnel| wanted(tunnel, side) == Interest::ENDS)
        {
            // Reported without end: out, until there is something to be done with it.
            self.watch(slot, side, Interest::UNWATCHED);
        }
    }

    /// The backend has broken off. That is no reason to break off a client that has been told, or can be:
    /// a reset could overtake its Close. False if there is nothing to be said to it any more.
    pub(super) fn outlives_backend(&mut self, slot: u32) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let Some(closing) = tunnel.closing.as_mut().filter(|_| tunnel.framed) else {
            return false;
        };
        let between = tunnel.from_backend.at_boundary() && !tunnel.to_client.blocked();
        if tunnel.backend.is_none() || !between && !closing.farewell.client_told() {
            return false;
        }
        closing.farewell.lose_backend();
        closing.ended[Side::Backend as usize] = true;
        tunnel.to_backend.release(&mut self.tools.pipes);
        tunnel.to_backend.done = true;
        // It stays that backend's in the books.
        tunnel.backend = None;
        tunnel.backend_interest = Interest::UNWATCHED;
        tunnel.port = None;
        self.sockets -= 1;
        self.continue_closing(slot);
        self.end_if_both_ended(slot);
        true
    }

    /// Read and drop; false if that ended the tunnel.
    fn discard(&mut self, slot: u32, side: Side) -> bool {
        // A turn's worth; what is left is reported again.
        for _ in 0..DISCARDS {
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return false;
            };
            let reason = (tunnel.closing.as_ref()).map_or(Reason::Finished, |c| c.reason);
            let socket = match side {
                Side::Client => Some(&tunnel.client),
                Side::Backend => tunnel.backend.as_ref(),
            };
            let Some(socket) = socket else { return false };
            match rustix::net::recv(socket, &mut *self.tools.scratch, RecvFlags::empty()) {
                Ok((_, 0)) => {
                    self.note_ended(slot, side);
                    return true;
                }
                Ok(_) if !tunnel.framed => {
                    // Of a plain stream nothing may be missing where its end was told.
                    self.end(slot, reason, How::Abort);
                    return false;
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => {
                    self.end(slot, reason, How::Abort);
                    return false;
                }
            }
        }
        true
    }

    fn note_ended(&mut self, slot: u32, side: Side) {
        let tunnel = self.tunnels.get_mut(slot as usize);
        if let Some(closing) = tunnel.and_then(|tunnel| tunnel.closing.as_mut()) {
            closing.ended[side as usize] = true;
        }
    }

    fn end_if_both_ended(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        if let Some(closing) = &tunnel.closing
            && closing.ended == [true; 2]
        {
            let clean = tunnel.to_client.done && tunnel.to_backend.done;
            let how = if clean { How::Clean } else { How::Abort };
            self.end(slot, closing.reason, how);
        }
    }

    fn watch_closing(&mut self, slot: u32) {
        for side in [Side::Client, Side::Backend] {
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                return;
            };
            let (current, wanted) = (tunnel.interest(side), wanted(tunnel, side));
            // What was taken out comes back only to be read or written.
            let stays_out = current == Interest::UNWATCHED && wanted == Interest::ENDS;
            if current != wanted && !stays_out && !self.watch(slot, side, wanted) {
                return;
            }
        }
    }

    /// Patience with a closing WebSocket is over.
    pub(super) fn closing_late(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let Some(closing) = &tunnel.closing else {
            return;
        };
        let reason = closing.reason;
        let said = closing.farewell.to_client.is_none() && !tunnel.to_client.blocked();
        if said && !closing.farewell.client_mute && tunnel.framed {
            // It did not answer. The backend is told in our own words.
            if let Some(closing) =
                (self.tunnels.get_mut(slot as usize)).and_then(|tunnel| tunnel.closing.as_mut())
            {
                closing.farewell.answer_in_its_place();
            }
            self.continue_closing(slot);
        }
        let told = (self.tunnels.get(slot as usize))
            .is_some_and(|tunnel| tunnel.to_client.done && tunnel.to_backend.done);
        self.end(slot, reason, if told { How::Clean } else { How::Abort });
    }

    /// The client has been quiet for long: ask whether it is there, or give it up.
    pub(super) fn unheard(&mut self, slot: u32) -> bool {
        let now: Tick = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        if tunnel.pinged {
            self.end(slot, Reason::PingTimeout, How::Abort);
            return false;
        }
        tunnel.heard = Moment::of(now);
        let deaf = tunnel.to_backend.blocked() || tunnel.to_backend.eof;
        if deaf || tunnel.from_client.closed().is_some() {
            // Its answer would not be heard until its backend takes what it said before, or it has
            // nothing to say any more.
            return true;
        }
        if !tunnel.from_backend.at_boundary() || tunnel.to_client.blocked() || tunnel.to_client.eof
        {
            // Nothing may come between now. Whether it takes what it is being sent, TCP watches.
            return true;
        }
        tunnel.pinged = true;
        if tunnel.from_backend.closed().is_some() {
            // That asks for an answer too, and nothing may follow it (RFC 6455, section 5.5.1).
            return true;
        }
        let ping = ping_frame(b"", None);
        let listener = tunnel.terms.listener.index();
        if relay::inject(&mut tunnel.to_client, ping.as_slice(), &tunnel.client).is_err() {
            self.fail(slot, Side::Client);
            return false;
        }
        self.counters
            .listener(listener, field!(ListenerSlot, pings), 1);
        // One that looks for a backend is watched by rules of its own: the connect under way must be noticed.
        self.is_away(slot) || self.watch_wanted(slot)
    }
}

/// How long a peer may take to answer a Close.
pub(super) fn patience(terms: &Terms) -> Duration {
    match terms.close_ms {
        0 => PATIENCE,
        ms => Duration::from_millis(u64::from(ms)),
    }
}

/// What can be done with one socket of a WebSocket that is being ended.
fn wanted(tunnel: &Tunnel, side: Side) -> Interest {
    let Some(closing) = &tunnel.closing else {
        return tunnel.wanted(side);
    };
    let (mute, outgoing, incoming) = match side {
        Side::Client => (
            closing.farewell.client_mute,
            &tunnel.to_client,
            &tunnel.to_backend,
        ),
        Side::Backend => (
            closing.farewell.backend_mute,
            &tunnel.to_backend,
            &tunnel.to_client,
        ),
    };
    let over = closing.ended[side as usize];
    let read = if !over && (mute || !incoming.blocked()) {
        Interest::READ
    } else {
        Interest::ENDS
    };
    let write = if outgoing.blocked() {
        Interest::WRITE
    } else {
        Interest::ENDS
    };
    match read.and(write) {
        // Hung up: reported without end.
        Interest::ENDS if over => Interest::UNWATCHED,
        wanted => wanted,
    }
}
