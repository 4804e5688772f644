//! What of one side's bytes may pass to the other now, and what has to wait.
//!
//! Whoever moves bytes reads some, asks [`see`] how many of them may go, sends these, and keeps as
//! [`Leftover`] what the receiver did not take and what may not go yet. A [`Tap`] looks at what passes.

mod leftover;
mod resumable;
mod tap;

pub use leftover::Leftover;
pub use resumable::Resumable;
pub use tap::{Blind, Frames, Tap};

/// What of the bytes that were read goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passing {
    /// So many of them may be sent.
    pub count: usize,
    /// Nothing after these may.
    pub stopped: bool,
}

/// Show the next bytes of a stream to its tap: those that were held back first.
#[inline]
pub fn see<T: Tap>(tap: &mut T, bytes: &[u8]) -> Passing {
    let verdict = tap.see(bytes);
    let (Ok(count) | Err(count)) = verdict;
    Passing {
        count,
        stopped: verdict.is_err(),
    }
}

impl Passing {
    /// What is left of the same `bytes` when the receiver has taken `sent` of them.
    #[inline]
    pub fn left<T: Tap>(self, tap: &T, bytes: &[u8], sent: usize) -> Option<Leftover> {
        let end = if self.stopped && !tap.keeps() {
            self.count
        } else {
            bytes.len()
        };
        let rest = bytes.get(sent..end).unwrap_or_default();
        Leftover::new(rest, self.count.saturating_sub(sent))
    }

    /// The same where the receiver is owed `before` already, and has not been sent any of `bytes`. What
    /// may not pass any more is not kept.
    pub fn behind(self, before: Option<&Leftover>, bytes: &[u8]) -> Option<Leftover> {
        let mut owed = before.map_or_else(alloc::vec::Vec::new, |left| left.rest().to_vec());
        owed.extend_from_slice(bytes.get(..self.count).unwrap_or_default());
        let due = owed.len();
        if !self.stopped {
            owed.extend_from_slice(bytes.get(self.count..).unwrap_or_default());
        }
        Leftover::new(&owed, due)
    }
}
