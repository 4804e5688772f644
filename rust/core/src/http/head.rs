//! Where a head ends, found while it arrives.

use httparse::Header;

/// Bounds on what a head may be; all from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head, the empty line included.
    pub head: usize,
    /// Bytes of a request's target.
    pub target: usize,
    /// Field lines; never more than [`MAX_FIELDS`].
    pub fields: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head: 16384,
            target: 8192,
            fields: 100,
        }
    }
}

/// The most field lines that [`Limits::fields`] may allow.
pub const MAX_FIELDS: usize = 256;

/// Where the fields of one head are listed while it is looked at. It lives on the stack.
pub type Storage<'b> = [Header<'b>; MAX_FIELDS];

/// An empty one.
pub fn storage<'b>() -> Storage<'b> {
    [httparse::EMPTY_HEADER; MAX_FIELDS]
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status that the client gets when the message is its request: 400, 405, 414, 417, 426, 431,
    /// 501 or 505. (A backend's bad response is a 502 whatever stands here.)
    pub status: u16,
    /// For the answer's body and the log. Nothing of the input is in it.
    pub why: &'static str,
}

impl Refusal {
    pub(super) const fn new(status: u16, why: &'static str) -> Refusal {
        Refusal { status, why }
    }
}

/// A 400.
pub(super) const fn bad<T>(why: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(400, why))
}

/// What the first line has besides the target: method, version, spaces. [`super::parse_request`]
/// measures the target itself; this bounds what is held until then.
const LINE_ALLOWANCE: usize = 64;

/// Finds the end of a head that arrives in pieces, and looks at each byte once.
///
/// Give it the same buffer each time, grown at its end. Control characters other than HTAB, line ends
/// other than CRLF, and a first line without a version are refused as soon as they are seen: who
/// speaks something else than HTTP need not be waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    /// Bytes looked at.
    at: u32,
    /// Where the current line begins.
    line: u32,
    /// The first line is complete.
    fields: bool,
}

impl Scanner {
    /// Look at what is new. `Some(n)`: `buffer[..n]` is the whole head.
    pub fn scan(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        loop {
            let (at, line) = (self.at as usize, self.line as usize);
            let bound = self.bound(limits);
            let window = buffer.get(at..buffer.len().min(bound)).unwrap_or(&[]);
            // A CR that ended the last window: only LF may follow.
            let after_cr = at > line && buffer.get(at - 1) == Some(&b'\r');
            let Some(offset) = (if after_cr && !window.is_empty() {
                Some(0)
            } else {
                window.iter().position(|byte| is_control(*byte))
            }) else {
                self.at = u32::try_from(at + window.len()).unwrap_or(u32::MAX);
                return if buffer.len() > bound {
                    Err(self.too_long())
                } else {
                    Ok(None)
                };
            };
            let found = at + offset;
            match buffer.get(found) {
                Some(b'\r') if !after_cr => self.at = to_u32(found + 1),
                Some(b'\n') if after_cr => {
                    self.at = to_u32(found + 1);
                    if self.end_line(buffer.get(line..found - 1).unwrap_or(&[]))? {
                        return Ok(Some(found + 1));
                    }
                }
                _ if after_cr => return bad("a CR that does not end a line"),
                Some(b'\n') => return bad("a line that ends in a bare LF"),
                _ => return bad("a control character in the head"),
            }
        }
    }

    /// How many bytes of the buffer the head may fill as far as it is known now.
    fn bound(&self, limits: &Limits) -> usize {
        if self.fields {
            return limits.head;
        }
        let longest = limits.target.saturating_add(LINE_ALLOWANCE);
        limits.head.min(longest.saturating_add(self.line as usize))
    }

    fn too_long(&self) -> Refusal {
        if self.fields {
            Refusal::new(431, "the head is too long")
        } else {
            Refusal::new(414, "the first line is too long")
        }
    }

