//! Ending a WebSocket in its own language.

use pybalancer_core::time::Tick;
use pybalancer_core::ws::close::{Culprit, Farewell, Partner, Stream};
use pybalancer_core::ws::close_frame;

use super::flow::Flow;
use super::tunnel::{Closing, Side};
use super::{Balancer, How};
use crate::wire::Read;
use crate::world::Context;

impl Balancer {
    /// Close with `code` to the client, where it may take until then before a frame ends.
    pub(super) fn close_until(
        &mut self,
        slot: usize,
        code: u16,
        until: Option<Tick>,
        cx: &mut Context,
    ) {
        self.begin_closing(
            slot,
            |partner| Farewell::new(Some(code), None, partner),
            until,
            cx,
        );
    }

    /// `from` sent what may not pass, or has come to where its stream was to stop.
    pub(super) fn violated(&mut self, slot: usize, from: Side, cx: &mut Context) {
        if self.tunnels[slot]
            .as_ref()
            .is_some_and(|tunnel| tunnel.closing.is_some())
        {
            return self.continue_closing(slot, cx);
        }
        let culprit = match from {
            Side::Client => Culprit::Client,
            Side::Backend => Culprit::Backend,
        };
        self.begin_closing(
            slot,
            |partner| Farewell::because_of(culprit, false, partner),
            None,
            cx,
        );
    }

    /// End this one's patience earlier.
    pub(super) fn hurry(&mut self, slot: usize, until: Tick, cx: &mut Context) {
        let tunnel = self.tunnels[slot].as_mut();
        if let Some(closing) = tunnel.and_then(|tunnel| tunnel.closing.as_mut()) {
            closing.until = closing.until.min(until);
            closing.patience = closing.patience.min(until.since(cx.now));
        }
    }

    fn begin_closing(
        &mut self,
        slot: usize,
        farewell: impl FnOnce(Partner) -> Farewell,
        until: Option<Tick>,
        cx: &mut Context,
    ) {
        if self.tunnels[slot]
            .as_ref()
            .is_none_or(|tunnel| tunnel.closing.is_some())
        {
            return;
        }
        let latest = self.tunnels[slot]
            .as_ref()
            .and_then(|tunnel| tunnel.latest(cx.now));
        let told = self.stop_reattaching(slot, cx);
        let patience = self.scenario.patience;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let alone = tunnel.backend.is_none();
        let partner = match (alone, told) {
            (true, _) => Partner::Absent,
            (false, true) => Partner::Told,
            (false, false) => Partner::There,
        };
        tunnel.to_backend.done |= alone;
        let mut until = until.unwrap_or_default().max(cx.now + patience);
        if let Some(latest) = latest {
            until = until.min(latest);
        }
        tunnel.closing = Some(Closing {
            farewell: farewell(partner),
            ended: [false, alone],
            until,
            patience,
        });
        self.continue_closing(slot, cx);
    }

    /// Send what can be sent now.
    pub(super) fn continue_closing(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(closing) = &mut tunnel.closing else {
            return;
        };
        let towards = |flow: &Flow| Stream {
            blocked: flow.blocked(),
            ended: flow.eof,
        };
        let waits = !closing.farewell.client_told();
        let (to_them, to_us) = (towards(&tunnel.to_client), towards(&tunnel.to_backend));
        let say =
            closing
                .farewell
                .advance(&tunnel.from_client, &tunnel.from_backend, to_them, to_us);
        cx.ledger.note(tunnel.connection, cx.now, || {
            format!("closing: {say:?} {closing:?}")
        });
        let mut failed = false;
        if let Some(code) = say.to_client {
            let frame = close_frame(code, "", None);
            failed |= tunnel
                .to_client
                .inject(frame.as_slice(), tunnel.client, cx)
                .is_err();
        }
        if let (Some(code), Some(backend)) = (say.to_backend, tunnel.backend) {
            let frame = close_frame(code, "", Some([7, 1, 8, 2]));
            failed |= tunnel
                .to_backend
                .inject(frame.as_slice(), backend, cx)
                .is_err();
        }
        if failed {
            return self.end(slot, How::Abort, cx);
        }
        if waits && closing.farewell.client_told() {
            // From now on it is the client's answer that is waited for.
            closing.until = closing.until.min(cx.now + closing.patience);
        }
        if say.over {
            let ends = [
                (&mut tunnel.to_client, Some(tunnel.client)),
                (&mut tunnel.to_backend, tunnel.backend),
            ];
            for (flow, end) in ends {
                if let Some(end) = end
                    && !flow.done
                    && !flow.blocked()
                {
                    flow.done = true;
                    let _ = cx.finish(end);
                }
            }
        }
    }

