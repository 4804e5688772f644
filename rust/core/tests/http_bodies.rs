//! Bodies, with the numbers of the catalogue of bad inputs (class B).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod http_entry;

use http_entry::{Passed, pass_in_pieces};
use pybalancer_core::http::*;

/// In one piece, byte by byte and spliced: always the same.
fn pass(framing: Framing, data: &[u8]) -> Passed {
    let whole = pass_in_pieces(framing, data, &[data.len()], false);
    for (size, splice) in [(1, false), (2, false), (1, true), (data.len(), true)] {
        assert_eq!(
            pass_in_pieces(framing, data, &[size], splice),
            whole,
            "{}",
            data.escape_ascii()
        );
    }
    whole
}

#[track_caller]
fn chunked(data: &str, out: &str) {
    let passed = pass(Framing::Chunked, data.as_bytes());
    assert_eq!(passed.refused, None, "{data:?}");
    assert_eq!(passed.complete, Some(data.len()), "{data:?}");
    assert_eq!(String::from_utf8(passed.out).unwrap(), out, "{data:?}");
}

#[track_caller]
fn refused(data: &str) {
    let passed = pass(Framing::Chunked, data.as_bytes());
    assert!(
        passed.refused.is_some_and(|refusal| refusal.status == 400),
        "{data:?}: {passed:?}"
    );
}

#[test]
fn chunked_framing_is_made_canonical() {
    const HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";
    for data in [
        HELLO,
        "05\r\nhello\r\n0\r\n\r\n",
        "0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n",
        "5;name\r\nhello\r\n0\r\n\r\n",
        "5;a=b;c=\"\\\"d\t\u{e9}\"\r\nhello\r\n0;x\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX-Trailer: a\r\nY:\r\n\r\n",
    ] {
        chunked(data, HELLO);
    }
    chunked(
        "A\r\n0123456789\r\n0\r\n\r\n",
        "a\r\n0123456789\r\n0\r\n\r\n",
    );
    chunked("0\r\n\r\n", "0\r\n\r\n");
    chunked("2\r\n\r\n\r\n0\r\n\r\n", "2\r\n\r\n\r\n0\r\n\r\n");
}

#[test]
fn canonical_framing_is_passed_in_one_piece() {
    let data = b"5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\nGET /";
    let mut body = Body::new(Framing::Chunked);
    assert_eq!(body.next(data), Ok(Piece::Pass(37)));
    assert_eq!(body.next(&data[37..]), Ok(Piece::End));
    assert_eq!(data[37..], *b"GET /");
}

#[test]
fn test_43_sizes_that_are_none() {
    for size in [
        "+5",
        "-5",
        "0x5",
        "0_2e",
        "",
        " 5",
        "5 ",
        "5\t",
        "00000000000000005",
        "ffffffffffffffff",
        "8000000000000000",
        "10000000000000000",
        "g",
        "5h",
        "\u{665}",
        "5 ;x",
        "5,5",
        "\0",
        "5\0",
        ";x",
        "'5'",
    ] {
        refused(&format!("{size}\r\nhello\r\n0\r\n\r\n"));
    }
    let largest = pass(Framing::Chunked, b"7fffffffffffffff\r\nx");
    assert_eq!(
        (largest.refused, largest.out),
        (None, b"7fffffffffffffff\r\nx".to_vec())
    );
}

#[test]
fn test_44_line_ends_and_extensions() {
    for data in [
        "5;\nhello\r\n0\r\n\r\n",
        "2\r\r;a",
        "5;\0ext\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n",
        "5;a\rb\r\nhello\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "0\n\n",
        "0\r\n\n",
        "0\r\n\r\r",
        "0\r\r\n",
        "\r\n5\r\nhello\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5;\x7f\r\nhello\r\n",
        "5\r\n\nhello\r\n",
    ] {
        refused(data);
    }
}

#[test]
fn test_44_extensions_are_bounded() {
    let data = |length: usize| format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(length - 1));
    chunked(&data(256), "5\r\nhello\r\n0\r\n\r\n");
    refused(&data(257));
    refused(&data(100_000));
}

