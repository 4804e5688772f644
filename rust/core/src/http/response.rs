//! Response heads.

use httparse::Header;

use super::Framing;
use super::field::{self, One};
use super::head::{Limits, MAX_FIELDS, Refusal, Storage, bad};
use super::text::is_value_byte;

/// A response head that was understood.
#[derive(Clone, Copy, Debug)]
pub struct Response<'h, 'b> {
    /// 100 to 599.
    pub status: u16,
    /// HTTP/1.minor: 0 or 1.
    pub minor: u8,
    /// Empty if it is not UTF-8.
    pub reason: &'b str,
    /// In order and as spelled. Values have no whitespace around them.
    pub fields: &'h [Header<'b>],
    /// How the body's end is known.
    pub body: Framing,
    /// The backend will take another request on this connection.
    pub keep_alive: bool,
    /// A 101 to WebSocket and nothing else: Connection has `upgrade`, the one Upgrade is `websocket`.
    pub upgrades_to_websocket: bool,
    /// Sec-WebSocket-Accept, if there is exactly one.
    pub accept: Option<&'b [u8]>,
}

/// Read a whole head, as [`super::Scanner`] found it. `to_head`: the request's method was HEAD.
///
/// A refusal tells what is bad about the backend; its status is not for the client.
pub fn parse_response<'h, 'b>(
    head: &'b [u8],
    to_head: bool,
    storage: &'h mut Storage<'b>,
    limits: &Limits,
) -> Result<Response<'h, 'b>, Refusal> {
    if head.len() > limits.head {
        return Err(Refusal::new(431, "the head is too long"));
    }
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        return bad("the head is not complete");
    };
    let (line, lines) = head.split_at(end);
    let (minor, status, reason) = status_line(line)?;
    let most = limits.fields.min(MAX_FIELDS);
    let fields = field::parse(
        lines.get(2..).unwrap_or(&[]),
        storage.get_mut(..most).unwrap_or(&mut []),
    )?;
    let summary = field::summarize(fields)?;
    if summary.chunked && minor == 0 {
        return bad("Transfer-Encoding in HTTP/1.0");
    }
    if status == 101 && (summary.chunked || summary.content_length.is_some()) {
        // RFC 9110 sections 8.6 and RFC 9112 section 6.1 forbid both. In a 101 they would leave open
        // whether the tunnel begins here or behind a body.
        return bad("a 101 with a body");
    }
    let body = if to_head || has_no_body(status) || status == 304 {
        Framing::None
    } else if summary.chunked {
        Framing::Chunked
    } else {
        summary
            .content_length
            .map_or(Framing::UntilClose, Framing::Length)
    };
    Ok(Response {
        status,
        minor,
        reason,
        fields,
        body,
        // RFC 9112 section 9.3.
        keep_alive: !summary.close
            && (minor == 1 || summary.keep_alive)
            && body != Framing::UntilClose,
        upgrades_to_websocket: status == 101 && summary.websocket,
        accept: match summary.accept {
            One::Value(accept) => Some(accept),
            _ => None,
        },
    })
}

/// 1xx and 204 have none, and must not announce one (RFC 9110 section 8.6).
pub(super) fn has_no_body(status: u16) -> bool {
    status < 200 || status == 204
}

/// `HTTP-version SP status-code SP [ reason-phrase ]` (RFC 9112 section 4). The second space may be
/// missing where the reason is: some leave it out, and there is one way to read that.
fn status_line(line: &[u8]) -> Result<(u8, u16, &str), Refusal> {
    let (minor, rest) = match line.split_at_checked(9) {
        Some((b"HTTP/1.1 ", rest)) => (1, rest),
        Some((b"HTTP/1.0 ", rest)) => (0, rest),
        _ => return bad("the response is not HTTP/1.0 or HTTP/1.1"),
    };
    let (code, rest) = rest.split_at_checked(3).unwrap_or((rest, &[]));
    let status = super::text::number(code).filter(|status| (100..=599).contains(status));
    let (Some(status), [] | [b' ', ..]) = (status, rest) else {
        return bad("the response's status is no number from 100 to 599");
    };
    let reason = rest.get(1..).unwrap_or(&[]);
    if !reason.iter().all(|byte| is_value_byte(*byte)) {
        return bad("a control character in the reason phrase");
    }
    Ok((
        minor,
        u16::try_from(status).unwrap_or(0),
        core::str::from_utf8(reason).unwrap_or(""),
    ))
}
