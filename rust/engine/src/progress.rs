//! What the workers have done of what they were told, for whoever waits for it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Default)]
struct Stand {
    applied: u64,
    ended: Option<u64>,
}

/// One stand per worker.
pub struct Progress {
    stands: Mutex<Vec<Stand>>,
    changed: Condvar,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(workers: usize) -> Progress {
        Progress {
            stands: Mutex::new(vec![Stand::default(); workers]),
            changed: Condvar::new(),
        }
    }

    /// A worker runs that generation.
    pub fn applied(&self, worker: usize, generation: u64) {
        self.note(worker, |stand| stand.applied = generation);
    }

    /// A worker has ended and had to abort so many tunnels.
    pub fn ended(&self, worker: usize, aborted: u64) {
        self.note(worker, |stand| stand.ended = Some(aborted));
    }

    fn note(&self, worker: usize, change: impl FnOnce(&mut Stand)) {
        let mut stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stand) = stands.get_mut(worker) {
            change(stand);
        }
        self.changed.notify_all();
    }

    /// The generation that every worker runs.
    pub fn generation(&self) -> u64 {
        let stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        stands.iter().map(|stand| stand.applied).min().unwrap_or(0)
    }

    /// Wait until every worker runs `generation`; false if some does not within `patience`.
    pub fn wait_applied(&self, generation: u64, patience: Duration) -> bool {
        self.wait(patience, |stand| {
            stand.applied >= generation || stand.ended.is_some()
        })
    }

    /// Wait until every worker has ended; how many tunnels they aborted, or None if some goes on.
    pub fn wait_ended(&self, patience: Duration) -> Option<u64> {
        let all = self.wait(patience, |stand| stand.ended.is_some());
        let stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        all.then(|| stands.iter().filter_map(|stand| stand.ended).sum())
    }

    fn wait(&self, patience: Duration, reached: impl Fn(&Stand) -> bool) -> bool {
        // A time beyond the clock's range is as good as for ever.
        let deadline = Instant::now().checked_add(patience);
        let mut stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        while !stands.iter().all(&reached) {
            let left = deadline.map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return false;
            }
            stands = self
                .changed
                .wait_timeout(stands, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}
