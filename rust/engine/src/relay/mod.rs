//! Moving bytes from one socket of a tunnel to the other.
//!
//! A [`Flow`] is one direction. At rest it owns no buffer: bytes are read into the worker's scratch
//! buffer and written on at once; only what the receiver did not take is kept, and then reading
//! stops until it has gone (back-pressure). Small payloads are copied; once reads come full, the
//! flow turns to `splice`, which moves pages through a pipe and never copies them.
//!
//! The seam is [`pump`]: readiness goes in, an outcome comes out. A relay on completions (io_uring)
//! would stand beside it and keep the same outcomes.

mod copy;
mod splice;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::pipes::{Pipe, PipePool};

/// Bytes read at once by copy.
pub const SCRATCH: usize = 64 * 1024;
/// A read of at least this much turns a flow to splice.
const BULK: usize = 24 * 1024;
/// Bytes that one flow may move before others get their turn.
const BUDGET: usize = 1024 * 1024;
/// Quiet wake-ups after which a bulk flow goes back to copying.
const BULK_PATIENCE: u8 = 8;

/// What the receiver has not taken yet.
#[derive(Debug, Default)]
pub enum Pending {
    /// Nothing.
    #[default]
    Nothing,
    /// Copied bytes.
    Copied(Box<Leftover>),
    /// This many bytes in a pipe.
    Piped(Pipe, u32),
}

/// Copied bytes of which the first `sent` are gone.
#[derive(Debug)]
pub struct Leftover {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Leftover {
    /// Keep a copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Box<Leftover> {
        Box::new(Leftover {
            bytes: bytes.into(),
            sent: 0,
        })
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes taken by the receiver's socket.
    pub bytes: u64,
    /// Bytes read and not yet taken.
    pub pending: Pending,
    /// The sender has ended this direction.
    pub eof: bool,
    /// The end was passed on to the receiver: this direction is over.
    pub done: bool,
    /// Above 0: bulk data, moved by splice.
    bulk: u8,
}

impl Flow {
    /// Whether reading has stopped until the receiver takes more.
    pub fn blocked(&self) -> bool {
        !matches!(self.pending, Pending::Nothing)
    }

    /// Take back the pipe, if there is one.
    pub fn release(&mut self, pipes: &mut PipePool) {
        if let Pending::Piped(pipe, _) = std::mem::take(&mut self.pending) {
            pipes.discard(pipe);
        }
    }
}

/// What a worker lends to every flow that it pumps.
pub struct Tools {
    /// Where copied bytes pass through.
    pub scratch: Box<[u8]>,
    /// Pipes for splice.
    pub pipes: PipePool,
    /// Bytes moved by copy since last asked.
    pub copied: u64,
    /// Bytes moved by splice since last asked.
    pub spliced: u64,
}

impl Default for Tools {
    fn default() -> Self {
        Tools {
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            pipes: PipePool::default(),
            copied: 0,
            spliced: 0,
        }
    }
}

/// How far a flow got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for one of its sockets, or has used its budget: readiness will tell.
    Waiting,
    /// Every byte and the end were passed on.
    Done,
    /// The sender's socket failed: RST or a network error.
    SenderFailed,
    /// The receiver's socket failed.
    ReceiverFailed,
}

enum Step {
    /// Moved so many bytes; `drained` if the sender has no more for now.
    Moved { bytes: usize, drained: bool },
    /// Nothing to read.
    Empty,
    /// The sender ended this direction.
    End,
    /// The sender's socket failed.
    Failed,
    /// The receiver's socket failed.
    ReceiverFailed,
}

/// Move what can be moved from `sender` to `receiver`.
#[inline]
pub fn pump(flow: &mut Flow, sender: &OwnedFd, receiver: &OwnedFd, tools: &mut Tools) -> Outcome {
    let (sender, receiver) = (sender.as_fd(), receiver.as_fd());
    let before = flow.bytes;
    loop {
        if flow.blocked() {
            match flush(flow, receiver, tools) {
                Ok(true) => {}
                Ok(false) => return Outcome::Waiting,
                Err(_) => return Outcome::ReceiverFailed,
            }
        }
        if flow.eof {
            return finish(flow, receiver);
        }
        if flow.bytes - before >= BUDGET as u64 {
            return Outcome::Waiting;
        }
        let step = if flow.bulk > 0 {
            splice::step(flow, sender, receiver, tools)
        } else {
            copy::step(flow, sender, receiver, tools)
        };
        match step {
            // The socket is empty. An end of stream behind it will be reported.
            Step::Moved { drained: true, .. } if !flow.blocked() => return Outcome::Waiting,
            Step::Moved { bytes, .. } => {
                if bytes >= BULK {
                    flow.bulk = BULK_PATIENCE;
                }
            }
            Step::Empty => {
                if flow.bytes - before < BULK as u64 {
                    flow.bulk = flow.bulk.saturating_sub(1);
                }
                return Outcome::Waiting;
            }
            Step::End => flow.eof = true,
            Step::Failed => return Outcome::SenderFailed,
            Step::ReceiverFailed => return Outcome::ReceiverFailed,
        }
    }
}

/// Pass on what `sender` said before it broke. Never an end: the error is told once, and a `send` to
/// that socket may have taken it; then a read says "end of stream".
pub fn salvage(flow: &mut Flow, sender: &OwnedFd, receiver: &OwnedFd, tools: &mut Tools) {
    let (sender, receiver) = (sender.as_fd(), receiver.as_fd());
    let before = flow.bytes;
    while !flow.eof && flow.bytes - before < BUDGET as u64 {
        if flow.blocked() && !matches!(flush(flow, receiver, tools), Ok(true)) {
            return;
        }
        let step = if flow.bulk > 0 {
            splice::step(flow, sender, receiver, tools)
        } else {
            copy::step(flow, sender, receiver, tools)
        };
        if !matches!(step, Step::Moved { .. }) {
            return;
        }
    }
}

/// Send a few bytes that must go at once; an error if they do not.
pub fn send_all(receiver: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    let sent = copy::send(receiver.as_fd(), bytes)?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(Errno::AGAIN)
    }
}

fn finish(flow: &mut Flow, receiver: BorrowedFd<'_>) -> Outcome {
    if !flow.done {
        // ENOTCONN: it was reset, and will never know that this was all.
        if rustix::net::shutdown(receiver, Shutdown::Write).is_err() {
            return Outcome::ReceiverFailed;
        }
        flow.done = true;
    }
    Outcome::Done
}

/// Send what is owed; true once nothing is.
fn flush(flow: &mut Flow, receiver: BorrowedFd<'_>, tools: &mut Tools) -> Result<bool, Errno> {
    match &mut flow.pending {
        Pending::Nothing => Ok(true),
        Pending::Copied(left) => {
            while !left.rest().is_empty() {
                match copy::send(receiver, left.rest()) {
                    Ok(sent) => {
                        left.sent += sent;
                        flow.bytes += sent as u64;
                        tools.copied += sent as u64;
                    }
                    Err(Errno::AGAIN) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            flow.pending = Pending::Nothing;
            Ok(true)
        }
        Pending::Piped(pipe, left) => {
            let sent = splice::drain(pipe, left, receiver)?;
            flow.bytes += u64::from(sent);
            tools.spliced += u64::from(sent);
            if *left > 0 {
                return Ok(false);
            }
            if let Pending::Piped(pipe, _) = std::mem::take(&mut flow.pending) {
                tools.pipes.give_back(pipe);
            }
            Ok(true)
        }
    }
}
