//! A client: it speaks, hears, answers, and comes back when it is sent away.

use std::collections::VecDeque;
use std::time::Duration;

use crate::agenda::Wake;
use crate::frames::{Ear, Heard, accept, close, frame, say};
use crate::scenario::Scenario;
use crate::wire::{Connect, End, Owner, Read};
use crate::world::Context;

/// One that has its own manners.
pub struct Client {
    number: usize,
    talk: usize,
    long: usize,
    slow: bool,
    rude: bool,
    reattach: usize,
    line: Option<Line>,
}

/// Its connection.
struct Line {
    end: End,
    connection: u32,
    head: Vec<u8>,
    open: bool,
    ear: Ear,
    /// Frames not begun yet.
    frames: VecDeque<Vec<u8>>,
    /// Bytes that the network has not taken.
    out: VecDeque<u8>,
    pings: u32,
    /// It has sent a Close.
    said_close: bool,
    /// It has had one.
    closed: bool,
    finished: bool,
}

/// The nonce of a connection's handshake.
pub fn nonce(connection: u32) -> String {
    // 16 bytes in base64: 22 signs, of which the last may be but one of four, and padding.
    format!("{connection:021}A==")
}

impl Client {
    /// The `number`-th.
    pub fn new(number: usize, scenario: &Scenario, cx: &mut Context) -> Client {
        let at = cx.now + cx.random.ms(0, 400);
        cx.agenda.at(at, Wake::Client(number));
        Client {
            number,
            talk: scenario.talk,
            long: scenario.long,
            slow: cx.random.chance(scenario.slow),
            rude: cx.random.chance(scenario.rude),
            reattach: scenario.reattach,
            line: None,
        }
    }

    /// Its timer.
    pub fn tick(&mut self, cx: &mut Context) {
        let again = match cx.now < cx.until || self.line.is_some() {
            true => cx.now + cx.random.ms(self.talk / 2, self.talk * 3 / 2 + 1),
            false => return,
        };
        cx.agenda.at(
            again.min(cx.now + Duration::from_millis(400)),
            Wake::Client(self.number),
        );
        let Some(line) = &mut self.line else {
            if cx.now < cx.until {
                self.connect(cx);
            }
            return;
        };
        if self.slow {
            let most = cx.random.between(1, 4000);
            self.read(most, cx);
        } else if line.open && !line.said_close {
            self.speak(cx);
        }
        self.flush(cx);
    }

    fn connect(&mut self, cx: &mut Context) {
        let reattaches = cx.random.chance(self.reattach);
        let connection = cx.ledger.connect(reattaches, self.slow || self.rude);
        let from = Owner::Client(self.number);
        let end = cx.connect(
            from,
            Owner::TunnelClient(usize::MAX, 0),
            cx.before,
            Some(true),
        );
        let extensions = match cx.random.below(3) {
            0 => "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
            _ => "",
        };
        let head = format!(
            "GET /c/{connection} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\nSec-WebSocket-Protocol: chat\r\n{extensions}\r\n",
            nonce(connection)
        );
        self.line = Some(Line {
            end,
            connection,
            head: Vec::new(),
            open: false,
            ear: Ear::new(false),
            frames: VecDeque::new(),
            out: head.into_bytes().into(),
            pings: 0,
            said_close: false,
            closed: false,
            finished: false,
        });
    }

    /// Say something, or the next part of it.
    fn speak(&mut self, cx: &mut Context) {
        let Some(line) = &mut self.line else { return };
        if self.rude && cx.random.chance(2) {
            return self.go(cx);
        }
        if line.out.len() > 4096 {
            return;
        }
        if line.frames.is_empty() && cx.now < cx.until {
            let long = cx.random.chance(15);
            let length = cx.random.between(17, if long { self.long } else { 120 });
            let message = cx.ledger.client_says(line.connection);
            line.frames = say(&mut cx.random, message, length, true);
            if cx.random.chance(20) {
                line.pings += 1;
                cx.ledger.client_pings(line.connection, line.pings);
                let ping = frame(&mut cx.random, 0x89, &line.pings.to_be_bytes(), true);
                line.frames.push_back(ping);
            }
        }
        // The parts of a message come one after the other, not all at once.
        let count = if cx.random.chance(70) { usize::MAX } else { 1 };
        for _ in 0..count.min(line.frames.len()) {
            line.out.extend(line.frames.pop_front().unwrap_or_default());
        }
    }

