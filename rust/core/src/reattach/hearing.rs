//! What a backend says to a repeated handshake, as it comes.

use alloc::vec::Vec;

use super::{Agreed, Answer};
use crate::http::{self, Limits, Scanner};

/// An answer under way.
#[derive(Clone, Debug, Default)]
pub struct Hearing {
    said: Vec<u8>,
    scanner: Scanner,
}

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// More of it has to come.
    Incomplete,
    /// It goes on here, behind so many bytes.
    Agreed(usize),
    /// Not here.
    Again(&'static str),
    /// Nowhere.
    Never,
}

impl Hearing {
    /// How many bytes more are of use.
    pub fn room(&self, limits: &Limits) -> usize {
        limits
            .head
            .saturating_add(1)
            .saturating_sub(self.said.len())
    }

    /// The backend has said `bytes`.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
    }

    /// What to make of it, where the first 101 agreed on `agreed`.
    pub fn judge(&mut self, agreed: &Agreed, limits: &Limits) -> Judged {
        loop {
            let length = match self.scanner.scan(&self.said, limits) {
                Ok(Some(length)) => length,
                Ok(None) => return Judged::Incomplete,
                Err(refusal) => return Judged::Again(refusal.why),
            };
            let head = self.said.get(..length).unwrap_or_default();
            let mut storage = http::storage();
            let response = match http::parse_response(head, false, &mut storage, limits) {
                Ok(response) => response,
                Err(refusal) => return Judged::Again(refusal.why),
            };
            if (100..=199).contains(&response.status) && response.status != 101 {
                // An interim one is for a client that waits for it; this one knows nothing of it.
                self.said.drain(..length);
                self.scanner = Scanner::default();
                continue;
            }
            return match agreed.judge(&response) {
                Answer::Agreed => Judged::Agreed(length),
                Answer::Again(why) => Judged::Again(why),
                Answer::Never(_) => Judged::Never,
            };
        }
    }

    /// What came behind so many bytes: the backend's first frames.
    pub fn behind(&self, consumed: usize) -> &[u8] {
        self.said.get(consumed..).unwrap_or_default()
    }
}
