//! Message bodies on their way (RFC 9112 sections 6 and 7).
//!
//! A body with a length goes by as it is. A chunked one is read and framed anew: every size in plain
//! hexadecimal, no extensions, no trailers, so that two programs cannot differ about where it ends.
//! What is framed so already, and that is what servers send, is passed on without being touched.

use super::Framing;
use super::head::{Refusal, bad};
use super::text::{is_tchar, is_value_byte};

/// Bytes of extensions that one chunk may have. Nobody sends any; but they are not forbidden.
const MAX_EXTENSION: u16 = 256;
/// Bytes of a trailer section.
const MAX_TRAILER: u16 = 8192;

/// One message body: how much of it has gone by.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    state: State,
    /// Bytes to come: of the body if it has a length, of the chunk's data, or the size read so far.
    left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Complete,
    Length,
    UntilClose,
    /// In a chunk's size, after this many digits.
    Size(u8),
    /// In a chunk's extensions, after this many bytes.
    Extension(u16),
    /// The CR of a chunk's first line was seen.
    SizeLf,
    Data,
    /// The data is complete, and CR must follow.
    DataCr,
    DataLf,
    /// In the trailer section, after this many bytes.
    Trailer(Place, u16),
}

/// Where in a line of the trailer section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Name,
    Value,
    Lf,
    LastLf,
}

/// What to do with the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Send `input[..n]` as it is.
    Pass(usize),
    /// Swallow `input[..n]` and send this instead, which may be empty.
    Replace(usize, Line),
    /// The body is complete. Input from here on is not its.
    End,
    /// There is no more input to judge.
    More,
}

/// A small text without allocation: a chunk's first line, a line's end, or the last chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    bytes: [u8; 18],
    length: u8,
}

impl Line {
    const EMPTY: Line = Line {
        bytes: [0; 18],
        length: 0,
    };

    fn new(text: &[u8]) -> Line {
        let mut line = Line::EMPTY;
        for byte in text {
            line.push(*byte);
        }
        line
    }

    fn size(size: u64) -> Line {
        let mut line = Line::EMPTY;
        let digits = (64 - size.leading_zeros()).div_ceil(4).max(1);
        for place in (0..digits).rev() {
            let digit = (size >> (4 * place)) & 15;
            line.push(b"0123456789abcdef"[digit as usize]);
        }
        line.push(b'\r');
        line.push(b'\n');
        line
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(usize::from(self.length)) {
            *place = byte;
            self.length += 1;
        }
    }

    /// The text.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&[])
    }
}

impl Body {
    /// Before its first byte.
    pub fn new(framing: Framing) -> Body {
        let (state, left) = match framing {
            Framing::None | Framing::Length(0) => (State::Complete, 0),
            Framing::Length(length) => (State::Length, length),
            Framing::Chunked => (State::Size(0), 0),
            Framing::UntilClose => (State::UntilClose, 0),
        };
        Body { state, left }
    }

    /// What to do with the start of `input`. Call it again with what is behind that, until it says
    /// [`Piece::End`] or [`Piece::More`]. A refusal is final.
    pub fn next(&mut self, input: &[u8]) -> Result<Piece, Refusal> {
        if self.state == State::Complete {
            return Ok(Piece::End);
        }
        // As much as can go as it is.
        let mut passed = 0;
        while let Some(count) = self.pass(input.get(passed..).unwrap_or(&[])) {
            passed += count;
        }
        if passed > 0 {
            return Ok(Piece::Pass(passed));
        }
        for (at, byte) in input.iter().enumerate() {
            if let Some(line) = self.step(*byte)? {
                return Ok(Piece::Replace(at + 1, line));
            }
        }
        Ok(match input.len() {
            0 => Piece::More,
            // The beginning of a line, of which something is sent when it is complete.
            swallowed => Piece::Replace(swallowed, Line::EMPTY),
        })
    }

    /// How much of the start of `input` needs no change; None if nothing.
    fn pass(&mut self, input: &[u8]) -> Option<usize> {
        match self.state {
            State::UntilClose => (!input.is_empty()).then_some(input.len()),
            State::Length | State::Data => {
                let count =
                    usize::try_from(self.left).map_or(input.len(), |left| left.min(input.len()));
                self.skip(count as u64);
                (count > 0).then_some(count)
            }
            State::DataCr if input.starts_with(b"\r\n") => {
                *self = Body::new(Framing::Chunked);
                Some(2)
            }
            State::Size(0) => {
                let (size, length) = canonical_size(input)?;
                if size > 0 {
                    (self.state, self.left) = (State::Data, size);
                    return Some(length);
                }
                input.get(length..)?.starts_with(b"\r\n").then(|| {
                    self.state = State::Complete;
                    length + 2
                })
            }
            _ => None,
        }
    }

