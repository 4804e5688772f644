//! Heads that go on: written anew from what was understood.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use super::Framing;
use super::field::{Name, Named, is_value};
use super::request::{Request, Upgrade};
use super::response::{Response, has_no_body};
use super::text::is_token;

/// What is done to a request on its way to the backend, besides what HTTP demands.
#[derive(Clone, Copy, Debug)]
pub struct Edits<'a> {
    /// In the place of the request's own target: what is left of it after a prefix was stripped. A
    /// slash is put before it if it does not begin with one.
    pub target: Option<&'a str>,
    /// Fields that are set: those of the same name are replaced. See [`check_edit`].
    pub set: &'a [(Box<str>, Box<str>)],
    /// Names of fields that are left out.
    pub remove: &'a [Box<str>],
    /// Whom the request came from.
    pub forwarded: Forwarded<'a>,
    /// X-Request-Id, if the peer's is not kept. None is sent if this is empty.
    pub request_id: &'a str,
}

/// Whom a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// None: it has no IP address.
    pub client: Option<IpAddr>,
    /// `http` or `https`.
    pub proto: &'a str,
    /// What the peer says of these things is kept and extended; else it is dropped.
    pub trusted: bool,
}

/// What is done to a response on its way to the client, besides what HTTP demands.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseEdits<'a> {
    /// A 101 that was checked: it says that it upgrades to WebSocket.
    pub websocket: bool,
    /// The client's connection is closed after it.
    pub close: bool,
    /// An HTTP/1.0 client is told that it is not.
    pub keep_alive_10: bool,
    /// A Set-Cookie of our own, besides the backend's.
    pub set_cookie: Option<&'a str>,
    /// Fields that are set: those of the same name are replaced. See [`check_edit`].
    pub set: &'a [(Box<str>, Box<str>)],
    /// Names of fields that are left out.
    pub remove: &'a [Box<str>],
}

/// Whether the configuration may set this field, or with no value remove it: why not.
///
/// Writing a head ignores edits that fail here, so that the framing is right whatever is configured.
pub fn check_edit(name: &str, value: Option<&str>) -> Result<(), &'static str> {
    if !is_token(name.as_bytes()) {
        return Err("it is not the name of a field");
    }
    let (known, spelled) = Name::of(name);
    if !spelled && known.must_be_spelled() {
        return Err("it can be taken for another field");
    }
    if known.is_hop_by_hop() || is_framing(known) {
        return Err("it belongs to the framing of the message");
    }
    if matches!(
        known,
        Name::WebSocketKey | Name::WebSocketAccept | Name::WebSocketVersion
    ) {
        return Err("it belongs to the handshake");
    }
    if known == Name::Resumed {
        return Err("it is the balancer's own");
    }
    match value {
        None if known == Name::Host => Err("a request without it is invalid"),
        Some(value) if known == Name::Host && !super::authority::is_valid(value.as_bytes()) => {
            Err("it is not a name or address and perhaps a port")
        }
        Some(value) if !is_value(value) => Err("its value has a control character"),
        _ => Ok(()),
    }
}

/// It tells where the body ends, or when it comes.
fn is_framing(name: Name) -> bool {
    matches!(
        name,
        Name::ContentLength | Name::TransferEncoding | Name::Expect
    )
}

/// Fields that the configuration sets and removes.
#[derive(Clone, Copy)]
struct Changes<'a> {
    set: &'a [(Box<str>, Box<str>)],
    remove: &'a [Box<str>],
}

/// Whether a gateway to CGI or WSGI would take the one name for the other.
fn alike(name: &str, other: &str) -> bool {
    let mark = |byte: &u8| !byte.is_ascii_alphanumeric();
    name.len() == other.len()
        && (name.bytes().zip(other.bytes()))
            .all(|(a, b)| a.eq_ignore_ascii_case(&b) || mark(&a) && mark(&b))
}

