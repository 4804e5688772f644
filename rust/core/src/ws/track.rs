//! Where in a frame one direction of a WebSocket stands (RFC 6455 section 5).
//!
//! The tracker reads lengths and little else. Reserved bits, unknown opcodes, wrong masking, lengths
//! that are longer than they need be, fragments out of place: all these are the endpoints' business,
//! who know which extensions they have agreed on. What it objects to is a length that cannot be one
//! (everything after it would be noise), and a message larger than the listener allows.

/// The longest header: 2 bytes, 8 of length, 4 of mask.
pub const MAX_HEADER: usize = 14;

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
/// The bit that sets control frames apart, those not yet defined too (section 5.2).
const CONTROL: u8 = 0x08;
const CLOSE: u8 = 0x8;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
/// What a control frame may carry (section 5.5), also where messages must be smaller.
const CONTROL_PAYLOAD: u64 = 125;
/// Stands for a Close without a code (section 7.1.5).
const NO_CODE: u16 = 1005;

/// What a listener asks of frames besides sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A message's payload on the wire (all its fragments, as compressed) is at most this; 0: no limit.
    pub max_message: u32,
}

/// Why a frame must not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViolationKind {
    /// The message would exceed [`Rules::max_message`]; ends with Close 1009.
    TooBig,
    /// A 64-bit length with its highest bit set (section 5.2); ends with Close 1002.
    LengthMsb,
}

/// A frame that must not pass, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The slice up to here is fine and ends between two frames.
    pub at: usize,
    /// Bytes of the frame's header that went by in earlier slices; then `at` is 0, and no Close
    /// can follow. With a `max_message` it is 0, since headers then pass whole.
    pub passed: u8,
    /// What is wrong.
    pub kind: ViolationKind,
}

/// One direction of an established WebSocket: where in a frame it stands, and what has passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracker {
    /// Payload still to come; in an unfinished header the length as far as it is read.
    left: u64,
    messages: u32,
    /// Payload of the open message, its current frame included. Saturates.
    size: u32,
    /// Of a Close: its code. Begins as the first half of the mask, into which payload is folded.
    code: u16,
    /// The first two bytes of the current frame, or of the last one.
    first: u8,
    second: u8,
    /// Bytes seen of an unfinished header.
    header: u8,
    /// Bytes of payload folded into `code`.
    code_bytes: u8,
    open: bool,
    closed: bool,
}

/// Bytes of a tracker that goes elsewhere.
pub const PACKED: usize = 24;

impl Tracker {
    /// All of it, for another process: little-endian, in the order of the fields.
    pub fn to_bytes(self) -> [u8; PACKED] {
        let mut bytes = [0; PACKED];
        let (left, rest) = bytes.split_at_mut(8);
        left.copy_from_slice(&self.left.to_le_bytes());
        let (messages, rest) = rest.split_at_mut(4);
        messages.copy_from_slice(&self.messages.to_le_bytes());
        let (size, rest) = rest.split_at_mut(4);
        size.copy_from_slice(&self.size.to_le_bytes());
        let (code, rest) = rest.split_at_mut(2);
        code.copy_from_slice(&self.code.to_le_bytes());
        rest.copy_from_slice(&[
            self.first,
            self.second,
            self.header,
            self.code_bytes,
            u8::from(self.open),
            u8::from(self.closed),
        ]);
        bytes
    }