    /// Judge one byte of chunked framing. A line if one is to be sent now.
    fn step(&mut self, byte: u8) -> Result<Option<Line>, Refusal> {
        match (self.state, byte) {
            (State::Size(digits), _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                // Some keep the size in 64 bits with a sign.
                if digits == 16 || self.left >> 59 != 0 {
                    return bad("a chunk's size is too large");
                }
                self.left = self.left << 4 | u64::from(digit);
                self.state = State::Size(digits + 1);
            }
            (State::Size(0), _) => return bad("a chunk without a size"),
            (State::Size(_) | State::Extension(_), b'\r') => self.state = State::SizeLf,
            (State::Size(_), b';') => self.state = State::Extension(1),
            // RFC 9112 section 7.1.1 allows whitespace before the semicolon, as bad.
            (State::Size(_), _) => return bad("a chunk's size is no hexadecimal number"),
            (State::Extension(MAX_EXTENSION), _) => {
                return bad("a chunk's extensions are too long");
            }
            (State::Extension(count), _) if is_value_byte(byte) => {
                self.state = State::Extension(count + 1);
            }
            (State::Extension(_), _) => return bad("a control character in a chunk's extensions"),
            (State::SizeLf, b'\n') if self.left == 0 => {
                self.state = State::Trailer(Place::Start, 0);
            }
            (State::SizeLf, b'\n') => {
                self.state = State::Data;
                return Ok(Some(Line::size(self.left)));
            }
            (State::DataCr, b'\r') => self.state = State::DataLf,
            (State::DataLf, b'\n') => {
                *self = Body::new(Framing::Chunked);
                return Ok(Some(Line::new(b"\r\n")));
            }
            (State::DataCr | State::DataLf, _) => return bad("a chunk is longer than its size"),
            (State::Trailer(_, MAX_TRAILER), _) => return bad("the trailers are too long"),
            (State::Trailer(place, count), _) => {
                let Some(place) = trailer_step(place, byte)? else {
                    self.state = State::Complete;
                    return Ok(Some(Line::new(b"0\r\n\r\n")));
                };
                self.state = State::Trailer(place, count + 1);
            }
            _ => return bad("a CR that does not end a line"),
        }
        Ok(None)
    }

    /// The body is complete.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Bytes that may go by now without being looked at: by splice. Then tell [`Body::skip`].
    pub fn unseen(&self) -> u64 {
        match self.state {
            State::UntilClose => u64::MAX,
            State::Length | State::Data => self.left,
            _ => 0,
        }
    }

    /// That many went by, never more than [`Body::unseen`] said.
    pub fn skip(&mut self, count: u64) {
        let after = match self.state {
            State::Length => State::Complete,
            State::Data => State::DataCr,
            _ => return,
        };
        self.left = self.left.saturating_sub(count);
        if self.left == 0 {
            self.state = after;
        }
    }

    /// The sender has ended its stream: an error if that cuts the body.
    pub fn end(&mut self) -> Result<(), Refusal> {
        match self.state {
            State::Complete => Ok(()),
            State::UntilClose => {
                self.state = State::Complete;
                Ok(())
            }
            _ => bad("the stream ended within the body"),
        }
    }
}

/// A whole first line of a chunk as [`Line::size`] would write it: the size and the line's length.
fn canonical_size(input: &[u8]) -> Option<(u64, usize)> {
    let digits = input.iter().take(16).position(|byte| *byte == b'\r')?;
    let (text, rest) = input.split_at_checked(digits)?;
    if !rest.starts_with(b"\r\n") || text.first() == Some(&b'0') && digits > 1 {
        return None;
    }
    let mut size = 0;
    for byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        size = size << 4 | u64::from(digit);
    }
    (digits > 0).then_some((size, digits + 2))
}

/// The trailer section is fields (RFC 9112 section 7.1.2). None: it is complete.
fn trailer_step(place: Place, byte: u8) -> Result<Option<Place>, Refusal> {
    Ok(Some(match (place, byte) {
        (Place::Start, b'\r') => Place::LastLf,
        (Place::Start | Place::Name, _) if is_tchar(byte) => Place::Name,
        (Place::Name, b':') => Place::Value,
        (Place::Value, b'\r') => Place::Lf,
        (Place::Value, _) if is_value_byte(byte) => Place::Value,
        (Place::Lf, b'\n') => Place::Start,
        (Place::LastLf, b'\n') => return Ok(None),
        _ => return bad("a trailer that is no field"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn sizes_are_written_as_they_are_recognised() {
        for size in [0, 1, 9, 10, 15, 16, 0x1f, 0xabc, 1 << 32, (1 << 60) - 1] {
            let line = Line::size(size);
            assert_eq!(line.as_slice(), format!("{size:x}\r\n").as_bytes());
            let length = line.as_slice().len();
            assert_eq!(canonical_size(line.as_slice()), Some((size, length)));
        }
        assert_eq!(
            Line::size(i64::MAX as u64).as_slice(),
            b"7fffffffffffffff\r\n"
        );
    }

    #[test]
    fn test_43_only_plain_sizes_are_recognised() {
        for text in [
            "", "5", "5\r", "5\n", "\r\n", "05\r\n", "A\r\n", "5;\r\n", "+5\r\n", "5\rx", "00\r\n",
        ] {
            assert_eq!(canonical_size(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_body_is_small() {
        assert!(size_of::<Body>() <= 24);
    }
}
