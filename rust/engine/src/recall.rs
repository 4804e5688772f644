//! What has to be remembered of a tunnel, so that it can go on at another backend.

use std::sync::Arc;

use pybalancer_core::reattach::{Agreed, Hearing, Journey, Leaving, Watch, Words};
use pybalancer_core::time::Tick;

use crate::drains::{FAREWELL, Order};
use crate::poller::Side;
use crate::registry::BackendEntry;
use crate::tunnel::Tunnel;

/// The handshake of a tunnel that may go on elsewhere. Boxed, and there only on routes that re-attach.
pub struct Recall {
    /// The request's head, as the first backend got it.
    pub head: Box<[u8]>,
    /// What its answer said.
    pub agreed: Agreed,
    /// The tunnel's name, for backends: the id of its request.
    pub id: Box<str>,
    /// How often it has gone on elsewhere.
    pub moved: u32,
    /// Its backend goes away.
    pub leaving: Option<Leaving>,
    /// The backend that it had last, while it has none.
    pub left: Option<Arc<BackendEntry>>,
    /// The drain or shed that moves it, until it has arrived.
    pub order: Option<Arc<Order>>,
    /// When it has to have left, by whatever moves it.
    pub deadline: Option<Tick>,
}

impl Recall {
    /// Where the stream that `from` sends has to stop.
    pub fn watch(&self, from: Side) -> Watch {
        match from {
            Side::Client => Watch::on_client(self.leaving.as_ref()),
            Side::Backend => Watch::on_backend(self.leaving.as_ref()),
        }
    }
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
    /// When the connect, the answer or the wait under way is over.
    pub until: Option<Tick>,
    /// It is one of those that may ask backends now.
    pub asks: bool,
}

impl Tunnel {
    /// Whether it goes on elsewhere if its backend goes away. Not when either side has said its last.
    #[inline]
    pub fn resumes(&self) -> bool {
        self.recall.is_some() && self.may_resume()
    }

    fn may_resume(&self) -> bool {
        self.opening.is_none()
            && self.closing.is_none()
            && self.from_client.closed().is_none()
            && self.from_backend.closed().is_none()
            && !self.to_backend.eof
            && !self.to_client.eof
    }

    /// When it has to be over, if the deadline of the drain that moves it has passed. One that has left that
    /// backend already is none of the drain's.
    pub fn latest(&self, now: Tick) -> Option<Tick> {
        if self.away().is_some() {
            return None;
        }
        let deadline = self.recall.as_ref()?.deadline;
        let deadline = deadline.filter(|deadline| *deadline <= now)?;
        Some((deadline + FAREWELL).max(now))
    }

    /// Its backend goes away.
    #[inline]
    pub fn leaving(&self) -> Option<&Leaving> {
        self.recall
            .as_deref()
            .and_then(|recall| recall.leaving.as_ref())
    }

    /// The same, to be changed.
    pub fn leaving_mut(&mut self) -> Option<&mut Leaving> {
        let recall = self.recall.as_deref_mut();
        recall.and_then(|recall| recall.leaving.as_mut())
    }

    /// It has no backend, and looks for one.
    pub fn away(&self) -> Option<&Away> {
        self.opening
            .as_deref()
            .and_then(|opening| opening.away.as_deref())
    }

    /// The same, to be changed.
    pub fn away_mut(&mut self) -> Option<&mut Away> {
        let opening = self.opening.as_deref_mut();
        opening.and_then(|opening| opening.away.as_deref_mut())
    }

    /// What `side` sends is left in its socket, since its backend goes away.
    #[inline]
    pub fn withheld(&self, side: Side) -> bool {
        let Some(leaving) = self.leaving() else {
            return false;
        };
        match side {
            Side::Client => self.from_client.at_boundary() && !self.from_client.in_message(),
            Side::Backend => leaving.heard,
        }
    }
}