    /// What [`to_bytes`](Tracker::to_bytes) gave. Whatever the bytes are, the result is a tracker that
    /// keeps its promises: counts beyond their range are brought back into it.
    pub fn from_bytes(bytes: [u8; PACKED]) -> Tracker {
        let [
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            m0,
            m1,
            m2,
            m3,
            s0,
            s1,
            s2,
            s3,
            c0,
            c1,
            first,
            second,
            header,
            code_bytes,
            open,
            closed,
        ] = bytes;
        Tracker {
            left: u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            messages: u32::from_le_bytes([m0, m1, m2, m3]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            code: u16::from_le_bytes([c0, c1]),
            first,
            second,
            header: header.min(header_length(second) as u8 - 1),
            code_bytes: code_bytes.min(2),
            open: open != 0,
            closed: closed != 0,
        }
    }

    /// Look at the bytes that come next, and tell how many of them may pass.
    ///
    /// That is all of them, except with a `max_message` where the slice ends within a header: those
    /// last bytes, at most [`MAX_HEADER`] - 1, wait until it is known whether their frame may pass.
    /// The tracker has not taken them: give them again, in front of what comes after them.
    ///
    /// A violation leaves the tracker before the frame, so that a Close can take the frame's place.
    #[inline]
    pub fn see(&mut self, bytes: &[u8], rules: &Rules) -> Result<usize, Violation> {
        let mut rest = bytes;
        if !self.at_boundary() {
            rest = self.resume(bytes, rules)?;
        }
        while let [first, second, ..] = *rest {
            // Most frames are short, whole and no control frames: these need no more than this.
            let length = second & LENGTH;
            if length < 126 && first & CONTROL == 0 {
                let whole = 2 + usize::from(second >> 7) * 4 + usize::from(length);
                let size = u64::from(self.size) + u64::from(length);
                if let Some(after) = rest.get(whole..)
                    && (rules.max_message == 0 || size <= u64::from(rules.max_message))
                {
                    let last = first & FIN != 0;
                    self.messages = self.messages.wrapping_add(u32::from(last));
                    self.size = if last { 0 } else { saturated(size) };
                    self.open = !last;
                    rest = after;
                    continue;
                }
            }
            match self.frame(rest, rules) {
                Ok(Some(after)) => rest = after,
                Ok(None) => break,
                Err(kind) => {
                    return Err(Violation {
                        at: bytes.len() - rest.len(),
                        passed: 0,
                        kind,
                    });
                }
            }
        }
        if rest.is_empty() || rules.max_message > 0 {
            return Ok(bytes.len() - rest.len());
        }
        for byte in rest {
            self.header_byte(*byte);
        }
        Ok(bytes.len())
    }

    /// The same, but only as far as the frame reaches that is under way: an error says where it ended.
    #[cold]
    pub fn see_to_boundary(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        // The frame under way has passed the rules; without them no part of it is held back.
        let rules = Rules::default();
        let mut seen = 0;
        while seen < bytes.len() {
            if self.at_boundary() {
                return Err(seen);
            }
            let left = bytes.len() - seen;
            // Within a header, or the payload of a control frame, byte by byte: there are few.
            let step = usize::try_from(self.unseen()).map_or(left, |unseen| unseen.clamp(1, left));
            let part = bytes.get(seen..seen + step).unwrap_or_default();
            if let Err(violation) = self.see(part, &rules) {
                return Err(seen + violation.at);
            }
            seen += step;
        }
        if self.at_boundary() {
            Err(seen)
        } else {
            Ok(seen)
        }
    }

    /// Between two frames, with nothing of the next one's header seen.
    #[inline]
    pub fn at_boundary(&self) -> bool {
        self.left == 0 && self.header == 0
    }

    /// A fragmented message is open: its first frame has begun, its last has not ended. Control
    /// frames may stand between its frames.
    #[inline]
    pub fn in_message(&self) -> bool {
        self.open
    }

    /// Payload left of the current frame that may pass unseen: 0 within headers and control frames.
    #[inline]
    pub fn unseen(&self) -> u64 {
        if self.header == 0 && self.first & CONTROL == 0 {
            self.left
        } else {
            0
        }
    }

    /// So much payload has passed unseen; at most [`Tracker::unseen`].
    #[inline]
    pub fn skip(&mut self, count: u64) {
        debug_assert!(count <= self.unseen());
        let count = count.min(self.unseen());
        if count > 0 {
            self.left -= count;
            self.end_if_done();
        }
    }

    /// Complete messages that have passed, control frames not counted. Wraps around.
    #[inline]
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// The code of the first Close that has passed whole; 1005 if it had none.
    #[inline]
    pub fn closed(&self) -> Option<u16> {
        self.closed.then_some(self.code)
    }

    /// Payload left of the current frame, of whatever kind; 0 within headers.
    pub(crate) fn left(&self) -> u64 {
        if self.header == 0 { self.left } else { 0 }
    }

    /// Within a header of which some bytes have passed.
    pub(crate) fn in_header(&self) -> bool {
        self.header > 0
    }

    /// Begin the frame at the start of `bytes`, and go as far as they do. None: the header is cut.
    fn frame<'b>(
        &mut self,
        bytes: &'b [u8],
        rules: &Rules,
    ) -> Result<Option<&'b [u8]>, ViolationKind> {
        let Some((first, second, length, mask, payload)) = header(bytes) else {
            return Ok(None);
        };
        self.judge(first, length, rules)?;
        self.first = first;
        self.second = second;
        if self.reads_code() {
            self.code = mask;
        }
        self.begin(length);
        Ok(Some(self.payload(payload)))
    }

    /// Go on within a header or payload, to its end or that of `bytes`.
    fn resume<'b>(&mut self, bytes: &'b [u8], rules: &Rules) -> Result<&'b [u8], Violation> {
        let before = *self;
        let mut rest = bytes;
        while self.header > 0
            && let [byte, after @ ..] = rest
        {
            rest = after;
            self.header_byte(*byte);
            if usize::from(self.header) == header_length(self.second) {
                let length = self.left;
                if let Err(kind) = self.judge(self.first, length, rules) {
                    *self = before;
                    return Err(Violation {
                        at: 0,
                        passed: before.header,
                        kind,
                    });
                }
                self.begin(length);
            }
        }
        Ok(if self.header > 0 {
            rest
        } else {
            self.payload(rest)
        })
    }

    /// Take one byte of a header that is cut between slices.
    fn header_byte(&mut self, byte: u8) {
        let at = self.header;
        self.header += 1;
        match at {
            0 => {
                self.first = byte;
                self.left = 0;
                if self.reads_code() {
                    self.code = 0;
                }
            }
            1 => {
                self.second = byte;
                if byte & LENGTH < 126 {
                    self.left = u64::from(byte & LENGTH);
                }
            }
            _ if at < 2 + length_bytes(self.second) => self.left = self.left << 8 | u64::from(byte),
            // Of the mask, the half that covers a close code.
            _ if at < 4 + length_bytes(self.second) && self.reads_code() => {
                self.code = self.code << 8 | u16::from(byte);
            }
            _ => {}
        }
    }

    /// Whether a frame may pass.
    fn judge(&self, first: u8, length: u64, rules: &Rules) -> Result<(), ViolationKind> {
        if length >> 63 != 0 {
            return Err(ViolationKind::LengthMsb);
        }
        let max = u64::from(rules.max_message);
        let too_big = if first & CONTROL == 0 {
            u64::from(self.size) + length > max
        } else {
            length > max.max(CONTROL_PAYLOAD)
        };
        if max > 0 && too_big {
            return Err(ViolationKind::TooBig);
        }
        Ok(())
    }

    /// The header is complete; `first` and `second` are its own.
    fn begin(&mut self, length: u64) {
        self.header = 0;
        self.left = length;
        if self.first & CONTROL == 0 {
            self.size = saturated(u64::from(self.size) + length);
            self.open |= self.first & FIN == 0;
        } else if self.reads_code() {
            self.code_bytes = 0;
        }
        self.end_if_done();
    }

    /// Take the payload at the start of `bytes`.
    fn payload<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let count = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (payload, rest) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
        if count > 0 {
            if self.reads_code() {
                for byte in payload.iter().take(2 - usize::from(self.code_bytes)) {
                    self.code ^= u16::from(*byte) << (8 * (1 - self.code_bytes));
                    self.code_bytes += 1;
                }
            }
            self.left -= count as u64;
            self.end_if_done();
        }
        rest
    }

    fn end_if_done(&mut self) {
        if self.left > 0 {
            return;
        }
        if self.reads_code() {
            self.closed = true;
            if self.code_bytes < 2 {
                self.code = NO_CODE;
            }
        } else if self.first & CONTROL == 0 && self.first & FIN != 0 {
            self.messages = self.messages.wrapping_add(1);
            self.size = 0;
            self.open = false;
        }
    }

    /// Whether the current frame is the first Close. What follows that one changes nothing.
    fn reads_code(&self) -> bool {
        self.first & OPCODE == CLOSE && !self.closed
    }
}

fn saturated(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Bytes of extended length that a header's second byte announces.
const fn length_bytes(second: u8) -> u8 {
    match second & LENGTH {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}

/// Of the whole header.
const fn header_length(second: u8) -> usize {
    2 + length_bytes(second) as usize + if second & MASKED != 0 { 4 } else { 0 }
}

/// The header at the start of `bytes`, if it is all there: its first two bytes, the payload's length,
/// the first half of the mask (0 without one), and what comes after it.
fn header(bytes: &[u8]) -> Option<(u8, u8, u64, u16, &[u8])> {
    let ([first, second], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match second & LENGTH {
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
    if second & MASKED == 0 {
        return Some((*first, *second, length, 0, rest));
    }
    let ([a, b, _, _], rest) = rest.split_first_chunk()?;
    Some((*first, *second, length, u16::from_be_bytes([*a, *b]), rest))
}