impl Changes<'_> {
    /// The field of this name that would be there otherwise is not written.
    fn touch(&self, name: &str) -> bool {
        let removed = self
            .remove
            .iter()
            .any(|other| alike(name, other) && check_edit(other, None).is_ok());
        removed
            || self
                .set
                .iter()
                .any(|(other, value)| alike(name, other) && check_edit(other, Some(value)).is_ok())
    }

    fn write(&self, out: &mut Vec<u8>) {
        let good = |(name, value): &&(Box<str>, Box<str>)| check_edit(name, Some(value)).is_ok();
        let mut has_host = false;
        for (name, value) in self.set.iter().filter(good) {
            // A list may be set in several lines; of this one there must be one.
            if Name::of(name).0 != Name::Host || !core::mem::replace(&mut has_host, true) {
                line(name, value, out);
            }
        }
    }

    /// Unless it is touched.
    fn line(&self, name: &str, value: impl fmt::Display, out: &mut Vec<u8>) {
        if !self.touch(name) {
            display(format_args!("{name}: {value}\r\n"), out);
        }
    }
}

/// Write the head for the backend.
///
/// It has the request's own version: the answer to an HTTP/1.0 request must not be chunked. Fields
/// that are for all recipients stay in order and as spelled, then come our own.
pub fn write_request(request: &Request<'_, '_>, edits: &Edits<'_>, out: &mut Vec<u8>) {
    let changes = Changes {
        set: edits.set,
        remove: edits.remove,
    };
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    let target = edits.target.unwrap_or(request.target);
    if !target.starts_with('/') && target != "*" {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.");
    out.extend_from_slice(if request.minor == 0 {
        b"0\r\n"
    } else {
        b"1\r\n"
    });
    let named = Named::new(request.fields);
    for field in request.fields {
        let (name, spelled) = Name::of(field.name);
        // A trusted peer may have passed on what it did not recognise, so a misspelled one is nobody's.
        let foreign = name.is_forwarding() && !(edits.forwarded.trusted && spelled);
        let ours = match name {
            Name::TransferEncoding | Name::RequestId | Name::Forwarded | Name::ForwardedFor => true,
            // A client that sent it would be believed to be another's, in whatever spelling.
            Name::Resumed => true,
            _ => name.is_hop_by_hop(),
        };
        if !foreign && !ours && !changes.touch(field.name) && !named.has(field.name) {
            raw_line(field.name, field.value, out);
        }
    }
    write_forwarded(request, &edits.forwarded, named, changes, out);
    write_request_id(request, edits, named, changes, out);
    changes.write(out);
    if request.body == Framing::Chunked {
        line("Transfer-Encoding", "chunked", out);
    }
    if request.upgrade != Upgrade::No {
        line("Connection", "Upgrade", out);
        line("Upgrade", "websocket", out);
    }
    out.extend_from_slice(b"\r\n");
}

/// X-Forwarded-For, -Proto and -Host, and Forwarded (RFC 7239).
fn write_forwarded(
    request: &Request<'_, '_>,
    forwarded: &Forwarded<'_>,
    named: Named<'_, '_>,
    changes: Changes<'_>,
    out: &mut Vec<u8>,
) {
    let said = |name: &'static str| {
        let heard = forwarded.trusted && !named.has(name);
        super::field::values(request.fields, name).filter(move |_| heard)
    };
    let client = forwarded.client.map(|client| client.to_canonical());
    if !changes.touch("X-Forwarded-For") {
        let mut list = List::new("X-Forwarded-For: ", out);
        said("X-Forwarded-For").for_each(|value| list.add(value));
        if let Some(client) = client {
            display(client, list.next());
        }
        list.end();
    }
    if said("X-Forwarded-Proto").next().is_none() {
        changes.line("X-Forwarded-Proto", forwarded.proto, out);
    }
    if said("X-Forwarded-Host").next().is_none() {
        changes.line("X-Forwarded-Host", request.host, out);
    }
    if !changes.touch("Forwarded") {
        let mut list = List::new("Forwarded: ", out);
        said("Forwarded").for_each(|value| list.add(value));
        let out = list.next();
        match client {
            None => display("for=unknown", out),
            Some(IpAddr::V4(client)) => display(format_args!("for={client}"), out),
            // "an IPv6 address MUST be quoted" and bracketed (section 6).
            Some(IpAddr::V6(client)) => display(format_args!("for=\"[{client}]\""), out),
        }
        let quote = if is_token(request.host.as_bytes()) {
            ""
        } else {
            "\""
        };
        display(
            format_args!(
                ";host={quote}{}{quote};proto={}",
                request.host, forwarded.proto
            ),
            out,
        );
        list.end();
    }
}

