//! Failures of backends and sources, folded before policy hears of them: a dead backend under a storm of
//! clients fails thousands of times a second, and says the same each time.

use std::sync::Arc;

use rustix::io::Errno;

use super::{FOLD, Folded, Worker};
use crate::outbox::Event;
use crate::registry::BackendEntry;
use crate::socket::From;
use crate::stats::field;

impl Worker {
    pub(super) fn note_failure(&mut self, slot: u32, message: &str) {
        if let Some(entry) = self
            .tunnels
            .get(slot as usize)
            .and_then(|tunnel| tunnel.entry.clone())
        {
            self.fold_failure(&entry, message);
        }
    }

    pub(super) fn fold_failure(&mut self, entry: &Arc<BackendEntry>, message: &str) {
        self.counters
            .backend(entry.index(), field!(BackendSlot, connect_failures), 1);
        let folded = self.folded(entry);
        folded.connects += 1;
        message.clone_into(&mut folded.message);
    }

    pub(super) fn fold_exhaustion(&mut self, entry: &Arc<BackendEntry>) {
        self.counters
            .backend(entry.index(), field!(BackendSlot, ports_exhausted), 1);
        self.folded(entry).ports += 1;
    }

    fn folded(&mut self, entry: &Arc<BackendEntry>) -> &mut Folded {
        self.tell_at.get_or_insert(self.now + FOLD);
        self.folded.entry(entry.index()).or_insert_with(|| Folded {
            entry: Arc::clone(entry),
            connects: 0,
            ports: 0,
            message: String::new(),
        })
    }

    pub(super) fn fold_source_failure(&mut self, pool: &Arc<str>, from: From, error: Errno) {
        self.tell_at.get_or_insert(self.now + FOLD);
        let (From::Source(ip) | From::Client(ip)) = from else {
            return;
        };
        let folded = self.source_failures.entry(Arc::clone(pool)).or_default();
        *folded = (folded.0 + 1, format!("{ip}: {error}"));
    }

    /// Tell policy what failed since the last time.
    pub(super) fn tell_failures(&mut self) {
        self.tell_at = None;
        let worker = self.index;
        for (_, folded) in self.folded.drain() {
            let (pool, backend) = (
                Arc::clone(&folded.entry.pool),
                Arc::clone(&folded.entry.name),
            );
            if folded.ports > 0 {
                let (pool, backend) = (Arc::clone(&pool), Arc::clone(&backend));
                self.shared.outbox.tell(Event::PortsExhausted {
                    worker,
                    pool,
                    backend,
                    count: folded.ports,
                });
            }
            if folded.connects > 0 {
                let (count, message) = (folded.connects, folded.message);
                self.shared.outbox.tell(Event::ConnectFailed {
                    worker,
                    pool,
                    backend,
                    count,
                    message,
                });
            }
        }
        for (pool, (count, message)) in self.source_failures.drain() {
            self.shared.outbox.tell(Event::SourceFailed {
                worker,
                pool,
                count,
                message,
            });
        }
    }
}
