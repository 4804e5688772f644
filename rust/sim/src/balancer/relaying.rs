//! Moving a tunnel's bytes, and telling its different ends apart.

use pybalancer_core::relay::{Blind, Frames};
use pybalancer_core::ws::Rules;

use super::flow::Outcome;
use super::tunnel::Side;
use super::{Balancer, How};
use crate::world::Context;

impl Balancer {
    pub(super) fn on_tunnel(&mut self, slot: usize, side: Side, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        if tunnel.away().is_some() {
            return self.on_away(slot, side, cx);
        }
        if tunnel.opening.is_some() {
            return self.on_opening(slot, side, cx);
        }
        if tunnel.closing.is_some() {
            return self.on_closing(slot, side, cx);
        }
        if tunnel.leaving().is_some() {
            return self.on_leaving(slot, side, cx);
        }
        let Some(end) = tunnel.end(side) else { return };
        let broken = cx.is_reset(end);
        let resumes = tunnel.resumes();
        let flow = tunnel.flow_from(side);
        if flow.blocked() && broken {
            if side == Side::Client || !resumes {
                self.end(slot, How::Abort, cx);
            }
            return;
        }
        let readable = cx.readable(end) && !flow.eof && !flow.blocked();
        if readable && !self.drive(slot, side, cx) {
            return;
        }
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        if tunnel.flow_from(side.other()).blocked() && !self.drive(slot, side.other(), cx) {
            return;
        }
        let ended = self.tunnels[slot]
            .as_mut()
            .is_some_and(|tunnel| tunnel.flow_from(side).eof);
        if broken && ended {
            self.end(slot, How::Abort, cx);
        }
    }

    /// Pump what `from` sends; false if that ended the tunnel.
    pub(super) fn drive(&mut self, slot: usize, from: Side, cx: &mut Context) -> bool {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return false;
        };
        let Some(backend) = tunnel.backend else {
            return true;
        };
        if tunnel.resumes() {
            return self.drive_resumable(slot, from, cx);
        }
        tunnel.active = cx.now;
        let (flow, tracker, sender, receiver) = match from {
            Side::Client => (
                &mut tunnel.to_backend,
                &mut tunnel.from_client,
                tunnel.client,
                backend,
            ),
            Side::Backend => (
                &mut tunnel.to_client,
                &mut tunnel.from_backend,
                backend,
                tunnel.client,
            ),
        };
        let stop_at_boundary = tunnel.closing.as_ref().is_some_and(|closing| match from {
            Side::Client => closing.farewell.to_backend.is_some(),
            Side::Backend => closing.farewell.to_client.is_some(),
        });
        let rules = Rules::default();
        let mut tap = Frames {
            tracker,
            rules,
            stop_at_boundary,
        };
        let outcome = flow.pump(&mut tap, sender, receiver, cx);
        self.driven(slot, from, outcome, cx)
    }

    /// What a direction's pump has come to; false if that ended the tunnel.
    pub(super) fn driven(
        &mut self,
        slot: usize,
        from: Side,
        outcome: Outcome,
        cx: &mut Context,
    ) -> bool {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return false;
        };
        match outcome {
            Outcome::Waiting => true,
            Outcome::Done if tunnel.closing.is_some() => true,
            Outcome::Stopped => {
                self.violated(slot, from, cx);
                self.tunnels[slot].is_some()
            }
            Outcome::Done if tunnel.to_backend.done && tunnel.to_client.done => {
                self.end(slot, How::Clean, cx);
                false
            }
            Outcome::Done => true,
            Outcome::SenderFailed if from == Side::Backend && self.outlives_backend(slot, cx) => {
                self.tunnels[slot].is_some()
            }
            Outcome::ReceiverFailed if from == Side::Client && self.outlives_backend(slot, cx) => {
                self.tunnels[slot].is_some()
            }
            Outcome::SenderFailed | Outcome::Ended => {
                self.end(slot, How::Abort, cx);
                false
            }
            Outcome::ReceiverFailed => {
                self.fail(slot, from.other(), cx);
                false
            }
        }
    }

    /// `broken` takes nothing more. What it sent before is delivered, then both are aborted.
    pub(super) fn fail(&mut self, slot: usize, broken: Side, cx: &mut Context) {
        if let Some(tunnel) = self.tunnels[slot].as_mut()
            && let (Some(sender), Some(receiver)) = (tunnel.end(broken), tunnel.end(broken.other()))
        {
            let mut blind = Blind;
            let flow = tunnel.flow_from(broken);
            if !flow.eof {
                flow.pump(&mut blind, sender, receiver, cx);
            }
        }
        self.end(slot, How::Abort, cx);
    }
}
