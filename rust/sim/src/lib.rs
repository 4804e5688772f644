//! Drain, shed and re-attach, simulated: clients, balancer and backends joined in memory by a fake network,
//! with a clock that jumps. A seed says everything, so whatever went wrong goes wrong again.
//!
//! ```text
//! cargo test --profile ci -p pybalancer-sim                                  a thousand seeds
//! PYBALANCER_SIM_SEEDS=100000 cargo test --profile ci -p pybalancer-sim      more of them
//! PYBALANCER_SIM_SEED=71 cargo test --profile ci -p pybalancer-sim -- --nocapture
//! PYBALANCER_SIM_SEED=71 PYBALANCER_SIM_TRACE=3 cargo test ...               the story of its connection 3
//! ```
//!
//! The `wire` delays, cuts into pieces of any size, fills up, ends and resets. A `scenario` is drawn from the
//! seed: 1 to 60 clients, 1 to 8 backends, 1 to 3 workers that wake late, and what happens when. Two of five
//! are calm: moves are planned, and nobody is rude. In the others backends crash, vanish, answer oddly and
//! stop in the middle of a frame, while clients go without a word, do not read, or never answer.
//!
//! What is tested is `pybalancer_core`: `drain` (pace, course, queue), `shed`, `pool`, `ws` (tracker,
//! farewell), `relay` (taps, leftovers), `reattach`. The `balancer` here calls it in the order in which the
//! engine's worker does, file by file. Both ends speak WebSocket in words of their own (`frames`), so that
//! nothing of the core's is judged by the core.
//!
//! # What must hold
//!
//! Checked in the moment in which something happens (`ledger`), of the world as a whole (`world`, `promises`),
//! and at the end:
//!
//! - **Bytes.** Every message that arrives is right in every byte, in order, and arrives once. Where all moves
//!   are planned, none is missing in either direction; where a backend breaks off, what it had may be
//!   missing, and is never repeated.
//! - **Frames.** Nothing of one backend's stands inside a frame or a fragmented message of another's, and no
//!   Close does. Behind a Close comes nothing.
//! - **Codes.** A client hears a code that an order named, that its backend said, or 1012 where a tunnel could
//!   not be carried on. It is cut off only where it is rude or slow itself, where its backend broke off and
//!   the route does not re-attach, or within a frame that is too long to be kept whole.
//! - **Moves.** Where all is calm and there is another backend, nobody notices one.
//! - **Pace.** In no second are more told to go than the cap allows, nor more than twice the mean; without a
//!   cap they do not go in step. After a deadline and a second to say farewell none is left. Called off,
//!   nobody else is told.
//! - **Shed.** No backend is asked for what is not above its share, and it is asked for all of that; a pool with
//!   a table gives up misplaced tunnels only, and from none is taken more than was asked for. When all have
//!   come back, no backend of a `least-connections` pool is above the skew that was wanted.
//! - **Re-attach.** A handshake is repeated as it was recorded, with the backend that was left and attempts that
//!   count up to `tries`, within `timeout`. What waits is bounded. A ping is heard by a backend or answered.
//!   Another subprotocol is never gone on with.
//! - **Rest.** Nothing spins.

mod agenda;
mod backend;
mod balancer;
mod client;
mod frames;
mod heads;
mod ledger;
mod promises;
mod random;
mod scenario;
mod told;
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
