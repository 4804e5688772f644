//! WebSocket as the two ends speak it (RFC 6455, section 5): written here once more, and strictly, so that
//! nothing of the core's is judged by the core's own reading.

use std::collections::VecDeque;

use pybalancer_core::ws::accept_key;

use crate::random::{Random, scramble};

/// Bytes of a message that say which it is.
const LABEL: usize = 17;

/// What a message is. The rest of it follows from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The client's connection that it is about.
    pub connection: u32,
    /// Of a backend's: the how-manieth that this connection has had. Of a client's: 0.
    pub session: u32,
    /// Counts those of a sender, from 0.
    pub number: u32,
    /// Of a client's, whether it comes from there.
    pub from_client: bool,
}

/// Something whole that was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message, whose every byte is right.
    Message(Message),
    /// A Ping.
    Ping(Vec<u8>),
    /// A Pong.
    Pong(Vec<u8>),
    /// A Close, with its code.
    Close(u16),
}

/// Reads what one side gets.
#[derive(Clone, Debug)]
pub struct Ear {
    masked: bool,
    bytes: Vec<u8>,
    message: Option<Vec<u8>>,
    closed: bool,
}

/// A message in frames: one or several, each in its own vector, with pings between them now and then.
pub fn say(
    random: &mut Random,
    message: Message,
    length: usize,
    masked: bool,
) -> VecDeque<Vec<u8>> {
    let payload = payload(message, length);
    let mut frames = VecDeque::new();
    let count = if random.chance(25) {
        random.between(2, 4)
    } else {
        1
    };
    let mut rest = &payload[..];
    for at in 0..count {
        let last = at + 1 == count;
        let size = if last {
            rest.len()
        } else {
            random.below(rest.len() + 1)
        };
        let (part, after) = rest.split_at(size);
        rest = after;
        let first = if last { 0x80 } else { 0 } | if at == 0 { 0x2 } else { 0 };
        frames.push_back(frame(random, first, part, masked));
        if !last && random.chance(30) {
            frames.push_back(frame(random, 0x89, b"between", masked));
        }
    }
    frames
}

/// One frame.
pub fn frame(random: &mut Random, first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let flag = if masked { 0x80 } else { 0 };
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(flag | length as u8),
        length @ 126..=0xffff => {
            out.push(flag | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(flag | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    let key = if masked {
        (random.next() as u32).to_be_bytes()
    } else {
        [0; 4]
    };
    if masked {
        out.extend(key);
    }
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b));
    out
}

/// A Close; 1005: without a code.
pub fn close(random: &mut Random, code: u16, masked: bool) -> Vec<u8> {
    let payload = code.to_be_bytes();
    frame(
        random,
        0x88,
        if code == 1005 { &[] } else { &payload },
        masked,
    )
}

/// The answer to a handshake with this nonce.
pub fn accept(nonce: &str) -> String {
    String::from_utf8_lossy(&accept_key(nonce.as_bytes())).into_owned()
}

fn payload(message: Message, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length.max(LABEL));
    out.push(u8::from(message.from_client));
    for number in [message.connection, message.session, message.number] {
        out.extend(number.to_be_bytes());
    }
    let length = length.max(LABEL);
    out.extend((length as u32).to_be_bytes());
    let seed = scramble(u64::from(message.connection) << 32 | u64::from(message.number));
    let mut at = 0_u64;
    while out.len() < length {
        out.extend_from_slice(&scramble(seed ^ at).to_be_bytes());
        at += 1;
    }
    out.truncate(length);
    out
}

fn read(bytes: &[u8]) -> Option<Message> {
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let message = Message {
        from_client: *bytes.first()? == 1,
        connection: number(1)?,
        session: number(5)?,
        number: number(9)?,
    };
    let length = number(13)? as usize;
    (length == bytes.len() && payload(message, length) == bytes).then_some(message)
}

impl Ear {
    /// Of a backend, which gets masked frames; or of a client.
    pub fn new(masked: bool) -> Ear {
        Ear {
            masked,
            bytes: Vec::new(),
            message: None,
            closed: false,
        }
    }

    /// Bytes have come. An error tells what is wrong with them.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<Vec<Heard>, String> {
        if self.closed && !bytes.is_empty() {
            return Err(format!("{} bytes behind a Close", bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
        let mut heard = Vec::new();
        let mut at = 0;
        while let Some((header, length)) = header(&self.bytes[at..]) {
            let start = at + header;
            let (first, second) = (self.bytes[at], self.bytes[at + 1]);
            if (second & 0x80 != 0) != self.masked {
                return Err(format!("masked: {}", !self.masked));
            }
            if first & 0x70 != 0 || ![0, 2, 8, 9, 10].contains(&(first & 0xf)) {
                return Err(format!("a frame begins with {first:#x}"));
            }
            let Some(body) = self.bytes.get(start..start + length) else {
                break;
            };
            let key: [u8; 4] = match self.masked {
                true => self.bytes[start - 4..start].try_into().unwrap_or_default(),
                false => [0; 4],
            };
            let body: Vec<u8> = body
                .iter()
                .zip(key.iter().cycle())
                .map(|(a, b)| a ^ b)
                .collect();
            at = start + length;
            if let Some(one) = self.frame(first, body)? {
                self.closed = matches!(one, Heard::Close(_));
                heard.push(one);
            }
            if self.closed && at < self.bytes.len() {
                return Err(format!("{} bytes behind a Close", self.bytes.len() - at));
            }
        }
        self.bytes.drain(..at);
        Ok(heard)
    }

    /// The size of the frame under way, if its header is there; 0 if not. None: between two frames.
    pub fn within(&self) -> Option<usize> {
        let all = header(&self.bytes).map_or(0, |(header, length)| header + length);
        (!self.bytes.is_empty()).then_some(all)
    }

    fn frame(&mut self, first: u8, body: Vec<u8>) -> Result<Option<Heard>, String> {
        let last = first & 0x80 != 0;
        match first & 0xf {
            8..=10 if !last || body.len() > 125 => Err("a control frame that is none".into()),
            8 => match body[..] {
                [] => Ok(Some(Heard::Close(1005))),
                [high, low, ..] => Ok(Some(Heard::Close(u16::from_be_bytes([high, low])))),
                [_] => Err("half a code".into()),
            },
            9 => Ok(Some(Heard::Ping(body))),
            10 => Ok(Some(Heard::Pong(body))),
            opcode => {
                let mut whole = match (opcode, self.message.take()) {
                    (0, Some(open)) => open,
                    (2, None) => Vec::new(),
                    (0, None) => return Err("a fragment of nothing".into()),
                    _ => return Err("a message within a message".into()),
                };
                whole.extend(body);
                if !last {
                    self.message = Some(whole);
                    return Ok(None);
                }
                let message = read(&whole).ok_or("a message with wrong bytes")?;
                Ok(Some(Heard::Message(message)))
            }
        }
    }
}

/// Bytes of the header at the start of `bytes`, and of what follows it.
fn header(bytes: &[u8]) -> Option<(usize, usize)> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    let (size, length) = match second & 0x7f {
        126 => (
            4,
            usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (
            10,
            u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        ),
        length => (2, usize::from(length)),
    };
    (bytes.len() >= size + mask).then_some((size + mask, length))
}
