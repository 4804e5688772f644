//! Counters in shared memory, laid out as `pybalancer_stats.h` says.
//!
//! The layout is described once more here because Rust writes what C describes; a test compares
//! every offset with what cffi computes from the header.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{MemfdFlags, Mode, OFlags};

use crate::sys::SharedMemory;

/// "PBSTATS1" in little-endian order.
pub const MAGIC: u64 = 0x3153_5441_5453_4250;
/// Version of the layout.
pub const VERSION: u32 = 4;
/// Listeners and backends together, over all plans whose tunnels still live.
pub const ENTRIES: usize = 4096;

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[allow(missing_docs, dead_code, reason = "documented in pybalancer_stats.h; only laid out, never made")]
        pub struct $name { $(pub $field: $kind),* }

        impl $name {
            /// Field name, offset, size; the struct itself under the name "".
            pub fn layout() -> Vec<(&'static str, usize, usize)> {
                let mut fields = vec![("", 0, size_of::<Self>())];
                $(fields.push((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$kind>()));)*
                fields
            }
        }
    };
}

layout! {
    /// `pb_header`
    Header {
        magic: u64, version: u32, header_size: u32, entry_size: u32, worker_size: u32,
        listener_size: u32, backend_size: u32, workers: u32, entries: u32, pid: u32, reserved: u32,
        entries_offset: u64, workers_offset: u64, listeners_offset: u64, backends_offset: u64,
        total_size: u64, started_unix_ns: u64, generation: u64, reserved2: [u64; 3],
    }
}
layout! {
    /// `pb_entry`
    Entry {
        kind: u32, active: u32, generation: u64, pool: [u8; 64], name: [u8; 64], address: [u8; 112],
    }
}
layout! {
    /// `pb_worker`
    WorkerSlot {
        wakeups: u64, events: u64, accepted: u64, opened: u64, closed: u64, bytes_copied: u64,
        bytes_spliced: u64, accept_pauses: u64, restarts: u64, descriptors: u64, pipes: u64,
        log_dropped: u64, generation: u64, waiting: u64, reserved: [u64; 2],
    }
}
layout! {
    /// `pb_listener`
    ListenerSlot {
        accepted: u64, opened: u64, closed: u64, refused_full: u64, refused_source: u64,
        refused_rate: u64, refused_proxy: u64, refused_no_backend: u64, queued: u64, bytes_in: u64,
        bytes_out: u64, requests: u64, handshakes: u64, refused_request: u64, messages_in: u64,
        messages_out: u64, pings: u64, closes: [u64; 20], reattached: u64,
        reattach_failed: u64, directed: u64, redirected: u64, put_off: u64, reserved: [u64; 6],
    }
}
layout! {
    /// `pb_backend`
    BackendSlot {
        connects: u64, connect_failures: u64, ports_exhausted: u64, opened: u64, closed: u64,
        resets: u64, bytes_to_backend: u64, bytes_to_client: u64, connect_ns: u64, fallbacks: u64,
        bad_answers: u64, sent: u64, reserved: [u64; 4],
    }
}

/// What an entry describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A listener.
    Listener = 1,
    /// A backend of a pool.
    Backend = 2,
}

const WORKERS_OFFSET: usize = size_of::<Header>() + ENTRIES * size_of::<Entry>();

/// The whole of the shared memory.
pub struct Stats {
    memory: SharedMemory,
    workers: usize,
}

