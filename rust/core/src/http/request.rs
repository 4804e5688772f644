//! Request heads.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use httparse::Header;

use super::Framing;
use super::field::{self, One, Summary};
use super::head::{Limits, MAX_FIELDS, Refusal, Storage, bad};
use super::text::{is_token, trim};
use super::{authority, target};

/// The longest method. None that is registered has more than 17 characters (UPDATEREDIRECTREF).
const MAX_METHOD: usize = 32;

/// A request head that was understood.
#[derive(Clone, Copy, Debug)]
pub struct Request<'h, 'b> {
    /// Case matters.
    pub method: &'b str,
    /// In origin-form (absolute-form is reduced to it), or `*`.
    pub target: &'b str,
    /// The target up to its query.
    pub path: &'b str,
    /// What follows the first `?`.
    pub query: Option<&'b str>,
    /// HTTP/1.minor: 0 or 1.
    pub minor: u8,
    /// As sent: a name or an address, and perhaps a port.
    pub host: &'b str,
    /// In order and as spelled. Values have no whitespace around them.
    pub fields: &'h [Header<'b>],
    /// How the body's end is known; never [`Framing::UntilClose`].
    pub body: Framing,
    /// The client will send another one on this connection if it may.
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// What it asks to become.
    pub upgrade: Upgrade<'b>,
}

/// What a request asks its connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade<'b> {
    /// Nothing that is passed on. Other tokens than `websocket` may be ignored (RFC 9110 section 7.8)
    /// and are stripped.
    No,
    /// A complete and correct handshake (RFC 6455 section 4.2.1).
    WebSocket {
        /// Sec-WebSocket-Key: 24 characters of base64.
        key: &'b [u8],
    },
}

/// Read a whole head, as [`super::Scanner`] found it.
pub fn parse_request<'h, 'b>(
    head: &'b [u8],
    storage: &'h mut Storage<'b>,
    limits: &Limits,
) -> Result<Request<'h, 'b>, Refusal> {
    if head.len() > limits.head {
        return Err(Refusal::new(431, "the head is too long"));
    }
    // RFC 9112 section 2.2.
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        return bad("the head is not complete");
    };
    let (line, lines) = head.split_at(end);
    let (method, raw_target, minor) = request_line(line, limits)?;
    let most = limits.fields.min(MAX_FIELDS);
    let fields = field::parse(
        lines.get(2..).unwrap_or(&[]),
        storage.get_mut(..most).unwrap_or(&mut []),
    )?;
    let summary = field::summarize(fields)?;
    let host = host(&summary)?;
    let target = target::parse(method, raw_target, host)?;
    let body = framing(method, minor, &summary)?;
    let expects_continue = match summary.expect {
        One::Absent => false,
        One::Value(value) if value.eq_ignore_ascii_case(b"100-continue") => {
            // HTTP/1.0 has no 100, and nothing to wait for has no body (RFC 9110 section 10.1.1).
            minor == 1 && !matches!(body, Framing::None | Framing::Length(0))
        }
        _ => return Err(Refusal::new(417, "an expectation other than 100-continue")),
    };
    let upgrade = if method == "GET" && minor == 1 && summary.websocket {
        handshake(&summary, body)?
    } else {
        Upgrade::No
    };
    Ok(Request {
        method,
        target: target.whole,
        path: target.path,
        query: target.query,
        minor,
        host,
        fields,
        body,
        // RFC 9112 section 9.3.
        keep_alive: !summary.close && (minor == 1 || summary.keep_alive),
        expects_continue,
        upgrade,
    })
}

/// `method SP request-target SP HTTP-version` (RFC 9112 section 3), with exactly these spaces. The
/// section lets other whitespace be taken for them; whoever sends that, means harm.
fn request_line<'b>(line: &'b [u8], limits: &Limits) -> Result<(&'b str, &'b str, u8), Refusal> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return bad("the request line is not a method, a target and a version");
    };
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken"));
        }
        _ if version.starts_with(b"HTTP/1.") && version.len() < 16 => {
            return Err(Refusal::new(505, "no such version of HTTP"));
        }
        _ => return bad("the request line does not end in a version"),
    };
    if !is_token(method) {
        return bad("the method is no token");
    }
    if method.len() > MAX_METHOD {
        // "A server that receives a method longer than any that it implements SHOULD respond with a
        // 501" (RFC 9112 section 3).
        return Err(Refusal::new(501, "no method is that long"));
    }
    if matches!(method, b"CONNECT" | b"TRACE") {
        // The one makes a tunnel to anywhere, the other tells what the fields became.
        return Err(Refusal::new(405, "the method is not allowed"));
    }
    if target.len() > limits.target {
        return Err(Refusal::new(414, "the target is too long"));
    }
    match (core::str::from_utf8(method), core::str::from_utf8(target)) {
        (Ok(method), Ok(target)) => Ok((method, target, minor)),
        _ => bad("a character in the target that must be encoded"),
    }
}

