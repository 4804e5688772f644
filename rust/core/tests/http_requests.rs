//! What requests ask for, with the numbers of the catalogue of bad inputs (class C).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod http_read;

use http_read::*;
use pybalancer_core::http::*;

#[test]
fn test_53_test_55_host() {
    for version in ["1.0", "1.1"] {
        for lines in [
            "",
            "Host:\r\n",
            "Host: \t\r\n",
            "Host: a\r\nHost: a\r\n",
            "Host: a\r\nhost: b\r\n",
            "Host: a@b\r\n",
            "Host: a/b\r\n",
            "Host: a:0\r\n",
            "Host: a:99999\r\n",
            "Host: a:65536\r\n",
            "Host: a:\r\n",
            "Host: a:080\r\n",
            "Host: a:+80\r\n",
            "Host: a:80:80\r\n",
            "Host: :80\r\n",
            "Host: a, b\r\n",
            "Host: a,b\r\n",
            "Host: a b\r\n",
            "Host: [::1\r\n",
            "Host: []\r\n",
            "Host: [::1]x\r\n",
            "Host: [::g]\r\n",
            "Host: ::1\r\n",
            "Host: [fe80::1%25eth0]\r\n",
            "Host: [v1.a]\r\n",
            "Host: http://a\r\n",
            "Host: a\\b\r\n",
            "Host: a?b\r\n",
            "Host: a#b\r\n",
            "Host: \u{e9}\r\n",
            "Host: a%2eb\r\n",
            "Host: <a>\r\n",
            "Host: a;b\r\n",
            "Ho_st: a\r\n",
            "Host: a\r\n b\r\n",
            "Host: [1.2.3.4]\r\n",
        ] {
            refused(400, format!("GET / HTTP/{version}\r\n{lines}\r\n"));
        }
        for host in [
            "a",
            "A.example",
            "a.",
            "xn--bcher-kva.example:65535",
            "1.2.3.4:1",
            "[::1]",
            "[2001:DB8::1]:8080",
            "a_b~c-d",
            "[::ffff:1.2.3.4]",
        ] {
            taken(format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n"));
        }
    }
}

#[test]
fn test_56_absolute_form() {
    let target = |first: &str| taken(with(first, &[])).target;
    assert_eq!(target("GET http://example.com/a?b=c HTTP/1.1"), "/a?b=c");
    assert_eq!(target("GET HTTPS://EXAMPLE.com HTTP/1.1"), "/");
    assert_eq!(target("GET ws://example.com/ HTTP/1.1"), "/");
    assert_eq!(target("GET wss://example.com/x HTTP/1.0"), "/x");
    assert_eq!(target("OPTIONS http://example.com HTTP/1.1"), "*");
    assert_eq!(target("GET http://example.com//b HTTP/1.1"), "//b");
    for target in [
        "http://other.com/",
        "http://example.com:80/",
        "http://example.com.evil/",
        "http://user@example.com/",
        "http:///",
        "http://",
        "ftp://example.com/",
        "http:/example.com/",
        "example.com/",
        "http://example.com\\@evil/",
        "http://example.com?q",
        "example.com:80",
        "://example.com/",
        "http//example.com/",
    ] {
        refused(400, with(&format!("GET {target} HTTP/1.1"), &[]));
    }
}

#[test]
fn test_57_targets() {
    for first in [
        "GET admin HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS */x HTTP/1.1",
        "OPTIONS ** HTTP/1.1",
        "GET ?q HTTP/1.1",
        "GET \\ HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET /\" HTTP/1.1",
        "GET /<x> HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET\t/ HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /\x7f HTTP/1.1",
        "GET  HTTP/1.1",
        "GET HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET: / HTTP/1.1",
        "/ GET HTTP/1.1",
    ] {
        refused(400, with(first, &[]));
    }
    refused(400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n");
    refused(501, with(&format!("{} / HTTP/1.1", "A".repeat(33)), &[]));
    let seen = taken(with("GET /a/%2e%2e/{b}|^`?x=\\&y={}|^`?z HTTP/1.1", &[]));
    assert_eq!(seen.path, "/a/%2e%2e/{b}|^`");
    assert_eq!(seen.query.as_deref(), Some("x=\\&y={}|^`?z"));
    assert_eq!(
        taken(with("GET /? HTTP/1.1", &[])).query.as_deref(),
        Some("")
    );
    let star = taken(with("OPTIONS * HTTP/1.1", &[]));
    assert_eq!(
        (star.target.as_str(), star.path.as_str(), star.query),
        ("*", "*", None)
    );
}

#[test]
fn test_59_versions() {
    for (status, version) in [
        (505, "HTTP/1.32"),
        (505, "HTTP/2.0"),
        (505, "HTTP/1.2"),
        (505, "HTTP/0.9"),
        (505, "HTTP/9.9"),
        (400, "HTTP/1"),
        (505, "HTTP/1."),
        (400, "HTTP/"),
        (400, "http/1.1"),
        (400, "HTTP/11"),
        (505, "HTTP/1.1x"),
        (400, "HTTP/+1.1"),
        (400, "HTTP /1.1"),
        (400, "HTTPS/1.1"),
        (505, "HTTP/1.01"),
        (400, "HTTP/01.1"),
        (400, "ICY/1.1"),
    ] {
        refused(status, with(&format!("GET / {version}"), &[]));
    }
    refused(505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    // HTTP/0.9 is one line, and is refused with it.
    for line in ["GET /\r\n", "GET\r\n", "GET / \r\n", "x\r\n"] {
        assert_eq!(
            Scanner::default()
                .scan(line.as_bytes(), &Limits::default())
                .unwrap_err()
                .status,
            400
        );
    }
}

#[test]
fn test_60_too_long_or_too_many() {
    let limits = Limits {
        head: 300,
        target: 100,
        fields: 3,
    };
    let status = |head: String| {
        read_within(head, &limits)
            .err()
            .map(|refusal| refusal.status)
    };
    let target = |length: usize| {
        format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a".repeat(length - 1)
        )
    };
    assert_eq!(status(target(100)), None);
    assert_eq!(status(target(101)), Some(414));
    assert_eq!(status(target(65536)), Some(414));
    assert_eq!(status("A".repeat(1000)), Some(414));
    let field = |length: usize| {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n";
        head.replace("X: ", &format!("X: {}", "a".repeat(length - head.len())))
    };
    assert_eq!(status(field(300)), None);
    assert_eq!(status(field(301)), Some(431));
    assert_eq!(status(field(65536)), Some(431));
    let fields = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: a\r\n".repeat(count - 1)
        )
    };
    assert_eq!(status(fields(3)), None);
    assert_eq!(status(fields(4)), Some(431));
    assert_eq!(status(fields(2000)), Some(431));
    // No more is waited for when that much has come without an end.
    for (status, start) in [(414, "GET /"), (431, "GET / HTTP/1.1\r\nX: ")] {
        let held = format!(
            "{start}{}",
            "a".repeat(if status == 414 {
                160
            } else {
                300 - start.len() + 1
            })
        );
        assert_eq!(
            Scanner::default()
                .scan(held.as_bytes(), &limits)
                .unwrap_err()
                .status,
            status
        );
        assert_eq!(
            Scanner::default().scan(&held.as_bytes()[..held.len() - 1], &limits),
            Ok(None)
        );
    }
    assert_eq!(size_of::<Scanner>(), 12);
}

