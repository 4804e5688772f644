//! The head of a response: what the backend says, and whether it may say so.

use std::sync::Arc;

use pybalancer_core::cookie;
use pybalancer_core::http::{self, Body, Framing, ResponseEdits, Scanner};
use pybalancer_core::reattach::Agreed;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Worker;
use crate::exchange::Inflight;
use crate::poller::Side;
use crate::relay;
use crate::relay::body::assemble;
use crate::tunnel::Tunnel;

/// What a response's head asks for.
pub(super) enum Verdict {
    /// More of it has to come.
    Incomplete,
    /// An interim response was passed on; another head follows.
    Interim,
    /// The body follows.
    Final,
    /// A checked 101, of so many bytes: here is what the client gets.
    Switch(usize, Vec<u8>),
    /// The backend is at fault.
    Bad(&'static str),
    /// The client takes nothing more.
    ClientGone,
}

impl Worker {
    /// Read more of a response's head. True if there is something to look at; an error tells how the
    /// backend failed.
    pub(super) fn read_answer(&mut self, slot: u32) -> Result<bool, &'static str> {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return Ok(false);
        };
        let (Some(opening), Some(backend)) = (&mut tunnel.opening, &tunnel.backend) else {
            return Ok(false);
        };
        let limit = (opening.front.listener.web.as_ref()).map_or(0, |web| web.limits.head);
        let inflight = (opening.exchange.as_mut()).and_then(|exchange| exchange.inflight.as_mut());
        let Some(inflight) = inflight else {
            return Ok(false);
        };
        if std::mem::take(&mut inflight.behind) {
            return Ok(true);
        }
        let room = (limit + 1).saturating_sub(inflight.answer.len()).max(1);
        let window = self.tools.scratch.get_mut(..room.min(16 * 1024));
        let window = window.unwrap_or_default();
        match rustix::net::recv(backend, &mut *window, RecvFlags::empty()) {
            Ok((_, 0)) => Err("the backend closed the connection instead of answering"),
            Ok((_, got)) => {
                (inflight.answer).extend_from_slice(window.get(..got).unwrap_or_default());
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err("the backend reset the connection instead of answering"),
        }
    }

