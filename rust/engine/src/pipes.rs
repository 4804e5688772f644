//! Pipes for `splice`, pooled by each worker.
//!
//! A pipe costs two descriptors and some kernel memory, and is needed only while a direction of a
//! tunnel moves bulk data, so idle ones go back to the pool, empty. The kernel bounds the memory of
//! an unprivileged user's pipes: past the soft quota it makes them small, past the hard one it
//! refuses. Neither is an error here: a small pipe works, and without one the bytes are copied.

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};

/// Capacity asked for. Loopback and GRO hand over fragments of up to 32 KiB, one per page slot.
const CAPACITY: usize = 256 * 1024;
/// Idle pipes kept.
const POOLED: usize = 64;
/// Pipes at most: two descriptors each, out of those that tunnels need.
const MOST: usize = 1024;

/// A pipe whose emptiness its owner knows.
#[derive(Debug)]
pub struct Pipe {
    /// The end that is read.
    pub out: OwnedFd,
    /// The end that is written.
    pub into: OwnedFd,
}

/// The pipes of one worker.
#[derive(Default)]
pub struct PipePool {
    idle: Vec<Pipe>,
    made: usize,
    short: bool,
}

impl PipePool {
    /// An empty pipe, or None if there can be no more: then copy.
    pub fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.made >= MOST || self.short {
            return None;
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused past the quota: the default size does too.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, CAPACITY);
        self.made += 1;
        Some(Pipe { out, into })
    }

    /// Whether there are descriptors for more pipes. Without, bytes are copied.
    #[inline]
    pub fn leave_room(&mut self, enough: bool) {
        self.short = !enough;
        if self.short && !self.idle.is_empty() {
            self.made -= self.idle.len();
            self.idle.clear();
        }
    }

    /// Give back a pipe that is empty.
    pub fn give_back(&mut self, pipe: Pipe) {
        if self.idle.len() < POOLED {
            self.idle.push(pipe);
        } else {
            self.discard(pipe);
        }
    }

    /// Close a pipe that still holds bytes: its tunnel was aborted.
    pub fn discard(&mut self, pipe: Pipe) {
        drop(pipe);
        self.made = self.made.saturating_sub(1);
    }

    /// Pipes in use and pooled.
    pub fn made(&self) -> usize {
        self.made
    }
}
