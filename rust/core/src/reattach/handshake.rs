//! The handshake as it is asked for at first, and as it is repeated.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::agreed::{DEFLATE, NO_TAKEOVER, name, split};

/// Tells a backend that it gets a client which was another's. It is taken out of all that clients send.
pub const FIELD: &str = "Pybalancer-Resumed";

/// A request head that asks for permessage-deflate, if at all, so that each message stands alone.
///
/// A backend that comes in the middle knows nothing of what was said before, so it can neither read nor write
/// what refers to it. Both parameters may stand in an answer whether the client has offered them or not
/// (RFC 7692, sections 7.1.1.1 and 7.1.1.2), so the balancer may ask for them in the client's place.
pub fn without_takeover(head: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + 64);
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let Some(value) = extensions(line) else {
            out.extend_from_slice(line);
            continue;
        };
        out.extend_from_slice(b"Sec-WebSocket-Extensions: ");
        for (place, element) in split(value, b',').enumerate() {
            if place > 0 {
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(element);
            if !name(element).eq_ignore_ascii_case(DEFLATE) {
                continue;
            }
            for wanted in NO_TAKEOVER {
                let mut there = split(element, b';').skip(1);
                if !there.any(|parameter| parameter.eq_ignore_ascii_case(wanted)) {
                    out.extend_from_slice(b"; ");
                    out.extend_from_slice(wanted);
                }
            }
        }
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The value of this line, if that is the field.
fn extensions(line: &[u8]) -> Option<&[u8]> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    name.eq_ignore_ascii_case(b"sec-websocket-extensions")
        .then(|| value.get(1..).unwrap_or_default().trim_ascii())
}

/// The recorded `head` with the field that says what this is: the `attempt`-th to find a place for the
/// tunnel `id`, which was at `previous`.
pub fn repeated(head: &[u8], id: &str, previous: &str, attempt: u32) -> Vec<u8> {
    let lines = head.strip_suffix(b"\r\n").unwrap_or(head);
    let mut field = String::new();
    // Writing to memory does not fail.
    let _ = write!(field, "{FIELD}: ");
    token_or_quoted(id, &mut field);
    field.push_str("; previous=");
    token_or_quoted(previous, &mut field);
    let _ = write!(field, "; attempt={attempt}\r\n\r\n");
    [lines, field.as_bytes()].concat()
}

/// A parameter's value (RFC 9110, section 5.6.6).
fn token_or_quoted(text: &str, out: &mut String) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return out.push_str(text);
    }
    out.push('"');
    for sign in text.chars().filter(|sign| !sign.is_control()) {
        if matches!(sign, '"' | '\\') {
            out.push('\\');
        }
        out.push(sign);
    }
    out.push('"');
}
