//! Readiness: one epoll instance per worker, level-triggered.
//!
//! # Why level-triggered
//!
//! Edge-triggered looks cheaper: a socket is registered once, for both directions, and never again.
//! Measured, it costs 7 to 9 % more processor time per message when a hundred connections are busy
//! (`python -m bench.wire --only small` shows the level-triggered floor beside it). A level-triggered
//! socket stays on the kernel's ready list after it was reported; `epoll_wait` polls it there once more,
//! and what has come meanwhile is found without a callback, a wake-up or a sleep in between.
//!
//! It is simpler, too: work that was cut short is reported again by itself, and so is an end of
//! stream that stood behind the last bytes. The price is that interest must follow what a tunnel can
//! do: none in reading while the other side takes nothing (back-pressure), none after the end of a
//! stream, none in writing unless something waits. That is [`Interest`], changed only when it differs.
//!
//! HUP and ERR cannot be masked. A socket that is over in both directions while its last bytes still
//! wait for the other side would be reported without end, so it is taken out until then.
//!
//! # Why stale events cannot hurt
//!
//! One `epoll_wait` returns many events, and handling one may close the socket of another, whose
//! descriptor and slot are then reused at once. So a token carries the slot and a generation that is
//! never used twice in 2³² tunnels; an event whose generation is not that of the slot is dropped.
//! Closing a descriptor deregisters it when no other descriptor refers to the same socket. Tunnels'
//! sockets are made in the worker's private table and never duplicated, so closing is enough; what
//! is duplicated (listeners) is deregistered first, since its registration would outlive the
//! descriptor and could not be removed any more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::Timespec;

pub use rustix::event::epoll::{Event, EventFlags};

/// Which end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Towards whoever connected to us.
    Client = 0,
    /// Towards whom we connected to.
    Backend = 1,
}

/// Whom an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The worker's control socket.
    Control,
    /// A listener, by its place among the worker's listeners' keys. Fits 31 bits.
    Listener(u32),
    /// A channel to another process, by its place among the worker's. Fits 31 bits.
    Channel(u32),
    /// One end of a tunnel. `generation` is never 0, and `slot` fits 31 bits.
    Tunnel {
        /// Index into the worker's slab.
        slot: u32,
        /// Which tunnel of those that lived in that slot.
        generation: u32,
        /// Which of its two sockets.
        side: Side,
    },
}

/// What one end of a tunnel is watched for. Errors and hang-ups are reported for any but `UNWATCHED`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// Not registered.
    pub const UNWATCHED: Interest = Interest(0);
    /// Errors and hang-ups only.
    pub const ENDS: Interest = Interest(1);
    /// Something to read.
    pub const READ: Interest = Interest(3);
    /// Room to write.
    pub const WRITE: Interest = Interest(5);
    /// Something *new* to read (edge-triggered): what is there is only looked at, not taken.
    pub const NEWS: Interest = Interest(11);

    /// Both.
    pub fn and(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.0 & 2 != 0);
        flags.set(EventFlags::OUT, self.0 & 4 != 0);
        // An end behind bytes that are only looked at would otherwise stay unseen.
        flags.set(EventFlags::ET | EventFlags::RDHUP, self.0 & 8 != 0);
        flags
    }
}

const CONTROL: u64 = 0xffff_ffff;
const CHANNEL: u32 = 0x8000_0000;

impl Token {
    fn encode(self) -> u64 {
        match self {
            Token::Control => CONTROL,
            Token::Listener(key) => u64::from(key),
            Token::Channel(place) => u64::from(CHANNEL | place),
            Token::Tunnel {
                slot,
                generation,
                side,
            } => u64::from(generation) << 32 | u64::from(slot) << 1 | side as u64,
        }
    }

    /// The token that an event carries.
    #[inline]
    pub fn of(event: &Event) -> Token {
        let bits = event.data.u64();
        let (generation, low) = ((bits >> 32) as u32, bits as u32);
        if generation != 0 {
            let side = if low & 1 == 0 {
                Side::Client
            } else {
                Side::Backend
            };
            Token::Tunnel {
                slot: low >> 1,
                generation,
                side,
            }
        } else if bits == CONTROL {
            Token::Control
        } else if low & CHANNEL != 0 {
            Token::Channel(low & !CHANNEL)
        } else {
            Token::Listener(low)
        }
    }
}

/// How many events one call may return. Larger batches save calls under load and cost latency
/// only to those at their end; 512 events are 6 KiB, which stay in the first-level cache.
const BATCH: usize = 512;

/// An epoll instance and the events of its last call.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    /// A new, empty instance.
    pub fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller {
            epoll,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Watch one end of a tunnel for `to`; `from` is what it was watched for before. Nothing is done
    /// where nothing changes.
    #[inline]
    pub fn watch(
        &self,
        fd: impl AsFd,
        token: Token,
        from: Interest,
        to: Interest,
    ) -> io::Result<()> {
        if from == to {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(token.encode());
        match (from, to) {
            (_, Interest::UNWATCHED) => epoll::delete(&self.epoll, fd)?,
            (Interest::UNWATCHED, _) => epoll::add(&self.epoll, fd, data, to.flags())?,
            _ => epoll::modify(&self.epoll, fd, data, to.flags())?,
        }
        Ok(())
    }

    /// Watch a listener or the control socket: level-triggered, so that what one turn leaves is
    /// reported again. `shared` listeners wake one worker per connection, not all.
    pub fn add_level(&self, fd: impl AsFd, token: Token, shared: bool) -> io::Result<()> {
        let exclusive = if shared {
            EventFlags::EXCLUSIVE
        } else {
            EventFlags::empty()
        };
        let data = epoll::EventData::new_u64(token.encode());
        Ok(epoll::add(
            &self.epoll,
            fd,
            data,
            EventFlags::IN | exclusive,
        )?)
    }

    /// Stop watching.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Wait for events, at most `timeout` (None: without end), and return them.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[Event]> {
        self.events.clear();
        // A time beyond what the kernel's type holds is as good as for ever; round up, so as not to
        // wake just before the deadline and spin.
        let timeout = timeout.and_then(|span| {
            Some(Timespec {
                tv_sec: i64::try_from(span.as_secs()).ok()?,
                tv_nsec: i64::from(span.subsec_nanos()),
            })
        });
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(&self.events),
            Err(error) => Err(error.into()),
        }
    }

    /// Event `index` of the last call.
    #[inline]
    pub fn event(&self, index: usize) -> Option<Event> {
        self.events.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        for token in [
            Token::Control,
            Token::Listener(0),
            Token::Listener(77),
            Token::Channel(0),
            Token::Channel(1023),
            Token::Tunnel {
                slot: 0,
                generation: 1,
                side: Side::Client,
            },
            Token::Tunnel {
                slot: (1 << 31) - 1,
                generation: u32::MAX,
                side: Side::Backend,
            },
        ] {
            let event = Event {
                flags: EventFlags::IN,
                data: epoll::EventData::new_u64(token.encode()),
            };
            assert_eq!(Token::of(&event), token);
        }
    }
}
