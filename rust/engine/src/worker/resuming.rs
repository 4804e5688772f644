//! The handshake of a tunnel that looks for another backend, repeated, and the answer to it.

use std::sync::atomic::Ordering;

use pybalancer_core::reattach::{Hearing, Judged, repeated};
use pybalancer_core::record::Reason;
use pybalancer_core::ws::Rules;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Worker;
use super::ending::How;
use crate::poller::{EventFlags, Interest, Side};
use crate::relay::{self, Outcome, Resumable};
use crate::stats::field;
use crate::tunnel::{Moment, Phase, Tunnel};

/// Bytes of an answer that are read at once.
const SIP: usize = 16 * 1024;
/// Pieces of an answer that are looked at in a turn.
const PIECES: usize = 16;

impl Worker {
    /// A backend is there: repeat the handshake.
    pub(super) fn repeat_handshake(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let (Some(opening), Some(recall), Some(backend)) =
            (&mut tunnel.opening, &tunnel.recall, &tunnel.backend)
        else {
            return;
        };
        let timeout = opening.pool.planned.dialing.timeouts.response;
        let Some(away) = &mut opening.away else {
            return;
        };
        let Some(attempt) = away.journey.attempt() else {
            return self.fail_reattach(slot);
        };
        let previous = recall.left.as_ref().map_or("", |entry| &*entry.name);
        let head = repeated(&recall.head, &recall.id, previous, attempt);
        away.answer = Hearing::default();
        away.until = (!timeout.is_zero()).then(|| now + timeout);
        opening.phase = Phase::Resuming;
        let before = tunnel.to_backend.bytes;
        let sent = relay::inject(&mut tunnel.to_backend, &head, backend);
        let moved = tunnel.to_backend.bytes - before;
        self.count_moved(slot, Side::Client, moved);
        if sent.is_err() {
            return self.ask_another(slot);
        }
        self.watch_backend_away(slot);
    }

    pub(super) fn watch_backend_away(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        // Its first words would take the place of what the client has not taken yet.
        let read = if tunnel.to_client.is_piped() {
            Interest::ENDS
        } else {
            Interest::READ
        };
        let wanted = if tunnel.to_backend.blocked() {
            read.and(Interest::WRITE)
        } else {
            read
        };
        if tunnel.backend_interest != wanted {
            self.watch(slot, Side::Backend, wanted);
        }
    }

    /// The answer of this one was none.
    pub(super) fn ask_another(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        if let Some(entry) = &tunnel.entry {
            self.counters
                .backend(entry.index(), field!(BackendSlot, bad_answers), 1);
        }
        tunnel.to_backend.release(&mut self.tools.pipes);
        if tunnel.away().is_some_and(|away| away.journey.is_spent()) {
            return self.fail_reattach(slot);
        }
        if let Some(opening) = &mut tunnel.opening {
            opening.phase = Phase::Dialing;
        }
        self.dial_elsewhere(slot);
        self.dialed(slot);
    }