impl Stats {
    /// In a memfd, or in the file at `path` (made anew, readable by its owner only); and that file,
    /// to be mapped by readers.
    pub fn new(workers: usize, path: Option<&Path>) -> io::Result<(Arc<Stats>, OwnedFd)> {
        let file = match path {
            None => {
                let file = rustix::fs::memfd_create("pybalancer-stats", MemfdFlags::CLOEXEC)?;
                crate::sys::above_standard_streams(file)?
            }
            Some(path) => {
                // Never truncate in place: a reader that has the old one mapped would get SIGBUS.
                match rustix::fs::unlink(path) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
                crate::sys::above_standard_streams(file)?
            }
        };
        let listeners_offset = WORKERS_OFFSET + workers * size_of::<WorkerSlot>();
        let backends_offset = listeners_offset + workers * ENTRIES * size_of::<ListenerSlot>();
        let total = backends_offset + workers * ENTRIES * size_of::<BackendSlot>();
        rustix::fs::ftruncate(&file, total as u64)?;
        let memory = SharedMemory::map(&file, total)?;
        let stats = Stats { memory, workers };
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        let word = |offset: usize, value: usize| {
            stats
                .memory
                .word(offset)
                .store(value as u32, Ordering::Relaxed)
        };
        let long = |offset: usize, value: usize| {
            stats
                .memory
                .counter(offset)
                .store(value as u64, Ordering::Relaxed)
        };
        word(std::mem::offset_of!(Header, version), VERSION as usize);
        word(
            std::mem::offset_of!(Header, header_size),
            size_of::<Header>(),
        );
        word(std::mem::offset_of!(Header, entry_size), size_of::<Entry>());
        word(
            std::mem::offset_of!(Header, worker_size),
            size_of::<WorkerSlot>(),
        );
        word(
            std::mem::offset_of!(Header, listener_size),
            size_of::<ListenerSlot>(),
        );
        word(
            std::mem::offset_of!(Header, backend_size),
            size_of::<BackendSlot>(),
        );
        word(std::mem::offset_of!(Header, workers), workers);
        word(std::mem::offset_of!(Header, entries), ENTRIES);
        word(
            std::mem::offset_of!(Header, pid),
            std::process::id() as usize,
        );
        long(
            std::mem::offset_of!(Header, entries_offset),
            size_of::<Header>(),
        );
        long(std::mem::offset_of!(Header, workers_offset), WORKERS_OFFSET);
        long(
            std::mem::offset_of!(Header, listeners_offset),
            listeners_offset,
        );
        long(
            std::mem::offset_of!(Header, backends_offset),
            backends_offset,
        );
        long(std::mem::offset_of!(Header, total_size), total);
        long(
            std::mem::offset_of!(Header, started_unix_ns),
            started as usize,
        );
        // The magic comes last: who sees it sees a complete header.
        stats.memory.counter(0).store(MAGIC, Ordering::Release);
        Ok((Arc::new(stats), file))
    }

    /// The generation that all workers run.
    pub fn generation(&self) -> &AtomicU64 {
        self.memory
            .counter(std::mem::offset_of!(Header, generation))
    }

    /// Describe an entry; its counters start from zero.
    pub fn describe(
        &self,
        entry: usize,
        kind: Kind,
        generation: u64,
        pool: &str,
        name: &str,
        address: &str,
    ) {
        let base = size_of::<Header>() + entry * size_of::<Entry>();
        self.memory.word(base).store(0, Ordering::Release);
        self.put_text(base + std::mem::offset_of!(Entry, pool), 64, pool);
        self.put_text(base + std::mem::offset_of!(Entry, name), 64, name);
        self.put_text(base + std::mem::offset_of!(Entry, address), 112, address);
        self.active(entry).store(0, Ordering::Relaxed);
        for worker in 0..self.workers {
            for field in (0..size_of::<ListenerSlot>()).step_by(8) {
                self.listener_base(worker, entry, field)
                    .store(0, Ordering::Relaxed);
            }
            for field in (0..size_of::<BackendSlot>()).step_by(8) {
                self.backend_base(worker, entry, field)
                    .store(0, Ordering::Relaxed);
            }
        }
        self.memory
            .counter(base + std::mem::offset_of!(Entry, generation))
            .store(generation, Ordering::Relaxed);
        self.memory.word(base).store(kind as u32, Ordering::Release);
    }

    /// Forget an entry.
    pub fn forget(&self, entry: usize) {
        self.memory
            .word(size_of::<Header>() + entry * size_of::<Entry>())
            .store(0, Ordering::Release);
    }

    /// Live tunnels of an entry, over all workers.
    pub fn active(&self, entry: usize) -> &AtomicU32 {
        let base = size_of::<Header>() + entry * size_of::<Entry>();
        self.memory.word(base + std::mem::offset_of!(Entry, active))
    }

