//! The tap on a WebSocket that may go on at another backend.

use crate::reattach::{Halt, Watch, look};
use crate::ws::{Rules, Tracker};

use super::Tap;

/// Follows the frames of one direction, and keeps apart what the other side shall not get from this one.
pub struct Resumable<'a> {
    /// Where the stream stands.
    pub tracker: &'a mut Tracker,
    /// Where it stood before what was last seen.
    pub before: Tracker,
    /// What may pass.
    pub rules: Rules,
    /// Where it has to stop.
    pub watch: Watch,
    /// Whether the end of the stream is passed on.
    pub ends: bool,
    /// Where it has stopped.
    pub halt: Option<Halt>,
}

impl Tap for Resumable<'_> {
    #[inline]
    fn unseen(&self) -> usize {
        usize::try_from(self.tracker.unseen()).unwrap_or(usize::MAX)
    }

    #[inline]
    fn skip(&mut self, count: usize) {
        self.tracker.skip(count as u64);
    }

    fn see(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        self.before = *self.tracker;
        let (count, halt) = look(self.tracker, bytes, self.watch);
        let passing = bytes.get(..count).unwrap_or_default();
        let passed = (self.tracker.see(passing, &self.rules)).map_err(|violation| violation.at)?;
        self.halt = halt;
        if halt.is_some() {
            Err(passed)
        } else {
            Ok(passed)
        }
    }

    fn keeps(&self) -> bool {
        true
    }

    fn passes_end(&self) -> bool {
        // Behind a Close that has passed there is nothing to go on with.
        self.ends || self.tracker.closed().is_some()
    }

    fn refused(&mut self) -> bool {
        *self.tracker = self.before;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::close_frame;

    #[test]
    fn an_end_behind_a_close_is_passed_on() {
        for (code, passes) in [(1000, true), (1011, true), (1001, false), (1012, false)] {
            let mut tracker = Tracker::default();
            let mut tap = Resumable {
                before: tracker,
                tracker: &mut tracker,
                rules: Rules::default(),
                watch: Watch::on_backend(None),
                ends: false,
                halt: None,
            };
            assert!(!tap.passes_end());
            let _ = tap.see(close_frame(code, "", None).as_slice());
            assert_eq!(tap.passes_end(), passes, "{code}");
        }
    }
}