    /// The backend under way has something to say, or takes more of the handshake.
    pub(super) fn hear_answer(&mut self, slot: u32, flags: EventFlags) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(backend) = &tunnel.backend else {
            return;
        };
        if flags.contains(EventFlags::OUT)
            && tunnel.to_backend.blocked()
            && relay::flush_owed(&mut tunnel.to_backend, backend, &mut self.tools).is_err()
        {
            return self.ask_another(slot);
        }
        for _ in 0..PIECES {
            let tunnel = self.tunnels.get(slot as usize);
            if tunnel.is_none_or(|tunnel| tunnel.to_client.is_piped()) {
                break;
            }
            match self.read_second_answer(slot) {
                Ok(true) => {}
                Ok(false) => break,
                Err(()) => return self.ask_another(slot),
            }
            match self.judge_second_answer(slot) {
                Judged::Incomplete => {}
                Judged::Agreed(consumed) => return self.reattach(slot, consumed),
                Judged::Again(why) => {
                    self.note_failure(slot, why);
                    return self.ask_another(slot);
                }
                Judged::Never => return self.fail_reattach(slot),
            }
        }
        self.watch_backend_away(slot);
    }

    fn read_second_answer(&mut self, slot: u32) -> Result<bool, ()> {
        let tunnel = self.tunnels.get_mut(slot as usize).ok_or(())?;
        let Tunnel {
            opening, backend, ..
        } = tunnel;
        let (Some(opening), Some(backend)) = (opening, backend) else {
            return Err(());
        };
        let web = opening.front.listener.web.as_ref().ok_or(())?;
        let away = opening.away.as_mut().ok_or(())?;
        let room = away.answer.room(&web.limits);
        let window = self.tools.scratch.get_mut(..room.clamp(1, SIP));
        let window = window.unwrap_or_default();
        match rustix::net::recv(backend, &mut *window, RecvFlags::empty()) {
            Ok((_, 0)) => Err(()),
            Ok((_, got)) => {
                let said = window.get(..got).unwrap_or_default();
                away.answer.hear(said);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(()),
        }
    }

    fn judge_second_answer(&mut self, slot: u32) -> Judged {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return Judged::Never;
        };
        let Tunnel {
            opening, recall, ..
        } = tunnel;
        let (Some(opening), Some(recall)) = (opening, recall) else {
            return Judged::Never;
        };
        let (Some(web), Some(away)) = (&opening.front.listener.web, &mut opening.away) else {
            return Judged::Never;
        };
        away.answer.judge(&recall.agreed, &web.limits)
    }

    /// The handshake was answered as the first time: from here on its frames are relayed.
    fn reattach(&mut self, slot: u32, consumed: usize) {
        self.stop_asking(slot);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let away = (tunnel.opening.take()).and_then(|mut opening| opening.away.take());
        let (Some(away), Some(recall), Some(backend)) = (away, &mut tunnel.recall, &tunnel.backend)
        else {
            return;
        };
        recall.left = None;
        recall.deadline = None;
        recall.moved = recall.moved.saturating_add(1);
        tunnel.active = Moment::of(self.now);
        let listener = tunnel.terms.listener.index();
        if let Some(order) = recall.order.take() {
            order.moved.fetch_add(1, Ordering::Relaxed);
        }
        self.counters
            .listener(listener, field!(ListenerSlot, reattached), 1);
        if let Some(entry) = &tunnel.entry {
            self.counters
                .backend(entry.index(), field!(BackendSlot, opened), 1);
        }
        let rules = Rules {
            max_message: tunnel.terms.max_message,
        };
        let words = away.words.into_bytes();
        let early = away.answer.behind(consumed);
        let parts = [
            (
                Side::Backend,
                early,
                &mut tunnel.to_client,
                &tunnel.client,
                &mut tunnel.from_backend,
            ),
            (
                Side::Client,
                &words[..],
                &mut tunnel.to_backend,
                backend,
                &mut tunnel.from_client,
            ),
        ];
        let mut stopped = [(Side::Backend, Outcome::Waiting, None); 2];
        let mut moved = [0; 2];
        for (place, (from, said, flow, receiver, tracker)) in parts.into_iter().enumerate() {
            if said.is_empty() {
                continue;
            }
            let mut tap = Resumable {
                before: *tracker,
                tracker,
                rules,
                watch: recall.watch(from),
                ends: from == Side::Client,
                halt: None,
            };
            let before = flow.bytes;
            let outcome = relay::feed(flow, &mut tap, said, receiver, &mut self.tools);
            if let (Some(stopped), Some(moved)) = (stopped.get_mut(place), moved.get_mut(place)) {
                *stopped = (from, outcome, tap.halt);
                *moved = flow.bytes - before;
            }
        }
        self.count_moved(slot, Side::Backend, moved[0]);
        self.count_moved(slot, Side::Client, moved[1]);
        let due = (self.tunnels.get(slot as usize)).and_then(|tunnel| tunnel.due(self.now));
        match due {
            Some(at) => self.wheel.set(slot, at),
            None => self.wheel.cancel(slot),
        }
        if !self.drains.is_empty() {
            self.join_drains(slot);
        }
        for (from, outcome, halt) in stopped {
            let resumes = (self.tunnels.get(slot as usize)).is_some_and(Tunnel::resumes);
            if resumes && self.takes_leave(slot, from, outcome, halt) {
                return;
            }
            match outcome {
                Outcome::Stopped => self.violated(slot, from),
                Outcome::ReceiverFailed => {
                    return self.end(slot, Reason::ClientReset, How::Abort);
                }
                _ => {}
            }
        }
        if (self.tunnels.get(slot as usize)).is_some_and(|tunnel| tunnel.closing.is_none()) {
            self.watch_wanted(slot);
        }
    }
}
