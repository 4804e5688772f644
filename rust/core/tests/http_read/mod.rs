//! Reading request heads in tests: as the engine does, and a verdict.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

#[path = "../http_entry/mod.rs"]
mod http_entry;

use pybalancer_core::http::*;

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What is left to see of a request when its head is gone.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub target: String,
    pub path: String,
    pub query: Option<String>,
    pub body: Framing,
    pub websocket: bool,
    pub keep_alive: bool,
    pub expects_continue: bool,
}

pub fn read(head: impl AsRef<[u8]>) -> Result<Seen, Refusal> {
    read_within(head, &Limits::default())
}

/// As the engine does: scanned, then read. A head that is waited for has no verdict, which fails.
pub fn read_within(head: impl AsRef<[u8]>, limits: &Limits) -> Result<Seen, Refusal> {
    let head = head.as_ref();
    let whole = Scanner::default().scan(head, limits);
    assert_eq!(http_entry::scan_in_pieces(head, &[1], limits), whole);
    let length =
        whole?.unwrap_or_else(|| panic!("waits for more of {:?}", head.escape_ascii().to_string()));
    let mut fields = storage();
    let request = parse_request(&head[..length], &mut fields, limits)?;
    if let Upgrade::WebSocket { key } = request.upgrade {
        assert_eq!(Some(key), request.field("sec-websocket-key"));
    }
    Ok(Seen {
        target: request.target.into(),
        path: request.path.into(),
        query: request.query.map(Into::into),
        body: request.body,
        websocket: request.upgrade != Upgrade::No,
        keep_alive: request.keep_alive,
        expects_continue: request.expects_continue,
    })
}

#[track_caller]
pub fn refused(status: u16, head: impl AsRef<[u8]>) {
    let head = head.as_ref();
    match read(head) {
        Err(refusal) => assert_eq!(
            refusal.status,
            status,
            "{refusal:?} of {}",
            head.escape_ascii()
        ),
        Ok(seen) => panic!("{seen:?} of {}", head.escape_ascii()),
    }
}

#[track_caller]
pub fn taken(head: impl AsRef<[u8]>) -> Seen {
    let head = head.as_ref();
    read(head).unwrap_or_else(|refusal| panic!("{refusal:?} of {}", head.escape_ascii()))
}

/// A request with these lines (each without its CRLF) and Host.
pub fn with(first: &str, lines: &[&str]) -> Vec<u8> {
    let mut head = format!("{first}\r\nHost: example.com\r\n");
    for line in lines {
        head += line;
        head += "\r\n";
    }
    (head + "\r\n").into_bytes()
}

pub fn post(lines: &[&str]) -> Vec<u8> {
    with("POST / HTTP/1.1", lines)
}

pub fn get(lines: &[&str]) -> Vec<u8> {
    with("GET / HTTP/1.1", lines)
}
