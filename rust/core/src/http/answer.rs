//! Answers of our own.

use alloc::vec::Vec;

use super::edit::{line, number};

/// Write a whole answer: a short text, after which the connection is closed and nobody stores it.
///
/// A 405 names the methods that are allowed and a 426 what to upgrade to, as these must (RFC 9110
/// sections 15.5.6 and 15.5.22, RFC 6455 section 4.4). `extra` goes first and replaces any of the
/// fields that would be there anyway, but not those that frame the answer. `head_only`: to HEAD.
pub fn write_answer(
    status: u16,
    body: &str,
    retry_after: Option<u32>,
    extra: &[(&str, &str)],
    head_only: bool,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(u64::from(status), out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    let is_framing = |name: &str| {
        name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("transfer-encoding")
            || name.eq_ignore_ascii_case("connection")
    };
    for (name, value) in extra {
        if !is_framing(name) {
            line(name, value, out);
        }
    }
    let mut usual = |name: &str, value: &str| {
        if !extra
            .iter()
            .any(|(other, _)| name.eq_ignore_ascii_case(other))
        {
            line(name, value, out);
        }
    };
    usual("Content-Type", "text/plain; charset=utf-8");
    usual("Cache-Control", "no-store");
    match status {
        405 => usual("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        426 => {
            usual("Upgrade", "websocket");
            usual("Sec-WebSocket-Version", "13");
        }
        _ => {}
    }
    if let Some(seconds) = retry_after {
        out.extend_from_slice(b"Retry-After: ");
        number(u64::from(seconds), out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"Content-Length: ");
    number(body.len() as u64, out);
    out.extend_from_slice(b"\r\n");
    line(
        "Connection",
        if status == 426 {
            "close, Upgrade"
        } else {
            "close"
        },
        out,
    );
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(body.as_bytes());
    }
}

/// An answer of ours after which the connection may go on.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// Of those in [`reason_phrase`].
    pub status: u16,
    /// Fields besides those that frame it, in order; values are written as they are.
    pub fields: &'a [(&'a str, &'a str)],
    /// What it says.
    pub body: &'a [u8],
    /// To HEAD: the body is left out, its length is not.
    pub head_only: bool,
    /// The connection is closed after it.
    pub close: bool,
    /// HTTP/1.minor of the client; one of 1.0 is told if its connection goes on.
    pub minor: u8,
}

/// Write it, whole. A field with a control character is left out: it could be taken for two.
pub fn write_plain(answer: &Plain<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(u64::from(answer.status), out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(answer.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in answer.fields {
        let whole = !value.bytes().any(|byte| byte.is_ascii_control());
        debug_assert!(whole, "{name}");
        if whole {
            line(name, value, out);
        }
    }
    // Neither has a body, and a 204 may not even say so (RFC 9110 section 8.6).
    let bodiless = matches!(answer.status, 204 | 304);
    if !bodiless {
        out.extend_from_slice(b"Content-Length: ");
        number(answer.body.len() as u64, out);
        out.extend_from_slice(b"\r\n");
    }
    match (answer.close, answer.minor) {
        (true, _) => line("Connection", "close", out),
        (false, 0) => line("Connection", "keep-alive", out),
        (false, _) => {}
    }
    out.extend_from_slice(b"\r\n");
    if !answer.head_only && !bodiless {
        out.extend_from_slice(answer.body);
    }
}

/// What a status is called (RFC 9110 section 15, RFC 6585); nothing if it is none that we give.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn answer(
        status: u16,
        body: &str,
        retry: Option<u32>,
        extra: &[(&str, &str)],
        head_only: bool,
    ) -> String {
        let mut out = Vec::new();
        write_answer(status, body, retry, extra, head_only, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_is_complete() {
        assert_eq!(
            answer(503, "no room\n", Some(7), &[("X-A", "b")], false),
            "HTTP/1.1 503 Service Unavailable\r\nX-A: b\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Cache-Control: no-store\r\nRetry-After: 7\r\nContent-Length: 8\r\nConnection: close\r\n\r\nno room\n"
        );
        assert!(
            answer(400, "\u{e9}", None, &[], true)
                .ends_with("\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        );
    }

    #[test]
    fn a_plain_answer_says_whether_the_connection_goes_on() {
        let plain = |status, head_only, close, minor| {
            let answer = Plain {
                status,
                fields: &[("Location", "wss://a/")],
                body: b"{}",
                head_only,
                close,
                minor,
            };
            let mut out = Vec::new();
            write_plain(&answer, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            plain(200, false, false, 1),
            "HTTP/1.1 200 OK\r\nLocation: wss://a/\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert_eq!(
            plain(307, true, true, 0),
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: wss://a/\r\nContent-Length: 2\r\n\
             Connection: close\r\n\r\n"
        );
        assert!(plain(200, true, false, 0).ends_with("\r\nConnection: keep-alive\r\n\r\n"));
        for status in [204, 304] {
            assert!(plain(status, false, false, 1).ends_with("Location: wss://a/\r\n\r\n"));
        }
    }

    #[test]
    #[should_panic(expected = "Location")]
    fn a_line_break_in_a_field_is_a_defect() {
        let answer = Plain {
            status: 307,
            fields: &[("Location", "wss://a/\r\nSet-Cookie: a=b")],
            body: b"",
            head_only: false,
            close: false,
            minor: 1,
        };
        write_plain(&answer, &mut Vec::new());
    }

    #[test]
    fn test_09_test_26_what_some_statuses_must_have() {
        let upgrade = answer(426, "", None, &[], false);
        for line in [
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Connection: close, Upgrade",
        ] {
            assert!(upgrade.contains(line), "{upgrade}");
        }
        assert!(answer(405, "", None, &[], false).contains("\r\nAllow: GET, HEAD, "));
        let own = answer(
            405,
            "",
            None,
            &[
                ("allow", "GET"),
                ("connection", "x"),
                ("Content-Length", "9"),
            ],
            false,
        );
        assert!(
            own.contains("\r\nallow: GET\r\n") && !own.contains("HEAD"),
            "{own}"
        );
        assert!(
            own.contains("\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                && !own.contains('9'),
            "{own}"
        );
    }

    #[test]
    fn every_answer_is_a_response_that_we_would_take() {
        use super::super::{Framing, Limits, parse_response, storage};
        for status in [
            200, 400, 403, 405, 408, 414, 417, 421, 426, 429, 431, 500, 501, 502, 503, 504, 505,
        ] {
            assert_ne!(reason_phrase(status), "", "{status}");
            let head = answer(status, "why", Some(1), &[], true);
            let mut fields = storage();
            let response =
                parse_response(head.as_bytes(), false, &mut fields, &Limits::default()).unwrap();
            assert_eq!(
                (response.status, response.body),
                (status, Framing::Length(3))
            );
            assert!(!response.keep_alive);
        }
    }
}