    /// Whether it was the last. `self.at` is behind its LF.
    fn end_line(&mut self, line: &[u8]) -> Result<bool, Refusal> {
        let first = core::mem::replace(&mut self.line, self.at) == 0;
        if self.fields {
            return Ok(line.is_empty());
        }
        if line.is_empty() {
            // "A server that is expecting to receive and parse a request-line SHOULD ignore at least
            // one empty line (CRLF) received prior to the request-line." (RFC 9112 section 2.2)
            return if first {
                Ok(false)
            } else {
                bad("empty lines before the first line")
            };
        }
        // HTTP/0.9 has no version and no fields; its client would wait for an answer to this line.
        let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or(&[]);
        if !line.starts_with(b"HTTP/") && !version.starts_with(b"HTTP/") {
            return bad("the first line does not name a version of HTTP");
        }
        self.fields = true;
        Ok(false)
    }
}

fn to_u32(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// A control character that no head may hold but as part of a line's end. HTAB may stand in values.
fn is_control(byte: u8) -> bool {
    byte < 0x20 && byte != b'\t' || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        head: 100,
        target: 20,
        fields: 10,
    };

    fn scan(bytes: &[u8]) -> Result<Option<usize>, u16> {
        let verdict = Scanner::default().scan(bytes, &LIMITS);
        verdict.map_err(|refusal| refusal.status)
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        for (bytes, expected) in [
            (&b""[..], Ok(None)),
            (b"\r", Ok(None)),
            (b"\r\n", Ok(None)),
            (b"\r\n\r", Ok(None)),
            (b"\r\n\r\n", Err(400)),
            (b"GET / HTTP/1.1\r\n\r", Ok(None)),
            (b"GET / HTTP/1.1\r\n\r\nX", Ok(Some(18))),
            (b"\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\n\r\n", Ok(Some(27))),
            (b"GET / HTTP/1.1\r\nA\rB", Err(400)),
            (b"GET / HTTP/1.1\n", Err(400)),
            (b"GET /\r\n", Err(400)),
            (b"\x16\x03", Err(400)),
        ] {
            assert_eq!(scan(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn test_60_lengths() {
        let mut line = [b'a'; 85];
        assert_eq!((scan(&line[..84]), scan(&line)), (Ok(None), Err(414)));
        let mut head = [b'a'; 101];
        head[..18].copy_from_slice(b"GET / HTTP/1.1\r\nX:");
        assert_eq!((scan(&head[..100]), scan(&head)), (Ok(None), Err(431)));
        head[96..100].copy_from_slice(b"\r\n\r\n");
        assert_eq!(scan(&head), Ok(Some(100)));
        // A first line that fills the whole head is that line's fault.
        let small = Limits { head: 30, ..LIMITS };
        let mut scanner = Scanner::default();
        assert_eq!(scanner.scan(&line[..30], &small), Ok(None));
        let refusal = scanner.scan(&line[..31], &small).unwrap_err();
        assert_eq!(refusal.status, 414);
        // What is wrong first is what counts.
        line[84] = b'\n';
        assert_eq!(scan(&line), Err(414));
        line[83] = b'\n';
        assert_eq!(scan(&line), Err(400));
    }

    proptest! {
        #[test]
        fn it_is_the_same_in_any_pieces(
            parts in prop::collection::vec(prop::sample::select(std::vec![
                "\r\n", "\r", "\n", "A: b", "GET / HTTP/1.1\r\n", "HTTP/1.1 200\r\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ]), 0..12),
            cuts in prop::collection::vec(0..100_usize, 0..6),
        ) {
            let bytes = parts.concat().into_bytes();
            let mut cuts: std::vec::Vec<usize> = cuts.iter().map(|cut| *cut.min(&bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut scanner = Scanner::default();
            let mut verdict = Ok(None);
            for cut in cuts {
                verdict = scanner.scan(&bytes[..cut], &LIMITS).map_err(|refusal| refusal.status);
                if verdict != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(verdict, scan(&bytes));
        }
    }
}
