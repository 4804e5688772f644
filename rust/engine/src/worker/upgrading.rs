//! The moment in which a connection becomes a tunnel.

use std::sync::Arc;

use pybalancer_core::record::Reason;
use pybalancer_core::ws::Rules;

use super::Worker;
use super::ending::How;
use crate::poller::Side;
use crate::recall::Recall;
use crate::relay::{self, Frames, Outcome};
use crate::tunnel::Moment;

impl Worker {
    /// A checked 101: from here on frames are relayed.
    pub(super) fn establish(&mut self, slot: u32, consumed: usize, head: &[u8]) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(mut opening) = tunnel.opening.take() else {
            return;
        };
        let inflight = (opening.exchange.as_mut()).and_then(|exchange| exchange.inflight.take());
        let (Some(mut inflight), Some(backend)) = (inflight, &tunnel.backend) else {
            return;
        };
        let ahead = opening.exchange.take().map(|exchange| exchange.ahead);
        if let Some(branch) = opening.front.routes.get(inflight.route) {
            tunnel.terms = Arc::clone(&branch.terms);
        }
        let rules = Rules {
            max_message: tunnel.terms.max_message,
        };
        tunnel.framed = true;
        tunnel.hash = opening.hash.unwrap_or_default();
        (tunnel.active, tunnel.heard) = (Moment::of(self.now), Moment::of(self.now));
        if let (Some(id), Some(agreed)) = (inflight.resumable.take(), inflight.agreed.take()) {
            tunnel.recall = Some(Box::new(Recall {
                head: std::mem::take(&mut inflight.head).into_boxed_slice(),
                agreed,
                id,
                moved: 0,
                leaving: None,
                left: None,
                order: None,
                deadline: None,
            }));
        }
        if let Some(line) = inflight.line.take() {
            tunnel.story.get_or_insert_default().request = Some(line);
        }
        let mut outcomes = [Outcome::Waiting; 2];
        if relay::inject(&mut tunnel.to_client, head, &tunnel.client).is_err() {
            outcomes[0] = Outcome::ReceiverFailed;
        } else if let Some(early) = inflight.answer.get(consumed..).filter(|b| !b.is_empty()) {
            let mut tap = Frames {
                tracker: &mut tunnel.from_backend,
                rules,
                stop_at_boundary: false,
            };
            let (flow, receiver) = (&mut tunnel.to_client, &tunnel.client);
            outcomes[0] = relay::feed(flow, &mut tap, early, receiver, &mut self.tools);
        }
        // What the client said too early was held until now.
        if let Some(early) = ahead.as_deref().filter(|b| !b.is_empty()) {
            let mut tap = Frames {
                tracker: &mut tunnel.from_client,
                rules,
                stop_at_boundary: false,
            };
            outcomes[1] = relay::feed(
                &mut tunnel.to_backend,
                &mut tap,
                early,
                backend,
                &mut self.tools,
            );
        }
        self.stand(slot);
        for (outcome, from) in outcomes.into_iter().zip([Side::Backend, Side::Client]) {
            match outcome {
                Outcome::Stopped => self.violated(slot, from),
                Outcome::ReceiverFailed | Outcome::SenderFailed => {
                    let gone = if from == Side::Backend {
                        Reason::ClientReset
                    } else {
                        Reason::BackendReset
                    };
                    self.end(slot, gone, How::Abort);
                }
                Outcome::Waiting | Outcome::Done | Outcome::Ended => {}
            }
        }
        if (self.tunnels.get(slot as usize)).is_some_and(|tunnel| tunnel.closing.is_none()) {
            self.watch_wanted(slot);
        }
    }
}
