//! What rustix cannot promise safely: private descriptor tables, signal masks, shared memory and
//! the socket options that it does not name. All `unsafe` of the engine is here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::UnshareFlags;

/// Give the calling thread a descriptor table of its own that holds only `keep` and 0–2.
///
/// Why: a table has its own limit (RLIMIT_NOFILE counts per table, so four workers hold four times
/// as many sockets), a table with one user needs no reference counting of files on every system
/// call, and a `fork` elsewhere in the process copies none of what is in here.
///
/// What it costs: a descriptor number means nothing in another thread. Whatever a worker shall use
/// is in `keep` or comes over its control socket (SCM_RIGHTS).
pub fn take_private_table(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: the caller is a thread that the engine has just started; it owns no descriptor yet
    // except those in `keep`, and hands none of its own to other threads by number.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES)? };
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX)?;
    occupy_standard_streams()
}

/// Point 0–2 at /dev/null: they must stay taken, since a library that writes to "standard error"
/// would otherwise write into whichever socket got number 2; but the host's pipes behind them must
/// not be held open by our copies.
fn occupy_standard_streams() -> io::Result<()> {
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    // A chroot without /dev/null keeps the copies: the smaller evil.
    let Ok(null) = null else { return Ok(()) };
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    if null.as_raw_fd() <= 2 {
        // It was closed before and open() took its place: leave it there.
        std::mem::forget(null);
    }
    Ok(())
}

/// The descriptor `number` of whichever table the calling thread uses.
///
/// For the one descriptor that host and workers know by the same number: the outbox's eventfd. The
/// host keeps it open until its workers are gone, and a private table never closes what it was told
/// to keep.
pub fn borrow_shared_number(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: see above; after the host has closed it nobody calls this any more, since the engine
    // joins its workers first.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Close this table's copy of a descriptor whose owner lives in another table.
pub fn close_number(number: RawFd) {
    // SAFETY: the number was moved, as part of its owner, to a thread with a table of its own; here
    // nobody owns it any more, and nobody has closed it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

/// The descriptor `number` of this table, whose owner gives it away; an error if there is none.
///
/// For what comes from Python, where descriptors are numbers.
pub fn take_number(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for one system call that tells whether it is open at all.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open, and the caller says that nobody else will close it: whoever gave it away knows
    // it as a number only, and has promised to forget that.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The same descriptor under a number above 2: a worker's table has /dev/null there, even if the host
/// was started without standard streams.
pub fn above_standard_streams(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, 3)?)
}

/// Give freed memory back to the system. An allocator keeps it in the hope of the next storm; a balancer
/// with a million quiet sockets has better uses for it.
pub fn give_memory_back() {
    // SAFETY: takes no pointers and may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: only called on a table that no other thread shares, and only over numbers that no
    // owned descriptor of this thread has.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// All signals blocked on this thread until dropped; threads started meanwhile keep them blocked.
///
/// A host's handlers expect to run in the host's threads: Python's writes to a wake-up descriptor
/// by number, which in a worker's table is some client's socket. SIGPIPE too: `splice` to a dead
/// peer raises it whatever the flags, and a host may have reset it to its deadly default.
pub struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    /// Block them.
    pub fn begin() -> SignalsBlocked {
        // SAFETY: sigfillset initialises the first set, pthread_sigmask the second; both pointers
        // are to live locals.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut old = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            SignalsBlocked(old)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set came from pthread_sigmask.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

fn set_int(fd: impl AsFd, level: libc::c_int, option: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads the four bytes of `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// From linux/in.h (Linux 6.3); not in libc yet on every target.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// Choose outgoing ports from `low..=high`, all of them.
///
/// Also useful with the system's own range: a plain connect looks at every second port first, and
/// gets slow when those are taken.
pub fn set_local_port_range(fd: impl AsFd, low: u16, high: u16) -> io::Result<()> {
    set_int(
        fd,
        libc::IPPROTO_IP,
        IP_LOCAL_PORT_RANGE,
        u32::from(high) << 16 | u32::from(low),
    )
}

/// Leave the choice of a port to `connect`, which knows the destination: the same port may then
/// serve many destinations.
pub fn set_bind_address_no_port(fd: impl AsFd) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Bind to an address that is not ours (needs CAP_NET_ADMIN or CAP_NET_RAW, and routes that bring
/// the answers back).
pub fn set_transparent(fd: impl AsFd, v6: bool) -> io::Result<()> {
    if v6 {
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1)
    } else {
        set_int(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1)
    }
}

/// A shared mapping of a whole file, zeroed where the file was grown.
pub struct SharedMemory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is only reached through `counter`/`word`, which hand out atomics.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Map `length` bytes of `file`, which must have at least that size.
    pub fn map(file: &OwnedFd, length: usize) -> io::Result<SharedMemory> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours; other
        // processes only read it, and all our access is atomic.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let start = NonNull::new(start.cast())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(SharedMemory { start, length })
    }

    /// The 64-bit counter at `offset`; an offset outside or misaligned gets the last one, so that
    /// a mistake can spoil a figure but not memory.
    pub fn counter(&self, offset: usize) -> &AtomicU64 {
        let in_bounds =
            offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.length);
        debug_assert!(in_bounds, "counter at {offset} of {}", self.length);
        let offset = if in_bounds {
            offset
        } else {
            (self.length - 8) & !7
        };
        // SAFETY: in bounds and aligned (the mapping starts on a page), alive as long as `self`;
        // any bit pattern is a valid u64, and every access in this process is atomic.
        unsafe { &*self.start.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// The 32-bit word at `offset`, bounded as `counter`.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        let in_bounds =
            offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= self.length);
        debug_assert!(in_bounds, "word at {offset} of {}", self.length);
        let offset = if in_bounds {
            offset
        } else {
            (self.length - 4) & !3
        };
        // SAFETY: as in `counter`, for four bytes.
        unsafe { &*self.start.as_ptr().add(offset).cast::<AtomicU32>() }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrowed `self`. Failure can
        // only mean that it is gone already.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_table_keeps_only_what_it_is_told_to() {
        let (kept, _peer) = rustix::pipe::pipe().unwrap();
        let (other, _peer2) = rustix::pipe::pipe().unwrap();
        let (kept_fd, other_fd) = (kept.as_raw_fd(), other.as_raw_fd());
        std::thread::spawn(move || {
            take_private_table(&[kept_fd]).unwrap();
            let valid =
                |fd: RawFd| std::fs::read_link(format!("/proc/thread-self/fd/{fd}")).is_ok();
            assert!(valid(kept_fd) && !valid(other_fd) && valid(0) && valid(2));
        })
        .join()
        .unwrap();
        // Here nothing was closed.
        rustix::io::fcntl_getfd(&other).unwrap();
    }

    #[test]
    fn shared_memory_is_seen_through_the_file() {
        let file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let memory = SharedMemory::map(&file, 4096).unwrap();
        memory
            .counter(8)
            .store(0x0102_0304_0506_0708, std::sync::atomic::Ordering::Relaxed);
        let mut bytes = [0; 8];
        rustix::io::pread(&file, &mut bytes, 8).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 0x0102_0304_0506_0708);
    }
}
