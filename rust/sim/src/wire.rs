//! The fake network: streams with delay, windows that fill, pieces of any size, ends and resets.
//!
//! Within a stream bytes keep their order; between streams there is none. A reset overtakes nothing, but
//! what was sent shortly before it may be lost. What has arrived before it can still be read.

use std::collections::VecDeque;
use std::time::Duration;

use pybalancer_core::time::Tick;

use crate::agenda::Wake;
use crate::world::Context;

/// One end of a connection: its number, and which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The connection.
    pub wire: usize,
    /// 0 connected, 1 was connected to.
    pub side: usize,
}

impl End {
    fn peer(self) -> End {
        End {
            wire: self.wire,
            side: 1 - self.side,
        }
    }
}

/// Who has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A client.
    Client(usize),
    /// A backend.
    Backend(usize),
    /// A tunnel's client side, by slot and generation.
    TunnelClient(usize, u64),
    /// Its backend side.
    TunnelBackend(usize, u64),
}

/// How a network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Delay of a piece, least and most, in ms.
    pub delay: (usize, usize),
    /// Bytes under way and not read, at most.
    pub window: usize,
    /// Bytes of a piece, at most.
    pub piece: usize,
}

/// What a read came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Some bytes.
    Bytes(Vec<u8>),
    /// None now.
    Empty,
    /// The other side has ended its stream.
    Ended,
    /// It was broken off.
    Reset,
}

/// The connection takes nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// How far a connect is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// No answer yet.
    Pending,
    /// It stands.
    Done,
    /// It was refused.
    Refused,
}

/// One direction.
#[derive(Debug, Default)]
struct Stream {
    flight: VecDeque<(Tick, Vec<u8>)>,
    arrived: VecDeque<u8>,
    /// The last piece's arrival: the next comes no earlier.
    last: Tick,
    fin: Option<Tick>,
    reset: Option<Tick>,
    /// A send was cut short.
    full: bool,
    /// The receiver has gone.
    deaf: bool,
}

impl Stream {
    fn under_way(&self) -> usize {
        self.arrived.len()
            + self
                .flight
                .iter()
                .map(|(_, piece)| piece.len())
                .sum::<usize>()
    }

    fn arrive(&mut self, now: Tick) {
        while self.flight.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, piece)) = self.flight.pop_front() {
                self.arrived.extend(piece);
            }
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    owners: [Owner; 2],
    /// By the side that sends.
    streams: [Stream; 2],
    weather: Weather,
    /// When a connect is answered, and whether by a refusal.
    answered: Option<(Tick, bool)>,
}

impl Context {
    /// A connection, of which `from` learns after a while whether it stands. `open`: None, it never learns.
    pub fn connect(&mut self, from: Owner, to: Owner, weather: Weather, open: Option<bool>) -> End {
        let end = End {
            wire: self.wires.len(),
            side: 0,
        };
        let at = self.now + self.delay(weather);
        self.wires.push(Wire {
            owners: [from, to],
            streams: Default::default(),
            weather,
            answered: open.map(|open| (at, !open)),
        });
        if open.is_some() {
            self.agenda.at(at, Wake::Wire(end));
        }
        if open == Some(true) {
            self.agenda.at(at, Wake::Wire(end.peer()));
        }
        end
    }

    /// Whose it is.
    pub fn owner(&self, end: End) -> Owner {
        self.wires[end.wire].owners[end.side]
    }

    /// It is somebody else's from now on.
    pub fn give(&mut self, end: End, owner: Owner) {
        self.wires[end.wire].owners[end.side] = owner;
    }

    /// How far the connect is.
    pub fn connected(&self, end: End) -> Connect {
        match self.wires[end.wire].answered {
            Some((at, refused)) if at <= self.now => match refused {
                true => Connect::Refused,
                false => Connect::Done,
            },
            _ => Connect::Pending,
        }
    }

    /// Send: how many of these bytes are taken.
    pub fn send(&mut self, end: End, bytes: &[u8]) -> Result<usize, Broken> {
        if self.is_reset(end) || self.stream(end).fin.is_some() {
            return Err(Broken);
        }
        let weather = self.wires[end.wire].weather;
        if self.stream(end).deaf {
            // Nobody is there: a reset comes back.
            let at = self.now + self.delay(weather);
            let back = &mut self.wires[end.wire].streams[1 - end.side];
            back.reset = Some(back.reset.map_or(at, |known| known.min(at)));
            self.agenda.at(at, Wake::Wire(end));
            return Ok(bytes.len());
        }
        let room = weather.window.saturating_sub(self.stream(end).under_way());
        let taken = room.min(bytes.len());
        let mut rest = &bytes[..taken];
        while !rest.is_empty() {
            let size = self.random.between(1, weather.piece).min(rest.len());
            let at = self.later(end);
            let (piece, after) = rest.split_at(size);
            let flight = &mut self.stream_mut(end).flight;
            match flight.back_mut() {
                Some((last, before)) if *last == at => before.extend_from_slice(piece),
                _ => {
                    flight.push_back((at, piece.to_vec()));
                    self.agenda.at(at, Wake::Wire(end.peer()));
                }
            }
            rest = after;
        }
        self.stream_mut(end).full |= taken < bytes.len();
        Ok(taken)
    }

