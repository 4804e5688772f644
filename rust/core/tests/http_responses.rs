//! Response heads: what a backend may say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use pybalancer_core::http::*;

#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    reason: String,
    body: Framing,
    keep_alive: bool,
    websocket: bool,
    accept: Option<Vec<u8>>,
}

fn read(head: impl AsRef<[u8]>, to_head: bool) -> Result<Seen, Refusal> {
    let (head, limits) = (head.as_ref(), Limits::default());
    let length = Scanner::default()
        .scan(head, &limits)?
        .expect("a whole head");
    let mut fields = storage();
    let response = parse_response(&head[..length], to_head, &mut fields, &limits)?;
    Ok(Seen {
        status: response.status,
        reason: response.reason.into(),
        body: response.body,
        keep_alive: response.keep_alive,
        websocket: response.upgrades_to_websocket,
        accept: response.accept.map(Into::into),
    })
}

fn with(first: &str, lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{first}\r\n{lines}\r\n")
}

#[track_caller]
fn taken(first: &str, lines: &[&str]) -> Seen {
    read(with(first, lines), false)
        .unwrap_or_else(|refusal| panic!("{refusal:?} of {first} {lines:?}"))
}

#[track_caller]
fn refused(first: &str, lines: &[&str]) {
    assert!(
        read(with(first, lines), false).is_err(),
        "{first:?} {lines:?}"
    );
}

const OK: &str = "HTTP/1.1 200 OK";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols";
const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[test]
fn test_04_test_07_only_a_101_to_websocket_upgrades() {
    let upgrades = |first: &str, lines: &[&str]| taken(first, lines).websocket;
    let good = [
        "Upgrade: WebSocket",
        "Connection: keep-alive, Upgrade",
        ACCEPT,
    ];
    assert!(upgrades(SWITCHING, &good));
    assert!(upgrades("HTTP/1.1 101", &good));
    for first in [
        OK,
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 426 Upgrade Required",
        "HTTP/1.1 102 Processing",
    ] {
        assert!(!upgrades(first, &good));
    }
    for lines in [
        &["Upgrade: h2c", "Connection: Upgrade", ACCEPT][..],
        &["Upgrade: websocket, h2c", "Connection: Upgrade", ACCEPT],
        &[
            "Upgrade: websocket",
            "Upgrade: websocket",
            "Connection: Upgrade",
            ACCEPT,
        ],
        &["Upgrade: websocket", ACCEPT],
        &["Upgrade: websocket", "Connection: close", ACCEPT],
        &["Connection: Upgrade", ACCEPT],
    ] {
        assert!(!upgrades(SWITCHING, lines), "{lines:?}");
    }
}

#[test]
fn test_05_test_06_accept_is_told_if_there_is_exactly_one() {
    let accept = |lines: &[&str]| taken(SWITCHING, lines).accept;
    assert_eq!(
        accept(&[ACCEPT]).as_deref(),
        Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..])
    );
    assert_eq!(accept(&[]), None);
    assert_eq!(accept(&[ACCEPT, ACCEPT]), None);
}

#[test]
fn a_101_has_no_body() {
    for line in [
        "Content-Length: 0",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ] {
        refused(
            SWITCHING,
            &["Upgrade: websocket", "Connection: Upgrade", ACCEPT, line],
        );
    }
}