    /// Go in its own way.
    fn go(&mut self, cx: &mut Context) {
        let Some(line) = &mut self.line else { return };
        match cx.random.below(3) {
            0 => {
                cx.ledger.of(line.connection).over = true;
                cx.abort(line.end);
                self.line = None;
            }
            1 => {
                let _ = cx.finish(line.end);
                line.finished = true;
                line.said_close = true;
                line.out.clear();
            }
            _ => {
                for frame in line.frames.drain(..) {
                    line.out.extend(frame);
                }
                cx.ledger.promise(line.connection, 1000);
                line.out.extend(close(&mut cx.random, 1000, true));
                line.said_close = true;
            }
        }
    }

    /// Something happened at its end.
    pub fn wake(&mut self, end: End, cx: &mut Context) {
        let Some(line) = &self.line else { return };
        if line.end != end || cx.connected(end) == Connect::Pending {
            return;
        }
        if !self.slow || !line.open {
            while self.read(65536, cx) {}
        }
        self.flush(cx);
    }

    /// False if there was nothing, or it is over.
    fn read(&mut self, most: usize, cx: &mut Context) -> bool {
        let Some(line) = &mut self.line else {
            return false;
        };
        let over = match cx.recv(line.end, most) {
            Read::Bytes(bytes) => {
                self.hear(bytes, cx);
                return self.line.is_some();
            }
            Read::Empty => return false,
            Read::Ended => false,
            Read::Reset => true,
        };
        cx.ledger
            .note(line.connection, cx.now, || "its client sees the end".into());
        if line.open && !line.closed {
            let within = line.ear.within();
            cx.ledger.client_cut(line.connection, within);
        }
        cx.ledger.of(line.connection).over = true;
        if !over {
            cx.close(line.end);
        }
        self.line = None;
        false
    }

    fn hear(&mut self, bytes: Vec<u8>, cx: &mut Context) {
        let Some(line) = &mut self.line else { return };
        let mut bytes = bytes;
        if !line.open {
            line.head.extend(bytes);
            let Some(end) = line.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                return;
            };
            bytes = line.head.split_off(end + 4);
            let head = String::from_utf8_lossy(&line.head);
            if !head.starts_with("HTTP/1.1 101 ") {
                assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
                cx.ledger.of(line.connection).over = true;
                cx.close(line.end);
                self.line = None;
                return;
            }
            assert!(head.contains(&accept(&nonce(line.connection))), "{head}");
            line.open = true;
        }
        let heard = line.ear.hear(&bytes);
        let heard = heard.unwrap_or_else(|why| panic!("connection {}: {why}", line.connection));
        for one in heard {
            match one {
                Heard::Message(message) => cx.ledger.client_hears(line.connection, message),
                Heard::Ping(payload) => {
                    let pong = frame(&mut cx.random, 0x8a, &payload, true);
                    if !line.said_close {
                        line.frames.push_front(pong);
                    }
                }
                Heard::Pong(payload) => {
                    if let Ok(number) = payload.as_slice().try_into() {
                        cx.ledger
                            .ping_is_known(line.connection, u32::from_be_bytes(number));
                    }
                }
                Heard::Close(code) => {
                    cx.ledger.note(line.connection, cx.now, || {
                        format!("its client hears Close {code}")
                    });
                    cx.ledger.client_closed(line.connection, code);
                    line.closed = true;
                    if self.rude {
                        // It hears, and says nothing.
                        line.said_close = true;
                    } else if !line.said_close {
                        for frame in line.frames.drain(..) {
                            line.out.extend(frame);
                        }
                        line.out.extend(close(&mut cx.random, code, true));
                        line.said_close = true;
                    }
                }
            }
        }
    }

    fn flush(&mut self, cx: &mut Context) {
        let Some(line) = &mut self.line else { return };
        if cx.connected(line.end) != Connect::Done {
            return;
        }
        while !line.out.is_empty() {
            let bytes = line.out.make_contiguous();
            match cx.send(line.end, bytes) {
                Ok(0) => return,
                Ok(sent) => drop(line.out.drain(..sent)),
                // Its end will be read.
                Err(_) => return,
            }
        }
        if line.closed && line.said_close && !line.finished && !self.rude {
            line.finished = true;
            let _ = cx.finish(line.end);
        }
    }
}
