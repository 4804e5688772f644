//! A backend goes away whose clients shall go on elsewhere.

use std::rc::Rc;

use pybalancer_core::reattach::{GOING_AWAY, Halt, Leaving, Next, SERVICE_RESTART, Streams};
use pybalancer_core::relay::Resumable;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::{Rules, close_frame};

use super::flow::{Outcome, Pumped};
use super::order::Order;
use super::tunnel::{Side, Tunnel};
use super::{Balancer, How};
use crate::world::Context;

impl Balancer {
    /// Its backend shall have it no longer. False if it cannot go on elsewhere.
    pub(super) fn leave_for(
        &mut self,
        slot: usize,
        order: &Rc<Order>,
        until: Option<Tick>,
        cx: &mut Context,
    ) -> bool {
        let now = cx.now;
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return false;
        };
        if !tunnel.resumes() && tunnel.leaving().is_none() {
            return false;
        }
        if tunnel.leaving().is_none() {
            cx.ledger.seen.left += 1;
            if until.is_some_and(|until| until <= now + self.scenario.patience) {
                // There may be too little time for it to say all.
                cx.ledger.of(tunnel.connection).lossy |= !order.is_roomy(now);
            }
            self.begin_leaving(slot, cx);
            self.step_leaving(slot, cx);
        }
        if let Some(recall) = self.tunnels[slot]
            .as_mut()
            .and_then(|tunnel| tunnel.recall.as_mut())
        {
            let deadlines = [recall.deadline, order.course.deadline()];
            recall.deadline = deadlines.into_iter().flatten().min();
        }
        let tunnel = self.tunnels[slot].as_mut();
        if let (Some(leaving), Some(until)) = (tunnel.and_then(Tunnel::leaving_mut), until) {
            leaving.hurry(now, until);
        }
        true
    }

    fn begin_leaving(&mut self, slot: usize, cx: &mut Context) {
        let patience = self.scenario.patience;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let active = tunnel.active;
        if let Some(recall) = &mut tunnel.recall {
            (recall.leaving).get_or_insert_with(|| Leaving::new(cx.now, active, patience));
        }
    }

    fn pump_resumable(tunnel: &mut Tunnel, from: Side, cx: &mut Context) -> Pumped {
        let watch = tunnel.watch(from);
        let Some(backend) = tunnel.backend else {
            return (Outcome::Waiting, None);
        };
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
        let mut tap = Resumable {
            before: *tracker,
            tracker,
            rules: Rules::default(),
            watch,
            ends: from == Side::Client,
            halt: None,
        };
        let outcome = flow.pump(&mut tap, sender, receiver, cx);
        (outcome, tap.halt)
    }

    pub(super) fn drive_resumable(&mut self, slot: usize, from: Side, cx: &mut Context) -> bool {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return false;
        };
        tunnel.active = cx.now;
        let (outcome, halt) = Self::pump_resumable(tunnel, from, cx);
        if let Some(leaving) = tunnel.leaving_mut() {
            leaving.passes(cx.now);
        }
        !self.takes_leave(slot, from, outcome, halt, cx) && self.driven(slot, from, outcome, cx)
    }

    /// Whether what stopped the stream of `from` is that its backend goes away.
    pub(super) fn takes_leave(
        &mut self,
        slot: usize,
        from: Side,
        outcome: Outcome,
        halt: Option<Halt>,
        cx: &mut Context,
    ) -> bool {
        let (heard, broken) = match (from, outcome, halt) {
            (Side::Client, Outcome::Stopped, Some(_)) => (false, false),
            (Side::Backend, Outcome::Stopped, Some(_)) => (true, false),
            (Side::Backend, Outcome::Ended | Outcome::SenderFailed, _) => (true, true),
            (Side::Client, Outcome::ReceiverFailed, _) => (false, true),
            _ => return false,
        };
        let said_all = |tunnel: &Tunnel| {
            // One that has had, or said, its last goes nowhere else.
            let closed = tunnel.from_client.closed().or(tunnel.from_backend.closed());
            closed.is_some() && tunnel.leaving().is_none()
        };
        if self.tunnels[slot].as_ref().is_none_or(said_all) {
            return false;
        }
        self.begin_leaving(slot, cx);
        let tunnel = self.tunnels[slot].as_mut();
        if let Some(leaving) = tunnel.and_then(Tunnel::leaving_mut) {
            leaving.heard |= heard;
            leaving.broken |= broken;
        }
        self.step_leaving(slot, cx);
        true
    }

    /// Do what is to be done now.
    pub(super) fn step_leaving(&mut self, slot: usize, cx: &mut Context) {
        loop {
            let now = cx.now;
            let Some(tunnel) = self.tunnels[slot].as_mut() else {
                return;
            };
            let Some(leaving) = tunnel.leaving().copied() else {
                return;
            };
            let late = now >= leaving.until;
            if leaving.broken && !leaving.heard && !late && !tunnel.to_client.blocked() {
                // What it said before it broke is still there.
                self.drive(slot, Side::Backend, cx);
                return;
            }
            let streams = Streams {
                client: &tunnel.from_client,
                owed: tunnel.to_backend.blocked() && !leaving.told,
                backend: &tunnel.from_backend,
            };
            let next = leaving.next(&streams, now);
            if next != Next::Wait {
                let what = || format!("leaving: {next:?}, {leaving:?}");
                cx.ledger.note(tunnel.connection, now, what);
            }
            if late {
                cx.ledger.of(tunnel.connection).lossy = true;
            }
            match next {
                Next::Wait => return,
                Next::Tell => {
                    let frame = close_frame(GOING_AWAY, "", Some([3, 1, 4, 1]));
                    let sent = tunnel.backend.is_some_and(|backend| {
                        tunnel
                            .to_backend
                            .inject(frame.as_slice(), backend, cx)
                            .is_ok()
                    });
                    if let Some(leaving) = tunnel.leaving_mut() {
                        leaving.told = true;
                        leaving.broken |= !sent;
                    }
                }
                Next::Detach => return self.detach(slot, cx),
                Next::Over => {
                    let code = tunnel.from_backend.closed().unwrap_or(SERVICE_RESTART);
                    return self.close_until(slot, code, None, cx);
                }
                Next::Fail => return self.fail_reattach(slot, cx),
                Next::Abort => return self.end(slot, How::Abort, cx),
            }
        }
    }

    /// Something happened on a tunnel whose backend goes away.
    pub(super) fn on_leaving(&mut self, slot: usize, side: Side, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(end) = tunnel.end(side) else { return };
        if side == Side::Client && cx.is_reset(end) {
            return self.end(slot, How::Abort, cx);
        }
        let flow = tunnel.flow_from(side.other());
        if flow.blocked() && flow.flush(end, cx).is_err() {
            match side {
                Side::Client => return self.end(slot, How::Abort, cx),
                Side::Backend => {
                    if let Some(leaving) = tunnel.leaving_mut() {
                        leaving.broken = true;
                    }
                }
            }
        }
        let withheld = tunnel.withheld(side);
        let flow = tunnel.flow_from(side);
        let readable = !withheld && !flow.blocked() && !flow.eof && cx.readable(end);
        if readable && !self.drive(slot, side, cx) {
            return;
        }
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let client_is_done = tunnel.to_backend.eof || tunnel.from_client.closed().is_some();
        if client_is_done && tunnel.leaving().is_some() {
            return self.stay(slot, cx);
        }
        self.step_leaving(slot, cx);
    }

    /// The client has ended before its stream came to a boundary.
    fn stay(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(recall) = &mut tunnel.recall else {
            return;
        };
        let untouched = (recall.leaving.take())
            .is_some_and(|leaving| !leaving.told && !leaving.heard && !leaving.broken);
        if !untouched {
            self.end(slot, How::Abort, cx);
        }
    }

    /// It cannot go on, and its client is told so.
    pub(super) fn fail_reattach(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        cx.ledger.seen.failed += 1;
        cx.ledger
            .note(tunnel.connection, cx.now, || "cannot go on".into());
        if tunnel.from_backend.at_boundary() && !tunnel.to_client.eof {
            let latest = tunnel.latest(cx.now);
            self.close_until(slot, SERVICE_RESTART, None, cx);
            if let Some(latest) = latest {
                self.hurry(slot, latest, cx);
            }
        } else {
            self.end(slot, How::Abort, cx);
        }
    }

    /// Whoever ends it does so without looking for another backend. Whether the one that it has needs to
    /// hear nothing more.
    pub(super) fn stop_reattaching(&mut self, slot: usize, cx: &mut Context) -> bool {
        if self.tunnels[slot]
            .as_ref()
            .is_some_and(|tunnel| tunnel.away().is_some())
        {
            self.abort_backend(slot, cx);
            if let Some(tunnel) = self.tunnels[slot].as_mut() {
                cx.ledger.settled(tunnel.connection, None);
                // What waited has nowhere to go.
                cx.ledger.of(tunnel.connection).lossy = true;
                tunnel.opening = None;
            }
        }
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return false;
        };
        let connection = tunnel.connection;
        let Some(recall) = &mut tunnel.recall else {
            return false;
        };
        let leaving = recall.leaving.take();
        if leaving.is_some_and(|leaving| leaving.broken) {
            recall.left = tunnel.at;
            self.drop_backend(slot, cx);
        }
        if leaving.is_some() {
            // What its client still says has nowhere to go.
            cx.ledger.of(connection).lossy = true;
        }
        leaving.is_some_and(|leaving| leaving.told)
    }
}
