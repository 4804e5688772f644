//! From one backend to the next, while the client's WebSocket stands.
//!
//! ```text
//!   detach            turn            connected            101, agreed
//! ─────────▶ waiting ─────▶ Dialing ─────────▶ Resuming ─────────▶ tunnel
//!               ▲              │                  │
//!               │  nobody took it, a while        │ no 101
//!               └──────────────┴──────────────────┘
//!   no tries, no time, another answer: the client gets Close 1012
//! ```
//!
//! It has an [`Opening`] again, so that dialing is that of clients; but it stays one of the tunnels that are
//! counted, and nothing but frames is ever sent to its client. When a backend with thousands of tunnels
//! falls, they do not all fall on the next one: of each worker [`MOST_ASK`] ask at the same time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pybalancer_core::reattach::{Hearing, Journey, Words};
use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::{Rules, close_frame};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Worker;
use super::ending::How;
use crate::deployment::{DeployedPool, Front};
use crate::poller::{EventFlags, Interest, Side};
use crate::recall::Away;
use crate::relay;
use crate::stats::field;
use crate::tunnel::{Moment, Opening, Phase, Tunnel};

/// So many tunnels of a worker ask for a backend at the same time.
const MOST_ASK: usize = 64;
/// Bytes of a client that are read at once.
const SIP: usize = 16 * 1024;
/// Before a backend whose queue is full is asked again.
const BUSY: Duration = Duration::from_millis(50);
const READABLE: EventFlags = EventFlags::IN.union(EventFlags::HUP).union(EventFlags::ERR);

/// Tunnels of a worker that look for a backend.
#[derive(Default)]
pub(super) struct Seekers {
    /// How many ask one.
    asking: usize,
    /// Those that wait for their turn, by slot and generation, oldest first.
    waiting: VecDeque<(u32, u32)>,
}

impl Worker {
    /// Where a tunnel's listener is today, and the pool of its backend, if both are still there.
    pub(super) fn place_of(&self, slot: u32) -> Option<(Arc<Front>, Arc<DeployedPool>)> {
        let tunnel = self.tunnels.get(slot as usize)?;
        let deployment = self.deployment.as_ref()?;
        let pool = &tunnel.entry.as_ref()?.pool;
        let mut fronts = deployment.fronts.iter();
        let front = fronts.find(|front| Arc::ptr_eq(&front.entry, &tunnel.terms.listener))?;
        let mut pools = deployment.pools.iter();
        let pool = pools.find(|known| known.planned.pool.name == *pool)?;
        (front.listener.web.is_some()).then(|| (Arc::clone(front), Arc::clone(pool)))
    }

    /// The old backend has said all: let go of it, and look for another.
    pub(super) fn detach(&mut self, slot: u32) {
        let now = self.now;
        let Some((front, pool)) = self.place_of(slot) else {
            return self.fail_reattach(slot);
        };
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let rules = tunnel.terms.reattach.unwrap_or_default();
        let held = tunnel.to_backend.take_held();
        // The Close that was not for the client, or half a frame of which it has got nothing.
        tunnel.to_client.take_held();
        let Some(recall) = &mut tunnel.recall else {
            return;
        };
        recall.leaving = None;
        // Nobody has read its answer to a ping meanwhile.
        tunnel.heard = Moment::of(now);
        recall.left = tunnel.entry.clone();
        let tried = recall.left.iter().map(|entry| entry.index()).collect();
        let left = recall.left.clone();
        tunnel.opening = Some(Box::new(Opening {
            front,
            pool,
            phase: Phase::Dialing,
            admitted: true,
            announced: false,
            destination: None,
            hash: Some(tunnel.hash),
            preferred: None,
            tried,
            dialed_at: Tick::default(),
            short_of_ports: false,
            busy: None,
            busy_tries: 0,
            exchange: None,
            away: Some(Box::new(Away {
                journey: Journey::new(&rules, now),
                words: Words::default(),
                answer: Hearing::default(),
                until: None,
                asks: false,
            })),
        }));
        tunnel.tries = 0;
        if let Some(entry) = left {
            self.counters
                .backend(entry.index(), field!(BackendSlot, closed), 1);
        }
        self.drop_backend(slot);
        if self.take_words(slot, &held) {
            self.seek(slot);
            self.settle_away(slot);
        }
    }

    /// Ask for a backend, now or when it is this one's turn.
    fn seek(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let generation = tunnel.generation;
        if let Some(away) = tunnel.away_mut() {
            away.until = None;
            self.seekers.waiting.push_back((slot, generation));
        }
    }

