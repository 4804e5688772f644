//! WebSocket handshakes, with the numbers of the catalogue of bad inputs (class A).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod http_read;

use http_read::*;
use pybalancer_core::http::*;

/// A correct handshake, but for the line that begins like `change`, which is replaced by these.
fn handshake(first: &str, change: &str, by: &[&str]) -> Vec<u8> {
    let key = format!("Sec-WebSocket-Key: {KEY}");
    let all = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        &key,
    ];
    let mut lines: Vec<&str> = all
        .into_iter()
        .filter(|line| change.is_empty() || !line.starts_with(change))
        .collect();
    lines.extend(by);
    with(first, &lines)
}

const GET: &str = "GET / HTTP/1.1";

#[test]
fn a_correct_handshake_is_one() {
    for by in [
        &[][..],
        &["Content-Length: 0"],
        &[
            "Sec-WebSocket-Extensions: permessage-deflate",
            "Sec-WebSocket-Protocol: a, b",
        ],
        &["Origin: https://evil.example"],
    ] {
        assert!(taken(handshake(GET, "", by)).websocket);
    }
    for connection in [
        "Connection: keep-alive, UPGRADE",
        "connection: upgrade",
        "Connection: ,upgrade,, x",
    ] {
        assert!(taken(handshake(GET, "Connection", &[connection])).websocket);
    }
    let two = ["Connection: keep-alive", "Connection: Upgrade"];
    assert!(taken(handshake(GET, "Connection", &two)).websocket);
    assert!(taken(handshake(GET, "Upgrade", &["Upgrade: WebSocket"])).websocket);
}

#[test]
fn test_01_what_follows_the_head_is_not_looked_at() {
    let mut bytes = handshake(GET, "", &[]);
    let length = bytes.len();
    bytes.extend_from_slice(b"\0\n\r GET /second HTTP/1.1\r\n\r\n");
    assert_eq!(
        Scanner::default().scan(&bytes, &Limits::default()),
        Ok(Some(length))
    );
}

#[test]
fn test_09_version_other_absent_or_twice() {
    for (status, by) in [
        (426, &["Sec-WebSocket-Version: 99"][..]),
        (426, &["Sec-WebSocket-Version: 7"]),
        (426, &["Sec-WebSocket-Version: 013"]),
        (426, &["Sec-WebSocket-Version: 13, 8"]),
        (426, &["Sec-WebSocket-Version:"]),
        (426, &[]),
        (
            400,
            &["Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13"],
        ),
        (
            400,
            &["Sec-WebSocket-Version: 13", "sec-websocket-version: 8"],
        ),
        (400, &["Sec_WebSocket_Version: 13"]),
    ] {
        refused(status, handshake(GET, "Sec-WebSocket-Version", by));
    }
}

#[test]
fn test_08_test_10_test_11_test_12_no_handshake_without_get_http_1_1_and_connection() {
    for head in [
        handshake("POST / HTTP/1.1", "", &["Content-Length: 0"]),
        handshake("HEAD / HTTP/1.1", "", &[]),
        handshake("get / HTTP/1.1", "", &[]),
        handshake("GET / HTTP/1.0", "", &[]),
        handshake(GET, "Connection", &[]),
        handshake(GET, "Connection", &["Connection: keep-alive"]),
        handshake(GET, "Connection", &["Connection: upgrades"]),
        handshake(GET, "Upgrade", &[]),
    ] {
        assert!(!taken(head).websocket);
    }
}

#[test]
fn test_13_key_missing_not_16_bytes_or_twice() {
    for key in [
        "",
        "x",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ=",
        "dGhlIHNhbXBsZSBub25jZR==",
        "dGhlIHNhbXBsZSBub25jZQ===",
        "dGhlIHNhbXBsZSBub25j",
        "dGhlIHNhbXBsZSBub25jZWVl",
        "dGhlIHNhbXBsZSBub25jZWVlZQ==",
        "dGhlIHNhbXBsZSBub25jZ-==",
        "dGhlIHNhbXBsZSBub25_ZQ==",
        "dGhlIHNhbXBs ZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25jZQ==,dGhlIHNhbXBsZSBub25jZQ==",
        "====================AA==",
        "=GhlIHNhbXBsZSBub25jZQ==",
    ] {
        refused(
            400,
            handshake(
                GET,
                "Sec-WebSocket-Key",
                &[&format!("Sec-WebSocket-Key: {key}")],
            ),
        );
    }
    refused(400, handshake(GET, "Sec-WebSocket-Key", &[]));
    refused(
        400,
        handshake(GET, "", &[&format!("Sec-WebSocket-Key: {KEY}")]),
    );
    for last in ["A", "Q", "g", "w"] {
        let key = format!("Sec-WebSocket-Key: +/09azAZdGhlIHNhbXBsZ{last}==");
        assert!(taken(handshake(GET, "Sec-WebSocket-Key", &[&key])).websocket);
    }
}

#[test]
fn test_15_test_16_other_tokens_are_no_handshake() {
    for by in [
        &["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"][..],
        &["Upgrade: foo"],
        &["Upgrade: websocket, h2c"],
        &["Upgrade: websocket/13"],
        &["Upgrade: websocket,"],
        &["Upgrade: websocket", "Upgrade: websocket"],
        &["Upgrade: xwebsocket"],
        &["Upgrade:"],
    ] {
        assert!(!taken(handshake(GET, "Upgrade", by)).websocket, "{by:?}");
    }
}

#[test]
fn test_17_a_handshake_with_a_body() {
    for line in [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Content-Length: 00",
    ] {
        refused(400, handshake(GET, "", &[line]));
    }
}

#[test]
fn test_18_test_58_a_fragment_in_the_target() {
    for target in ["/#frag", "/a?b#c", "#", "http://example.com/#x", "/%23#"] {
        let first = format!("GET {target} HTTP/1.1");
        refused(400, handshake(&first, "", &[]));
        refused(400, with(&first, &[]));
    }
}

#[test]
fn test_26_connect_and_trace() {
    for first in [
        "CONNECT example.com:443 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "TRACE / HTTP/1.1",
        "TRACE / HTTP/1.0",
    ] {
        refused(405, with(first, &[]));
    }
}
