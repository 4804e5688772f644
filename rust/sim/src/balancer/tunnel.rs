//! Two ends and what flows between them: the engine's tunnel, over fake sockets.
//!
//! Reading and writing is done here in the engine's order. What passes, what waits and what goes first is
//! asked of [`pybalancer_core::relay`], as the engine asks it.

use std::time::Duration;

use pybalancer_core::http::Scanner;
use pybalancer_core::reattach::{Agreed, Halt, Hearing, Journey, Leaving, Watch, Words};
use pybalancer_core::relay::{Leftover, Tap, see};
use pybalancer_core::time::Tick;
use pybalancer_core::ws::Tracker;
use pybalancer_core::ws::close::Farewell;

use crate::wire::{Broken, End, Read};
use crate::world::Context;

/// How long those who are cut may take to read why.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// One of a tunnel's two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The backend.
    Backend,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Flow {
    /// Read and not sent.
    pub pending: Option<Leftover>,
    /// The sender has ended.
    pub eof: bool,
    /// The receiver knows.
    pub done: bool,
}

/// How far a connection is that is no tunnel, or has no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A request is to come.
    Request,
    /// A connect is under way, or is to be.
    Dialing,
    /// The first backend is to answer.
    Exchange,
    /// A handshake was repeated.
    Resuming,
}

/// A connection that has no backend that would be its own.
#[derive(Debug)]
pub struct Opening {
    /// How far it is.
    pub phase: Phase,
    /// The request's head.
    pub head: Vec<u8>,
    /// Where its end was looked for.
    pub scanner: Scanner,
    /// The first answer.
    pub answer: Vec<u8>,
    /// Where its end was looked for.
    pub answer_scanner: Scanner,
    /// Backends that have not taken it.
    pub tried: Vec<u16>,
    /// When what is under way is over.
    pub until: Option<Tick>,
    /// It stood already.
    pub away: Option<Away>,
}

/// A tunnel between two backends.
#[derive(Debug)]
pub struct Away {
    /// Tries and time.
    pub journey: Journey,
    /// What the client says meanwhile.
    pub words: Words,
    /// What the backend under way has said.
    pub answer: Hearing,
    /// It asks one backend after the other; else it waits for the next round.
    pub asks: bool,
}

/// What is remembered, so that it can go on elsewhere.
#[derive(Debug)]
pub struct Recall {
    /// The handshake.
    pub head: Vec<u8>,
    /// Its answer.
    pub agreed: Agreed,
    /// Its backend goes away.
    pub leaving: Option<Leaving>,
    /// The backend that it had last.
    pub left: Option<u16>,
    /// When it has to be gone, by the drain that moves it.
    pub deadline: Option<Tick>,
}

/// On its way to an end.
#[derive(Debug)]
pub struct Closing {
    /// Who is still to be told what.
    pub farewell: Farewell,
    /// Who has ended: client, backend.
    pub ended: [bool; 2],
    /// When patience ends.
    pub until: Tick,
    /// How long an answer may take.
    pub patience: Duration,
}

/// A client's connection.
#[derive(Debug)]
pub struct Tunnel {
    /// For the ledger.
    pub connection: u32,
    /// Tells it from others that had its slot.
    pub generation: u64,
    /// Whose turns it gets.
    pub worker: usize,
    /// Towards the client.
    pub client: End,
    /// Towards the backend.
    pub backend: Option<End>,
    /// The backend that counts it.
    pub at: Option<u16>,
    /// Of its key.
    pub hash: u64,
    /// From the client.
    pub to_backend: Flow,
    /// From the backend.
    pub to_client: Flow,
    /// Frames of the client.
    pub from_client: Tracker,
    /// Frames of the backend.
    pub from_backend: Tracker,
    /// Until it stands.
    pub opening: Option<Opening>,
    /// Once it is ended.
    pub closing: Option<Closing>,
    /// If it may go on elsewhere.
    pub recall: Option<Recall>,
    /// When something last passed.
    pub active: Tick,
    /// When its timer is due.
    pub armed: Option<Tick>,
}