#[test]
fn test_45_a_chunk_longer_or_shorter_than_its_size() {
    for data in [
        "5\r\nhello world\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello \r\n0\r\n\r\n",
        "1\r\nabc\r\n0\r\n\r\n",
    ] {
        refused(data);
    }
}

#[test]
fn test_47_trailers_are_dropped_whatever_they_are_called() {
    for trailer in [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: evil",
        "Content_Length: 1",
        "X: \t\u{e9}",
    ] {
        chunked(
            &format!("1\r\na\r\n0\r\n{trailer}\r\nY: b\r\n\r\n"),
            "1\r\na\r\n0\r\n\r\n",
        );
    }
    for trailer in [
        "no colon",
        " X: a",
        "X : a",
        ": a",
        "X: a\r\n b",
        "X: \0",
        "X: a\nY: b",
        "X: a\rb",
        "\u{e9}: a",
        "X: \x7f",
        "GET / HTTP/1.1",
    ] {
        refused(&format!("1\r\na\r\n0\r\n{trailer}\r\n\r\n"));
    }
}

#[test]
fn test_47_trailers_are_bounded() {
    let data = |length: usize| format!("0\r\nX: {}\r\n\r\n", "a".repeat(length - 7));
    chunked(&data(8192), "0\r\n\r\n");
    refused(&data(8193));
}

#[test]
fn a_body_with_a_length_is_that_long() {
    for (length, complete) in [(0, true), (1, true), (5, true), (6, false)] {
        let passed = pass(Framing::Length(length as u64), b"hello");
        assert_eq!(passed.complete, complete.then_some(length));
        assert_eq!(passed.out, b"hello"[..length.min(5)]);
    }
    assert_eq!(pass(Framing::None, b"GET").complete, Some(0));
}

#[test]
fn an_end_that_cuts_a_body_is_an_error() {
    for (framing, data, good) in [
        (Framing::None, "", true),
        (Framing::UntilClose, "", true),
        (Framing::UntilClose, "x", true),
        (Framing::Length(0), "", true),
        (Framing::Length(1), "", false),
        (Framing::Length(1), "x", true),
        (Framing::Chunked, "", false),
        (Framing::Chunked, "1\r\nx", false),
        (Framing::Chunked, "1\r\nx\r\n", false),
        (Framing::Chunked, "1\r\nx\r\n0\r\n", false),
        (Framing::Chunked, "0\r\nX: a\r\n", false),
        (Framing::Chunked, "0\r\n\r\n", true),
    ] {
        let mut body = Body::new(framing);
        let mut input = data.as_bytes();
        while let Piece::Pass(count) | Piece::Replace(count, _) = body.next(input).unwrap() {
            input = &input[count..];
        }
        assert_eq!(body.end().is_ok(), good, "{framing:?} {data:?}");
        assert_eq!(body.is_complete(), good, "{framing:?} {data:?}");
    }
}

#[test]
fn what_may_go_unseen() {
    let mut body = Body::new(Framing::Length(1 << 40));
    assert_eq!(body.unseen(), 1 << 40);
    body.skip((1 << 40) - 1);
    assert_eq!(body.next(b"xy"), Ok(Piece::Pass(1)));
    assert_eq!((body.unseen(), body.next(b"y")), (0, Ok(Piece::End)));

    let mut body = Body::new(Framing::Chunked);
    assert_eq!(body.unseen(), 0);
    assert_eq!(body.next(b"100000\r\n"), Ok(Piece::Pass(8)));
    assert_eq!(body.unseen(), 1 << 20);
    body.skip(1 << 20);
    assert_eq!(body.unseen(), 0);
    assert!(body.next(b"x").is_err());

    let mut body = Body::new(Framing::UntilClose);
    body.skip(5);
    assert_eq!(body.unseen(), u64::MAX);
    assert_eq!(size_of::<Body>(), 16);
}
