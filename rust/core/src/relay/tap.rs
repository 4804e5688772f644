//! Who looks at what passes.

use crate::ws::{Rules, Tracker};

/// Sees a direction's bytes in their order, before they are passed on.
pub trait Tap {
    /// How many of the next bytes need not be seen. 0: the next one must be.
    fn unseen(&self) -> usize;

    /// So many went by unseen, at most what `unseen` said.
    fn skip(&mut self, count: usize);

    /// See bytes: how many of them may pass. The rest, a few at most, come again in front of those that
    /// follow. An error tells the same, and that nothing after them may pass.
    fn see(&mut self, bytes: &[u8]) -> Result<usize, usize>;

    /// Whether what may not pass any more is kept, for somebody else.
    #[inline]
    fn keeps(&self) -> bool {
        false
    }

    /// Whether the receiver is told that the sender has ended.
    #[inline]
    fn passes_end(&self) -> bool {
        true
    }

    /// The receiver has failed, and took nothing of what was last seen: whether that is kept, as not seen.
    #[inline]
    fn refused(&mut self) -> bool {
        false
    }
}

/// Looks at nothing.
pub struct Blind;

impl Tap for Blind {
    #[inline(always)]
    fn unseen(&self) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn skip(&mut self, _: usize) {}

    #[inline(always)]
    fn see(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        Ok(bytes.len())
    }
}

/// Follows the frames of one direction of a WebSocket.
pub struct Frames<'a> {
    /// Where the stream stands.
    pub tracker: &'a mut Tracker,
    /// What may pass.
    pub rules: Rules,
    /// Stop at the next frame boundary: a Close of our own goes there.
    pub stop_at_boundary: bool,
}

impl Tap for Frames<'_> {
    #[inline]
    fn unseen(&self) -> usize {
        usize::try_from(self.tracker.unseen()).unwrap_or(usize::MAX)
    }

    #[inline]
    fn skip(&mut self, count: usize) {
        self.tracker.skip(count as u64);
    }

    #[inline]
    fn see(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        if self.stop_at_boundary {
            return self.tracker.see_to_boundary(bytes);
        }
        self.tracker
            .see(bytes, &self.rules)
            .map_err(|violation| violation.at)
    }
}