/// How far a flow got, as in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for one of its ends.
    Waiting,
    /// Every byte and the end were passed on.
    Done,
    /// The sender broke off.
    SenderFailed,
    /// The receiver did.
    ReceiverFailed,
    /// The tap lets nothing more pass.
    Stopped,
    /// The sender has ended, which the receiver is not to be told.
    Ended,
}

impl Flow {
    /// Whether reading has stopped until the receiver takes more.
    pub fn blocked(&self) -> bool {
        self.pending.as_ref().is_some_and(Leftover::is_owed)
    }

    /// Take what was held back.
    pub fn take_held(&mut self) -> Vec<u8> {
        let Some((held, rest)) = self.pending.as_ref().map(Leftover::split) else {
            return Vec::new();
        };
        self.pending = rest;
        held
    }

    /// Send what is owed: whether nothing is any more.
    pub fn flush(&mut self, receiver: End, cx: &mut Context) -> Result<bool, Broken> {
        let Some(left) = &mut self.pending else {
            return Ok(true);
        };
        while left.is_owed() {
            let sent = cx.send(receiver, left.rest())?;
            if sent == 0 {
                return Ok(false);
            }
            left.took(sent);
        }
        if left.held().is_empty() {
            self.pending = None;
        }
        Ok(true)
    }

    /// Put bytes of our own behind all that was relayed.
    pub fn inject(&mut self, bytes: &[u8], receiver: End, cx: &mut Context) -> Result<(), Broken> {
        if self.blocked() {
            return Err(Broken);
        }
        let sent = cx.send(receiver, bytes)?;
        let rest = bytes.get(sent..).unwrap_or_default();
        self.pending = Leftover::put_before(self.pending.as_ref(), rest);
        Ok(())
    }

    /// Pass on bytes that were read before the flow began.
    pub fn feed<T: Tap>(
        &mut self,
        tap: &mut T,
        bytes: &[u8],
        receiver: End,
        cx: &mut Context,
    ) -> Outcome {
        let passing = see(tap, bytes);
        self.pending = passing.behind(self.pending.as_ref(), bytes);
        match self.flush(receiver, cx) {
            Ok(_) if passing.stopped => Outcome::Stopped,
            Ok(_) => Outcome::Waiting,
            Err(Broken) => Outcome::ReceiverFailed,
        }
    }

    /// Move what can be moved.
    pub fn pump<T: Tap>(
        &mut self,
        tap: &mut T,
        sender: End,
        receiver: End,
        cx: &mut Context,
    ) -> Outcome {
        loop {
            if self.blocked() {
                match self.flush(receiver, cx) {
                    Ok(true) => {}
                    Ok(false) => return Outcome::Waiting,
                    Err(Broken) => return Outcome::ReceiverFailed,
                }
            }
            if self.eof {
                if !self.done && cx.finish(receiver).is_err() {
                    return Outcome::ReceiverFailed;
                }
                self.done = true;
                return Outcome::Done;
            }
            let unseen = tap.unseen();
            if unseen > 0 && self.pending.is_none() && cx.random.chance(50) {
                // As splice does: payload goes by unseen.
                if let Read::Bytes(bytes) = cx.recv(sender, unseen) {
                    tap.skip(bytes.len());
                    let Ok(sent) = cx.send(receiver, &bytes) else {
                        return Outcome::ReceiverFailed;
                    };
                    let rest = bytes.get(sent..).unwrap_or_default();
                    self.pending = Leftover::new(rest, rest.len());
                    continue;
                }
            }
            let mut bytes = self
                .pending
                .take()
                .map_or_else(Vec::new, |left| left.held().to_vec());
            let most = match cx.random.below(3) {
                0 => cx.random.between(1, 40),
                1 => cx.random.between(1, 3000),
                _ => 65536,
            };
            match cx.recv(sender, most) {
                Read::Ended => {
                    let due = if tap.passes_end() { bytes.len() } else { 0 };
                    self.pending = Leftover::new(&bytes, due);
                    if !tap.passes_end() {
                        return Outcome::Ended;
                    }
                    self.eof = true;
                    continue;
                }
                Read::Empty => {
                    self.pending = Leftover::new(&bytes, 0);
                    return Outcome::Waiting;
                }
                Read::Reset => return Outcome::SenderFailed,
                Read::Bytes(more) => bytes.extend(more),
            }
            let passing = see(tap, &bytes);
            let passes = bytes.get(..passing.count).unwrap_or_default();
            let sent = if passes.is_empty() {
                Ok(0)
            } else {
                cx.send(receiver, passes)
            };
            let Ok(sent) = sent else {
                if tap.refused() {
                    self.pending = Leftover::new(&bytes, 0);
                }
                return Outcome::ReceiverFailed;
            };
            if passing.stopped || sent < bytes.len() {
                self.pending = passing.left(tap, &bytes, sent);
            }
            if passing.stopped {
                return Outcome::Stopped;
            }
        }
    }
}

