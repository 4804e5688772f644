//! A backend: it answers handshakes, echoes, says things of its own, and falls in all ways.

use std::collections::{BTreeMap, VecDeque};

use pybalancer_core::time::Tick;

use crate::agenda::Wake;
use crate::client::nonce;
use crate::frames::{Ear, Heard, accept, close, frame, say};
use crate::heads::name;
use crate::scenario::{Fall, Scenario};
use crate::wire::{End, Read};
use crate::world::{Context, Door};

/// One server.
pub struct Backend {
    number: usize,
    odd: usize,
    long: usize,
    talk: usize,
    calm: bool,
    lines: BTreeMap<usize, Line>,
}

/// A connection of the balancer's.
struct Line {
    end: End,
    head: Vec<u8>,
    /// Connection and session, once it stands.
    open: Option<(u32, u32)>,
    ear: Ear,
    frames: VecDeque<Vec<u8>>,
    out: VecDeque<u8>,
    /// It has had a Close.
    closed: bool,
    said_close: bool,
    finished: bool,
    /// It never answers: neither a handshake nor a Close.
    deaf: bool,
    answer_at: Option<Tick>,
    /// It has answered in a way that nobody goes on with.
    refused: bool,
}

impl Backend {
    /// The `number`-th.
    pub fn new(number: usize, scenario: &Scenario, cx: &mut Context) -> Backend {
        let at = cx.now + cx.random.ms(1, 50);
        cx.agenda.at(at, Wake::Backend(number));
        Backend {
            number,
            odd: scenario.odd,
            long: scenario.long,
            talk: (20 + scenario.talk * scenario.backends / scenario.clients / 2).min(400),
            calm: scenario.calm,
            lines: BTreeMap::new(),
        }
    }

    /// Its timer: it says something to one of its clients, and the next part of what it has begun to all.
    pub fn tick(&mut self, cx: &mut Context) {
        let again = cx.now + cx.random.ms(self.talk / 2, self.talk);
        cx.agenda.at(again, Wake::Backend(self.number));
        let chosen = (!self.lines.is_empty()).then(|| cx.random.below(self.lines.len()));
        let wires: Vec<usize> = self.lines.keys().copied().collect();
        for (place, wire) in wires.into_iter().enumerate() {
            let Some(line) = self.lines.get_mut(&wire) else {
                continue;
            };
            if Some(place) == chosen && cx.now < cx.until && line.frames.is_empty() {
                self.push(wire, cx);
            }
            let Some(line) = self.lines.get_mut(&wire) else {
                continue;
            };
            if line.answer_at.is_some_and(|at| at <= cx.now) {
                line.answer_at = None;
                self.answer(wire, cx);
            }
            let Some(line) = self.lines.get_mut(&wire) else {
                continue;
            };
            // The parts of a message come one after the other, not all at once.
            let count = if cx.random.chance(70) { usize::MAX } else { 1 };
            for _ in 0..count.min(line.frames.len()) {
                line.out.extend(line.frames.pop_front().unwrap_or_default());
            }
            self.flush(wire, cx);
        }
    }

    fn push(&mut self, wire: usize, cx: &mut Context) {
        let Some(line) = self.lines.get_mut(&wire) else {
            return;
        };
        let Some((connection, session)) = line.open.filter(|_| !line.said_close) else {
            return;
        };
        if line.out.len() > 8192 {
            return;
        }
        let long = cx.random.chance(15);
        let length = cx.random.between(17, if long { self.long } else { 120 });
        let message = cx.ledger.backend_says(connection, session, length);
        line.frames
            .extend(say(&mut cx.random, message, length, false));
    }

