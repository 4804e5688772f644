//! The end of a backend's part in a tunnel that goes on without it.

use crate::time::Tick;
use crate::ws::Tracker;

/// How far the old backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// It got a Close, in the client's place.
    pub told: bool,
    /// It has said all: its Close or its end has come.
    pub heard: bool,
    /// It takes nothing more.
    pub broken: bool,
    /// When patience with it ends.
    pub until: Tick,
}

/// Where its two streams stand.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// What of the client's has been read.
    pub client: &'a Tracker,
    /// Some of that has not been taken by the backend.
    pub owed: bool,
    /// What of the backend's has been passed on.
    pub backend: &'a Tracker,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing now.
    Wait,
    /// The client's stream stands between two messages: a Close goes to the backend there.
    Tell,
    /// Nothing is missing: let go of it.
    Detach,
    /// A message was cut. The client is told, between two frames.
    Fail,
    /// A frame of the backend's was cut: nothing can follow it.
    Abort,
}

impl Leaving {
    /// What is to be done at `now`.
    pub fn next(&self, streams: &Streams<'_>, now: Tick) -> Next {
        let client = between(streams.client) && !streams.owed;
        let backend = between(streams.backend);
        // In the middle of a message of its own it might take a Close for leave to drop the rest.
        if !self.told && !self.broken && client && (self.heard || backend) {
            return Next::Tell;
        }
        let over = self.heard && (self.told || self.broken) || now >= self.until;
        match (over, client && backend) {
            (false, _) => Next::Wait,
            (true, true) => Next::Detach,
            (true, false) if streams.backend.at_boundary() => Next::Fail,
            (true, false) => Next::Abort,
        }
    }
}

/// Between two messages.
fn between(tracker: &Tracker) -> bool {
    tracker.at_boundary() && !tracker.in_message()
}
