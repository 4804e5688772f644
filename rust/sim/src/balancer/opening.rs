//! From a request to a tunnel: read, picked, dialed, answered.

use pybalancer_core::http::{self, Limits};
use pybalancer_core::reattach::{Agreed, without_takeover};
use pybalancer_core::relay::{Frames, Resumable};
use pybalancer_core::ws::{Rules, accept_key};

use super::flow::Outcome;
use super::tunnel::{Phase, Recall, Side};
use super::{Balancer, How, hash};
use crate::agenda::Wake;
use crate::wire::{Connect, Owner, Read};
use crate::world::{Context, Door};

impl Balancer {
    pub(super) fn on_opening(&mut self, slot: usize, side: Side, cx: &mut Context) {
        let Some(opening) = self.tunnels[slot].as_ref().and_then(|t| t.opening.as_ref()) else {
            return;
        };
        match (side, opening.phase) {
            (Side::Client, Phase::Request) => self.read_request(slot, cx),
            (Side::Backend, Phase::Dialing) => self.connected(slot, cx),
            (Side::Backend, Phase::Exchange) => self.read_answer(slot, cx),
            (Side::Client, _) => {
                // It does not speak before it is answered: then it has gone.
                let gone = self.tunnels[slot]
                    .as_ref()
                    .is_some_and(|t| cx.readable(t.client));
                if gone {
                    self.end(slot, How::Abort, cx);
                }
            }
            _ => {}
        }
    }

    fn read_request(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(opening) = tunnel.opening.as_mut() else {
            return;
        };
        match cx.recv(tunnel.client, 65536) {
            Read::Bytes(bytes) => opening.head.extend(bytes),
            Read::Empty => return,
            Read::Ended | Read::Reset => return self.end(slot, How::Abort, cx),
        }
        let limits = Limits::default();
        let scanned = opening.scanner.scan(&opening.head, &limits);
        let Ok(Some(length)) = scanned else {
            assert_eq!(scanned, Ok(None), "a client's head is good");
            return;
        };
        assert_eq!(length, opening.head.len(), "a client waits for its answer");
        let text = String::from_utf8_lossy(&opening.head).into_owned();
        let path = text.split(' ').nth(1).unwrap_or_default();
        tunnel.connection = path.trim_start_matches("/c/").parse().unwrap_or(u32::MAX);
        tunnel.hash = hash(tunnel.connection);
        if cx.ledger.of(tunnel.connection).reattaches {
            opening.head = without_takeover(&opening.head);
        }
        opening.phase = Phase::Dialing;
        self.dial(slot, cx);
    }

    /// Dial the next backend that is picked.
    pub(super) fn dial(&mut self, slot: usize, cx: &mut Context) {
        let picked = self.pick(slot, cx);
        let scenario = &self.scenario;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(opening) = tunnel.opening.as_mut() else {
            return;
        };
        let Some(picked) = picked else {
            return match opening.away.is_some() {
                true => self.round_over(slot, cx),
                false => self.refuse(slot, cx),
            };
        };
        opening.phase = Phase::Dialing;
        opening.tried.push(picked);
        opening.until = Some(cx.now + scenario.connect);
        tunnel.at = Some(picked);
        self.loads[usize::from(picked)] += 1;
        let open = match cx.doors[usize::from(picked)] {
            Door::Open => Some(true),
            Door::Refuses => Some(false),
            Door::Silent => None,
        };
        let from = Owner::TunnelBackend(slot, tunnel.generation);
        let to = Owner::Backend(usize::from(picked));
        tunnel.backend = Some(cx.connect(from, to, scenario.behind, open));
    }

    /// This one did not take it: the next.
    pub(super) fn dial_elsewhere(&mut self, slot: usize, cx: &mut Context) {
        self.abort_backend(slot, cx);
        self.dial(slot, cx);
    }

    pub(super) fn abort_backend(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        tunnel.to_backend.pending = None;
        if let Some(at) = tunnel.at.take() {
            self.loads[usize::from(at)] -= 1;
        }
        if let Some(backend) = tunnel.backend.take() {
            cx.abort(backend);
        }
    }