    /// Something happened at one of its ends.
    pub fn wake(&mut self, end: End, cx: &mut Context) {
        if cx.doors[self.number] != Door::Open {
            return;
        }
        let line = self.lines.entry(end.wire).or_insert_with(|| Line {
            end,
            head: Vec::new(),
            open: None,
            ear: Ear::new(true),
            frames: VecDeque::new(),
            out: VecDeque::new(),
            closed: false,
            said_close: false,
            finished: false,
            deaf: false,
            answer_at: None,
            refused: false,
        });
        loop {
            match cx.recv(line.end, 65536) {
                Read::Empty => break,
                Read::Bytes(bytes) if line.open.is_some() => {
                    self.hear(end.wire, &bytes, cx);
                    break self.wake_again(end, cx);
                }
                Read::Bytes(bytes) => {
                    assert!(!line.refused, "gone on with, though refused: {bytes:?}");
                    line.head.extend(bytes);
                    if line.head.ends_with(b"\r\n\r\n") {
                        self.handshake(end.wire, cx);
                        break;
                    }
                }
                Read::Ended | Read::Reset => {
                    cx.close(end);
                    self.lines.remove(&end.wire);
                    return;
                }
            }
        }
        self.flush(end.wire, cx);
    }

    fn wake_again(&mut self, end: End, cx: &mut Context) {
        if cx.readable(end) {
            cx.agenda.at(cx.now, Wake::Wire(end));
        }
    }

    fn handshake(&mut self, wire: usize, cx: &mut Context) {
        let Some(line) = self.lines.get_mut(&wire) else {
            return;
        };
        let head = String::from_utf8_lossy(&line.head).into_owned();
        let connection = connection(&head);
        cx.ledger
            .handshake(connection, &head, &name(self.number), cx.now);
        if cx.random.chance(30) || !self.calm && cx.random.chance(20) {
            line.answer_at = Some(cx.now + cx.random.ms(1, if self.calm { 100 } else { 900 }));
            return;
        }
        self.answer(wire, cx);
    }

    /// A 101 as good as the first, or something else.
    fn answer(&mut self, wire: usize, cx: &mut Context) {
        let Some(line) = self.lines.get_mut(&wire) else {
            return;
        };
        let head = String::from_utf8_lossy(&line.head).into_owned();
        let connection = connection(&head);
        let again = head.contains("Pybalancer-Resumed");
        let odd = again && cx.random.chance(self.odd);
        let mut protocol = "chat";
        line.refused = odd;
        if odd {
            let refused = match cx.random.below(7) {
                0 => "503 Service Unavailable",
                1 => "429 Too Many Requests",
                2 => "404 Not Found",
                3 => "302 Found",
                4 => {
                    protocol = "other";
                    ""
                }
                5 => {
                    line.deaf = true;
                    return;
                }
                _ => {
                    cx.abort(line.end);
                    self.lines.remove(&wire);
                    return;
                }
            };
            if !refused.is_empty() {
                line.out
                    .extend(format!("HTTP/1.1 {refused}\r\nContent-Length: 0\r\n\r\n").bytes());
                return self.flush(wire, cx);
            }
        }
        if cx.random.chance(10) {
            line.out
                .extend(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        }
        let extensions = match head
            .contains("permessage-deflate; client_max_window_bits; server_no")
        {
            true => {
                "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
            }
            false => "",
        };
        line.out.extend(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {protocol}\r\n{extensions}\r\n",
                accept(&nonce(connection))
            )
            .bytes(),
        );
        if odd {
            // It is another's protocol: what it says then is nobody's.
            return self.flush(wire, cx);
        }
        cx.ledger.note(connection, cx.now, || {
            format!("{} opens", name(self.number))
        });
        line.open = Some((connection, cx.ledger.open(connection, self.number)));
        if cx.random.chance(30) {
            self.push(wire, cx);
            if let Some(line) = self.lines.get_mut(&wire) {
                line.out.extend(line.frames.pop_front().unwrap_or_default());
            }
        }
        self.flush(wire, cx);
    }

