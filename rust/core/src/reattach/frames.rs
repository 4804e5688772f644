//! How far a stream may pass.

use super::Leaving;
use crate::ws::{Rules, Tracker};

/// A frame of at most this many bytes, header included, passes whole or not at all: a sender that dies
/// within it has said nothing.
pub const SMALL: u64 = 4096;

const CLOSE: u8 = 0x8;
/// Stands for a Close without a code (RFC 6455, section 7.1.5).
const NO_CODE: u16 = 1005;

/// Which Close frames of a backend are not for its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Closes {
    /// All are.
    #[default]
    Pass,
    /// Those in which the backend says that it goes away or restarts: 1001, 1012.
    Leaving,
    /// The same, and those that answer one of ours: 1000 and none besides. Most servers repeat the code
    /// that they got; some always say 1000.
    Answers,
}

impl Closes {
    fn stops(self, code: u16) -> bool {
        match self {
            Closes::Pass => false,
            Closes::Leaving => matches!(code, 1001 | 1012),
            Closes::Answers => matches!(code, 1000 | 1001 | 1012 | NO_CODE),
        }
    }
}

/// Where a stream has to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Between two messages.
    pub boundary: bool,
    /// Before one of these.
    pub closes: Closes,
}

impl Watch {
    /// On what the client says, whose backend may be on its way out.
    pub fn on_client(leaving: Option<&Leaving>) -> Watch {
        Watch {
            boundary: leaving.is_some(),
            closes: Closes::Pass,
        }
    }

    /// On what the backend says.
    pub fn on_backend(leaving: Option<&Leaving>) -> Watch {
        Watch {
            boundary: false,
            closes: match leaving {
                Some(leaving) if leaving.told => Closes::Answers,
                _ => Closes::Leaving,
            },
        }
    }
}

/// Where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// Between two messages.
    Boundary,
    /// Before a Close with this code.
    Close(u16),
}

/// How many of the next bytes of a stream may pass, which stands where `tracker` says; and whether it has
/// to stop behind them. The rest waits for what comes after it, at most [`SMALL`] bytes unless it stops.
pub fn look(tracker: &Tracker, bytes: &[u8], watch: Watch) -> (usize, Option<Halt>) {
    let all = (bytes.len(), None);
    let mut probe = *tracker;
    let mut rest = bytes;
    let advance = |probe: &mut Tracker, rest: &mut &[u8], count: usize| {
        let (part, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        *rest = after;
        // What is no frame is for the rules to object to.
        probe.see(part, &Rules::default()).is_ok()
    };
    // A header of which the beginning has passed already.
    while probe.in_header() && !rest.is_empty() {
        if !advance(&mut probe, &mut rest, 1) {
            return all;
        }
    }
    let left = usize::try_from(probe.left()).unwrap_or(usize::MAX);
    let within = left.min(rest.len());
    if within > 0 && !advance(&mut probe, &mut rest, within) {
        return all;
    }
    if !probe.at_boundary() {
        return all;
    }
    loop {
        let at = bytes.len() - rest.len();
        if watch.boundary && !probe.in_message() {
            return (at, Some(Halt::Boundary));
        }
        if rest.is_empty() {
            return all;
        }
        let Some(header) = Header::read(rest) else {
            return (at, None);
        };
        if header.opcode() == CLOSE && watch.closes != Closes::Pass {
            let Some(code) = header.code(rest) else {
                return (at, None);
            };
            if watch.closes.stops(code) {
                return (at, Some(Halt::Close(code)));
            }
        }
        let whole = header.whole();
        if (rest.len() as u64) < whole {
            return if whole <= SMALL { (at, None) } else { all };
        }
        // It is no longer than `rest`.
        if !advance(&mut probe, &mut rest, whole as usize) {
            return all;
        }
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    first: u8,
    mask: Option<[u8; 4]>,
    /// Its own bytes.
    pub(super) size: usize,
    /// Of the payload.
    pub(super) length: u64,
}

impl Header {
    /// That at the start of `bytes`, if it is all there.
    pub(super) fn read(bytes: &[u8]) -> Option<Header> {
        let ([first, second], rest) = bytes.split_first_chunk()?;
        let (length, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let (mask, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        };
        Some(Header {
            first: *first,
            mask,
            size: bytes.len() - rest.len(),
            length,
        })
    }

    pub(super) fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// Header and payload.
    pub(super) fn whole(&self) -> u64 {
        self.length.saturating_add(self.size as u64)
    }

    /// A control frame as a client must send it (RFC 6455, sections 5.1 and 5.5).
    pub(super) fn is_proper_control(&self) -> bool {
        (8..=10).contains(&self.opcode())
            && self.first & 0xf0 == 0x80
            && self.mask.is_some()
            && self.length <= 125
    }

    /// The payload of `frame`, of which this is the header, as far as it is there.
    pub(super) fn payload<'b>(&self, frame: &'b [u8]) -> impl Iterator<Item = u8> + use<'b> {
        let key = self.mask.unwrap_or_default();
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        let payload = frame.get(self.size..).unwrap_or_default();
        let masked = payload.iter().take(length);
        (masked.enumerate())
            .map(move |(at, byte)| byte ^ key.get(at % 4).copied().unwrap_or_default())
    }

    /// Of a Close: its code. None: that has not come yet.
    pub(super) fn code(&self, frame: &[u8]) -> Option<u16> {
        if self.length < 2 {
            return Some(NO_CODE);
        }
        let mut payload = self.payload(frame);
        let (high, low) = (payload.next()?, payload.next()?);
        Some(u16::from_be_bytes([high, low]))
    }
}