/// Kept from a trusted peer, if there is one that logs can hold.
fn write_request_id(
    request: &Request<'_, '_>,
    edits: &Edits<'_>,
    named: Named<'_, '_>,
    changes: Changes<'_>,
    out: &mut Vec<u8>,
) {
    const NAME: &str = "X-Request-Id";
    let is_good = |id: &[u8]| (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    let mut said = super::field::values(request.fields, NAME);
    let kept = match (said.next(), said.next()) {
        (Some(id), None) if edits.forwarded.trusted && is_good(id) && !named.has(NAME) => Some(id),
        _ => None,
    };
    let id = kept.unwrap_or(edits.request_id.as_bytes());
    if is_good(id) && !changes.touch(NAME) {
        raw_line(NAME, id, out);
    }
}

/// Write the head for the client. It speaks HTTP/1.1 whatever the backend does (RFC 9110 section 2.5).
pub fn write_response(response: &Response<'_, '_>, how: &ResponseEdits<'_>, out: &mut Vec<u8>) {
    let changes = Changes {
        set: how.set,
        remove: how.remove,
    };
    out.extend_from_slice(b"HTTP/1.1 ");
    number(u64::from(response.status), out);
    out.push(b' ');
    out.extend_from_slice(response.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    // In a 426 it tells what the client should have asked for (RFC 9110 section 15.5.22).
    let mut offers = false;
    let named = Named::new(response.fields);
    for field in response.fields {
        let (name, _) = Name::of(field.name);
        match name {
            Name::Upgrade if response.status == 426 => {
                offers |= field.value.eq_ignore_ascii_case(b"websocket");
            }
            // One that was announced for a body that is not there.
            Name::ContentLength | Name::TransferEncoding if has_no_body(response.status) => {}
            Name::TransferEncoding => line("Transfer-Encoding", "chunked", out),
            _ if name.is_hop_by_hop() => {}
            _ if changes.touch(field.name) => {}
            _ if named.has(field.name) => {}
            _ => raw_line(field.name, field.value, out),
        }
    }
    changes.write(out);
    if let Some(cookie) = how.set_cookie {
        line("Set-Cookie", cookie, out);
    }
    let upgrade = how.websocket || offers;
    if upgrade {
        line("Upgrade", "websocket", out);
    }
    match (how.close, upgrade) {
        (true, true) => line("Connection", "close, Upgrade", out),
        (true, false) => line("Connection", "close", out),
        (false, true) => line("Connection", "Upgrade", out),
        (false, false) if how.keep_alive_10 => line("Connection", "keep-alive", out),
        (false, false) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// A field whose value is a list that grows. Nothing is written of an empty one.
struct List<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    empty: usize,
}

impl<'o> List<'o> {
    fn new(name: &str, out: &'o mut Vec<u8>) -> List<'o> {
        let start = out.len();
        out.extend_from_slice(name.as_bytes());
        let empty = out.len();
        List { out, start, empty }
    }

    /// Where the next element goes.
    fn next(&mut self) -> &mut Vec<u8> {
        if self.out.len() > self.empty {
            self.out.extend_from_slice(b", ");
        }
        self.out
    }

    fn add(&mut self, value: &[u8]) {
        if !value.is_empty() {
            self.next().extend_from_slice(value);
        }
    }

    fn end(self) {
        if self.out.len() > self.empty {
            self.out.extend_from_slice(b"\r\n");
        } else {
            self.out.truncate(self.start);
        }
    }
}

/// One field line.
pub(super) fn line(name: &str, value: &str, out: &mut Vec<u8>) {
    raw_line(name, value.as_bytes(), out);
}

fn raw_line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// In decimal.
pub(super) fn number(number: u64, out: &mut Vec<u8>) {
    display(number, out);
}

fn display(value: impl fmt::Display, out: &mut Vec<u8>) {
    struct Text<'o>(&'o mut Vec<u8>);
    impl fmt::Write for Text<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    // Writing to memory does not fail.
    let _ = fmt::write(&mut Text(out), format_args!("{value}"));
}
