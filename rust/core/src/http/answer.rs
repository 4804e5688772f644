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

/// What a status is called (RFC 9110 section 15, RFC 6585); nothing if it is none that we give.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
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