#[test]
fn where_a_body_ends() {
    for (first, lines, body) in [
        (OK, &["Content-Length: 5"][..], Framing::Length(5)),
        (OK, &["Content-Length: 0"], Framing::Length(0)),
        (OK, &["Transfer-Encoding: Chunked"], Framing::Chunked),
        (OK, &[], Framing::UntilClose),
        ("HTTP/1.0 200 OK", &[], Framing::UntilClose),
        ("HTTP/1.1 204 No Content", &[], Framing::None),
        (
            "HTTP/1.1 204 No Content",
            &["Content-Length: 5"],
            Framing::None,
        ),
        (
            "HTTP/1.1 204 No Content",
            &["Transfer-Encoding: chunked"],
            Framing::None,
        ),
        (
            "HTTP/1.1 304 Not Modified",
            &["Content-Length: 5"],
            Framing::None,
        ),
        ("HTTP/1.1 100 Continue", &[], Framing::None),
        ("HTTP/1.1 103 Early Hints", &["Link: </a>"], Framing::None),
        (
            "HTTP/1.1 205 Reset Content",
            &["Content-Length: 0"],
            Framing::Length(0),
        ),
        ("HTTP/1.1 404 Not Found", &[], Framing::UntilClose),
    ] {
        assert_eq!(taken(first, lines).body, body, "{first} {lines:?}");
        assert_eq!(read(with(first, lines), true).unwrap().body, Framing::None);
    }
}

#[test]
fn bad_framing_is_an_error_even_where_there_is_no_body() {
    for lines in [
        &["Content-Length: 5", "Transfer-Encoding: chunked"][..],
        &["Content-Length: 5", "Content-Length: 5"],
        &["Content-Length: 5, 5"],
        &["Content-Length: -1"],
        &["Content-Length: 05"],
        &["Transfer-Encoding: gzip, chunked"],
        &["Transfer-Encoding: identity"],
        &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        &["Transfer_Encoding: chunked"],
        &["Transfer-Encoding : chunked"],
        &["Connection: content-length", "Content-Length: 5"],
        &["X: a\r\n folded"],
        &["X: a\rb"],
        &["X: a\nb"],
        &["X: \0"],
        &["no colon"],
    ] {
        for first in [
            OK,
            "HTTP/1.1 204 No Content",
            "HTTP/1.1 304 Not Modified",
            "HTTP/1.1 100 Continue",
        ] {
            refused(first, lines);
        }
        assert!(read(with(OK, lines), true).is_err());
    }
    refused("HTTP/1.0 200 OK", &["Transfer-Encoding: chunked"]);
}

#[test]
fn status_lines() {
    for first in [
        "HTTP/1.1 99 Low",
        "HTTP/1.1 600 High",
        "HTTP/1.1 999 High",
        "HTTP/1.1 020 Zero",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 2 0 OK",
        "HTTP/1.1 200OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1 ",
        "HTTP/1.1",
        "HTTP/2 200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/0.9 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.1\t200 OK",
        "ICY 200 OK",
        "HTTP/1.1 200 \x1b",
        "\r\nHTTP/1.1 200 OK",
        "HTTP/1.1 200\tOK",
    ] {
        refused(first, &["Content-Length: 0"]);
    }
    for (first, reason) in [
        (OK, "OK"),
        ("HTTP/1.1 200 ", ""),
        ("HTTP/1.1 200", ""),
        ("HTTP/1.1 200 \tIt's fine: \u{e9}", "\tIt's fine: \u{e9}"),
    ] {
        assert_eq!(taken(first, &["Content-Length: 0"]).reason, reason);
    }
    assert_eq!(
        read(
            b"HTTP/1.1 200 \xe9t\xe9\r\nContent-Length: 0\r\n\r\n",
            false
        )
        .unwrap()
        .reason,
        ""
    );
}

#[test]
fn the_connection_stays_open_as_rfc_9112_section_9_3_says() {
    for (first, lines, expected) in [
        (OK, &["Content-Length: 0"][..], true),
        (OK, &["Content-Length: 0", "Connection: close"], false),
        (OK, &[], false),
        (OK, &["Connection: keep-alive"], false),
        ("HTTP/1.0 200 OK", &["Content-Length: 0"], false),
        (
            "HTTP/1.0 200 OK",
            &["Content-Length: 0", "Connection: keep-alive"],
            true,
        ),
        ("HTTP/1.1 204 No Content", &[], true),
    ] {
        assert_eq!(
            taken(first, lines).keep_alive,
            expected,
            "{first} {lines:?}"
        );
    }
}
