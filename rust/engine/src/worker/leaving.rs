//! A backend goes away whose clients shall go on elsewhere: the end of its part.
//!
//! Asked for (a drain, a removal) or not (its Close 1001 or 1012, its end, its reset), it is one way: the
//! client's stream is relayed to the next message boundary and then left in its socket, the backend gets
//! a Close in the client's place, and what it still says is delivered up to its own Close or its end.
//! When to do what is [`Leaving::next`]'s decision. Then the tunnel is without a backend
//! ([`reattaching`](super::reattaching)), or its client is told that it cannot go on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pybalancer_core::reattach::{GOING_AWAY, Halt, Leaving, Next, SERVICE_RESTART, Streams};
use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::{Rules, close_frame};
use rustix::net::RecvFlags;

use super::Worker;
use super::ending::How;
use super::relaying::count;
use crate::drains::Order;
use crate::poller::{EventFlags, Interest, Side};
use crate::recall::Recall;
use crate::relay::{self, Outcome, Resumable, pump};
use crate::stats::field;
use crate::tunnel::{Moment, Tunnel};

/// How long a backend may take to say its last, where the configuration says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
const READABLE: EventFlags = EventFlags::IN.union(EventFlags::HUP).union(EventFlags::ERR);

impl Worker {
    /// The backend of this tunnel shall have it no longer, and nothing may be lost. False if it cannot
    /// go on elsewhere: then it is the caller's to end it.
    pub(super) fn leave_backend(&mut self, slot: u32) -> bool {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return false;
        };
        if tunnel.leaving().is_some() || tunnel.away().is_some() {
            return true;
        }
        if !tunnel.resumes() || self.place_of(slot).is_none() {
            return false;
        }
        self.begin_leaving(slot);
        self.step_leaving(slot);
        true
    }

    /// The same, because of an order, which learns what comes of it; with patience until then at most.
    pub(super) fn leave_for(&mut self, slot: u32, order: &Arc<Order>, until: Option<Tick>) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        if !tunnel.resumes() && tunnel.leaving().is_none() {
            return false;
        }
        if let Some(recall) = &mut tunnel.recall {
            recall.order.get_or_insert_with(|| Arc::clone(order));
            let deadlines = [recall.deadline, order.deadline()];
            recall.deadline = deadlines.into_iter().flatten().min();
        }
        if !self.leave_backend(slot) {
            if let Some(recall) = self.recall_mut(slot) {
                (recall.order, recall.deadline) = (None, None);
            }
            return false;
        }
        let tunnel = self.tunnels.get_mut(slot as usize);
        if let (Some(leaving), Some(until)) = (tunnel.and_then(Tunnel::leaving_mut), until) {
            leaving.hurry(self.now, until);
            self.watch_leaving(slot);
        }
        true
    }

    fn recall_mut(&mut self, slot: u32) -> Option<&mut Recall> {
        let tunnel = self.tunnels.get_mut(slot as usize)?;
        tunnel.recall.as_deref_mut()
    }

    fn begin_leaving(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let patience = match tunnel.terms.close_ms {
            0 => PATIENCE,
            ms => Duration::from_millis(u64::from(ms)),
        };
        if let Some(recall) = &mut tunnel.recall {
            let active = tunnel.active.plus(0, now).min(now);
            (recall.leaving).get_or_insert_with(|| Leaving::new(now, active, patience));
        }
    }

    /// Pump one direction of a tunnel that may go on elsewhere.
    fn pump_resumable(
        tunnel: &mut Tunnel,
        from: Side,
        tools: &mut relay::Tools,
    ) -> (Outcome, Option<Halt>) {
        let (Some(recall), Some(backend)) = (&tunnel.recall, &tunnel.backend) else {
            return (Outcome::Waiting, None);
        };
        let (flow, sender, receiver, tracker) = match from {
            Side::Client => (
                &mut tunnel.to_backend,
                &tunnel.client,
                backend,
                &mut tunnel.from_client,
            ),
            Side::Backend => (
                &mut tunnel.to_client,
                backend,
                &tunnel.client,
                &mut tunnel.from_backend,
            ),
        };
        let mut tap = Resumable {
            before: *tracker,
            tracker,
            rules: Rules {
                max_message: tunnel.terms.max_message,
            },
            watch: recall.watch(from),
            ends: from == Side::Client,
            halt: None,
        };
        let outcome = pump(flow, &mut tap, sender, receiver, tools);
        (outcome, tap.halt)
    }

    /// As [`drive`](Worker::drive), of a tunnel that may go on elsewhere.
    pub(super) fn drive_resumable(&mut self, slot: u32, from: Side) -> bool {
        let now = Moment::of(self.now);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        if from == Side::Client {
            (tunnel.heard, tunnel.pinged) = (now, false);
        }
        tunnel.active = now;
        let before = tunnel.flow_from(from).bytes;
        let (outcome, halt) = Self::pump_resumable(tunnel, from, &mut self.tools);
        let moved = tunnel.flow_from(from).bytes - before;
        if let (true, Some(leaving)) = (moved > 0, tunnel.leaving_mut()) {
            leaving.passes(self.now);
        }
        count(&self.counters, tunnel, from, moved);
        !self.takes_leave(slot, from, outcome, halt) && self.driven(slot, from, outcome, false)
    }

    /// Whether it goes on elsewhere if its backend goes away.
    pub(super) fn is_to_resume(&self, slot: u32) -> bool {
        (self.tunnels.get(slot as usize)).is_some_and(Tunnel::resumes)
    }

    /// Whether what stopped the stream of `from` is that its backend goes away. It is taken care of then.
    pub(super) fn takes_leave(
        &mut self,
        slot: u32,
        from: Side,
        outcome: Outcome,
        halt: Option<Halt>,
    ) -> bool {
        let tunnel = self.tunnels.get(slot as usize);
        if tunnel.is_none_or(|tunnel| tunnel.from_backend.closed().is_some()) {
            // It has closed it for its client too.
            return false;
        }
        let (heard, broken) = match (from, outcome, halt) {
            (Side::Client, Outcome::Stopped, Some(_)) => (false, false),
            (Side::Backend, Outcome::Stopped, Some(_)) => (true, false),
            (Side::Backend, Outcome::Ended | Outcome::SenderFailed, _) => (true, true),
            (Side::Client, Outcome::ReceiverFailed, _) => (false, true),
            _ => return false,
        };
        if (outcome, from) == (Outcome::SenderFailed, Side::Backend)
            && let Some(entry) = (self.tunnels.get(slot as usize)).and_then(|t| t.entry.as_ref())
        {
            self.counters
                .backend(entry.index(), field!(BackendSlot, resets), 1);
        }
        let said_all = |tunnel: &Tunnel| {
            // One that has had, or said, its last goes nowhere else.
            let closed = tunnel.from_client.closed().or(tunnel.from_backend.closed());
            closed.is_some() && tunnel.leaving().is_none()
        };
        if (self.tunnels.get(slot as usize)).is_none_or(said_all) {
            return false;
        }
        self.begin_leaving(slot);
        let tunnel = self.tunnels.get_mut(slot as usize);
        if let Some(leaving) = tunnel.and_then(Tunnel::leaving_mut) {
            leaving.heard |= heard;
            leaving.broken |= broken;
        }
        self.step_leaving(slot);
        true
    }

    /// Do what is to be done now.
    fn step_leaving(&mut self, slot: u32) {
        loop {
            let mask = self.entropy().to_le_bytes();
            let now = self.now;
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return;
            };
            let Some(leaving) = tunnel.leaving().copied() else {
                return;
            };
            if tunnel.from_backend.closed().is_some() {
                // Before it is heard out: that one was for the client, and nobody else is asked.
                return self.stay(slot);
            }
            let late = now >= leaving.until;
            if leaving.broken && !leaving.heard && !late && !tunnel.to_client.blocked() {
                // What it said before it broke is still there. It will be heard out: this is called again.
                let alive = self.drive(slot, Side::Backend);
                if alive {
                    self.watch_leaving(slot);
                }
                return;
            }
            if late && !leaving.heard {
                let unread = tunnel.backend.as_ref().is_some_and(has_words);
                if let Some(leaving) = tunnel.leaving_mut() {
                    leaving.unread = unread;
                }
            }
            let Some(leaving) = tunnel.leaving().copied() else {
                return;
            };
            let streams = Streams {
                client: &tunnel.from_client,
                owed: tunnel.to_backend.blocked() && !leaving.told,
                backend: &tunnel.from_backend,
            };
            match leaving.next(&streams, now) {
                Next::Wait => return self.watch_leaving(slot),
                Next::Tell => {
                    let [a, b, c, d, ..] = mask;
                    let frame = close_frame(GOING_AWAY, "", Some([a, b, c, d]));
                    let sent = tunnel.backend.as_ref().is_some_and(|backend| {
                        relay::inject(&mut tunnel.to_backend, frame.as_slice(), backend).is_ok()
                    });
                    if let Some(leaving) = tunnel.leaving_mut() {
                        leaving.told = true;
                        leaving.broken |= !sent;
                    }
                }
                Next::Detach => return self.detach(slot),
                Next::Over => return self.stay(slot),
                Next::Fail => return self.fail_reattach(slot),
                Next::Abort => {
                    self.count_reattach_failed(slot);
                    return self.end(slot, Reason::ReattachFailed, How::Abort);
                }
            }
        }
    }

    fn watch_leaving(&mut self, slot: u32) {
        let now = self.now;
        if let Some(at) = (self.tunnels.get(slot as usize)).and_then(|tunnel| tunnel.due(now)) {
            self.wheel.set(slot, at);
        }
        self.watch_wanted(slot);
    }

    /// Time for the Close, or patience with the old backend is over.
    pub(super) fn leaving_late(&mut self, slot: u32) {
        self.step_leaving(slot);
    }

    /// Something happened on a tunnel whose backend goes away.
    pub(super) fn on_leaving(&mut self, slot: u32, side: Side, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if side == Side::Client && flags.contains(EventFlags::ERR) {
            return self.end(slot, Reason::ClientReset, How::Abort);
        }
        // Each takes what it is owed.
        let (flow, socket) = match side {
            Side::Client => (&mut tunnel.to_client, Some(&tunnel.client)),
            Side::Backend => (&mut tunnel.to_backend, tunnel.backend.as_ref()),
        };
        if flags.intersects(EventFlags::OUT | EventFlags::HUP)
            && flow.blocked()
            && let Some(socket) = socket
            && relay::flush_owed(flow, socket, &mut self.tools).is_err()
        {
            match side {
                Side::Client => return self.end(slot, Reason::ClientReset, How::Abort),
                Side::Backend => {
                    if let Some(leaving) = tunnel.leaving_mut() {
                        leaving.broken = true;
                    }
                }
            }
        }
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let withheld = tunnel.withheld(side);
        let flow = tunnel.flow_from(side);
        if flags.intersects(READABLE) && !withheld && !flow.blocked() && !flow.eof {
            let alive = self.drive(slot, side);
            if !alive {
                return;
            }
        }
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let client_is_done = tunnel.to_backend.eof || tunnel.from_client.closed().is_some();
        if client_is_done && tunnel.leaving().is_some() {
            return self.stay(slot);
        }
        self.step_leaving(slot);
        if flags.intersects(EventFlags::HUP | EventFlags::ERR)
            && (self.tunnels.get(slot as usize)).is_some_and(|tunnel| {
                tunnel.leaving().is_some() && tunnel.wanted(side) == Interest::ENDS
            })
        {
            // Reported without end: out, until there is something to be done with it.
            self.watch(slot, side, Interest::UNWATCHED);
        }
    }

    /// The client has ended before its stream came to a boundary, or the backend has closed it for reasons of
    /// its own: there is nothing to go on with.
    fn stay(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(recall) = &mut tunnel.recall else {
            return;
        };
        let told = recall.leaving.take();
        let untouched =
            told.is_some_and(|leaving| !leaving.told && !leaving.heard && !leaving.broken);
        match (untouched, tunnel.from_backend.closed()) {
            (true, _) => {
                self.watch_wanted(slot);
            }
            (false, None) => self.end(slot, Reason::ClientGone, How::Abort),
            // The backend has had its Close, and the client has one: it is the client's answer that is left.
            (false, Some(code)) => {
                recall.leaving = told;
                if let Some(order) = recall.order.take() {
                    order.lost(now);
                }
                self.close_websocket(slot, code, Reason::Finished);
            }
        }
    }

    /// It cannot go on, and its client is told so.
    pub(super) fn fail_reattach(&mut self, slot: u32) {
        let now = self.now;
        let latest = (self.tunnels.get(slot as usize)).and_then(|tunnel| tunnel.latest(now));
        self.count_reattach_failed(slot);
        let polite = (self.tunnels.get(slot as usize))
            .is_some_and(|tunnel| tunnel.from_backend.at_boundary() && !tunnel.to_client.eof);
        if polite {
            self.close_websocket(slot, SERVICE_RESTART, Reason::ReattachFailed);
            if let Some(latest) = latest {
                self.hurry(slot, latest);
            }
        } else {
            self.end(slot, Reason::ReattachFailed, How::Abort);
        }
    }

    fn count_reattach_failed(&mut self, slot: u32) {
        let now = self.now;
        if let Some(order) = self.recall_mut(slot).and_then(|recall| recall.order.take()) {
            order.lost(now);
        }
        if let Some(tunnel) = self.tunnels.get(slot as usize) {
            let listener = tunnel.terms.listener.index();
            let field = field!(ListenerSlot, reattach_failed);
            self.counters.listener(listener, field, 1);
        }
    }

    /// Whoever ends it in another way does so without looking for another backend. Whether the backend
    /// that it has needs to hear nothing more from it.
    pub(super) fn stop_reattaching(&mut self, slot: u32) -> bool {
        self.forget_away(slot);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let Some(recall) = &mut tunnel.recall else {
            return false;
        };
        let leaving = recall.leaving.take();
        if leaving.is_some_and(|leaving| leaving.broken) {
            // Nobody is there to be closed.
            let entry = tunnel.entry.clone();
            recall.left = entry.clone();
            self.drop_backend(slot);
            if let Some(entry) = entry {
                self.counters
                    .backend(entry.index(), field!(BackendSlot, closed), 1);
            }
        }
        leaving.is_some_and(|leaving| leaving.told)
    }
}

/// Whether something that it has said waits to be read.
fn has_words(backend: &OwnedFd) -> bool {
    let peeked = rustix::net::recv(backend, &mut [0_u8; 1], RecvFlags::PEEK);
    matches!(peeked, Ok((_, 1..)))
}
