//! Request heads that go on: what stays, what is dropped, what is ours.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::IpAddr;

use proptest::prelude::*;
use pybalancer_core::http::*;

type Set = Vec<(Box<str>, Box<str>)>;

const V4: &str = "192.0.2.7";

fn edits<'a>(client: Option<&str>, trusted: bool) -> Edits<'a> {
    Edits {
        target: None,
        set: &[],
        remove: &[],
        forwarded: Forwarded {
            client: client.map(|client| client.parse::<IpAddr>().unwrap()),
            proto: "http",
            trusted,
        },
        request_id: "ours",
    }
}

/// A request with these lines after Host, written again.
#[track_caller]
fn written(first: &str, lines: &[&str], edits: &Edits<'_>) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("{first}\r\nHost: a.example:8080\r\n{lines}\r\n");
    let mut fields = storage();
    let request = parse_request(head.as_bytes(), &mut fields, &Limits::default()).unwrap();
    let mut out = b"before".to_vec();
    write_request(&request, edits, &mut out);
    let out = String::from_utf8(out).unwrap();
    let out = out.strip_prefix("before").expect("it is appended");
    assert!(
        parse_request(out.as_bytes(), &mut storage(), &Limits::default()).is_ok(),
        "{out}"
    );
    out.into()
}

/// The fields of that start among those that are written.
#[track_caller]
fn forwarded(lines: &[&str], client: Option<&str>, trusted: bool) -> Vec<String> {
    let out = written("GET / HTTP/1.1", lines, &edits(client, trusted));
    let rest = out
        .strip_prefix("GET / HTTP/1.1\r\nHost: a.example:8080\r\n")
        .unwrap();
    rest.lines()
        .filter(|line| !line.is_empty())
        .map(Into::into)
        .collect()
}

#[test]
fn a_request_keeps_what_is_for_the_backend_in_order_and_as_spelled() {
    let lines = [
        "oRiGiN: https://a.example",
        "Cookie: a=1; b=2",
        "Accept-Encoding:gzip",
        "X-Same: 1",
        "Content-Length: 5",
        "x-same:  2  ",
        "Authorization: Basic x",
    ];
    assert_eq!(
        written("POST /a?b HTTP/1.1", &lines, &edits(Some(V4), false)),
        "POST /a?b HTTP/1.1\r\nHost: a.example:8080\r\noRiGiN: https://a.example\r\nCookie: a=1; b=2\r\n\
         Accept-Encoding: gzip\r\nX-Same: 1\r\nContent-Length: 5\r\nx-same: 2\r\nAuthorization: Basic x\r\n\
         X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.example:8080\r\n\
         Forwarded: for=192.0.2.7;host=\"a.example:8080\";proto=http\r\nX-Request-Id: ours\r\n\r\n"
    );
}

#[test]
fn test_15_test_16_what_is_the_connections_own_is_dropped() {
    let lines = [
        "Connection: keep-alive, X-Mine, Upgrade, HTTP2-Settings, TE",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "x-mine: 1",
        "X-Others: 2",
        "Connection: X-Third",
        "X-Third: 3",
    ];
    let kept = forwarded(&lines, Some(V4), false);
    assert_eq!(kept[0], "X-Others: 2");
    assert!(kept[1].starts_with("X-Forwarded-For"), "{kept:?}");
}