    /// Let those ask whose turn it is. Called once a turn, so that one's failure is not the next one's
    /// call.
    pub(super) fn let_seekers_ask(&mut self) {
        while self.seekers.asking < MOST_ASK
            && let Some((slot, generation)) = self.seekers.waiting.pop_front()
        {
            if !self.is_current(slot, generation) {
                continue;
            }
            let tunnel = self.tunnels.get_mut(slot as usize);
            let Some(away) = tunnel.and_then(Tunnel::away_mut) else {
                continue;
            };
            if !std::mem::replace(&mut away.asks, true) {
                self.seekers.asking += 1;
                self.dial(slot);
                self.dialed(slot);
                self.settle_away(slot);
            }
        }
    }

    /// Whether somebody's turn has come.
    pub(super) fn seekers_may_ask(&self) -> bool {
        self.seekers.asking < MOST_ASK && !self.seekers.waiting.is_empty()
    }

    /// It asks no longer.
    pub(super) fn stop_asking(&mut self, slot: u32) {
        let tunnel = self.tunnels.get_mut(slot as usize);
        if let Some(away) = tunnel.and_then(Tunnel::away_mut)
            && std::mem::take(&mut away.asks)
        {
            self.seekers.asking -= 1;
        }
    }

    /// The same for one that has ended.
    pub(super) fn left_seekers(&mut self, opening: &Opening) {
        if opening.away.as_ref().is_some_and(|away| away.asks) {
            self.seekers.asking -= 1;
        }
    }

    /// Something was dialed, or is to be dialed again in a moment: until when that may take.
    pub(super) fn dialed(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let connecting = tunnel.backend.is_some();
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let connect = opening.pool.planned.dialing.timeouts.connect;
        let just_now = opening.dialed_at == now;
        let Some(away) = &mut opening.away else {
            return;
        };
        match (connecting, away.asks) {
            (true, _) if just_now => {
                away.until = (!connect.is_zero()).then(|| now + connect);
            }
            (false, true) => away.until = Some(now + BUSY),
            _ => {}
        }
    }

    /// Watch the client for what can be done, and set the timer.
    fn settle_away(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let Some(away) = tunnel.away() else { return };
        let heard = hears(tunnel).then(|| tunnel.heard_until(now)).flatten();
        let times = [Some(away.journey.deadline()), away.until, heard];
        if let Some(at) = times.into_iter().flatten().min() {
            self.wheel.set(slot, at);
        }
        let read = if hears(tunnel) {
            Interest::READ
        } else {
            Interest::ENDS
        };
        let wanted = if tunnel.to_client.blocked() {
            read.and(Interest::WRITE)
        } else {
            read
        };
        let stays_out = tunnel.client_interest == Interest::UNWATCHED && wanted == Interest::ENDS;
        if tunnel.client_interest != wanted && !stays_out {
            self.watch(slot, Side::Client, wanted);
        }
    }

    /// Something happened on a tunnel that looks for a backend.
    pub(super) fn on_away(&mut self, slot: u32, side: Side, flags: EventFlags) {
        match side {
            Side::Client => {
                if !self.on_client_away(slot, flags) {
                    return;
                }
                if self.phase(slot) == Some(Phase::Resuming) {
                    // Its answer may have waited for what the client has taken now.
                    self.watch_backend_away(slot);
                }
            }
            Side::Backend => {
                match self.phase(slot) {
                    Some(Phase::Dialing) => self.connected(slot, flags),
                    Some(Phase::Resuming) => self.hear_answer(slot, flags),
                    _ => {}
                }
                self.dialed(slot);
            }
        }
        self.settle_away(slot);
    }

    /// False if it is over.
    fn on_client_away(&mut self, slot: u32, flags: EventFlags) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        if flags.contains(EventFlags::ERR) {
            self.end(slot, Reason::ClientReset, How::Abort);
            return false;
        }
        if tunnel.to_client.blocked()
            && relay::flush_owed(&mut tunnel.to_client, &tunnel.client, &mut self.tools).is_err()
        {
            self.end(slot, Reason::ClientReset, How::Abort);
            return false;
        }
        if !hears(tunnel) {
            if flags.contains(EventFlags::HUP) {
                self.watch(slot, Side::Client, Interest::UNWATCHED);
            }
            return true;
        }
        if !flags.intersects(READABLE) {
            return true;
        }
        let bound = buffer(tunnel);
        let room = tunnel.away().map_or(0, |away| away.words.room(bound));
        let window = self.tools.scratch.get_mut(..room.min(SIP));
        let window = window.unwrap_or_default();
        match rustix::net::recv(&tunnel.client, &mut *window, RecvFlags::empty()) {
            Ok((_, 0)) => {
                let clean = !tunnel.to_client.blocked();
                let how = if clean { How::Clean } else { How::Abort };
                self.end(slot, Reason::ClientGone, how);
                false
            }
            Ok((_, got)) => {
                let said = window.get(..got).unwrap_or_default().to_vec();
                (tunnel.heard, tunnel.pinged) = (Moment::of(self.now), false);
                self.take_words(slot, &said)
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => {
                self.end(slot, Reason::ClientReset, How::Abort);
                false
            }
        }
    }