    fn hear(&mut self, wire: usize, bytes: &[u8], cx: &mut Context) {
        let Some(line) = self.lines.get_mut(&wire) else {
            return;
        };
        let Some((connection, session)) = line.open else {
            return;
        };
        let heard = line.ear.hear(bytes);
        let heard = heard.unwrap_or_else(|why| panic!("backend, connection {connection}: {why}"));
        for one in heard {
            match one {
                Heard::Message(message) => {
                    cx.ledger.backend_hears(connection, session, message);
                    if cx.random.chance(70) {
                        self.push(wire, cx);
                    }
                }
                Heard::Ping(payload) => {
                    let Some(line) = self.lines.get_mut(&wire) else {
                        return;
                    };
                    if let Ok(number) = payload.as_slice().try_into() {
                        cx.ledger
                            .ping_is_known(connection, u32::from_be_bytes(number));
                    }
                    if !line.said_close {
                        line.frames
                            .push_back(frame(&mut cx.random, 0x8a, &payload, false));
                    }
                }
                Heard::Pong(_) => {}
                Heard::Close(code) => {
                    cx.ledger.note(connection, cx.now, || {
                        format!("its backend hears Close {code}")
                    });
                    let Some(line) = self.lines.get_mut(&wire) else {
                        return;
                    };
                    line.closed = true;
                    if line.deaf || !self.calm && cx.random.chance(10) {
                        line.deaf = true;
                    } else if !line.said_close {
                        // Some have codes of their own.
                        let own = if self.calm { code } else { 4001 };
                        let code = cx.random.pick(&[code, code, own, 1000, 1005]);
                        self.say_close(wire, code, cx);
                    }
                }
            }
        }
    }

    fn say_close(&mut self, wire: usize, code: u16, cx: &mut Context) {
        let Some(line) = self.lines.get_mut(&wire) else {
            return;
        };
        let Some((connection, session)) = line.open.filter(|_| !line.said_close) else {
            return;
        };
        for frame in line.frames.drain(..) {
            line.out.extend(frame);
        }
        line.out.extend(close(&mut cx.random, code, false));
        line.said_close = true;
        cx.ledger.of(connection).sessions[session as usize].closed = Some(code);
    }

    fn flush(&mut self, wire: usize, cx: &mut Context) {
        let Some(line) = self.lines.get_mut(&wire) else {
            return;
        };
        while !line.out.is_empty() {
            let bytes = line.out.make_contiguous();
            match cx.send(line.end, bytes) {
                Ok(0) | Err(_) => return,
                Ok(sent) => drop(line.out.drain(..sent)),
            }
        }
        if line.said_close && line.closed && !line.finished {
            line.finished = true;
            let _ = cx.finish(line.end);
        }
    }

    /// It goes.
    pub fn fall(&mut self, fall: Fall, cx: &mut Context) {
        cx.doors[self.number] = match fall {
            Fall::Silence => Door::Silent,
            // It goes on serving those that it has.
            Fall::Farewell(_) => Door::Open,
            _ => Door::Refuses,
        };
        let wires: Vec<usize> = self.lines.keys().copied().collect();
        for wire in wires {
            if let Fall::Farewell(code) = fall {
                self.say_close(wire, code, cx);
                self.flush(wire, cx);
                continue;
            }
            let Some(mut line) = self.lines.remove(&wire) else {
                continue;
            };
            if let Some((connection, session)) = line.open {
                let one = cx.ledger.of(connection);
                let broke = fall != Fall::Planned || !line.said_close;
                one.lossy |= broke;
                one.sessions[session as usize].broke |= broke;
            }
            match fall {
                Fall::Reset => cx.abort(line.end),
                Fall::End => {
                    if let Some(frame) = line.frames.pop_front() {
                        let part = cx.random.below(frame.len() + 1);
                        line.out.extend(&frame[..part]);
                    }
                    let rest = cx.random.below(line.out.len() + 1);
                    let _ = cx.send(line.end, &line.out.make_contiguous()[..rest]);
                    let _ = cx.finish(line.end);
                }
                // The host is gone: not even an end comes.
                Fall::Silence => {}
                Fall::Planned | Fall::Farewell(_) => cx.close(line.end),
            }
        }
    }
}

fn connection(head: &str) -> u32 {
    let path = head.split(' ').nth(1).unwrap_or_default();
    path.trim_start_matches("/c/").parse().unwrap_or(u32::MAX)
}