#[test]
fn a_handshake_says_that_it_upgrades_and_keeps_its_fields() {
    let lines = [
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: a, b",
        "sec-websocket-extensions: permessage-deflate",
    ];
    let out = written("GET / HTTP/1.1", &lines, &edits(Some(V4), false));
    assert!(
        out.contains(&format!("\r\n{}\r\n", lines[2..].join("\r\n"))),
        "{out}"
    );
    assert!(
        out.ends_with("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        "{out}"
    );
}

#[test]
fn chunked_is_said_anew_and_the_version_stays() {
    let out = written(
        "POST / HTTP/1.1",
        &["transfer-encoding: CHUNKED"],
        &edits(None, false),
    );
    assert!(
        out.ends_with("\r\nTransfer-Encoding: chunked\r\n\r\n") && !out.contains("CHUNKED"),
        "{out}"
    );
    let out = written(
        "GET / HTTP/1.0",
        &["Connection: keep-alive"],
        &edits(None, false),
    );
    assert!(
        out.starts_with("GET / HTTP/1.0\r\n") && !out.contains("Connection"),
        "{out}"
    );
}

#[test]
fn test_62_of_an_untrusted_peer_nothing_is_believed_however_it_is_spelled() {
    let plain = forwarded(&[], Some(V4), false);
    for line in [
        "X-Forwarded-For: 6.6.6.6",
        "x-forwarded-for: 6.6.6.6",
        "X_Forwarded_For: 6.6.6.6",
        "X-Forwarded_For: 6.6.6.6",
        "X.Forwarded.For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil",
        "X-Forwarded-Port: 1",
        "X_FORWARDED_PREFIX: /x",
        "X-Forwarded-: x",
        "Forwarded: for=6.6.6.6",
        "FORWARDED: for=_x",
        "X-Real-IP: 6.6.6.6",
        "X_Real_Ip: 6.6.6.6",
        "X-Request-Id: theirs",
        "X_Request_Id: theirs",
    ] {
        assert_eq!(forwarded(&[line], Some(V4), false), plain, "{line}");
    }
    // And these are other fields.
    for line in [
        "X-Forwarded: 1",
        "Forwarded-For: 1",
        "XForwarded-For: 1",
        "X-Real-IPs: 1",
    ] {
        assert_eq!(forwarded(&[line], Some(V4), false)[0], line);
    }
}

#[test]
fn test_62_what_a_trusted_peer_says_is_kept_and_extended() {
    let lines = [
        "X-Forwarded-For: 1.1.1.1, 2.2.2.2",
        "X-Forwarded-Proto: https",
        "x-forwarded-for: 3.3.3.3",
        "X-Forwarded-Host: b.example",
        "Forwarded: for=1.1.1.1;proto=https",
        "X-Forwarded-Port: 443",
        "X-Real-IP: 1.1.1.1",
        "X-Request-Id: theirs",
        "X_Forwarded_For: 6.6.6.6",
        "X_Real-IP: 6.6.6.6",
    ];
    assert_eq!(
        forwarded(&lines, Some(V4), true),
        [
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: b.example",
            "X-Forwarded-Port: 443",
            "X-Real-IP: 1.1.1.1",
            "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 192.0.2.7",
            "Forwarded: for=1.1.1.1;proto=https, for=192.0.2.7;host=\"a.example:8080\";proto=http",
            "X-Request-Id: theirs",
        ]
    );
    // Unless it takes it back.
    let named = [
        "Connection: X-Forwarded-For, X-Forwarded-Proto, X-Request-Id",
        lines[0],
        lines[1],
        lines[7],
    ];
    assert_eq!(
        forwarded(&named, Some(V4), true),
        forwarded(&[], Some(V4), false)
    );
}

#[test]
fn clients_of_all_families() {
    for (client, plain, element) in [
        (Some("192.0.2.7"), "192.0.2.7", "for=192.0.2.7;"),
        (Some("2001:db8::1"), "2001:db8::1", "for=\"[2001:db8::1]\";"),
        (Some("::ffff:192.0.2.7"), "192.0.2.7", "for=192.0.2.7;"),
    ] {
        let fields = forwarded(&[], client, false);
        assert_eq!(fields[0], format!("X-Forwarded-For: {plain}"));
        assert!(
            fields[3].starts_with(&format!("Forwarded: {element}")),
            "{fields:?}"
        );
    }
    let nobody = forwarded(&[], None, false);
    assert_eq!(nobody[0], "X-Forwarded-Proto: http");
    assert!(
        nobody[2].starts_with("Forwarded: for=unknown;host="),
        "{nobody:?}"
    );
    let heard = forwarded(&["X-Forwarded-For: 1.1.1.1"], None, true);
    assert!(
        heard.contains(&"X-Forwarded-For: 1.1.1.1".into()),
        "{heard:?}"
    );
}

#[test]
fn a_request_id_is_kept_if_logs_can_hold_it() {
    let id = |lines: &[&str], trusted| forwarded(lines, None, trusted).pop().unwrap();
    let long = |length| format!("X-Request-Id: {}", "x".repeat(length));
    assert_eq!(id(&["x-request-id: a-B_1~"], true), "X-Request-Id: a-B_1~");
    assert_eq!(id(&[&long(128)], true), long(128));
    for lines in [
        &[&long(129)[..]][..],
        &["X-Request-Id: a b"],
        &["X-Request-Id:"],
        &["X-Request-Id: \u{e9}"],
        &["X-Request-Id: a", "X-Request-Id: b"],
    ] {
        assert_eq!(id(lines, true), "X-Request-Id: ours", "{lines:?}");
    }
    let none = Edits {
        request_id: "",
        ..edits(None, true)
    };
    assert!(!written("GET / HTTP/1.1", &[], &none).contains("X-Request-Id"));
}

#[test]
fn fields_are_set_and_removed_and_targets_replaced() {
    let set: Set = vec![
        ("x-a".into(), "new".into()),
        ("HOST".into(), "b".into()),
        ("X-Forwarded-Proto".into(), "https".into()),
        ("host".into(), "c".into()),
    ];
    let remove: Vec<Box<str>> = [
        "COOKIE",
        "Forwarded",
        "x-request-id",
        "X-Forwarded-For",
        "X-Forwarded-Host",
    ]
    .map(Into::into)
    .into();
    let edits = Edits {
        target: Some("/short?q"),
        set: &set,
        remove: &remove,
        ..edits(Some(V4), true)
    };
    let lines = [
        "X-A: old",
        "Cookie: a=1",
        "X-B: stays",
        "X-A: older",
        "X-Forwarded-For: 1.1.1.1",
        "X-Forwarded-Proto: http",
    ];
    assert_eq!(
        written("GET /prefix/short?q HTTP/1.1", &lines, &edits),
        "GET /short?q HTTP/1.1\r\nX-B: stays\r\nx-a: new\r\nHOST: b\r\nX-Forwarded-Proto: https\r\n\r\n"
    );
    for (target, line) in [("", "GET / "), ("?q", "GET /?q "), ("x", "GET /x ")] {
        assert!(
            written(
                "GET /a HTTP/1.1",
                &[],
                &Edits {
                    target: Some(target),
                    ..edits
                }
            )
            .starts_with(line)
        );
    }
}

#[test]
fn edits_of_the_framing_are_refused() {
    for name in [
        "Connection",
        "keep-alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Transfer-Encoding",
        "Content-Length",
        "Content_Length",
        "Proxy-Connection",
        "Expect",
        "HTTP2-Settings",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Accept",
        "Sec_WebSocket_Protocol",
        "",
        "a b",
        "a:",
        "a\r\nb",
        "\u{e9}",
    ] {
        assert!(
            check_edit(name, Some("x")).is_err() && check_edit(name, None).is_err(),
            "{name}"
        );
    }
    for (name, value) in [
        ("X", "a\r\nb"),
        ("X", "\0"),
        ("X", "\x7f"),
        ("Host", "a, b"),
        ("Host", ""),
    ] {
        assert!(check_edit(name, Some(value)).is_err(), "{name} {value}");
    }
    assert!(check_edit("host", None).is_err());
    for (name, value) in [
        ("X", Some("a\tb \u{e9}")),
        ("X_Y", None),
        ("Host", Some("a:1")),
        ("Sec-WebSocket-Protocol", None),
        ("Cookie", Some("")),
    ] {
        assert_eq!(check_edit(name, value), Ok(()), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is configured, what goes out is a head that means the same.
    #[test]
    fn edits_cannot_change_the_framing(
        set in prop::collection::vec((names(), values()), 0..5),
        remove in prop::collection::vec(names(), 0..5),
        first in prop::sample::select(vec!["GET /x HTTP/1.1", "POST /x HTTP/1.1", "GET /x HTTP/1.0"]),
        lines in prop::collection::vec(prop::sample::select(vec![
            "Content-Length: 5", "Transfer-Encoding: chunked", "Connection: Upgrade, X-A", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "X-A: 1", "Cookie: a=1", "X-Forwarded-For: 1.1.1.1", "X_Request_Id: 1", "Expect: 100-continue",
        ]), 0..8),
        trusted: bool,
    ) {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("{first}\r\nHost: a\r\n{lines}\r\n");
        let mut fields = storage();
        let Ok(request) = parse_request(head.as_bytes(), &mut fields, &Limits::default()) else { return Ok(()) };
        let set: Set = set.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let remove: Vec<Box<str>> = remove.into_iter().map(Into::into).collect();
        let mut out = Vec::new();
        write_request(&request, &Edits { set: &set, remove: &remove, ..edits(Some(V4), trusted) }, &mut out);
        let mut fields = storage();
        let again = parse_request(&out, &mut fields, &Limits::default());
        prop_assert!(again.is_ok(), "{again:?} {}", out.escape_ascii());
        let again = again.unwrap();
        prop_assert_eq!((again.method, again.target, again.minor), (request.method, request.target, request.minor));
        prop_assert_eq!((again.body, again.upgrade), (request.body, request.upgrade));
    }
}

fn names() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "Host",
        "content-length",
        "Content_Length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Expect",
        "Cookie",
        "X-A",
        "X_A",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Sec_WebSocket_Protocol",
        "X-Forwarded-For",
        "Forwarded",
        "X-Request-Id",
        "a b",
        "",
        "X\r\nY",
        "Keep_Alive",
    ])
}

fn values() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "b",
        "5",
        "chunked",
        "a\r\nContent-Length: 5",
        "\0",
        "100-continue",
        "websocket",
        "13",
        "a, b",
        " x ",
        "\u{e9}",
    ])
}
