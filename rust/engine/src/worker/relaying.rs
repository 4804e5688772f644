//! Moving a tunnel's bytes, and telling its different ends apart.

use rustix::io::Errno;
use rustix::net::RecvFlags;

use pybalancer_core::proxy::{Guess, guess};
use pybalancer_core::record::Reason;
use pybalancer_core::ws::Rules;

use super::Worker;
use super::ending::How;
use crate::poller::{EventFlags, Interest, Side, Token};
use crate::relay::{Blind, Frames, Outcome, pump};
use crate::stats::{Counters, field};
use crate::tunnel::{Moment, Tunnel};

const ENDS: EventFlags = EventFlags::HUP.union(EventFlags::ERR);
const READABLE: EventFlags = EventFlags::IN.union(ENDS);
const WRITABLE: EventFlags = EventFlags::OUT.union(ENDS);

impl Side {
    fn other(self) -> Side {
        match self {
            Side::Client => Side::Backend,
            Side::Backend => Side::Client,
        }
    }

    fn reset(self) -> Reason {
        match self {
            Side::Client => Reason::ClientReset,
            Side::Backend => Reason::BackendReset,
        }
    }
}

impl Worker {
    /// One of a tunnel's sockets is ready for something.
    #[inline]
    pub(super) fn on_tunnel(&mut self, slot: u32, generation: u32, side: Side, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.generation != generation {
            return;
        }
        if tunnel.opening.is_some() {
            return self.on_opening(slot, side, flags);
        }
        if tunnel.closing.is_some() {
            return self.on_closing(slot, side, flags);
        }
        if tunnel.leaving().is_some() {
            return self.on_leaving(slot, side, flags);
        }
        let flow = tunnel.flow_from(side);
        if flow.blocked() && flags.contains(EventFlags::ERR) {
            if side == Side::Backend && self.is_to_resume(slot) {
                // What it said before is read when the client takes more.
                self.watch(slot, side, Interest::UNWATCHED);
                return;
            }
            // Reset by its sender, while its receiver takes nothing: nobody is left to wait for.
            return self.end(slot, side.reset(), How::Abort);
        }
        if flags.intersects(READABLE) && !flow.eof && !flow.blocked() {
            let held = tunnel.guarded && side == Side::Client && !self.may_pass(slot, flags);
            if !held && !self.drive(slot, side) {
                return;
            }
        }
        if flags.intersects(WRITABLE) {
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return;
            };
            if tunnel.flow_from(side.other()).blocked() && !self.drive(slot, side.other()) {
                return;
            }
        }
        if flags.contains(EventFlags::ERR)
            && self
                .tunnels
                .get_mut(slot as usize)
                .is_some_and(|tunnel| tunnel.flow_from(side).eof)
        {
            return self.end(slot, side.reset(), How::Abort);
        }
        if flags.contains(EventFlags::HUP) {
            self.silence(slot, side);
        }
    }

    /// A socket that is over in both directions is reported without end: take it out while there is
    /// nothing to be done with it.
    fn silence(&mut self, slot: u32, side: Side) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.wanted(side) == Interest::ENDS {
            self.watch(slot, side, Interest::UNWATCHED);
        }
    }

    /// Watch both sockets for what can be done with them now; false if that ended the tunnel.
    pub(super) fn watch_wanted(&mut self, slot: u32) -> bool {
        [Side::Client, Side::Backend].into_iter().all(|side| {
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                return false;
            };
            let (current, wanted) = (tunnel.interest(side), tunnel.wanted(side));
            // What was taken out comes back only to be read or written.
            let stays_out = current == Interest::UNWATCHED && wanted == Interest::ENDS;
            current == wanted || stays_out || self.watch(slot, side, wanted)
        })
    }

    /// Watch one socket of a tunnel; false if the kernel has no memory for that and the tunnel is over.
    pub(super) fn watch(&mut self, slot: u32, side: Side, interest: Interest) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let token = Token::Tunnel {
            slot,
            generation: tunnel.generation,
            side,
        };
        let (socket, current) = match side {
            Side::Client => (Some(&tunnel.client), &mut tunnel.client_interest),
            Side::Backend => (tunnel.backend.as_ref(), &mut tunnel.backend_interest),
        };
        let Some(socket) = socket else { return false };
        match self.poller.watch(socket, token, *current, interest) {
            Ok(()) => {
                *current = interest;
                true
            }
            Err(_) => {
                self.end(slot, Reason::OutOfResources, How::Abort);
                false
            }
        }
    }

    /// Pump what `from` sends; false if that ended the tunnel.
    pub(super) fn drive(&mut self, slot: u32, from: Side) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let Some(backend) = &tunnel.backend else {
            return true;
        };
        let now = Moment::of(self.now);
        if tunnel.resumes() {
            return self.drive_resumable(slot, from);
        }
        let (flow, sender, receiver, tracker) = match from {
            Side::Client => {
                (tunnel.heard, tunnel.pinged) = (now, false);
                let tracker = &mut tunnel.from_client;
                (&mut tunnel.to_backend, &tunnel.client, backend, tracker)
            }
            Side::Backend => {
                let tracker = &mut tunnel.from_backend;
                (&mut tunnel.to_client, backend, &tunnel.client, tracker)
            }
        };
        let before = flow.bytes;
        let was_done = flow.done;
        let outcome = if tunnel.framed {
            let stop_at_boundary = (tunnel.closing.as_ref()).is_some_and(|closing| match from {
                Side::Client => closing.farewell.to_backend.is_some(),
                Side::Backend => closing.farewell.to_client.is_some(),
            });
            let rules = Rules {
                max_message: tunnel.terms.max_message,
            };
            let mut tap = Frames {
                tracker,
                rules,
                stop_at_boundary,
            };
            pump(flow, &mut tap, sender, receiver, &mut self.tools)
        } else {
            pump(flow, &mut Blind, sender, receiver, &mut self.tools)
        };
        let moved = flow.bytes - before;
        tunnel.active = now;
        count(&self.counters, tunnel, from, moved);
        self.driven(slot, from, outcome, was_done)
    }

    /// What a direction's pump has come to; false if that ended the tunnel.
    pub(super) fn driven(
        &mut self,
        slot: u32,
        from: Side,
        outcome: Outcome,
        was_done: bool,
    ) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        match outcome {
            // A closing one is watched by its own rules.
            Outcome::Waiting | Outcome::Done if tunnel.closing.is_some() => true,
            Outcome::Waiting => !tunnel.interests_differ() || self.watch_wanted(slot),
            Outcome::Stopped => {
                self.violated(slot, from);
                self.tunnels.contains(slot as usize)
            }
            Outcome::Done if tunnel.to_backend.done && tunnel.to_client.done => {
                self.end(slot, Reason::Finished, How::Clean);
                false
            }
            Outcome::Done => {
                if !was_done {
                    match tunnel.due(self.now) {
                        Some(at) => self.wheel.set(slot, at),
                        None => self.wheel.cancel(slot),
                    }
                }
                self.watch_wanted(slot)
            }
            Outcome::SenderFailed if from == Side::Backend && self.outlives_backend(slot) => {
                self.tunnels.contains(slot as usize)
            }
            Outcome::ReceiverFailed if from == Side::Client && self.outlives_backend(slot) => {
                self.tunnels.contains(slot as usize)
            }
            Outcome::SenderFailed | Outcome::Ended => {
                self.end(slot, from.reset(), How::Abort);
                false
            }
            Outcome::ReceiverFailed => {
                self.fail(slot, from.other());
                false
            }
        }
    }

    /// Count bytes that `from` has sent and the other side has taken.
    #[inline]
    pub(super) fn count_moved(&mut self, slot: u32, from: Side, moved: u64) {
        if let Some(tunnel) = self.tunnels.get(slot as usize) {
            count(&self.counters, tunnel, from, moved);
        }
    }

    /// `broken` takes nothing more. What it sent before it broke is delivered, then both are aborted.
    pub(super) fn fail(&mut self, slot: u32, broken: Side) {
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize)
            && let Some(backend) = &tunnel.backend
        {
            let (flow, sender, receiver) = match broken {
                Side::Client => (&mut tunnel.to_backend, &tunnel.client, backend),
                Side::Backend => (&mut tunnel.to_client, backend, &tunnel.client),
            };
            // At most what its receive buffer held, so one budget's worth is enough.
            // Followed or not: it ends here.
            crate::relay::salvage(flow, &mut Blind, sender, receiver, &mut self.tools);
        }
        self.end(slot, broken.reset(), How::Abort);
    }

    /// Whether the client's first bytes are no PROXY header. One on a listener that expects none
    /// comes from a misconfigured proxy or from somebody who wants to be taken for another.
    fn may_pass(&mut self, slot: u32, flags: EventFlags) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let mut first = [0; 16];
        let guess = match rustix::net::recv(&tunnel.client, &mut first, RecvFlags::PEEK) {
            Ok((_, 0)) => Guess::Not,
            Ok((_, got)) => guess(first.get(..got).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(_) => {
                self.end(slot, Reason::ClientReset, How::Abort);
                return false;
            }
        };
        match guess {
            Guess::Not => {}
            // A client that has ended will say no more.
            Guess::NeedMore if flags.intersects(EventFlags::RDHUP.union(ENDS)) => {}
            Guess::NeedMore => {
                // Not to be told again of what was only looked at.
                tunnel.held = true;
                self.watch_wanted(slot);
                return false;
            }
            Guess::Proxy => {
                let reason = if tunnel.untrusted {
                    Reason::ProxyUntrusted
                } else {
                    Reason::ProxyUnexpected
                };
                self.counters.listener(
                    tunnel.terms.listener.index(),
                    field!(ListenerSlot, refused_proxy),
                    1,
                );
                self.end(slot, reason, How::Abort);
                return false;
            }
        }
        tunnel.guarded = false;
        true
    }

    /// The timer of an established tunnel.
    pub(super) fn quiet(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if tunnel.guarded_until(now).is_some_and(|at| at <= now) {
            tunnel.guarded = false;
            if !self.drive(slot, Side::Client) {
                return;
            }
        }
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        if tunnel.closing.as_ref().is_some_and(|c| c.until <= now) {
            return self.closing_late(slot);
        }
        if tunnel.leaving().is_some() {
            return self.leaving_late(slot);
        }
        if tunnel.heard_until(now).is_some_and(|at| at <= now) && !self.unheard(slot) {
            return;
        }
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        match tunnel.quiet_until(now) {
            Some(at) if at <= now => {
                let reason = if tunnel.half_closed() {
                    Reason::HalfClosedTimeout
                } else {
                    Reason::IdleTimeout
                };
                self.end(slot, reason, How::Abort);
            }
            // Something happened since the timer was set: activity only notes the time.
            Some(_) | None => match tunnel.due(now) {
                Some(at) => self.wheel.set(slot, at),
                None => self.wheel.cancel(slot),
            },
        }
    }
}

/// Count bytes that `from` has sent and the other side has taken.
#[inline]
pub(super) fn count(counters: &Counters, tunnel: &Tunnel, from: Side, moved: u64) {
    if moved == 0 {
        return;
    }
    let (for_listener, for_backend) = match from {
        Side::Client => (
            field!(ListenerSlot, bytes_in),
            field!(BackendSlot, bytes_to_backend),
        ),
        Side::Backend => (
            field!(ListenerSlot, bytes_out),
            field!(BackendSlot, bytes_to_client),
        ),
    };
    counters.listener(tunnel.terms.listener.index(), for_listener, moved);
    if let Some(entry) = &tunnel.entry {
        counters.backend(entry.index(), for_backend, moved);
    }
}
