//! What is due when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use pybalancer_core::time::Tick;

use crate::wire::End;

/// Somebody who is to look at something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// Whoever owns this end of a connection.
    Wire(End),
    /// A client, by its number: its own timer.
    Client(usize),
    /// A backend: its own timer.
    Backend(usize),
    /// A tunnel, by slot and generation: its timer.
    Tunnel(usize, u64),
    /// A worker, for its drains.
    Worker(usize),
    /// The next line of the scenario.
    Script(usize),
}

/// Wakes in order of time; those of the same time in the order in which they were noted.
#[derive(Debug, Default)]
pub struct Agenda {
    heap: BinaryHeap<Reverse<(Tick, u64, Wake)>>,
    noted: u64,
}

impl Agenda {
    /// Note one.
    pub fn at(&mut self, at: Tick, wake: Wake) {
        self.noted += 1;
        self.heap.push(Reverse((at, self.noted, wake)));
    }

    /// The next.
    pub fn next(&mut self) -> Option<(Tick, Wake)> {
        let Reverse((at, _, wake)) = self.heap.pop()?;
        Some((at, wake))
    }
}