    /// The client has said this. False if it was its last word.
    fn take_words(&mut self, slot: u32, said: &[u8]) -> bool {
        let mut answers = Vec::new();
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let Some(away) = tunnel.away_mut() else {
            return false;
        };
        let closed = away.words.hear(said, &mut answers);
        let before = tunnel.to_client.bytes;
        let sent = if answers.is_empty() {
            Ok(())
        } else if tunnel.to_client.blocked() {
            // Only what was read before there was no backend; it asks again.
            Ok(())
        } else {
            relay::inject(&mut tunnel.to_client, &answers, &tunnel.client)
        };
        let moved = tunnel.to_client.bytes - before;
        let listener = tunnel.terms.listener.index();
        self.counters
            .listener(listener, field!(ListenerSlot, bytes_out), moved);
        if sent.is_err() {
            self.end(slot, Reason::ClientReset, How::Abort);
            return false;
        }
        let Some(code) = closed else { return true };
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize) {
            // For the record.
            let frame = close_frame(code, "", Some([0; 4]));
            let _ = tunnel.from_client.see(frame.as_slice(), &Rules::default());
        }
        self.close_websocket(slot, code, Reason::Finished);
        false
    }

    /// A timer of a tunnel that looks for a backend.
    pub(super) fn away_late(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let Some(away) = tunnel.away() else { return };
        let generation = tunnel.generation;
        if away.journey.deadline() <= now {
            return self.fail_reattach(slot);
        }
        let over = away.until.is_some_and(|at| at <= now);
        let (asks, connecting) = (away.asks, tunnel.backend.is_some());
        if hears(tunnel) && tunnel.heard_until(now).is_some_and(|at| at <= now) {
            self.unheard(slot);
            if !self.is_current(slot, generation) {
                return;
            }
        }
        match (over, self.phase(slot)) {
            (true, Some(Phase::Dialing)) if connecting => {
                self.note_failure(slot, "connect timed out");
                self.dial_elsewhere(slot);
                self.dialed(slot);
            }
            (true, Some(Phase::Dialing)) if asks => {
                self.dial(slot);
                self.dialed(slot);
            }
            (true, Some(Phase::Dialing)) => self.seek(slot),
            (true, Some(Phase::Resuming)) => self.ask_another(slot),
            _ => {}
        }
        self.settle_away(slot);
    }

    /// Nobody took it in this round.
    pub(super) fn round_over(&mut self, slot: u32) {
        let (now, random) = (self.now, self.entropy());
        self.stop_asking(slot);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        tunnel.tries = 0;
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        opening.phase = Phase::Dialing;
        // In the next also the one that it comes from: it may have been restarted.
        opening.tried.clear();
        opening.short_of_ports = false;
        (opening.busy, opening.busy_tries) = (None, 0);
        let Some(away) = &mut opening.away else {
            return;
        };
        away.until = away.journey.next_round(now, random);
        if away.until.is_none() {
            self.fail_reattach(slot);
        }
    }

    /// The backend that it had dialed is none any more.
    pub(super) fn redirect(&mut self, slot: u32) {
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize) {
            tunnel.to_backend.release(&mut self.tools.pipes);
        }
        if (self.tunnels.get(slot as usize)).is_some_and(|tunnel| tunnel.backend.is_some()) {
            self.dial_elsewhere(slot);
            self.dialed(slot);
            self.settle_away(slot);
        }
    }

    /// It looks for a backend no longer, and has none.
    pub(super) fn forget_away(&mut self, slot: u32) {
        if (self.tunnels.get(slot as usize)).is_none_or(|tunnel| tunnel.away().is_none()) {
            return;
        }
        self.stop_asking(slot);
        self.abort_backend(slot);
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize) {
            tunnel.opening = None;
        }
    }
}

/// Bytes of its client that may wait.
fn buffer(tunnel: &Tunnel) -> usize {
    let rules = tunnel.terms.reattach.unwrap_or_default();
    usize::try_from(rules.buffer).unwrap_or(usize::MAX)
}

/// Whether its client is listened to: there is room for what it says, and for an answer.
fn hears(tunnel: &Tunnel) -> bool {
    let room = |away: &Away| away.words.room(buffer(tunnel)) > 0;
    tunnel.away().is_some_and(room) && !tunnel.to_client.blocked()
}
