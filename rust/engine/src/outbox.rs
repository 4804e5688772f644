//! What workers tell the host: events for policy, records for the log.
//!
//! Workers never wait for the host. Both queues are bounded: events are few (failures are folded
//! before they get here), and a log that nobody reads loses its newest records and counts them.
//!
//! One eventfd wakes the host for both. It is written once, then not again until the host has
//! looked (`armed`), so a storm of connections costs the host one wake-up and the workers one
//! system call.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;
use rustix::event::EventfdFlags;

use crate::log::Line;

/// Something that policy must hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Connects to a backend failed since the last such event (at most one per 100 ms and worker).
    ConnectFailed {
        /// Which worker saw it.
        worker: usize,
        /// Its pool.
        pool: Arc<str>,
        /// The backend.
        backend: Arc<str>,
        /// How often.
        count: u64,
        /// The last error, for people.
        message: String,
    },
    /// A worker panicked; its tunnels are lost.
    WorkerDied {
        /// Which.
        worker: usize,
        /// How many tunnels it had.
        tunnels: u64,
        /// What it said.
        message: String,
    },
    /// It runs again.
    WorkerRestarted {
        /// Which.
        worker: usize,
    },
    /// A worker is out of descriptors or memory and takes no connections for now.
    AcceptPaused {
        /// Which.
        worker: usize,
        /// Why.
        message: String,
    },
    /// It takes connections again.
    AcceptResumed {
        /// Which.
        worker: usize,
    },
    /// A source address of the pool cannot be used.
    SourceFailed {
        /// Which worker noticed.
        worker: usize,
        /// The pool.
        pool: Arc<str>,
        /// How often since the last such event.
        count: u64,
        /// Which, and what the system said.
        message: String,
    },
    /// No source address of the pool has a free port towards the backend.
    PortsExhausted {
        /// Which worker noticed.
        worker: usize,
        /// The pool.
        pool: Arc<str>,
        /// The backend.
        backend: Arc<str>,
        /// How often since the last such event.
        count: u64,
    },
}

/// Events kept; policy that never looks must not grow the host.
const MOST_EVENTS: usize = 4096;
/// Records kept: at 10,000 connections a second, more than a second and a half.
const MOST_LINES: usize = 16_384;

/// The way out of the workers.
pub struct Outbox {
    events: Mutex<VecDeque<Event>>,
    lines: ArrayQueue<Line>,
    /// Whether lines are wanted at all.
    logging: AtomicBool,
    dropped: AtomicU64,
    armed: AtomicBool,
    /// The eventfd by its number: the host owns it, and each worker's table has it under the same.
    wake: RawFd,
}

impl Outbox {
    /// An empty one, and the eventfd that its owner must keep open for as long as workers live.
    pub fn new() -> std::io::Result<(Arc<Outbox>, OwnedFd)> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let wake = crate::sys::above_standard_streams(wake)?;
        let outbox = Outbox {
            events: Mutex::new(VecDeque::new()),
            lines: ArrayQueue::new(MOST_LINES),
            logging: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            armed: AtomicBool::new(true),
            wake: wake.as_raw_fd(),
        };
        Ok((Arc::new(outbox), wake))
    }

    /// Tell policy.
    pub fn tell(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < MOST_EVENTS {
            events.push_back(event);
        }
        drop(events);
        self.ring();
    }

    /// Whether connections are logged.
    #[inline]
    pub fn logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Log connections, or stop it.
    pub fn set_logging(&self, enabled: bool) {
        self.logging.store(enabled, Ordering::Relaxed);
    }

    /// Log a connection that ended; false if there was no room.
    pub fn log(&self, line: Line) -> bool {
        let kept = self.lines.push(line).is_ok();
        if !kept {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.ring();
        kept
    }

    /// Records lost so far because nobody read them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Take what was told. For the host. Records that wait do not ring again on their own account: a
    /// log that cannot be written must not keep the host awake.
    pub fn take_events(&self) -> Vec<Event> {
        self.rearm();
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }

    /// Take up to `most` records, oldest first. For the host.
    pub fn take_lines(&self, most: usize, mut each: impl FnMut(&Line)) {
        self.rearm();
        for line in std::iter::from_fn(|| self.lines.pop()).take(most) {
            each(&line);
        }
        let events_wait = !self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        if events_wait || !self.lines.is_empty() {
            self.ring();
        }
    }

    fn ring(&self) {
        // Pairs with the fence in `rearm`: either this sees that the host waits, or the host, looking
        // after it has said so, sees what was pushed.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Acquire) && self.armed.swap(false, Ordering::AcqRel) {
            let _ = rustix::io::write(self.descriptor(), &1_u64.to_ne_bytes());
        }
    }

    fn rearm(&self) {
        let _ = rustix::io::read(self.descriptor(), &mut [0_u8; 8]);
        // Before the queues are looked at: what comes after this rings again.
        self.armed.store(true, Ordering::Release);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        crate::sys::borrow_shared_number(self.wake)
    }
}
