//! Waiting until no packet sees what was replaced, without making anybody wait who need not.
//!
//! Tables and backends have two places each, of which one is live. To replace is to write the other place and
//! then flip, which is one store. A packet that was under way at the flip may still read the old place, so
//! that one may be overwritten only after a grace period. It takes the kernel some 10 ms to be sure; nothing
//! waits for that unless the same thing changes again within them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::thread::JoinHandle;

use crate::{loader, sys};

/// Flips, and which of them nobody can be in front of any more.
#[derive(Default)]
pub struct Grace {
    flips: u64,
    over: u64,
    waiting: Option<(u64, JoinHandle<io::Result<()>>)>,
}

impl Grace {
    /// Note a flip; its number.
    pub fn flipped(&mut self) -> u64 {
        self.flips += 1;
        self.flips
    }

    /// Wait aside for the grace period of all flips so far.
    pub fn begin(&mut self) {
        if self
            .waiting
            .as_ref()
            .is_some_and(|(_, thread)| !thread.is_finished())
        {
            return;
        }
        self.finish();
        if self.over < self.flips {
            let wait = std::thread::Builder::new().name("pb-grace".to_owned());
            // Without a thread it is waited for when it is needed.
            if let Ok(thread) = wait.spawn(wait_for_packets) {
                self.waiting = Some((self.flips, thread));
            }
        }
    }

    fn finish(&mut self) {
        if let Some((flip, thread)) = self.waiting.take()
            && matches!(thread.join(), Ok(Ok(())))
        {
            self.over = self.over.max(flip);
        }
    }

    /// Return once the flip of this number is over.
    pub fn wait(&mut self, flip: u64) -> io::Result<()> {
        if flip > self.over {
            self.finish();
        }
        if flip > self.over {
            wait_for_packets()?;
            self.over = self.flips;
        }
        Ok(())
    }
}

/// Wait until every packet that is being handled has been handled: what was taken out of the programs' sight before
/// is in no program's hands after.
pub fn wait_for_packets() -> io::Result<()> {
    by_barrier_or_map(sys::membarrier)
}

/// The barrier is refused by kernels with `nohz_full`, by those without membarrier(2) and by filters of system calls.
fn by_barrier_or_map(barrier: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    barrier().or_else(|_| by_map())
}

/// The kernel returns from a change of a map of maps when no program sees what was there before
/// (`maybe_wait_bpf_programs`): it waits for all programs, so any such map will do.
fn by_map() -> io::Result<()> {
    static SCRATCH: OnceLock<[OwnedFd; 2]> = OnceLock::new();
    let [outer, inner] = match SCRATCH.get() {
        Some(there) => there,
        None => {
            let made = loader::new_scratch()?;
            SCRATCH.get_or_init(|| made)
        }
    };
    let inner = inner.as_raw_fd().to_ne_bytes();
    sys::map_update(outer.as_fd(), &[0; 4], &inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_that_is_refused_is_replaced() {
        if loader::new_scratch().is_err() {
            return; // Maps are not to be had here; with them, tests/packet/test_grace.py shows it, too.
        }
        by_map().unwrap();
        for refusal in [libc::EINVAL, libc::ENOSYS, libc::EPERM] {
            by_barrier_or_map(|| Err(io::Error::from_raw_os_error(refusal))).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| by_map().unwrap());
            }
        });
        by_barrier_or_map(|| Ok(())).unwrap();
    }

    #[test]
    fn a_flip_is_waited_for_once() {
        let mut grace = Grace::default();
        let (one, two) = (grace.flipped(), grace.flipped());
        grace.wait(one).unwrap();
        assert_eq!(
            grace.over, two,
            "the kernel waits for all, so none is waited for twice"
        );
        grace.wait(two).unwrap();
        let three = grace.flipped();
        grace.begin();
        assert!(grace.waiting.is_some());
        grace.wait(three).unwrap();
        assert_eq!((grace.over, grace.waiting.is_some()), (three, false));
        grace.begin();
        assert!(grace.waiting.is_none(), "nothing is left to wait for");
    }
}
