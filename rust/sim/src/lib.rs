//! Drain, shed and re-attach, simulated.

mod agenda;
mod backend;
mod balancer;
mod client;
mod frames;
mod ledger;
mod promises;
mod random;
mod scenario;
mod wire;
mod world;

pub use world::run;

/// What happened in a world, so that a test can see that something did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Things that happened.
    pub events: usize,
    /// Messages that arrived.
    pub messages: usize,
    /// Tunnels told to go.
    pub told: usize,
    /// Those of them that began to leave their backend.
    pub left: usize,
    /// Tunnels that went on elsewhere.
    pub moved: usize,
    /// Handshakes repeated.
    pub repeated: usize,
    /// Rounds in which nobody took a tunnel.
    pub rounds: usize,
    /// Times that a client's words waited.
    pub words: usize,
    /// Pings answered while there was no backend.
    pub pongs: usize,
    /// Tunnels that could not go on.
    pub failed: usize,
    /// Closes that clients had.
    pub closed: usize,
    /// Clients cut off.
    pub cut: usize,
    /// Tunnels left at a deadline.
    pub late: usize,
}

impl Seen {
    /// Both together.
    pub fn add(&mut self, other: Seen) {
        for (mine, others) in self.all_mut().into_iter().zip(other.clone().all_mut()) {
            *mine += *others;
        }
    }

    /// Whether each of these things happened often.
    pub fn is_lively(mut self) -> bool {
        self.all_mut().into_iter().all(|count| *count >= 100)
    }

    fn all_mut(&mut self) -> [&mut usize; 13] {
        [
            &mut self.events,
            &mut self.messages,
            &mut self.told,
            &mut self.left,
            &mut self.moved,
            &mut self.repeated,
            &mut self.rounds,
            &mut self.words,
            &mut self.pongs,
            &mut self.failed,
            &mut self.closed,
            &mut self.cut,
            &mut self.late,
        ]
    }
}