    /// A connect has come to something.
    pub(super) fn connected(&mut self, slot: usize, cx: &mut Context) {
        let response = self.scenario.response;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let Some(backend) = tunnel.backend else {
            return;
        };
        let Some(opening) = tunnel.opening.as_mut() else {
            return;
        };
        match cx.connected(backend) {
            Connect::Pending => {}
            Connect::Refused => self.dial_elsewhere(slot, cx),
            Connect::Done if opening.away.is_some() => self.repeat_handshake(slot, cx),
            Connect::Done => {
                opening.phase = Phase::Exchange;
                opening.until = Some(cx.now + response);
                let head = opening.head.clone();
                if tunnel.to_backend.inject(&head, backend, cx).is_err() {
                    self.dial_elsewhere(slot, cx);
                }
            }
        }
    }

    fn read_answer(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let (Some(backend), Some(opening)) = (tunnel.backend, tunnel.opening.as_mut()) else {
            return;
        };
        if tunnel.to_backend.flush(backend, cx).is_err() {
            return self.refuse(slot, cx);
        }
        match cx.recv(backend, 4096) {
            Read::Bytes(bytes) => opening.answer.extend(bytes),
            Read::Empty => return,
            Read::Ended | Read::Reset => return self.refuse(slot, cx),
        }
        let limits = Limits::default();
        let Ok(Some(length)) = opening.answer_scanner.scan(&opening.answer, &limits) else {
            return;
        };
        let (head, early) = opening.answer.split_at(length);
        let (head, early) = (head.to_vec(), early.to_vec());
        let mut storage = http::storage();
        let response = http::parse_response(&head, false, &mut storage, &limits);
        let Ok(response) = response else {
            return self.refuse(slot, cx);
        };
        if response.status == 103 {
            opening.answer = early;
            opening.answer_scanner = Default::default();
            cx.agenda.at(cx.now, Wake::Wire(backend));
            return;
        }
        let accept = accept_key(super::super::client::nonce(tunnel.connection).as_bytes());
        if !response.upgrades_to_websocket || response.accept != Some(&accept) {
            return self.refuse(slot, cx);
        }
        let request = std::mem::take(&mut opening.head);
        if cx.ledger.of(tunnel.connection).reattaches
            && let Ok(agreed) = Agreed::of(&response, accept)
        {
            tunnel.recall = Some(Recall {
                head: request,
                agreed,
                leaving: None,
                left: None,
                deadline: None,
            });
        }
        tunnel.opening = None;
        tunnel.active = cx.now;
        if tunnel.to_client.inject(&head, tunnel.client, cx).is_err() {
            return self.end(slot, How::Abort, cx);
        }
        self.join_drains(slot, cx);
        self.feed_early(slot, &early, cx);
    }

    /// The backend's first frames came with its answer.
    fn feed_early(&mut self, slot: usize, early: &[u8], cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        if early.is_empty() {
            return;
        }
        let rules = Rules::default();
        let (client, watch) = (tunnel.client, tunnel.watch(Side::Backend));
        let (outcome, halt) = if tunnel.resumes() {
            let mut tap = Resumable {
                before: tunnel.from_backend,
                tracker: &mut tunnel.from_backend,
                rules,
                watch,
                ends: false,
                halt: None,
            };
            let outcome = tunnel.to_client.feed(&mut tap, early, client, cx);
            (outcome, tap.halt)
        } else {
            let tracker = &mut tunnel.from_backend;
            let mut tap = Frames {
                tracker,
                rules,
                stop_at_boundary: false,
            };
            (tunnel.to_client.feed(&mut tap, early, client, cx), None)
        };
        match outcome {
            Outcome::Stopped if halt.is_some() => {
                self.takes_leave(slot, Side::Backend, outcome, halt, cx);
            }
            Outcome::ReceiverFailed => self.end(slot, How::Abort, cx),
            _ => {}
        }
    }

    /// No backend, or no good one.
    fn refuse(&mut self, slot: usize, cx: &mut Context) {
        self.abort_backend(slot, cx);
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        let client = tunnel.client;
        let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        let _ = cx.send(client, answer);
        self.end(slot, How::Clean, cx);
    }

    pub(super) fn opening_late(&mut self, slot: usize, cx: &mut Context) {
        let Some(opening) = self.tunnels[slot].as_ref().and_then(|t| t.opening.as_ref()) else {
            return;
        };
        match opening.phase {
            Phase::Dialing => self.dial_elsewhere(slot, cx),
            _ => self.refuse(slot, cx),
        }
    }
}
