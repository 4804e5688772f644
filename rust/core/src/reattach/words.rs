//! What a client says while it has no backend.

use alloc::vec::Vec;

use super::frames::Header;
use crate::ws::pong_frame;

const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;

/// A client's frames since its stream stood between two messages, in order and as they came, without those
/// that need no backend: its pings, which are answered here, and its pongs, whose pings are long gone.
#[derive(Clone, Debug, Default)]
pub struct Words {
    kept: Vec<u8>,
    /// Payload still to come of the last frame in `kept`.
    left: u64,
    /// A header, or a control frame, that is not complete.
    cut: Vec<u8>,
    /// Its Close is the last of what is kept.
    closed: bool,
}

impl Words {
    /// How many bytes more may be read, if there shall be at most `bound`.
    pub fn room(&self, bound: usize) -> usize {
        if self.closed {
            // Nothing that comes behind it means anything.
            return 0;
        }
        bound.saturating_sub(self.waiting())
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.kept.len() + self.cut.len()
    }

    /// The client has said `bytes`. What is to be answered is appended to `answers`; the code of its Close is
    /// returned, if nothing else waits. If something does, the Close waits behind it: an answer to it would
    /// say that all of it has arrived.
    pub fn hear(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> Option<u16> {
        let joined;
        let mut rest = if self.closed { &[] } else { bytes };
        if !self.cut.is_empty() {
            self.cut.extend_from_slice(bytes);
            joined = core::mem::take(&mut self.cut);
            rest = &joined;
        }
        loop {
            let count = usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
            let (payload, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            self.kept.extend_from_slice(payload);
            self.left -= count as u64;
            rest = after;
            if rest.is_empty() {
                return None;
            }
            let Some(header) = Header::read(rest) else {
                self.cut = rest.to_vec();
                return None;
            };
            if !header.is_proper_control() {
                // Also what should not be: its backend will know what to say to that.
                let (header_bytes, after) =
                    rest.split_at_checked(header.size).unwrap_or((rest, &[]));
                self.kept.extend_from_slice(header_bytes);
                self.left = header.length;
                rest = after;
                continue;
            }
            // At most 139.
            let Some((frame, after)) = rest.split_at_checked(header.whole() as usize) else {
                self.cut = rest.to_vec();
                return None;
            };
            rest = after;
            match header.opcode() {
                CLOSE if self.kept.is_empty() => return header.code(frame),
                CLOSE => {
                    self.kept.extend_from_slice(frame);
                    self.closed = true;
                    return None;
                }
                PING => {
                    let payload: Vec<u8> = header.payload(frame).collect();
                    answers.extend_from_slice(pong_frame(&payload, None).as_slice());
                }
                _ => {}
            }
        }
    }

    /// All that waits, for the new backend.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.kept.append(&mut self.cut);
        self.kept
    }
}
