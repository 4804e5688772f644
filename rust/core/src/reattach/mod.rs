//! Re-attach: a client's WebSocket goes on at another backend when its own goes away.
//!
//! The handshake that opened it is kept and repeated, with a field that says so. Whether that can be
//! done, what passes meanwhile and when it happens is decided here, from bytes and time:
//!
//! ```text
//!             Leaving::next                Journey                 Hearing::judge
//!  tunnel ──────────────────▶ left ──────────────────▶ repeated ──────────────────▶ tunnel
//!    │   both streams between      Words: the client's     │ no tries or no time left, or another
//!    │   two messages              frames wait             ▼ answer than the first
//!    └──────────────────────────────────────────────▶ Close 1012
//!        in the middle of a message
//! ```
//!
//! 1. [`look`] stops a stream where it may end: the client's between two messages, the backend's before
//!    the Close with which it takes its leave. It also keeps small frames whole, so that a backend that
//!    dies within one leaves no half of it behind.
//! 2. [`Leaving`] ends the old backend's part: what it still says is delivered.
//! 3. [`Words`] keeps what the client says while there is no backend, and answers its pings.
//! 4. [`Journey`] counts tries and time; [`Hearing`] compares the new answer with what was [`Agreed`] first.
//!
//! At most once: what was passed to the old backend is never sent to another.

mod agreed;
mod frames;
mod handshake;
mod hearing;
mod journey;
mod leaving;
#[cfg(test)]
mod tests;
mod words;

use core::time::Duration;

pub use agreed::{Agreed, Answer};
pub use frames::{Closes, Halt, SMALL, Watch, look};
pub use handshake::{FIELD, repeated, without_takeover};
pub use hearing::{Hearing, Judged};
pub use journey::Journey;
pub use leaving::{Leaving, Next, SETTLE, Streams};
pub use words::Words;

/// A server restarts: what a client is told whose WebSocket cannot go on.
pub const SERVICE_RESTART: u16 = 1012;
/// What a backend is told whose client goes on elsewhere.
pub const GOING_AWAY: u16 = 1001;

/// How long and how often another backend is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Handshakes that may fail.
    pub tries: u32,
    /// From the moment in which there is no backend any more.
    pub timeout: Duration,
    /// Bytes of a client that wait meanwhile.
    pub buffer: u32,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            tries: 5,
            timeout: Duration::from_secs(15),
            buffer: 64 * 1024,
        }
    }
}
