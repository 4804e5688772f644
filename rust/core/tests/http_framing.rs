//! How request heads are framed, with the numbers of the catalogue of bad inputs (class B).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod http_read;

use http_read::*;
use pybalancer_core::http::*;

#[test]
fn test_27_length_and_chunked() {
    for lines in [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["transfer-encoding: CHUNKED", "CONTENT-LENGTH: 0"],
    ] {
        refused(400, post(&lines));
        refused(400, get(&lines));
    }
}

#[test]
fn test_28_other_codings() {
    for lines in [
        &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"][..],
        &["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        &["Transfer-Encoding: chunked, chunked"],
        &["Transfer-Encoding: chunked, gzip"],
        &["Transfer-Encoding: gzip, chunked"],
        &["Transfer-Encoding: gzip"],
        &["Transfer-Encoding: identity"],
        &["Transfer-Encoding: chunked;q=1"],
        &["Transfer-Encoding: \"chunked\""],
        &["Transfer-Encoding: chunked,"],
        &["Transfer-Encoding:"],
    ] {
        refused(400, post(lines));
    }
}

#[test]
fn test_29_chunked_in_http_1_0_and_no_length() {
    for lines in [
        &["Transfer-Encoding: chunked"][..],
        &["Transfer-Encoding: chunked", "Connection: keep-alive"],
        &[],
    ] {
        for method in ["POST", "PUT", "PATCH"] {
            refused(400, with(&format!("{method} / HTTP/1.0"), lines));
        }
    }
    refused(400, with("GET / HTTP/1.0", &["Transfer-Encoding: chunked"]));
    assert_eq!(
        taken(with("POST / HTTP/1.0", &["Content-Length: 7"])).body,
        Framing::Length(7)
    );
    assert_eq!(taken(with("GET / HTTP/1.0", &[])).body, Framing::None);
    assert_eq!(taken(post(&[])).body, Framing::None);
}

/// Every byte at every place of the line, and every byte instead of every one: it is refused, or it is
/// exactly chunked, or it is another field, which nobody can take for this one.
#[test]
fn test_30_every_mutation_of_transfer_encoding() {
    const LINE: &[u8] = b"Transfer-Encoding: chunked";
    let (mut chunked, mut other) = (0, 0);
    let mut judge = |line: Vec<u8>| {
        let head = [b"POST / HTTP/1.1\r\nHost: a\r\n", &line[..], b"\r\n\r\n"].concat();
        let Ok(seen) = read(&head) else { return };
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"Transfer-Encoding") {
            let value = value.strip_prefix(b" ").unwrap_or(value).trim_ascii();
            assert!(
                value.eq_ignore_ascii_case(b"chunked"),
                "{}",
                line.escape_ascii()
            );
            assert_eq!(seen.body, Framing::Chunked);
            chunked += 1;
        } else {
            let plain = |name: &[u8]| -> Vec<u8> {
                let fold = |byte: &u8| {
                    if byte.is_ascii_alphanumeric() {
                        byte.to_ascii_lowercase()
                    } else {
                        b'-'
                    }
                };
                name.iter().map(fold).collect()
            };
            assert_ne!(plain(name), b"transfer-encoding", "{}", line.escape_ascii());
            assert_eq!(seen.body, Framing::None);
            other += 1;
        }
    };
    for at in 0..=LINE.len() {
        for byte in 0..=255 {
            let mut inserted = LINE.to_vec();
            inserted.insert(at, byte);
            judge(inserted);
            if at < LINE.len() {
                let mut set = LINE.to_vec();
                set[at] = byte;
                judge(set);
            }
        }
        if at < LINE.len() {
            let mut deleted = LINE.to_vec();
            deleted.remove(at);
            judge(deleted);
        }
    }
    // Cases of letters and whitespace around the value are what is left of the one.
    assert!(chunked > 40 && other > 1000, "{chunked} {other}");
}

#[test]
fn test_30_the_named_mutations_of_transfer_encoding() {
    for line in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: xchunked",
        "Transfer_Encoding: chunked",
        "TRANSFER_ENCODING: chunked",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer.Encoding: chunked",
        " Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\x0c",
        "Transfer-Encoding:\x08chunked",
        "Transfer-Encoding: chu nked",
        "Transfer-Encoding\u{a0}: chunked",
        "\x00Transfer-Encoding: chunked",
        "Transfer Encoding: chunked",
        "X: a\rTransfer-Encoding: chunked",
        "X: a\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunk\u{e9}d",
        "Transfer-Encoding: chun\u{212a}ed",
        "Content_Length: 5",
        "Content-Length : 5",
        "Keep_Alive: 5",
        "Sec_WebSocket_Foo: x",
        "Sec-WebSocket_Key: x",
    ] {
        refused(400, post(&[line]));
    }
    refused(
        400,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \xa0chunked\r\n\r\n",
    );
    refused(
        400,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x85\r\n\r\n",
    );
    // Not confused with anything, as their neighbours show.
    taken(post(&[
        "X_Custom: 1",
        "Content-Type: a/b",
        "X-Transfer_Encoding: chunked",
    ]));
}

