//! Tries and times on the way to another backend.

use core::time::Duration;

use super::Rules;
use crate::time::Tick;

/// The first wait; each is twice as long as the one before.
const FIRST: Duration = Duration::from_millis(100);
/// How often it doubles: to 1.6 s.
const DOUBLINGS: u32 = 4;

/// From the loss of one backend to the next.
///
/// A round asks one backend after another to take the connection, in the key's own order. If none does, the
/// next round comes after a while: a backend that restarts is away for seconds, and often it is the only one.
/// A connect that fails costs nobody much, so rounds are bounded by time alone; a handshake costs the backend
/// an authentication and more, so these are counted.
#[derive(Clone, Copy, Debug)]
pub struct Journey {
    deadline: Tick,
    tries: u32,
    attempts: u32,
    rounds: u32,
}

impl Journey {
    /// There is no backend any more.
    pub fn new(rules: &Rules, now: Tick) -> Journey {
        Journey {
            deadline: now + rules.timeout,
            tries: rules.tries,
            attempts: 0,
            rounds: 0,
        }
    }

    /// When it is over, whatever is under way then.
    pub fn deadline(&self) -> Tick {
        self.deadline
    }

    /// Whether no try is left.
    pub fn is_spent(&self) -> bool {
        self.attempts >= self.tries
    }

    /// A backend is there: which try this is, from 1. None: there are no more.
    pub fn attempt(&mut self) -> Option<u32> {
        if self.attempts >= self.tries {
            return None;
        }
        self.attempts += 1;
        Some(self.attempts)
    }

    /// Nobody took it: when to ask again. None: not at all. `random` spreads those that lost their backend in
    /// the same moment.
    pub fn next_round(&mut self, now: Tick, random: u64) -> Option<Tick> {
        if self.attempts >= self.tries || now >= self.deadline {
            return None;
        }
        let wait = FIRST * (1 << self.rounds.min(DOUBLINGS));
        self.rounds = self.rounds.saturating_add(1);
        let half = u64::try_from(wait.as_nanos() / 2).unwrap_or(1).max(1);
        Some(now + wait / 2 + Duration::from_nanos(random % half))
    }
}
