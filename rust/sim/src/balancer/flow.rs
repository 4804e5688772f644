//! One direction of a tunnel, over fake sockets.
//!
//! Reading and writing is done here in the engine's order. What passes, what waits and what goes first is
//! asked of [`pybalancer_core::relay`], as the engine asks it.

use pybalancer_core::reattach::Halt;
use pybalancer_core::relay::{Leftover, Tap, see};

use crate::wire::{Broken, End, Read};
use crate::world::Context;

/// One direction.
#[derive(Debug, Default)]
pub struct Flow {
    /// Read and not sent.
    pub pending: Option<Leftover>,
    /// The sender has ended.
    pub eof: bool,
    /// The receiver knows.
    pub done: bool,
}

/// How far a flow got, as in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for one of its ends.
    Waiting,
    /// Every byte and the end were passed on.
    Done,
    /// The sender broke off.
    SenderFailed,
    /// The receiver did.
    ReceiverFailed,
    /// The tap lets nothing more pass.
    Stopped,
    /// The sender has ended, which the receiver is not to be told.
    Ended,
}

/// What a pump came to, and where the stream had to stop.
pub type Pumped = (Outcome, Option<Halt>);

impl Flow {
    /// Whether reading has stopped until the receiver takes more.
    pub fn blocked(&self) -> bool {
        self.pending.as_ref().is_some_and(Leftover::is_owed)
    }

    /// Take what was held back.
    pub fn take_held(&mut self) -> Vec<u8> {
        let Some((held, rest)) = self.pending.as_ref().map(Leftover::split) else {
            return Vec::new();
        };
        self.pending = rest;
        held
    }

    /// Send what is owed: whether nothing is any more.
    pub fn flush(&mut self, receiver: End, cx: &mut Context) -> Result<bool, Broken> {
        let Some(left) = &mut self.pending else {
            return Ok(true);
        };
        while left.is_owed() {
            let sent = cx.send(receiver, left.rest())?;
            if sent == 0 {
                return Ok(false);
            }
            left.took(sent);
        }
        if left.held().is_empty() {
            self.pending = None;
        }
        Ok(true)
    }

    /// Put bytes of our own behind all that was relayed.
    pub fn inject(&mut self, bytes: &[u8], receiver: End, cx: &mut Context) -> Result<(), Broken> {
        if self.blocked() {
            return Err(Broken);
        }
        let sent = cx.send(receiver, bytes)?;
        let rest = bytes.get(sent..).unwrap_or_default();
        self.pending = Leftover::put_before(self.pending.as_ref(), rest);
        Ok(())
    }

    /// Pass on bytes that were read before the flow began.
    pub fn feed<T: Tap>(
        &mut self,
        tap: &mut T,
        bytes: &[u8],
        receiver: End,
        cx: &mut Context,
    ) -> Outcome {
        let passing = see(tap, bytes);
        self.pending = passing.behind(self.pending.as_ref(), bytes);
        match self.flush(receiver, cx) {
            Ok(_) if passing.stopped => Outcome::Stopped,
            Ok(_) => Outcome::Waiting,
            Err(Broken) => Outcome::ReceiverFailed,
        }
    }

    /// Move what can be moved.
    pub fn pump<T: Tap>(
        &mut self,
        tap: &mut T,
        sender: End,
        receiver: End,
        cx: &mut Context,
    ) -> Outcome {
        loop {
            if self.blocked() {
                match self.flush(receiver, cx) {
                    Ok(true) => {}
                    Ok(false) => return Outcome::Waiting,
                    Err(Broken) => return Outcome::ReceiverFailed,
                }
            }
            if self.eof {
                if !self.done && cx.finish(receiver).is_err() {
                    return Outcome::ReceiverFailed;
                }
                self.done = true;
                return Outcome::Done;
            }
            let unseen = tap.unseen();
            if unseen > 0 && self.pending.is_none() && cx.random.chance(50) {
                // As splice does: payload goes by unseen.
                if let Read::Bytes(bytes) = cx.recv(sender, unseen) {
                    tap.skip(bytes.len());
                    let Ok(sent) = cx.send(receiver, &bytes) else {
                        return Outcome::ReceiverFailed;
                    };
                    let rest = bytes.get(sent..).unwrap_or_default();
                    self.pending = Leftover::new(rest, rest.len());
                    continue;
                }
            }
            let mut bytes = self
                .pending
                .take()
                .map_or_else(Vec::new, |left| left.held().to_vec());
            let most = match cx.random.below(3) {
                0 => cx.random.between(1, 40),
                1 => cx.random.between(1, 3000),
                _ => 65536,
            };
            match cx.recv(sender, most) {
                Read::Ended => {
                    let due = if tap.passes_end() { bytes.len() } else { 0 };
                    self.pending = Leftover::new(&bytes, due);
                    if !tap.passes_end() {
                        return Outcome::Ended;
                    }
                    self.eof = true;
                    continue;
                }
                Read::Empty => {
                    self.pending = Leftover::new(&bytes, 0);
                    return Outcome::Waiting;
                }
                Read::Reset => return Outcome::SenderFailed,
                Read::Bytes(more) => bytes.extend(more),
            }
            let passing = see(tap, &bytes);
            let passes = bytes.get(..passing.count).unwrap_or_default();
            let sent = if passes.is_empty() {
                Ok(0)
            } else {
                cx.send(receiver, passes)
            };
            let Ok(sent) = sent else {
                if tap.refused() {
                    self.pending = Leftover::new(&bytes, 0);
                }
                return Outcome::ReceiverFailed;
            };
            if passing.stopped || sent < bytes.len() {
                self.pending = passing.left(tap, &bytes, sent);
            }
            if passing.stopped {
                return Outcome::Stopped;
            }
        }
    }
}
