//! From one backend to the next, while the client's WebSocket stands.

use std::time::Duration;

use pybalancer_core::http::Limits;
use pybalancer_core::reattach::{Hearing, Journey, Judged, Words, repeated};
use pybalancer_core::relay::Resumable;
use pybalancer_core::ws::{Rules, close_frame};

use super::flow::Outcome;
use super::tunnel::{Away, Opening, Phase, Side, Tunnel};
use super::{Balancer, How};
use crate::agenda::Wake;
use crate::heads::name;
use crate::wire::Read;
use crate::world::Context;

/// Bytes of a client that are read at once.
const SIP: usize = 16 * 1024;

impl Balancer {
    /// The old backend has said all: let go of it, and look for another.
    pub(super) fn detach(&mut self, slot: usize, cx: &mut Context) {
        let rules = self.scenario.rules;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let held = tunnel.to_backend.take_held();
        // The Close that was not for the client, or half a frame of which it has got nothing.
        tunnel.to_client.take_held();
        let Some(recall) = &mut tunnel.recall else {
            return;
        };
        recall.leaving = None;
        recall.left = tunnel.at;
        let tried = recall.left.into_iter().collect();
        tunnel.opening = Some(Opening {
            phase: Phase::Dialing,
            head: Vec::new(),
            scanner: Default::default(),
            answer: Vec::new(),
            answer_scanner: Default::default(),
            tried,
            until: None,
            away: Some(Away {
                journey: Journey::new(&rules, cx.now),
                words: Words::default(),
                answer: Hearing::default(),
                found: held.len(),
                asks: true,
            }),
        });
        cx.ledger.detached(tunnel.connection, tunnel.at, cx.now);
        cx.ledger.note(tunnel.connection, cx.now, || {
            format!("left {:?}", tunnel.at)
        });
        self.drop_backend(slot, cx);
        if self.take_words(slot, &held, cx) {
            self.dial(slot, cx);
        }
        if let Some(tunnel) = self.tunnels[slot].as_ref() {
            // What it says is read from now on.
            cx.agenda.at(cx.now, Wake::Wire(tunnel.client));
        }
    }

    pub(super) fn on_away(&mut self, slot: usize, side: Side, cx: &mut Context) {
        match side {
            Side::Client => self.on_client_away(slot, cx),
            Side::Backend => match self.phase(slot) {
                Some(Phase::Dialing) => self.connected(slot, cx),
                Some(Phase::Resuming) => self.hear_answer(slot, cx),
                _ => {}
            },
        }
    }

    fn phase(&self, slot: usize) -> Option<Phase> {
        Some(self.tunnels[slot].as_ref()?.opening.as_ref()?.phase)
    }

    fn on_client_away(&mut self, slot: usize, cx: &mut Context) {
        let bound = self.scenario.rules.buffer as usize;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let client = tunnel.client;
        if cx.is_reset(client) {
            return self.end(slot, How::Abort, cx);
        }
        if tunnel.to_client.blocked() && tunnel.to_client.flush(client, cx).is_err() {
            return self.end(slot, How::Abort, cx);
        }
        while let Some(tunnel) = self.tunnels[slot].as_mut()
            && let Some(away) = tunnel.away()
        {
            let room = away.words.room(bound);
            if room == 0 || tunnel.to_client.blocked() {
                return;
            }
            match cx.recv(client, room.min(SIP)) {
                Read::Bytes(said) => {
                    if !self.take_words(slot, &said, cx) {
                        return;
                    }
                }
                Read::Empty => return,
                Read::Ended | Read::Reset => {
                    return self.end(slot, How::Abort, cx);
                }
            }
        }
    }