    pub(super) fn on_closing(&mut self, slot: usize, side: Side, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(closing) = &tunnel.closing else {
            return;
        };
        let mute = match side {
            Side::Client => closing.farewell.client_mute,
            Side::Backend => closing.farewell.backend_mute,
        };
        let ended = closing.ended[side as usize];
        let Some(end) = tunnel.end(side) else { return };
        if cx.is_reset(end) {
            let blocked = tunnel.to_client.blocked();
            let closing = tunnel.closing.as_ref();
            let told = closing.is_some_and(|closing| closing.farewell.client_told());
            let heard_out = mute || told || blocked;
            if side == Side::Backend && !heard_out && !self.drive(slot, side, cx) {
                return;
            }
            if side != Side::Backend || !self.outlives_backend(slot, cx) {
                self.end(slot, How::Abort, cx);
            }
            return;
        }
        let flow = tunnel.flow_from(side.other());
        if flow.blocked() && flow.flush(end, cx).is_err() {
            return self.end(slot, How::Abort, cx);
        }
        if cx.readable(end) && !ended {
            if mute {
                if !self.discard(slot, side, cx) {
                    return;
                }
            } else if !self.drive(slot, side, cx) {
                return;
            } else if let Some(tunnel) = self.tunnels[slot].as_mut() {
                let eof = tunnel.flow_from(side).eof;
                if let (true, Some(closing)) = (eof, &mut tunnel.closing) {
                    // It will answer no more.
                    closing.farewell.answer_in_its_place();
                    closing.ended[side as usize] = true;
                }
            }
        }
        self.continue_closing(slot, cx);
        self.end_if_both_ended(slot, cx);
    }

    /// The backend has broken off. That is no reason to break off a client that has been told, or can be.
    pub(super) fn outlives_backend(&mut self, slot: usize, cx: &mut Context) -> bool {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return false;
        };
        let between = tunnel.from_backend.at_boundary() && !tunnel.to_client.blocked();
        let (Some(closing), Some(backend)) = (&mut tunnel.closing, tunnel.backend) else {
            return false;
        };
        if !between && !closing.farewell.client_told() {
            return false;
        }
        closing.farewell.lose_backend();
        closing.ended[Side::Backend as usize] = true;
        tunnel.to_backend.pending = None;
        tunnel.to_backend.done = true;
        tunnel.backend = None;
        cx.close(backend);
        self.continue_closing(slot, cx);
        self.end_if_both_ended(slot, cx);
        true
    }

    /// Read and drop; false if that ended the tunnel.
    fn discard(&mut self, slot: usize, side: Side, cx: &mut Context) -> bool {
        loop {
            let Some(tunnel) = self.tunnels[slot].as_mut() else {
                return false;
            };
            let Some(end) = tunnel.end(side) else {
                return false;
            };
            match cx.recv(end, 65536) {
                Read::Bytes(_) => {}
                Read::Empty => return true,
                Read::Ended => {
                    if let Some(closing) = &mut tunnel.closing {
                        closing.ended[side as usize] = true;
                    }
                    return true;
                }
                Read::Reset => {
                    self.end(slot, How::Abort, cx);
                    return false;
                }
            }
        }
    }

    fn end_if_both_ended(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        if tunnel
            .closing
            .as_ref()
            .is_some_and(|closing| closing.ended == [true; 2])
        {
            let clean = tunnel.to_client.done && tunnel.to_backend.done;
            self.end(slot, if clean { How::Clean } else { How::Abort }, cx);
        }
    }

    /// Patience is over.
    pub(super) fn closing_late(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let blocked = tunnel.to_client.blocked();
        let Some(closing) = &mut tunnel.closing else {
            return;
        };
        cx.ledger.of(tunnel.connection).lossy = true;
        if closing.farewell.client_told() && !blocked && !closing.farewell.client_mute {
            closing.farewell.answer_in_its_place();
            self.continue_closing(slot, cx);
        }
        let told = (self.tunnels[slot].as_ref())
            .is_some_and(|tunnel| tunnel.to_client.done && tunnel.to_backend.done);
        self.end(slot, if told { How::Clean } else { How::Abort }, cx);
    }
}
