//! Moving bytes from one socket of a tunnel to the other.
//!
//! A [`Flow`] is one direction. At rest it owns no buffer: bytes are read into the worker's scratch
//! buffer and written on at once; only what the receiver did not take is kept, and then reading
//! stops until it has gone (back-pressure). Small payloads are copied; once reads come full, the
//! flow turns to `splice`, which moves pages through a pipe and never copies them.
//!
//! Somebody may have to know what passes: a [`Tap`] sees the bytes that are copied, and says how many
//! may go by unseen. In mode "tcp" it is [`Blind`], which the compiler removes; a WebSocket's is
//! [`Frames`].
//!
//! The seam is [`pump`]: readiness goes in, an outcome comes out. A relay on completions (io_uring)
//! would stand beside it and keep the same outcomes.

pub mod body;
mod carry;
mod copy;
mod splice;

pub use carry::Packed;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use pybalancer_core::relay::{Blind, Frames, Resumable, Tap};
use pybalancer_core::relay::{Leftover, see};
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::pipes::{Pipe, PipePool};

/// Bytes read at once by copy.
pub const SCRATCH: usize = 64 * 1024;
/// A read of at least this much turns a flow to splice, while as much may go by unseen.
const BULK: usize = 24 * 1024;
/// Bytes read at once where a bulk flow has to be seen for a moment: the header of a WebSocket frame has
/// at most 14, and what is read beyond it is one splice less.
const SIP: usize = 14;
/// Bytes that one flow may move before others get their turn.
const BUDGET: usize = 1024 * 1024;
/// Quiet wake-ups after which a bulk flow goes back to copying.
const BULK_PATIENCE: u8 = 8;

/// What the receiver has not taken yet.
#[derive(Debug)]
pub enum Pending {
    /// Copied bytes.
    Copied(Leftover),
    /// This many bytes in a pipe.
    Piped(Pipe, u32),
}

/// One direction of a tunnel.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes taken by the receiver's socket.
    pub bytes: u64,
    /// Bytes read and not yet taken. Boxed: a flow at rest has none.
    pending: Option<Box<Pending>>,
    /// The sender has ended this direction.
    pub eof: bool,
    /// The end was passed on to the receiver: this direction is over.
    pub done: bool,
    /// Above 0: bulk data, moved by splice.
    bulk: u8,
}

impl Flow {
    /// Whether reading has stopped until the receiver takes more.
    #[inline]
    pub fn blocked(&self) -> bool {
        match self.pending.as_deref() {
            None => false,
            Some(Pending::Copied(left)) => left.is_owed(),
            Some(Pending::Piped(..)) => true,
        }
    }

    /// Keep a copy of `bytes`: the first `due` of them go to the receiver as soon as it takes them, the
    /// others come back in front of what is read next.
    pub fn owe(&mut self, bytes: &[u8], due: usize) {
        self.keep(Leftover::new(bytes, due));
    }

    /// Keep what is left of copied bytes.
    #[inline]
    fn keep(&mut self, left: Option<Leftover>) {
        self.pending = left.map(|left| Box::new(Pending::Copied(left)));
    }

    /// The same for what a pipe holds.
    fn owe_piped(&mut self, pipe: Pipe, count: u32) {
        self.pending = Some(Box::new(Pending::Piped(pipe, count)));
    }

    /// Put what was held back at the start of `scratch`; how much that is.
    #[inline]
    fn bring_back(&mut self, scratch: &mut [u8]) -> usize {
        let Some(pending) = self.pending.take() else {
            return 0;
        };
        let Pending::Copied(left) = *pending else {
            return 0;
        };
        let held = left.held();
        match scratch.get_mut(..held.len()) {
            Some(start) => start.copy_from_slice(held),
            None => return 0,
        }
        held.len()
    }

    /// Take what was held back, and leave what the receiver is to get.
    pub fn take_held(&mut self) -> Vec<u8> {
        let Some(left) = self.leftover() else {
            return Vec::new();
        };
        let (held, rest) = left.split();
        self.keep(rest);
        held
    }

    fn leftover(&self) -> Option<&Leftover> {
        match self.pending.as_deref() {
            Some(Pending::Copied(left)) => Some(left),
            None | Some(Pending::Piped(..)) => None,
        }
    }

    /// Whether a pipe holds what the receiver has not taken.
    pub fn is_piped(&self) -> bool {
        matches!(self.pending.as_deref(), Some(Pending::Piped(..)))
    }

    /// Take back the pipe, if there is one.
    pub fn release(&mut self, pipes: &mut PipePool) {
        if let Some(pending) = self.pending.take()
            && let Pending::Piped(pipe, _) = *pending
        {
            pipes.discard(pipe);
        }
    }
}

/// What a worker lends to every flow that it pumps.
pub struct Tools {
    /// Where copied bytes pass through.
    pub scratch: Box<[u8]>,
    /// Where a message is put together that does not go out as it came in.
    pub assembled: Vec<u8>,
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
            assembled: Vec::new(),
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
    /// The tap lets nothing more pass. What came before was passed on.
    Stopped,
    /// The sender has ended, which the receiver is not to be told.
    Ended,
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
    /// The tap lets nothing more pass.
    Stopped,
}

