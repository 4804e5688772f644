//! Readiness: one epoll instance per worker, edge-triggered for tunnels.
//!
//! # Why edge-triggered
//!
//! A level-triggered socket goes back to the end of the kernel's ready list each time it is
//! reported, only to be polled again and dropped on the next `epoll_wait`: one wasted poll per
//! message. Edge-triggered, a socket is registered once, for both directions, and never again.
//! The price is discipline, kept in `relay`:
//!
//! - A read that returned less than asked emptied the socket *at that moment*; whatever arrives
//!   later makes a new edge. So a short read ends the work without a second `recv` just to see EAGAIN.
//! - Except at the end of a stream: FIN makes its edge once, and data and FIN may share it. So once
//!   RDHUP, HUP or ERR was seen, reading goes on until 0 or an error.
//! - A short or refused write is followed by an edge when there is room again (the kernel notes the
//!   want of space on that very call). So nothing is lost by not asking for EPOLLOUT separately.
//! - Work cut off by the fairness budget makes no new edge: the worker keeps its own list of those.
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
    /// A listener, by its place among the worker's listeners' keys.
    Listener(u32),
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

const CONTROL: u64 = 0xffff_ffff;

impl Token {
    fn encode(self) -> u64 {
        match self {
            Token::Control => CONTROL,
            Token::Listener(key) => u64::from(key),
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

    /// Watch one end of a tunnel for everything, once and for all.
    pub fn add_tunnel(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token.encode()),
            flags,
        )?)
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