#[test]
fn test_32_test_33_test_34_content_length_that_is_no_number() {
    for value in [
        "-48",
        "+5",
        "0x10",
        "1_0",
        "1Z",
        "18446744073709551616",
        "18446744073709551615",
        "9223372036854775808",
        "010",
        "00",
        "",
        "5 5",
        "5,",
        "5;",
        "5.0",
        "1e3",
        "\u{661}",
        "5\x0b",
        "99999999999999999999999999",
        "\"5\"",
    ] {
        refused(400, post(&[&format!("Content-Length: {value}")]));
    }
    for (value, length) in [
        ("0", 0),
        ("5", 5),
        ("10", 10),
        ("9223372036854775807", i64::MAX as u64),
    ] {
        assert_eq!(
            taken(post(&[&format!("Content-Length: \t{value} ")])).body,
            Framing::Length(length)
        );
    }
}

#[test]
fn test_36_two_content_lengths() {
    for lines in [
        &["Content-Length: 5", "Content-Length: 6"][..],
        &["Content-Length: 5", "Content-Length: 5"],
        &["Content-Length: 5, 6"],
        &["Content-Length: 5, 5"],
        &["Content-Length: 5", "content-length:"],
    ] {
        refused(400, post(lines));
    }
}

#[test]
fn test_37_test_38_test_39_test_40_test_42_lines_that_are_not_fields() {
    for lines in [
        "X: a\r\n b\r\n",
        "X: a\r\n\tb\r\n",
        "X:\r\n b\r\n",
        "X: a\nY: b\r\n",
        "X: a\r\n\n",
        "\nX: a\r\n",
        "X: a\rb\r\n",
        "X\r: a\r\n",
        "X: a\r\r\n",
        "X: a\0b\r\n",
        "X\0: a\r\n",
        "\0\r\n",
        "no colon\r\n",
        "nocolon\r\n",
        ": no name\r\n",
        "X Y: a\r\n",
        "X: \x1b[0m\r\n",
        "X: \x7f\r\n",
        "X\u{e9}: a\r\n",
        "X(: a\r\n",
        "X\": a\r\n",
        "{X}: a\r\n",
        "X/Y: a\r\n",
        "\rX: a\r\n",
    ] {
        refused(400, format!("GET / HTTP/1.1\r\n{lines}Host: a\r\n\r\n"));
        refused(400, format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
    }
    for head in [
        " Host: a\r\n\r\n",
        "\tHost: a\r\n\r\n",
        "Host: a\r\n\n",
        "Host: a\n\r\n",
        "Host: a\n\n",
        "Host: a\r\n\r\r",
        " \r\nHost: a\r\n\r\n",
    ] {
        refused(400, format!("GET / HTTP/1.1\r\n{head}"));
    }
    refused(400, "GET /\nHTTP/1.1\r\nHost: a\r\n\r\n");
    refused(400, "GET / HTTP/1.1\nHost: a\r\n\r\n");
    refused(400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    refused(400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    taken("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    taken("GET / HTTP/1.1\r\nHost:a\r\nX:\r\nY: \t \r\nZ:a:b\tc \r\n\r\n");
    taken(b"GET / HTTP/1.1\r\nHost: a\r\nX: \x80\xff\r\n\r\n");
}

#[test]
fn a_value_may_hold_htab_sp_visible_characters_and_obs_text() {
    for byte in 0..=255_u8 {
        let head = [
            b"GET / HTTP/1.1\r\nHost: a\r\nX: a",
            &[byte][..],
            b"b\r\n\r\n",
        ]
        .concat();
        let good = byte == b'\t' || byte >= 0x20 && byte != 0x7f;
        assert_eq!(read(&head).is_ok(), good, "{byte:#x}");
    }
}

#[test]
fn test_49_bodies_of_any_method() {
    for method in [
        "GET",
        "HEAD",
        "DELETE",
        "OPTIONS",
        "PROPFIND",
        "!#$%&'*+-.^_`|~09azAZ",
    ] {
        let first = format!("{method} / HTTP/1.1");
        assert_eq!(
            taken(with(&first, &["Content-Length: 4"])).body,
            Framing::Length(4)
        );
        assert_eq!(
            taken(with(&first, &["Transfer-Encoding: chunked"])).body,
            Framing::Chunked
        );
    }
}

#[test]
fn test_50_expectations() {
    let expects = |first: &str, lines: &[&str]| taken(with(first, lines)).expects_continue;
    assert!(expects(
        "POST / HTTP/1.1",
        &["Expect: 100-continue", "Content-Length: 5"]
    ));
    assert!(expects(
        "POST / HTTP/1.1",
        &["expect: 100-Continue", "Transfer-Encoding: chunked"]
    ));
    assert!(!expects(
        "POST / HTTP/1.0",
        &["Expect: 100-continue", "Content-Length: 5"]
    ));
    assert!(!expects("GET / HTTP/1.1", &["Expect: 100-continue"]));
    for lines in [
        &["Expect: 200-ok"][..],
        &["Expect: 100-continue, x"],
        &["Expect:"],
        &["Expect: 100-continue", "Expect: 100-continue"],
    ] {
        refused(417, post(lines));
    }
}