    /// Read at most so many bytes.
    pub fn recv(&mut self, end: End, most: usize) -> Read {
        let now = self.now;
        let peer = end.peer();
        let stream = self.stream_mut(peer);
        stream.arrive(now);
        if most == 0 {
            return Read::Empty;
        }
        if !stream.arrived.is_empty() {
            let count = most.min(stream.arrived.len());
            let bytes = stream.arrived.drain(..count).collect();
            if std::mem::take(&mut stream.full) {
                let weather = self.wires[end.wire].weather;
                let at = now + self.delay(weather);
                self.agenda.at(at, Wake::Wire(peer));
            }
            return Read::Bytes(bytes);
        }
        if self.is_reset(end) {
            return Read::Reset;
        }
        let stream = self.stream(peer);
        match stream.fin {
            Some(at) if at <= now && stream.flight.is_empty() => Read::Ended,
            _ => Read::Empty,
        }
    }

    /// Whether a read would come to something.
    pub fn readable(&mut self, end: End) -> bool {
        let now = self.now;
        let stream = self.stream_mut(end.peer());
        stream.arrive(now);
        let over = stream.fin.is_some_and(|at| at <= now) && stream.flight.is_empty();
        !stream.arrived.is_empty() || over || self.is_reset(end)
    }

    /// Whether the other side has broken it off, as known here.
    pub fn is_reset(&self, end: End) -> bool {
        self.stream(end.peer())
            .reset
            .is_some_and(|at| at <= self.now)
            || self.stream(end).reset.is_some()
    }

    /// End this side's stream, behind all that was sent.
    pub fn finish(&mut self, end: End) -> Result<(), Broken> {
        if self.is_reset(end) {
            return Err(Broken);
        }
        if self.stream(end).fin.is_none() {
            let at = self.later(end);
            self.stream_mut(end).fin = Some(at);
            self.agenda.at(at, Wake::Wire(end.peer()));
        }
        Ok(())
    }

    /// Break it off. Of what is under way any part may be lost.
    pub fn abort(&mut self, end: End) {
        let keep = self.random.below(self.stream(end).flight.len() + 1);
        self.stream_mut(end).flight.truncate(keep);
        self.leave(end);
        if self.stream(end).reset.is_none() {
            let at = self.later(end);
            self.stream_mut(end).reset = Some(at);
            self.agenda.at(at, Wake::Wire(end.peer()));
        }
    }

    /// Close both directions: with an end if all was read, else with a reset.
    pub fn close(&mut self, end: End) {
        let now = self.now;
        let incoming = self.stream_mut(end.peer());
        incoming.arrive(now);
        if !incoming.arrived.is_empty() || self.finish(end).is_err() {
            return self.abort(end);
        }
        self.leave(end);
    }

    fn leave(&mut self, end: End) {
        let incoming = self.stream_mut(end.peer());
        incoming.deaf = true;
        let underway = !incoming.flight.is_empty();
        incoming.flight.clear();
        incoming.arrived.clear();
        if underway && self.stream(end).reset.is_none() {
            // It arrives where nobody is: a reset comes back.
            let at = self.later(end);
            self.stream_mut(end).reset = Some(at);
            self.agenda.at(at, Wake::Wire(end.peer()));
        }
    }

    fn stream(&self, from: End) -> &Stream {
        &self.wires[from.wire].streams[from.side]
    }

    fn stream_mut(&mut self, from: End) -> &mut Stream {
        &mut self.wires[from.wire].streams[from.side]
    }

    fn delay(&mut self, weather: Weather) -> Duration {
        self.random.ms(weather.delay.0, weather.delay.1)
    }

    /// When what is sent now arrives.
    fn later(&mut self, from: End) -> Tick {
        let weather = self.wires[from.wire].weather;
        let at = (self.now + self.delay(weather)).max(self.stream(from).last);
        self.stream_mut(from).last = at;
        at
    }
}