    /// See whether the head of a response is complete, and act on it.
    pub(super) fn judge_answer(&mut self, slot: u32) -> Verdict {
        let now = self.now;
        let accepting = self.accepting;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return Verdict::Incomplete;
        };
        let Tunnel {
            opening,
            client,
            to_client,
            entry,
            ..
        } = tunnel;
        let Some(opening) = opening else {
            return Verdict::Incomplete;
        };
        let front = Arc::clone(&opening.front);
        let (Some(web), Some(exchange)) = (&front.listener.web, &mut opening.exchange) else {
            return Verdict::Incomplete;
        };
        let Some(inflight) = &mut exchange.inflight else {
            return Verdict::Incomplete;
        };
        let length = match inflight.scanner.scan(&inflight.answer, &web.limits) {
            Ok(Some(length)) => length,
            Ok(None) => return Verdict::Incomplete,
            Err(refusal) => return Verdict::Bad(refusal.why),
        };
        let mut consumed = length;
        let Inflight { answer, .. } = &mut **inflight;
        let answer = std::mem::take(answer);
        let head = answer.get(..length).unwrap_or_default();
        let mut storage = http::storage();
        let response = match http::parse_response(head, inflight.to_head, &mut storage, &web.limits)
        {
            Ok(response) => response,
            Err(refusal) => return Verdict::Bad(refusal.why),
        };
        let edits = web.routes.get(inflight.route).map(|route| &route.response);
        let (set, remove) = edits.map_or((&[][..], &[][..]), |e| (&e.set[..], &e.remove[..]));
        let mut how = ResponseEdits {
            websocket: false,
            close: false,
            keep_alive_10: false,
            set_cookie: None,
            set,
            remove,
        };
        let mut out = std::mem::take(&mut self.tools.assembled);
        out.clear();
        let binding = inflight.sticky.as_ref().and_then(|sticky| {
            let entry = entry.as_ref()?;
            let known = sticky.named.as_ref().is_some_and(|n| *n == entry.name);
            let pool = &opening.pool.planned.pool.name;
            (!known).then(|| {
                let value = cookie::sticky_value(&front.secret, pool, &entry.name);
                let value = str::from_utf8(&value).unwrap_or_default();
                format!("{}={value}; Path=/; HttpOnly; SameSite=Lax", sticky.cookie)
            })
        });
        let verdict = match response.status {
            101 => {
                let fits = response.upgrades_to_websocket
                    && inflight.accept.is_some()
                    && response.accept == inflight.accept.as_ref().map(|key| &key[..]);
                if fits {
                    if let (Some(_), Some(key)) = (&inflight.resumable, inflight.accept) {
                        inflight.agreed = Agreed::of(&response, key).ok();
                    }
                    how.websocket = true;
                    how.set_cookie = binding.as_deref();
                    http::write_response(&response, &how, &mut out);
                    Verdict::Switch(length, out.clone())
                } else {
                    Verdict::Bad("the backend switched protocols, but not as it was asked to")
                }
            }
            100..=199 => {
                if inflight.minor == 1 {
                    http::write_response(&response, &how, &mut out);
                }
                inflight.unasked &= response.status != 100;
                inflight.scanner = Scanner::default();
                Verdict::Interim
            }
            _ if response.body == Framing::Chunked && inflight.minor == 0 => {
                Verdict::Bad("the backend answered HTTP/1.0 with chunks")
            }
            _ => {
                let until_close = response.body == Framing::UntilClose;
                let unfinished = inflight.broken || !inflight.body.is_complete();
                // Who has ended its sending may have asked for more before.
                let last = exchange.ended && exchange.ahead.is_empty();
                inflight.keep_alive &=
                    accepting && !front.listener.draining && !until_close && !unfinished && !last;
                inflight.backend_stays =
                    response.keep_alive && !until_close && !unfinished && !inflight.unasked;
                how.close = !inflight.keep_alive;
                how.keep_alive_10 = inflight.keep_alive && inflight.minor == 0;
                how.set_cookie = binding.as_deref();
                http::write_response(&response, &how, &mut out);
                // What has come of the body goes in the same packet.
                let mut body = Body::new(response.body);
                match assemble(
                    &mut body,
                    answer.get(length..).unwrap_or_default(),
                    &mut out,
                ) {
                    Ok(used) => consumed += used,
                    Err(refusal) => return Verdict::Bad(refusal.why),
                }
                inflight.response = Some(body);
                inflight.until_close = until_close;
                inflight.moved = now;
                Verdict::Final
            }
        };
        let status = response.status;
        if let Some(line) = inflight.line.as_mut() {
            line.status = status;
        }
        let body_timeout = opening.pool.planned.dialing.timeouts.body;
        let behind = answer.get(consumed..).unwrap_or_default().to_vec();
        inflight.behind = !behind.is_empty();
        inflight.answer = if matches!(verdict, Verdict::Switch(..)) {
            answer
        } else {
            behind
        };
        let before = to_client.bytes;
        let sent = match verdict {
            Verdict::Interim | Verdict::Final if !out.is_empty() => {
                relay::inject(to_client, &out, client)
            }
            _ => Ok(()),
        };
        let moved = to_client.bytes - before;
        self.tools.assembled = out;
        self.count_moved(slot, Side::Backend, moved);
        if sent.is_err() {
            return Verdict::ClientGone;
        }
        if matches!(verdict, Verdict::Final) {
            if body_timeout.is_zero() {
                self.wheel.cancel(slot);
            } else {
                self.wheel.set(slot, now + body_timeout);
            }
        }
        verdict
    }
}