/// Exactly one (RFC 9112 section 3.2), and of HTTP/1.0 also: routes and backends choose by it.
fn host<'b>(summary: &Summary<'b>) -> Result<&'b str, Refusal> {
    let host = match summary.host {
        One::Absent => return bad("no Host"),
        One::Twice => return bad("more than one Host"),
        One::Value(host) => host,
    };
    match core::str::from_utf8(host) {
        Ok(text) if authority::is_valid(host) => Ok(text),
        _ => bad("Host is not a name or address and perhaps a port"),
    }
}

fn framing(method: &str, minor: u8, summary: &Summary<'_>) -> Result<Framing, Refusal> {
    match summary.content_length {
        Some(length) => return Ok(Framing::Length(length)),
        None if !summary.chunked => {}
        // "A server that receives an HTTP/1.0 message containing a Transfer-Encoding header field MUST
        // treat the message as if the framing is faulty" (RFC 9112 section 6.1).
        None if minor == 0 => return bad("Transfer-Encoding in HTTP/1.0"),
        None => return Ok(Framing::Chunked),
    }
    if minor == 0 && matches!(method, "POST" | "PUT" | "PATCH") {
        // "A valid Content-Length is required on all HTTP/1.0 POST requests" (RFC 1945 section 8.3).
        // Without it the client may mean that the body ends with the stream.
        return bad("a request of HTTP/1.0 whose body has no length");
    }
    Ok(Framing::None)
}

/// RFC 6455 section 4.2.1.
fn handshake<'b>(summary: &Summary<'b>, body: Framing) -> Result<Upgrade<'b>, Refusal> {
    if !matches!(body, Framing::None | Framing::Length(0)) {
        // A backend that switches at once would read the body as frames.
        return bad("a WebSocket handshake with a body");
    }
    match summary.version {
        One::Value(b"13") => {}
        One::Twice => return bad("more than one Sec-WebSocket-Version"),
        _ => return Err(Refusal::new(426, "only version 13 of WebSocket is spoken")),
    }
    match summary.key {
        One::Value(key) if is_key(key) => Ok(Upgrade::WebSocket { key }),
        One::Value(_) => bad("Sec-WebSocket-Key is not 16 bytes in base64"),
        One::Absent => bad("no Sec-WebSocket-Key"),
        One::Twice => bad("more than one Sec-WebSocket-Key"),
    }
}

/// 16 bytes in base64 are 22 characters and two of padding. The last of the 22 carries two bits, and
/// its other four are zero (RFC 4648 section 3.5): A, Q, g or w.
fn is_key(key: &[u8]) -> bool {
    let Some(([digits @ .., last], b"==")) = key.split_last_chunk::<2>() else {
        return false;
    };
    digits.len() == 21
        && matches!(last, b'A' | b'Q' | b'g' | b'w')
        && digits
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

impl<'b> Request<'_, 'b> {
    /// The first field of that name, in any case.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        field::values(self.fields, name).next()
    }

    /// The first cookie of that name, as sent: quotes are part of a value (RFC 6265 section 4.1.1).
    pub fn cookie(&self, name: &str) -> Option<&'b [u8]> {
        field::values(self.fields, "cookie")
            .flat_map(|value| value.split(|byte| *byte == b';'))
            .find_map(|pair| {
                let (key, value) = split_once(pair, b'=')?;
                (trim(key) == name.as_bytes()).then(|| trim(value))
            })
    }

    /// The first value of that name in the query, percent-decoded. A `+` stays one.
    pub fn query_value(&self, name: &str) -> Option<Cow<'b, [u8]>> {
        let value = self
            .query?
            .as_bytes()
            .split(|byte| *byte == b'&')
            .find_map(|pair| {
                let (key, value) = split_once(pair, b'=').unwrap_or((pair, &[]));
                decoded(key).eq(name.bytes()).then_some(value)
            })?;
        Some(if value.contains(&b'%') {
            Cow::Owned(decoded(value).collect::<Vec<u8>>())
        } else {
            Cow::Borrowed(value)
        })
    }
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// Percent-decoded. What is no escape stays as it is.
fn decoded(mut text: &[u8]) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let (first, rest) = text.split_first()?;
        if let (b'%', [high, low, after @ ..]) = (first, rest) {
            let digit = |byte: &u8| char::from(*byte).to_digit(16);
            if let (Some(high), Some(low)) = (digit(high), digit(low)) {
                text = after;
                return u8::try_from(high << 4 | low).ok();
            }
        }
        text = rest;
        Some(*first)
    })
}
