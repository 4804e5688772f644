//! Response heads that go on: what stays, what is dropped, what is ours.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use pybalancer_core::http::*;

#[track_caller]
fn response(first: &str, lines: &[&str], how: &ResponseEdits<'_>) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!("{first}\r\n{lines}\r\n");
    let mut fields = storage();
    let response = parse_response(head.as_bytes(), false, &mut fields, &Limits::default()).unwrap();
    let mut out = Vec::new();
    write_response(&response, how, &mut out);
    let mut fields = storage();
    let again = parse_response(&out, false, &mut fields, &Limits::default()).unwrap();
    assert_eq!((again.status, again.body), (response.status, response.body));
    assert_eq!(
        again.keep_alive,
        !how.close && again.body != Framing::UntilClose
    );
    String::from_utf8(out).unwrap()
}

#[test]
fn a_response_keeps_what_is_for_the_client() {
    let lines = [
        "Server: x",
        "Connection: X-Mine, keep-alive",
        "Keep-Alive: timeout=5",
        "X-Mine: 1",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "transfer-encoding: Chunked",
        "Trailer: X",
        "Upgrade: h2c",
        "X-Forwarded-For: stays",
        "Sec-WebSocket-Version: 13",
    ];
    assert_eq!(
        response("HTTP/1.1 200 Fine", &lines, &ResponseEdits::default()),
        "HTTP/1.1 200 Fine\r\nServer: x\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nTransfer-Encoding: chunked\r\n\
         X-Forwarded-For: stays\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    assert_eq!(
        response(
            "HTTP/1.0 200",
            &["Content-Length: 3"],
            &ResponseEdits::default()
        ),
        "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n"
    );
}

#[test]
fn a_response_tells_what_becomes_of_the_connection() {
    let default = ResponseEdits::default();
    let end = |how: ResponseEdits<'_>| response("HTTP/1.1 200 OK", &["Content-Length: 0"], &how);
    assert!(
        end(ResponseEdits {
            close: true,
            ..default
        })
        .ends_with("\r\nConnection: close\r\n\r\n")
    );
    assert!(
        end(ResponseEdits {
            keep_alive_10: true,
            ..default
        })
        .ends_with("\r\nConnection: keep-alive\r\n\r\n")
    );
    assert!(
        end(ResponseEdits {
            keep_alive_10: true,
            close: true,
            ..default
        })
        .ends_with("0\r\nConnection: close\r\n\r\n")
    );
    let lines = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    ];
    let tunnel = response(
        "HTTP/1.1 101 Switching Protocols",
        &lines,
        &ResponseEdits {
            websocket: true,
            ..default
        },
    );
    assert!(
        tunnel.ends_with("xOo=\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        "{tunnel}"
    );
    assert_eq!(tunnel.matches("pgrade").count(), 2);
}

#[test]
fn test_03_a_426_keeps_what_it_offers() {
    let how = ResponseEdits {
        close: true,
        ..ResponseEdits::default()
    };
    let lines = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Content-Length: 0",
    ];
    assert!(
        response("HTTP/1.1 426 Upgrade Required", &lines, &how)
            .ends_with("\r\nUpgrade: websocket\r\nConnection: close, Upgrade\r\n\r\n")
    );
    let lines = ["Upgrade: h2c", "Connection: Upgrade", "Content-Length: 0"];
    assert!(
        response("HTTP/1.1 426 Upgrade Required", &lines, &how)
            .ends_with("Length: 0\r\nConnection: close\r\n\r\n")
    );
    // test 4: nothing else offers.
    let lines = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Content-Length: 0",
    ];
    assert!(!response("HTTP/1.1 200 OK", &lines, &how).contains("pgrade"));
}

#[test]
fn a_response_without_a_body_announces_none() {
    for first in ["HTTP/1.1 204 No Content", "HTTP/1.1 103 Early Hints"] {
        for line in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            assert_eq!(
                response(first, &[line], &ResponseEdits::default()),
                format!("{first}\r\n\r\n")
            );
        }
    }
    let out = response(
        "HTTP/1.1 304 Not Modified",
        &["Content-Length: 5"],
        &ResponseEdits::default(),
    );
    assert!(out.contains("Content-Length: 5"));
}

#[test]
fn responses_are_edited_and_get_a_cookie() {
    let set: [(Box<str>, Box<str>); 3] = [
        ("Server".into(), "y".into()),
        ("Content-Length".into(), "9".into()),
        ("X".into(), "a\r\nEvil: b".into()),
    ];
    let how = ResponseEdits {
        set: &set,
        remove: &["X-Powered-By".into(), "Content-Length".into()],
        set_cookie: Some("s=1; HttpOnly"),
        ..ResponseEdits::default()
    };
    assert_eq!(
        response(
            "HTTP/1.1 200 OK",
            &[
                "server: x",
                "x-powered-by: z",
                "Content-Length: 0",
                "Set-Cookie: a=1"
            ],
            &how
        ),
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1\r\nServer: y\r\nSet-Cookie: s=1; HttpOnly\r\n\r\n"
    );
}