/// Move what can be moved from `sender` to `receiver`.
#[inline]
pub fn pump<T: Tap>(
    flow: &mut Flow,
    tap: &mut T,
    sender: &OwnedFd,
    receiver: &OwnedFd,
    tools: &mut Tools,
) -> Outcome {
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
        match step(flow, tap, sender, receiver, tools) {
            // The socket is empty. An end of stream behind it will be reported.
            Step::Moved { drained: true, .. } if !flow.blocked() => return Outcome::Waiting,
            Step::Moved { bytes, .. } => {
                if bytes >= BULK && tap.unseen() >= BULK {
                    flow.bulk = BULK_PATIENCE;
                } else if tap.unseen() < BULK {
                    flow.bulk = flow.bulk.saturating_sub(1);
                }
            }
            Step::Empty => {
                if flow.bytes - before < BULK as u64 {
                    flow.bulk = flow.bulk.saturating_sub(1);
                }
                return Outcome::Waiting;
            }
            Step::End if !tap.passes_end() => return Outcome::Ended,
            Step::End => flow.eof = true,
            Step::Failed => return Outcome::SenderFailed,
            Step::ReceiverFailed => return Outcome::ReceiverFailed,
            Step::Stopped => return Outcome::Stopped,
        }
    }
}

/// Read once, in the way that suits what comes.
#[inline]
fn step<T: Tap>(
    flow: &mut Flow,
    tap: &mut T,
    sender: BorrowedFd<'_>,
    receiver: BorrowedFd<'_>,
    tools: &mut Tools,
) -> Step {
    if flow.bulk == 0 {
        return copy::step(flow, tap, SCRATCH, sender, receiver, tools);
    }
    match tap.unseen() {
        0 => copy::step(flow, tap, SIP, sender, receiver, tools),
        little if little < BULK => copy::step(flow, tap, little, sender, receiver, tools),
        much => splice::step(flow, tap, much, sender, receiver, tools),
    }
}

/// Pass on what `sender` said before it broke. Never an end: the error is told once, and a `send` to
/// that socket may have taken it; then a read says "end of stream".
pub fn salvage<T: Tap>(
    flow: &mut Flow,
    tap: &mut T,
    sender: &OwnedFd,
    receiver: &OwnedFd,
    tools: &mut Tools,
) {
    let (sender, receiver) = (sender.as_fd(), receiver.as_fd());
    let before = flow.bytes;
    // By copy: what was held back of a header goes first.
    flow.bulk = 0;
    while !flow.eof && flow.bytes - before < BUDGET as u64 {
        if flow.blocked() && !matches!(flush(flow, receiver, tools), Ok(true)) {
            return;
        }
        let step = step(flow, tap, sender, receiver, tools);
        if !matches!(step, Step::Moved { .. }) {
            return;
        }
    }
}

/// Pass on bytes that were read before the flow began.
pub fn feed<T: Tap>(
    flow: &mut Flow,
    tap: &mut T,
    bytes: &[u8],
    receiver: &OwnedFd,
    tools: &mut Tools,
) -> Outcome {
    let passing = see(tap, bytes);
    flow.keep(passing.behind(flow.leftover(), bytes));
    match flush(flow, receiver.as_fd(), tools) {
        Ok(_) if passing.stopped => Outcome::Stopped,
        Ok(_) => Outcome::Waiting,
        Err(_) => Outcome::ReceiverFailed,
    }
}

/// Put `bytes` into the stream behind all that was relayed; what the receiver does not take now is
/// owed. Only where nothing is owed already: an error else, since it would take the place of that.
pub fn inject(flow: &mut Flow, bytes: &[u8], receiver: &OwnedFd) -> Result<(), Errno> {
    if flow.blocked() {
        return Err(Errno::BUSY);
    }
    let sent = match copy::send(receiver.as_fd(), bytes) {
        Ok(sent) => sent,
        Err(Errno::AGAIN) => 0,
        Err(error) => return Err(error),
    };
    flow.bytes += sent as u64;
    let rest = bytes.get(sent..).unwrap_or_default();
    // A header that is not whole yet stays behind what is put before it.
    flow.keep(Leftover::put_before(flow.leftover(), rest));
    Ok(())
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
pub fn flush_owed(flow: &mut Flow, receiver: &OwnedFd, tools: &mut Tools) -> Result<bool, Errno> {
    flush(flow, receiver.as_fd(), tools)
}

fn flush(flow: &mut Flow, receiver: BorrowedFd<'_>, tools: &mut Tools) -> Result<bool, Errno> {
    match flow.pending.as_deref_mut() {
        None => Ok(true),
        Some(Pending::Copied(left)) => {
            while !left.rest().is_empty() {
                match copy::send(receiver, left.rest()) {
                    Ok(sent) => {
                        left.took(sent);
                        flow.bytes += sent as u64;
                        tools.copied += sent as u64;
                    }
                    Err(Errno::AGAIN) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            if left.held().is_empty() {
                flow.pending = None;
            }
            Ok(true)
        }
        Some(Pending::Piped(pipe, left)) => {
            let sent = splice::drain(pipe, left, receiver)?;
            flow.bytes += u64::from(sent);
            tools.spliced += u64::from(sent);
            if *left > 0 {
                return Ok(false);
            }
            if let Some(pending) = flow.pending.take()
                && let Pending::Piped(pipe, _) = *pending
            {
                tools.pipes.give_back(pipe);
            }
            Ok(true)
        }
    }
}
