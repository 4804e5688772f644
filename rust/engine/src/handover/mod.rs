//! Handing live tunnels over to the process that replaces this one.
//!
//! # Who talks to whom
//!
//! Python leads the conversation between the two processes and carries what is small: the listening sockets,
//! the [`Manifest`] and one end of each channel. A [`channel`] joins one worker of the old process with one
//! of the new, since neither's descriptors mean anything to anybody else. The tunnels go through these, as
//! [`Passport`]s with two sockets each.
//!
//! # Why nothing is lost
//!
//! A tunnel's sockets are open in both processes until the old one lets go, and at every moment at most one
//! of the two may touch them. The old worker takes a tunnel out of its poller, writes down what it knows, and
//! keeps it *frozen*: as it was, and not looked at. The new worker holds what it got in the same way. From
//! there one word decides: before it has been said the old process may thaw its tunnels and go on as if
//! nothing had been, whatever became of the new one; after it they are the new one's. What clients and
//! backends send meanwhile waits in the kernel.
//!
//! Listening sockets are treated alike. The old process stops asking for connections, but closes nothing:
//! those who come wait in the queue of a socket that the new process has too.
//!
//! # What is on the wire
//!
//! Frames of a length and a count of descriptors, with structs in postcard's format, which has no names and
//! no versions in it: whoever changes a struct here increases [`FORMAT`], and processes of different formats
//! part before the first of them.

pub mod channel;
pub mod guests;
pub mod passport;

pub use channel::Channel;
pub use guests::Guests;
pub use passport::{BackendName, Manifest, Passport, TermsPassport, Waiting};

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use pybalancer_core::time::Tick;
use serde::{Deserialize, Serialize};

/// Version of all that two processes say to each other, in Python too.
pub const FORMAT: u32 = 1;

/// Tunnels of a message: each has two descriptors, and the kernel takes 253.
pub const MOST_TUNNELS: usize = 120;
/// A message is sent before it has more bytes than this, or with one tunnel.
pub const MOST_BYTES: usize = 256 * 1024;

/// What the old process's worker says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Down {
    /// Tunnels, with the client's and the backend's socket of each.
    Batch(Batch),
    /// Connections that wait for their next request, with their sockets.
    Between(Vec<Waiting>),
    /// So many were sent, over this channel: all that stood.
    End(u64),
    /// Those sent since are the new process's now.
    Commit,
}

/// What the new process's worker answers to whatever brings sockets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {
    /// Places in the batch of those that it cannot take.
    pub refused: Vec<u16>,
}

/// Some tunnels, and what several of them share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    /// What passports refer to by index.
    pub terms: Vec<TermsPassport>,
    /// The same.
    pub backends: Vec<BackendName>,
    /// In the order of their descriptors.
    pub tunnels: Vec<Passport>,
}

/// What became of an order; the error is for people.
pub type Report = Sender<Result<u64, String>>;

/// What a worker is told about a hand-over.
pub enum Order {
    /// Send the listening sockets over the channel that comes with it.
    Lend,
    /// Hand over through the channel that comes with it.
    Through,
    /// Freeze and send every tunnel that stands.
    Freeze {
        /// When it has failed.
        deadline: Instant,
        /// Gets how many were sent.
        report: Report,
    },
    /// The new process does not want them: go on.
    Thaw(Report),
    /// The new process has died with them: end them, and go on with what comes.
    Bury(Report),
    /// They are the new process's: let go of them and of the listening sockets that it has, finish what
    /// is under way and end.
    LetGo {
        /// Numbers of those sockets.
        taken: Arc<[u32]>,
        /// When whatever is left is aborted.
        until: Tick,
    },
    /// Hold what comes through the channel that comes with it.
    Receive(Arc<Guests>),
    /// What is held is ours: serve it, and accept.
    Activate(Report),
}