    fn put_text(&self, offset: usize, size: usize, text: &str) {
        let mut bytes = vec![0_u8; size];
        let length = text.len().min(size - 1);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        for (index, chunk) in bytes.chunks_exact(8).enumerate() {
            let mut eight = [0; 8];
            eight.copy_from_slice(chunk);
            self.memory
                .counter(offset + index * 8)
                .store(u64::from_ne_bytes(eight), Ordering::Relaxed);
        }
    }

    fn listener_base(&self, worker: usize, entry: usize, field: usize) -> &AtomicU64 {
        let start = WORKERS_OFFSET + self.workers * size_of::<WorkerSlot>();
        self.memory
            .counter(start + (worker * ENTRIES + entry) * size_of::<ListenerSlot>() + field)
    }

    fn backend_base(&self, worker: usize, entry: usize, field: usize) -> &AtomicU64 {
        let start = WORKERS_OFFSET
            + self.workers * size_of::<WorkerSlot>()
            + self.workers * ENTRIES * size_of::<ListenerSlot>();
        self.memory
            .counter(start + (worker * ENTRIES + entry) * size_of::<BackendSlot>() + field)
    }
}

/// The slots that one worker writes.
#[derive(Clone)]
pub struct Counters {
    stats: Arc<Stats>,
    worker: usize,
}

/// Add to a counter that only this thread writes: a plain load and store, no locked instruction.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

macro_rules! field {
    ($kind:ident, $field:ident) => {
        std::mem::offset_of!($crate::stats::$kind, $field)
    };
}
pub(crate) use field;

impl Counters {
    /// Those of worker `worker`.
    pub fn new(stats: &Arc<Stats>, worker: usize) -> Counters {
        Counters {
            stats: Arc::clone(stats),
            worker,
        }
    }

    /// Add to a worker counter; `field` by `field!(WorkerSlot, …)`.
    #[inline]
    pub fn worker(&self, field: usize, by: u64) {
        bump(
            self.stats
                .memory
                .counter(WORKERS_OFFSET + self.worker * size_of::<WorkerSlot>() + field),
            by,
        );
    }

    /// Set a worker gauge.
    #[inline]
    pub fn gauge(&self, field: usize, value: u64) {
        let offset = WORKERS_OFFSET + self.worker * size_of::<WorkerSlot>() + field;
        self.stats
            .memory
            .counter(offset)
            .store(value, Ordering::Relaxed);
    }

    /// Add to a counter of a listener.
    #[inline]
    pub fn listener(&self, entry: u32, field: usize, by: u64) {
        bump(
            self.stats.listener_base(self.worker, entry as usize, field),
            by,
        );
    }

    /// Add to a counter of a backend.
    #[inline]
    pub fn backend(&self, entry: u32, field: usize, by: u64) {
        bump(
            self.stats.backend_base(self.worker, entry as usize, field),
            by,
        );
    }

    /// The live tunnels of an entry.
    #[inline]
    pub fn active(&self, entry: u32) -> &AtomicU32 {
        self.stats.active(entry as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_whole_cache_lines() {
        assert_eq!(size_of::<Header>(), 128);
        assert_eq!(size_of::<Entry>(), 256);
        for size in [
            size_of::<WorkerSlot>(),
            size_of::<ListenerSlot>(),
            size_of::<BackendSlot>(),
        ] {
            assert_eq!(size % 64, 0);
        }
    }

    #[test]
    fn a_described_entry_starts_from_zero() {
        let (stats, _file) = Stats::new(2, None).unwrap();
        let counters = Counters::new(&stats, 1);
        counters.backend(9, field!(BackendSlot, opened), 5);
        stats.describe(9, Kind::Backend, 1, "pool", "näme", "127.0.0.1:1");
        assert_eq!(
            stats
                .backend_base(1, 9, field!(BackendSlot, opened))
                .load(Ordering::Relaxed),
            0
        );
        counters.backend(9, field!(BackendSlot, opened), 2);
        assert_eq!(
            stats
                .backend_base(1, 9, field!(BackendSlot, opened))
                .load(Ordering::Relaxed),
            2
        );
    }
}