impl Tunnel {
    /// Whether it goes on elsewhere if its backend goes away.
    pub fn resumes(&self) -> bool {
        self.recall.is_some()
            && self.opening.is_none()
            && self.closing.is_none()
            && self.from_client.closed().is_none()
            && self.from_backend.closed().is_none()
            && !self.to_backend.eof
            && !self.to_client.eof
    }

    /// Its backend goes away.
    pub fn leaving(&self) -> Option<&Leaving> {
        self.recall
            .as_ref()
            .and_then(|recall| recall.leaving.as_ref())
    }

    /// The same, to be changed.
    pub fn leaving_mut(&mut self) -> Option<&mut Leaving> {
        self.recall
            .as_mut()
            .and_then(|recall| recall.leaving.as_mut())
    }

    /// It looks for a backend.
    pub fn away(&self) -> Option<&Away> {
        self.opening
            .as_ref()
            .and_then(|opening| opening.away.as_ref())
    }

    /// The same, to be changed.
    pub fn away_mut(&mut self) -> Option<&mut Away> {
        self.opening
            .as_mut()
            .and_then(|opening| opening.away.as_mut())
    }

    /// When it has to be over, if the deadline of the drain that moves it has passed.
    pub fn latest(&self, now: Tick) -> Option<Tick> {
        if self.away().is_some() {
            return None;
        }
        let deadline = self
            .recall
            .as_ref()?
            .deadline
            .filter(|deadline| *deadline <= now)?;
        Some((deadline + FAREWELL).max(now))
    }

    /// Where the stream that `from` sends has to stop.
    pub fn watch(&self, from: Side) -> Watch {
        match from {
            Side::Client => Watch::on_client(self.leaving()),
            Side::Backend => Watch::on_backend(self.leaving()),
        }
    }

    /// What `side` sends is left where it is, since the backend goes away.
    pub fn withheld(&self, side: Side) -> bool {
        self.leaving().is_some_and(|leaving| match side {
            Side::Client => self.from_client.at_boundary() && !self.from_client.in_message(),
            Side::Backend => leaving.heard,
        })
    }

    /// The flow that `side` sends.
    pub fn flow_from(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.to_backend,
            Side::Backend => &mut self.to_client,
        }
    }

    /// The end at `side`.
    pub fn end(&self, side: Side) -> Option<End> {
        match side {
            Side::Client => Some(self.client),
            Side::Backend => self.backend,
        }
    }

    /// When its timer is due.
    pub fn due(&self, now: Tick) -> Option<Tick> {
        let times = [
            self.opening.as_ref().and_then(|opening| opening.until),
            self.away().map(|away| away.journey.deadline()),
            self.closing.as_ref().map(|closing| closing.until),
            self.leaving().map(|leaving| leaving.due(now)),
        ];
        times.into_iter().flatten().min()
    }
}

impl Side {
    /// The one at the other side.
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Backend,
            Side::Backend => Side::Client,
        }
    }
}

/// What a pump came to, and where the stream had to stop.
pub type Pumped = (Outcome, Option<Halt>);