#[test]
fn test_64_what_is_not_http_is_refused_with_its_first_line() {
    for bytes in [
        &b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        b"\x16\x03\x01\x02\0\x01",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0",
    ] {
        assert_eq!(
            Scanner::default()
                .scan(bytes, &Limits::default())
                .unwrap_err()
                .status,
            400
        );
    }
}

#[test]
fn connection_names_options_and_not_the_message() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "Expect",
        "Cookie",
        "Authorization",
        "Sec-WebSocket-Key",
        "sec-websocket-protocol",
        "Content_Length",
        "a b",
        "\"close\"",
        "close;x",
        "\u{e9}",
    ] {
        refused(400, get(&[&format!("Connection: close, {name}")]));
    }
    let many = |count: usize| get(&[&format!("Connection: {}", "a,".repeat(count))]);
    taken(many(32));
    refused(400, many(33));
    refused(400, get(&["Connection: a"; 33]));
}

#[test]
fn the_connection_stays_open_as_rfc_9112_section_9_3_says() {
    for (version, lines, expected) in [
        ("1.1", &[][..], true),
        ("1.1", &["Connection: Close"], false),
        ("1.1", &["Connection: keep-alive, close"], false),
        ("1.1", &["Connection: closed"], true),
        ("1.0", &[], false),
        ("1.0", &["Connection: Keep-Alive"], true),
        (
            "1.0",
            &["Connection: keep-alive", "Connection: close"],
            false,
        ),
    ] {
        assert_eq!(
            taken(with(&format!("GET / HTTP/{version}"), lines)).keep_alive,
            expected,
            "{lines:?}"
        );
    }
}

#[test]
fn fields_cookies_and_queries_are_found() {
    let head = b"GET /?q=a%2Bb+c&%71=2&q2&empty=&bad=%zz%4&n=%00%fF HTTP/1.1\r\nHost: a\r\n\
        X-User: 5\r\nx-user: 6\r\nCookie: a=1; b=\"x y\";c = 3 ;d\r\nCookie: a=2; e=f=g\r\n\r\n";
    let mut fields = storage();
    let request = parse_request(head, &mut fields, &Limits::default()).unwrap();
    assert_eq!(request.field("X-USER"), Some(&b"5"[..]));
    assert_eq!(request.field("X-Use"), None);
    for (name, value) in [
        ("a", Some("1")),
        ("b", Some("\"x y\"")),
        ("c", Some("3")),
        ("d", None),
        ("A", None),
        ("e", Some("f=g")),
        ("", None),
    ] {
        assert_eq!(request.cookie(name), value.map(str::as_bytes), "{name}");
    }
    for (name, value) in [
        ("q", Some(&b"a+b+c"[..])),
        ("q2", Some(b"")),
        ("empty", Some(b"")),
        ("bad", Some(b"%zz%4")),
        ("n", Some(b"\0\xff")),
        ("Q", None),
        ("", None),
    ] {
        assert_eq!(request.query_value(name).as_deref(), value, "{name}");
    }
}

#[test]
fn only_exactly_a_head_is_read() {
    let head = get(&["X: a"]);
    for end in 0..head.len() {
        assert!(
            parse_request(&head[..end], &mut storage(), &Limits::default()).is_err(),
            "{end}"
        );
    }
    assert!(
        parse_request(
            &[&head[..], b"x"].concat(),
            &mut storage(),
            &Limits::default()
        )
        .is_err()
    );
    assert!(
        parse_request(
            &head,
            &mut storage(),
            &Limits {
                fields: 1000,
                ..Limits::default()
            }
        )
        .is_ok()
    );
}