    /// The client has said this. False if it was its last word.
    fn take_words(&mut self, slot: usize, said: &[u8], cx: &mut Context) -> bool {
        let bound = self.scenario.rules.buffer as usize;
        let mut answers = Vec::new();
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return false;
        };
        let Some(away) = tunnel.away_mut() else {
            return false;
        };
        let closed = away.words.hear(said, &mut answers);
        let waits = away.words.waiting();
        assert!(
            waits <= bound.max(away.found),
            "{waits} bytes wait, {bound} at most"
        );
        cx.ledger.seen.words += usize::from(waits > 0);
        cx.ledger.seen.pongs += usize::from(!answers.is_empty());
        if !answers.is_empty() && !tunnel.to_client.blocked() {
            let client = tunnel.client;
            if tunnel.to_client.inject(&answers, client, cx).is_err() {
                self.end(slot, How::Abort, cx);
                return false;
            }
        }
        let Some(code) = closed else { return true };
        if let Some(tunnel) = self.tunnels[slot].as_mut() {
            let frame = close_frame(code, "", Some([0; 4]));
            let _ = tunnel.from_client.see(frame.as_slice(), &Rules::default());
            cx.ledger.promise(tunnel.connection, code);
            cx.ledger.of(tunnel.connection).lossy = true;
        }
        self.close_until(slot, code, None, cx);
        false
    }

    pub(super) fn away_late(&mut self, slot: usize, cx: &mut Context) {
        let now = cx.now;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let connecting = tunnel.backend.is_some();
        let Some(opening) = tunnel.opening.as_mut() else {
            return;
        };
        let Some(away) = &mut opening.away else {
            return;
        };
        if away.journey.deadline() <= now {
            return self.fail_reattach(slot, cx);
        }
        if opening.until.is_none_or(|until| until > now) {
            return;
        }
        opening.until = None;
        match opening.phase {
            Phase::Resuming => self.ask_another(slot, cx),
            _ if connecting => self.dial_elsewhere(slot, cx),
            _ => {
                away.asks = true;
                self.dial(slot, cx);
            }
        }
    }

    /// Nobody took it in this round.
    pub(super) fn round_over(&mut self, slot: usize, cx: &mut Context) {
        let (now, random) = (cx.now, cx.random.next());
        let Some(opening) = self.tunnels[slot].as_mut().and_then(|t| t.opening.as_mut()) else {
            return;
        };
        opening.phase = Phase::Dialing;
        // In the next also the one that it comes from: it may have been restarted.
        opening.tried.clear();
        let Some(away) = &mut opening.away else {
            return;
        };
        away.asks = false;
        opening.until = away.journey.next_round(now, random);
        cx.ledger.seen.rounds += 1;
        if opening.until.is_none() {
            self.fail_reattach(slot, cx);
        }
    }

    /// The backend that it had dialed is none any more.
    pub(super) fn redirect(&mut self, slot: usize, cx: &mut Context) {
        if self.tunnels[slot]
            .as_ref()
            .is_some_and(|tunnel| tunnel.backend.is_some())
        {
            self.dial_elsewhere(slot, cx);
        }
    }

    /// A backend is there: repeat the handshake.
    pub(super) fn repeat_handshake(&mut self, slot: usize, cx: &mut Context) {
        let timeout = self.scenario.response;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let (Some(opening), Some(recall), Some(backend)) =
            (&mut tunnel.opening, &tunnel.recall, tunnel.backend)
        else {
            return;
        };
        let Some(away) = &mut opening.away else {
            return;
        };
        let Some(attempt) = away.journey.attempt() else {
            return self.fail_reattach(slot, cx);
        };
        let previous = recall
            .left
            .map_or_else(String::new, |left| name(left.into()));
        cx.ledger.note(tunnel.connection, cx.now, || {
            format!("attempt {attempt} at {:?}", tunnel.at)
        });
        let head = repeated(&recall.head, "id", &previous, attempt);
        away.answer = Hearing::default();
        opening.until = Some(cx.now + timeout);
        opening.phase = Phase::Resuming;
        if tunnel.to_backend.inject(&head, backend, cx).is_err() {
            self.ask_another(slot, cx);
        }
    }

    /// The answer of this one was none.
    fn ask_another(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        tunnel.to_backend.pending = None;
        if tunnel.away().is_some_and(|away| away.journey.is_spent()) {
            return self.fail_reattach(slot, cx);
        }
        if let Some(opening) = &mut tunnel.opening {
            opening.phase = Phase::Dialing;
        }
        self.dial_elsewhere(slot, cx);
    }

    fn hear_answer(&mut self, slot: usize, cx: &mut Context) {
        let limits = Limits::default();
        loop {
            let Some(tunnel) = self.tunnels[slot].as_mut() else {
                return;
            };
            let Some(backend) = tunnel.backend else {
                return;
            };
            if tunnel.to_backend.flush(backend, cx).is_err() {
                return self.ask_another(slot, cx);
            }
            let (Some(opening), Some(recall)) = (&mut tunnel.opening, &tunnel.recall) else {
                return;
            };
            let Some(away) = &mut opening.away else {
                return;
            };
            match cx.recv(backend, away.answer.room(&limits).clamp(1, SIP)) {
                Read::Bytes(bytes) => away.answer.hear(&bytes),
                Read::Empty => return,
                Read::Ended | Read::Reset => return self.ask_another(slot, cx),
            }
            match away.answer.judge(&recall.agreed, &limits) {
                Judged::Incomplete => {}
                Judged::Agreed(consumed) => return self.reattach(slot, consumed, cx),
                Judged::Again(_) => return self.ask_another(slot, cx),
                Judged::Never => return self.fail_reattach(slot, cx),
            }
        }
    }

    /// From here on its frames are relayed.
    fn reattach(&mut self, slot: usize, consumed: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        let away = tunnel.opening.take().and_then(|opening| opening.away);
        let (Some(away), Some(recall), Some(backend)) = (away, &mut tunnel.recall, tunnel.backend)
        else {
            return;
        };
        recall.left = None;
        tunnel.active = cx.now;
        recall.deadline = None;
        cx.ledger.settled(tunnel.connection, tunnel.at);
        cx.ledger.note(tunnel.connection, cx.now, || {
            format!("re-attached at {:?}", tunnel.at)
        });
        let words = away.words.into_bytes();
        let early = away.answer.behind(consumed).to_vec();
        let parts = [
            (Side::Backend, &early, tunnel.client),
            (Side::Client, &words, backend),
        ];
        let mut stopped = Vec::new();
        for (from, said, receiver) in parts {
            if said.is_empty() {
                continue;
            }
            let watch = tunnel.watch(from);
            let (flow, tracker) = match from {
                Side::Backend => (&mut tunnel.to_client, &mut tunnel.from_backend),
                Side::Client => (&mut tunnel.to_backend, &mut tunnel.from_client),
            };
            let mut tap = Resumable {
                before: *tracker,
                tracker,
                rules: Rules::default(),
                watch,
                ends: from == Side::Client,
                halt: None,
            };
            let outcome = flow.feed(&mut tap, said, receiver, cx);
            stopped.push((from, outcome, tap.halt));
        }
        self.join_drains(slot, cx);
        for (from, outcome, halt) in stopped {
            let resumes = self.tunnels[slot].as_ref().is_some_and(Tunnel::resumes);
            if resumes && self.takes_leave(slot, from, outcome, halt, cx) {
                return;
            }
            match outcome {
                Outcome::Stopped => self.violated(slot, from, cx),
                Outcome::ReceiverFailed => return self.end(slot, How::Abort, cx),
                _ => {}
            }
        }
        if let Some(tunnel) = self.tunnels[slot].as_ref() {
            for end in [Some(tunnel.client), tunnel.backend].into_iter().flatten() {
                cx.agenda
                    .at(cx.now + Duration::from_micros(1), Wake::Wire(end));
            }
        }
    }
}
