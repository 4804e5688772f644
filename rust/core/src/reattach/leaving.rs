//! The end of a backend's part in a tunnel that goes on without it.

use core::time::Duration;

use crate::time::Tick;
use crate::ws::Tracker;

/// A backend that is asked to go has this long, since something last passed, to answer what its client said:
/// many servers answer a Close at once, and then nothing else.
pub const SETTLE: Duration = Duration::from_millis(250);

/// How far the old backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// It got a Close, in the client's place.
    pub told: bool,
    /// It has said all: its Close or its end has come.
    pub heard: bool,
    /// It takes nothing more.
    pub broken: bool,
    /// It has said something that was not read, since its client takes so little. Asked when patience ends.
    pub unread: bool,
    /// When it gets that Close, if nothing passes before.
    pub tell_at: Tick,
    /// When it gets it though something passes all the time.
    pub tell_by: Tick,
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
    /// The backend's Close has passed: it is over for the client too.
    Over,
    /// A message was cut. The client is told, between two frames.
    Fail,
    /// A frame of the backend's was cut: nothing can follow it.
    Abort,
}

impl Leaving {
    /// Begins at `now`, of a tunnel on which something passed last at `active`.
    pub fn new(now: Tick, active: Tick, patience: Duration) -> Leaving {
        let tell_by = now + patience / 2;
        Leaving {
            told: false,
            heard: false,
            broken: false,
            unread: false,
            tell_at: (active + SETTLE).min(tell_by),
            tell_by,
            until: now + patience,
        }
    }

    /// Something passes.
    pub fn passes(&mut self, now: Tick) {
        self.tell_at = (now + SETTLE).min(self.tell_by);
    }

    /// It has to be over by then.
    pub fn hurry(&mut self, now: Tick, until: Tick) {
        if until < self.until {
            self.until = until;
            self.tell_by = self.tell_by.min(now + until.since(now) / 2);
            self.tell_at = self.tell_at.min(self.tell_by);
        }
    }

    /// When [`next`](Leaving::next) is to be asked at the latest.
    pub fn due(&self, now: Tick) -> Tick {
        // Later than that it is not time but a message that is waited for.
        let waits = !self.told && self.tell_at > now;
        if waits {
            self.tell_at.min(self.until)
        } else {
            self.until
        }
    }

    /// What is to be done at `now`.
    pub fn next(&self, streams: &Streams<'_>, now: Tick) -> Next {
        if streams.backend.closed().is_some() {
            return Next::Over;
        }
        let client = between(streams.client) && !streams.owed;
        let backend = between(streams.backend);
        // In the middle of a message of its own it might take a Close for leave to drop the rest.
        let settled = self.heard || backend && now >= self.tell_at;
        if !self.told && !self.broken && client && settled {
            return Next::Tell;
        }
        let over = self.heard && (self.told || self.broken) || now >= self.until;
        // What it has said and nobody has passed on must not be missing without a word.
        let missing = self.unread && !self.heard;
        match (over, client && backend && !missing) {
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
