//! Two ends and what is known of them: the engine's tunnel, over fake sockets.

use std::time::Duration;

use pybalancer_core::http::Scanner;
use pybalancer_core::reattach::{Agreed, Hearing, Journey, Leaving, Watch, Words};
use pybalancer_core::time::Tick;
use pybalancer_core::ws::Tracker;
use pybalancer_core::ws::close::Farewell;

use super::flow::Flow;
use crate::wire::End;

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
    /// What had been read already when there was no backend any more.
    pub found: usize,
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
