//! A request at its backend: its body on the way there, the response on the way back.

use pybalancer_core::http::{self, Scanner};
use pybalancer_core::record::Reason;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Worker;
use super::ending::How;
use super::judging::Verdict;
use crate::exchange::Inflight;
use crate::poller::{EventFlags, Interest, Side};
use crate::relay;
use crate::relay::body::{Progress, assemble, pump};
use crate::stats::field;
use crate::tunnel::{Phase, Tunnel};

const READABLE: EventFlags = EventFlags::IN.union(EventFlags::HUP).union(EventFlags::ERR);
/// Pieces of response heads that are looked at in a turn.
const HEADS: usize = 16;
/// Bytes of a client that are read ahead while its request is being answered.
const AHEAD: usize = 16 * 1024;

impl Worker {
    /// The backend is there: send it the request.
    pub(super) fn begin_exchange(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let (Some(opening), Some(backend)) = (&mut tunnel.opening, &tunnel.backend) else {
            return;
        };
        let response_timeout = opening.pool.planned.dialing.timeouts.response;
        let Some(exchange) = &mut opening.exchange else {
            return;
        };
        let Some(inflight) = &mut exchange.inflight else {
            return;
        };
        opening.phase = Phase::Exchange;
        inflight.answer.clear();
        inflight.scanner = Scanner::default();
        inflight.behind = false;
        inflight.response = None;
        inflight.broken = false;
        inflight.moved = now;
        if !inflight.body.is_complete() && !exchange.ended {
            // What came of the body while the backend was dialed: if it is none, the backend is not to
            // hear of this request at all.
            match read_ahead(&tunnel.client, &mut exchange.ahead, &mut self.tools.scratch) {
                Ok(ended) => exchange.ended = ended,
                Err(_) => return self.end(slot, Reason::ClientReset, How::Abort),
            }
            let checked = assemble(&mut inflight.body.clone(), &exchange.ahead, &mut Vec::new());
            if let Err(refusal) = checked {
                let to_head = inflight.to_head;
                let http::Refusal { status, why } = refusal;
                return self.answer(slot, status, why, None, Reason::BadRequest, to_head);
            }
        }
        let before = tunnel.to_backend.bytes;
        let sent = relay::inject(&mut tunnel.to_backend, &inflight.head, backend);
        let moved = tunnel.to_backend.bytes - before;
        self.count_moved(slot, Side::Client, moved);
        if sent.is_err() {
            return self.backend_is_dead(slot, "closed before it took the request");
        }
        if response_timeout.is_zero() {
            self.wheel.cancel(slot);
        } else {
            self.wheel.set(slot, now + response_timeout);
        }
        // An answer that is there already will be reported.
        if self.advance_request(slot, false) {
            self.watch_exchange(slot);
        }
    }

    /// One of the two sockets of a request under way is ready for something.
    pub(super) fn on_exchange(&mut self, slot: u32, side: Side, flags: EventFlags) {
        if side == Side::Client && flags.contains(EventFlags::ERR) {
            return self.end(slot, Reason::ClientReset, How::Abort);
        }
        let client_speaks = side == Side::Client && flags.intersects(READABLE);
        if self.advance_request(slot, client_speaks) && self.advance_response(slot) {
            self.watch_exchange(slot);
        }
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.silence_exchange(slot, side);
        }
    }

    /// False if the exchange is not under way any more.
    fn advance_request(&mut self, slot: u32, client_speaks: bool) -> bool {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let (Some(opening), Some(backend)) = (&mut tunnel.opening, &tunnel.backend) else {
            return false;
        };
        let Some(exchange) = &mut opening.exchange else {
            return false;
        };
        let Some(inflight) = &mut exchange.inflight else {
            return false;
        };
        let before = tunnel.to_backend.bytes;
        let progress = if inflight.broken {
            // Nobody is there to take more of it.
            Progress::Complete
        } else {
            pump(
                &mut tunnel.to_backend,
                &mut inflight.body,
                &mut exchange.ahead,
                &tunnel.client,
                backend,
                &mut self.tools,
            )
        };
        let moved = tunnel.to_backend.bytes - before;
        if moved > 0 {
            inflight.moved = now;
            inflight.repeatable &= inflight.body.is_complete();
        }
        let to_head = inflight.to_head;
        let complete = progress == Progress::Complete;
        let mut client_failed = false;
        if complete && client_speaks && exchange.reads_ahead(AHEAD) {
            match read_ahead(&tunnel.client, &mut exchange.ahead, &mut self.tools.scratch) {
                Ok(ended) => exchange.ended = ended,
                Err(_) => client_failed = true,
            }
        }
        self.count_moved(slot, Side::Client, moved);
        if client_failed {
            self.end(slot, Reason::ClientReset, How::Abort);
            return false;
        }
        match progress {
            Progress::Waiting | Progress::Complete => true,
            Progress::Cut => {
                self.end(slot, Reason::ClientGone, How::Abort);
                false
            }
            Progress::Bad(http::Refusal { status, why }) => {
                self.answer(slot, status, why, None, Reason::BadRequest, to_head);
                false
            }
            Progress::SenderFailed => {
                self.end(slot, Reason::ClientReset, How::Abort);
                false
            }
            Progress::ReceiverFailed => {
                // An answer may be there all the same: "too large", say.
                if let Some(tunnel) = self.tunnels.get_mut(slot as usize) {
                    tunnel.to_backend.release(&mut self.tools.pipes);
                }
                if let Some(inflight) = self.inflight(slot) {
                    inflight.broken = true;
                }
                true
            }
        }
    }

    /// False if the exchange is not under way any more.
    fn advance_response(&mut self, slot: u32) -> bool {
        // Interim responses without end get their turns, and no more.
        for _ in 0..HEADS {
            let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
                return false;
            };
            if tunnel.to_client.blocked() {
                match relay::flush_owed(&mut tunnel.to_client, &tunnel.client, &mut self.tools) {
                    Ok(true) => {}
                    Ok(false) => return true,
                    Err(_) => {
                        self.end(slot, Reason::ClientReset, How::Abort);
                        return false;
                    }
                }
            }
            if self.inflight(slot).is_some_and(|i| i.response.is_some()) {
                return self.advance_response_body(slot);
            }
            match self.read_answer(slot) {
                Ok(true) => {}
                Ok(false) => return true,
                Err(why) => {
                    self.backend_is_dead(slot, why);
                    return false;
                }
            }
            match self.judge_answer(slot) {
                Verdict::Incomplete => {}
                Verdict::Interim | Verdict::Final => {}
                Verdict::Switch(consumed, head) => {
                    self.establish(slot, consumed, &head);
                    return false;
                }
                Verdict::Bad(why) => {
                    self.bad_gateway(slot, why);
                    return false;
                }
                Verdict::ClientGone => {
                    self.end(slot, Reason::ClientReset, How::Abort);
                    return false;
                }
            }
        }
        true
    }

    fn advance_response_body(&mut self, slot: u32) -> bool {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return false;
        };
        let (Some(opening), Some(backend)) = (&mut tunnel.opening, &tunnel.backend) else {
            return false;
        };
        let inflight = (opening.exchange.as_mut()).and_then(|exchange| exchange.inflight.as_mut());
        let Some(inflight) = inflight else {
            return false;
        };
        let Inflight {
            response, answer, ..
        } = &mut **inflight;
        let Some(body) = response else { return true };
        let before = tunnel.to_client.bytes;
        let progress = pump(
            &mut tunnel.to_client,
            body,
            answer,
            backend,
            &tunnel.client,
            &mut self.tools,
        );
        let moved = tunnel.to_client.bytes - before;
        let lies = inflight.broken && inflight.until_close;
        if moved > 0 {
            inflight.moved = now;
        }
        self.count_moved(slot, Side::Backend, moved);
        match progress {
            Progress::Waiting => true,
            Progress::Complete if lies => {
                // Writing to it failed, and took the error that reading would have met.
                self.end(slot, Reason::BackendReset, How::Abort);
                false
            }
            Progress::Complete => {
                self.finish_exchange(slot);
                false
            }
            Progress::Cut | Progress::Bad(_) | Progress::SenderFailed => {
                // Half an answer must not look whole.
                self.end(slot, Reason::BackendReset, How::Abort);
                false
            }
            Progress::ReceiverFailed => {
                self.end(slot, Reason::ClientReset, How::Abort);
                false
            }
        }
    }

    /// The response has been taken, whole.
    fn finish_exchange(&mut self, slot: u32) {
        self.log_request(slot, Reason::Finished);
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let exchange = (tunnel.opening.as_mut()).and_then(|opening| opening.exchange.as_mut());
        let Some(exchange) = exchange else { return };
        exchange.served = exchange.served.saturating_add(1);
        let Some(inflight) = exchange.inflight.take() else {
            return;
        };
        if !inflight.keep_alive {
            return self.linger(slot, Reason::Finished);
        }
        // What a backend says unasked belongs to nobody; and one that has answered before it took the whole
        // request would take the next one for its rest.
        let owed = tunnel.to_backend.blocked();
        if !inflight.backend_stays || !inflight.answer.is_empty() || owed {
            self.drop_backend(slot);
        } else if !self.watch(slot, Side::Backend, Interest::READ) {
            return;
        }
        self.await_request(slot);
    }

    /// The backend went away before it answered.
    fn backend_is_dead(&mut self, slot: u32, why: &'static str) {
        let Some(inflight) = self.inflight(slot) else {
            return;
        };
        if inflight.reused && inflight.repeatable && inflight.answer.is_empty() {
            // It closed the connection while the request was on its way: not its fault, nor the
            // client's. Once more, over a new one.
            inflight.reused = false;
            self.drop_backend(slot);
            self.watch(slot, Side::Client, Interest::ENDS);
            return self.dial(slot);
        }
        self.bad_gateway(slot, why);
    }

    fn bad_gateway(&mut self, slot: u32, why: &str) {
        self.count_bad_answer(slot);
        let to_head = self.inflight(slot).is_some_and(|inflight| inflight.to_head);
        self.answer(slot, 502, why, None, Reason::BadAnswer, to_head);
    }

    fn count_bad_answer(&self, slot: u32) {
        if let Some(entry) = (self.tunnels.get(slot as usize)).and_then(|t| t.entry.as_ref()) {
            self.counters
                .backend(entry.index(), field!(BackendSlot, bad_answers), 1);
        }
    }

    /// The deadline of a request at its backend.
    pub(super) fn exchange_late(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let timeouts = opening.pool.planned.dialing.timeouts;
        let inflight = (opening.exchange.as_mut()).and_then(|exchange| exchange.inflight.as_mut());
        let Some(inflight) = inflight else { return };
        let waits_for_head = inflight.response.is_none();
        let patience = if waits_for_head {
            timeouts.response
        } else {
            timeouts.body
        };
        if patience.is_zero() {
            return;
        }
        let due = inflight.moved + patience;
        if due > now {
            return self.wheel.set(slot, due);
        }
        let takes_nothing = tunnel.to_backend.blocked();
        if waits_for_head && (takes_nothing || inflight.body.is_complete()) {
            let to_head = inflight.to_head;
            self.count_bad_answer(slot);
            let why = "the backend did not answer in time";
            return self.answer(slot, 504, why, None, Reason::LateAnswer, to_head);
        }
        if waits_for_head {
            let why = "the request's body did not come in time";
            return self.answer(slot, 408, why, None, Reason::RequestTimeout, false);
        }
        self.end(slot, Reason::IdleTimeout, How::Abort);
    }

    /// Watch both sockets of an exchange for what can be done with them now.
    fn watch_exchange(&mut self, slot: u32) {
        for side in [Side::Client, Side::Backend] {
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                return;
            };
            let (current, wanted) = (tunnel.interest(side), wanted(tunnel, side));
            let stays_out = current == Interest::UNWATCHED && wanted == Interest::ENDS;
            if current != wanted && !stays_out && !self.watch(slot, side, wanted) {
                return;
            }
        }
    }

    /// A socket that is over is reported without end: take it out while nothing is to be done with it.
    fn silence_exchange(&mut self, slot: u32, side: Side) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let exchanging = (tunnel.opening.as_ref()).is_some_and(|o| o.phase == Phase::Exchange);
        if exchanging && wanted(tunnel, side) == Interest::ENDS {
            self.watch(slot, side, Interest::UNWATCHED);
        }
    }
}

/// What can be done with one socket of an exchange.
fn wanted(tunnel: &Tunnel, side: Side) -> Interest {
    let exchange = tunnel.opening.as_ref().and_then(|o| o.exchange.as_ref());
    let Some(exchange) = exchange else {
        return Interest::ENDS;
    };
    let Some(inflight) = &exchange.inflight else {
        return Interest::ENDS;
    };
    let (reads, writes) = match side {
        Side::Client => {
            let body_wanted = !inflight.body.is_complete() && !inflight.broken;
            let reads = if body_wanted {
                !tunnel.to_backend.blocked()
            } else {
                exchange.reads_ahead(AHEAD)
            };
            (reads, tunnel.to_client.blocked())
        }
        Side::Backend => (
            !tunnel.to_client.blocked(),
            tunnel.to_backend.blocked() && !inflight.broken,
        ),
    };
    let read = if reads {
        Interest::READ
    } else {
        Interest::ENDS
    };
    let write = if writes {
        Interest::WRITE
    } else {
        Interest::ENDS
    };
    read.and(write)
}

/// Read what a client sent ahead, up to a bound; whether it has ended.
fn read_ahead(
    client: &std::os::fd::OwnedFd,
    ahead: &mut Vec<u8>,
    scratch: &mut [u8],
) -> Result<bool, Errno> {
    let room = AHEAD.saturating_sub(ahead.len());
    let window = scratch.get_mut(..room).unwrap_or_default();
    if window.is_empty() {
        return Ok(false);
    }
    match rustix::net::recv(client, &mut *window, RecvFlags::empty()) {
        Ok((_, 0)) => Ok(true),
        Ok((_, got)) => {
            ahead.extend_from_slice(window.get(..got).unwrap_or_default());
            Ok(false)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}
