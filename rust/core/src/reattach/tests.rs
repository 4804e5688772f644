//! Frames that are known in advance, in slices of any size, and the rules of RFC 7692.

use alloc::vec::Vec;
use core::time::Duration;
use proptest::collection::vec;
use proptest::prelude::*;
use std::string::String;

use super::*;
use crate::http::{self, Limits};
use crate::time::Tick;
use crate::ws::{Rules as FrameRules, Tracker, accept_key, close_frame, pong_frame};

const KEY: [u8; 4] = [0x1b, 0x9a, 0x00, 0xff];

/// A frame of a client; of a backend without the mask.
fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let flag = if masked { 0x80 } else { 0 };
    let mut out = Vec::from([first]);
    match payload.len() {
        length @ 0..=125 => out.push(flag | length as u8),
        length @ 126..=0xffff => {
            out.push(flag | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(flag | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    if masked {
        out.extend(KEY);
    }
    let key = if masked { KEY } else { [0; 4] };
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b));
    out
}

/// First bytes and payloads, in any order: no Close.
fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let first = prop_oneof![
        4 => prop_oneof![Just(0x81_u8), Just(0x82), Just(0x01), Just(0x00), Just(0x80)],
        2 => prop_oneof![Just(0x89_u8), Just(0x8a)],
    ];
    let length = prop_oneof![8 => 0..126_usize, 2 => 126..6000_usize];
    let payload = length.prop_map(|length| (0..length).map(|n| n as u8).collect());
    let proper = |(first, mut payload): (u8, Vec<u8>)| {
        if first & 8 != 0 {
            payload.truncate(125);
        }
        (first, payload)
    };
    vec((first, payload).prop_map(proper), 0..10)
}

/// Give `look` a stream in slices, as the engine does; how far it came, and where it stopped.
fn pass(bytes: &[u8], slices: &[usize], watch: Watch) -> (usize, Tracker, Option<Halt>) {
    let mut tracker = Tracker::default();
    let (mut start, mut end) = (0, 0);
    let mut sizes = slices.iter().cycle();
    while end < bytes.len() {
        end = bytes.len().min(end + sizes.next().unwrap());
        let part = &bytes[start..end];
        let (count, halt) = look(&tracker, part, watch);
        assert_eq!(
            tracker.see(&part[..count], &FrameRules::default()),
            Ok(count)
        );
        start += count;
        if halt.is_some() {
            return (start, tracker, halt);
        }
        assert!((end - start) as u64 <= SMALL, "{} held", end - start);
    }
    (start, tracker, None)
}

proptest! {
    #[test]
    fn small_frames_pass_whole_or_not_at_all(
        frames in frames(), slices in vec(1..3000_usize, 1..8), cut in any::<prop::sample::Index>(), masked: bool,
    ) {
        let parts: Vec<Vec<u8>> = frames.iter().map(|(first, payload)| frame(*first, payload, masked)).collect();
        let bytes = parts.concat();
        let cut = if bytes.is_empty() { 0 } else { cut.index(bytes.len() + 1) };
        let (count, tracker, halt) = pass(&bytes[..cut], &slices, Watch::default());
        prop_assert_eq!(halt, None);
        // The frame in which the stream was cut.
        let mut start = 0;
        for part in &parts {
            if start + part.len() > cut {
                let large = part.len() as u64 > SMALL;
                prop_assert!(count == start || large, "{} {}", count, start);
                prop_assert_eq!(tracker.at_boundary(), count == start);
                return Ok(());
            }
            start += part.len();
        }
        prop_assert_eq!(count, cut);
    }

    #[test]
    fn a_stream_stops_between_two_messages_and_not_later(
        frames in frames(), slices in vec(1..3000_usize, 1..8), begun in 1..2000_usize,
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(first, payload)| frame(*first, payload, true)).collect();
        // What had passed when it was asked to stop.
        let (passed, before, _) = pass(&bytes[..begun.min(bytes.len())], &slices, Watch::default());
        let watch = Watch { boundary: true, closes: Closes::Pass };
        let (count, halt) = look(&before, &bytes[passed..], watch);
        let mut after = before;
        after.see(&bytes[passed..passed + count], &FrameRules::default()).unwrap();
        if before.at_boundary() && !before.in_message() {
            prop_assert_eq!((count, halt), (0, Some(Halt::Boundary)));
        } else if halt.is_some() {
            prop_assert!(after.at_boundary() && !after.in_message());
            // One message at most, or the rest of it.
            prop_assert!(after.messages() <= before.messages() + 1);
        } else {
            prop_assert!(!after.at_boundary() || after.in_message());
        }
    }

    #[test]
    fn a_close_stops_the_stream_by_its_code(
        frames in frames(), slices in vec(1..3000_usize, 1..8), code in prop_oneof![Just(1000_u16), Just(1001), Just(1005), Just(1011), Just(1012), 3000..5000_u16],
    ) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(|(first, payload)| frame(*first, payload, false)).collect();
        let end = bytes.len();
        bytes.extend(close_frame(code, "why", None).as_slice());
        for (closes, stops) in [
            (Closes::Pass, false),
            (Closes::Leaving, [1001, 1012].contains(&code)),
            (Closes::Answers, [1000, 1001, 1005, 1012].contains(&code)),
        ] {
            let (count, tracker, halt) = pass(&bytes, &slices, Watch { boundary: false, closes });
            let expected = if stops { (end, Some(Halt::Close(code)), None) } else { (bytes.len(), None, Some(code)) };
            prop_assert_eq!((count, halt, tracker.closed()), expected);
        }
    }

    #[test]
    fn words_are_kept_in_order_and_pings_answered(frames in frames(), slices in vec(1..3000_usize, 1..8), close in any::<Option<u16>>()) {
        let mut bytes = Vec::new();
        let (mut kept, mut answers): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        for (first, payload) in &frames {
            let wire = frame(*first, payload, true);
            match first {
                0x89 => answers.extend(pong_frame(payload, None).as_slice()),
                0x8a => {}
                _ => kept.extend(&wire),
            }
            bytes.extend(wire);
        }
        let close = close.filter(|code| (3000..5000).contains(code));
        if let Some(code) = close {
            bytes.extend(close_frame(code, "", Some(KEY)).as_slice());
        }
        let mut words = Words::default();
        let (mut said, mut closed, mut rest) = (Vec::new(), None, &bytes[..]);
        for size in slices.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (part, after) = rest.split_at(rest.len().min(*size));
            rest = after;
            closed = closed.or(words.hear(part, &mut said));
        }
        // Behind something that waits a Close waits, too.
        let waits = close.filter(|_| !kept.is_empty());
        let room = if waits.is_some() { 0 } else { (1 << 20) - kept.len() };
        if let Some(code) = waits {
            kept.extend(close_frame(code, "", Some(KEY)).as_slice());
        }
        prop_assert_eq!(closed, close.filter(|_| waits.is_none()));
        prop_assert_eq!(said, answers);
        prop_assert_eq!(words.room(1 << 20), room);
        prop_assert_eq!(words.into_bytes(), kept);
    }

    #[test]
    fn words_never_panic_and_lose_nothing_that_is_no_control_frame(bytes: Vec<u8>, cut in 0..40_usize) {
        let mut words = Words::default();
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        let mut answers = Vec::new();
        let closed = words.hear(a, &mut answers).or_else(|| words.hear(b, &mut answers));
        if closed.is_none() && answers.is_empty() {
            prop_assert!(words.into_bytes().len() <= bytes.len());
        }
    }

    #[test]
    fn waits_grow_and_end(tries in 1..6_u32, timeout in 1..60_000_u64, random: u64) {
        let rules = Rules { tries, timeout: Duration::from_millis(timeout), buffer: 1 };
        let mut journey = Journey::new(&rules, Tick(5));
        let mut now = Tick(5);
        let mut rounds = 0;
        while let Some(at) = journey.next_round(now, random) {
            let wait = at.since(now);
            prop_assert!(wait >= Duration::from_millis(50) && wait < Duration::from_millis(1600), "{:?}", wait);
            now = at;
            rounds += 1;
        }
        prop_assert!(now >= journey.deadline() && rounds <= timeout / 50 + 1);
        for attempt in 1..=tries {
            prop_assert!(!journey.is_spent());
            prop_assert_eq!(journey.attempt(), Some(attempt));
        }
        prop_assert!(journey.is_spent() && journey.attempt().is_none());
        prop_assert_eq!(journey.next_round(Tick(5), random), None);
    }

    #[test]
    fn a_backend_is_left_in_time_and_never_within_a_message(
        told: bool, heard: bool, broken: bool, unread: bool, owed: bool, client in vec(any::<bool>(), 2), backend in vec(any::<bool>(), 2), ms in 0..6000_u64,
    ) {
        let stream = |state: &[bool]| {
            let mut tracker = Tracker::default();
            if state[0] {
                tracker.see(&[0x01, 0], &FrameRules::default()).unwrap();
            }
            if state[1] {
                tracker.see(&[0x80, 100, 1], &FrameRules::default()).unwrap();
            }
            tracker
        };
        let (client_at, backend_at) = (stream(&client), stream(&backend));
        let mut leaving = Leaving::new(Tick(0), Tick(0), Duration::from_secs(5));
        (leaving.told, leaving.heard, leaving.broken) = (told, heard, broken);
        leaving.unread = unread;
        let now = Tick(0) + Duration::from_millis(ms);
        let between = !client[0] && !client[1] && !backend[0] && !backend[1] && !owed;
        let streams = Streams { client: &client_at, owed, backend: &backend_at };
        match leaving.next(&streams, now) {
            Next::Wait => prop_assert!(ms < 5000),
            Next::Tell => prop_assert!(!told && !broken && !client[0] && !client[1] && !owed),
            Next::Detach => {
                prop_assert!(between && (ms >= 5000 || heard && (told || broken)));
                prop_assert!(heard || !unread);
            }
            Next::Fail => prop_assert!(!backend[1] && (!between || unread && !heard)),
            Next::Abort => prop_assert!(backend[1]),
            Next::Over => prop_assert!(false, "nobody has closed"),
        }
        prop_assert!(leaving.due(now) <= leaving.until);
    }
}

#[test]
fn a_backend_whose_close_has_passed_is_not_left_for_another() {
    let (client, mut backend) = (Tracker::default(), Tracker::default());
    let close = close_frame(1011, "", None);
    backend
        .see(close.as_slice(), &FrameRules::default())
        .unwrap();
    let mut leaving = Leaving::new(Tick(0), Tick(0), Duration::from_secs(5));
    (leaving.told, leaving.heard, leaving.broken) = (true, true, true);
    let streams = Streams {
        client: &client,
        owed: false,
        backend: &backend,
    };
    assert_eq!(leaving.next(&streams, Tick(1)), Next::Over);
}

const NONCE: &[u8] = b"dGhlIHNhbXBsZSBub25jZQ==";

fn judge(
    agreed: Option<&Agreed>,
    status: &str,
    fields: &[&str],
) -> Result<(Agreed, Option<Answer>), &'static str> {
    let accept = accept_key(NONCE);
    let accept_text = str::from_utf8(&accept).unwrap();
    let mut head = std::format!(
        "HTTP/1.1 {status} x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept_text}\r\n"
    );
    for field in fields {
        head += field;
        head += "\r\n";
    }
    head += "\r\n";
    let mut storage = http::storage();
    let limits = Limits {
        head: 16384,
        target: 8192,
        fields: 100,
    };
    let response = http::parse_response(head.as_bytes(), false, &mut storage, &limits).unwrap();
    let answer = agreed.map(|agreed| agreed.judge(&response));
    Ok((Agreed::of(&response, accept)?, answer))
}

#[test]
fn extensions_that_refer_to_what_was_said_before_cannot_go_on() {
    for (fields, fits) in [
        (&[][..], true),
        (&["Sec-WebSocket-Protocol: chat"], true),
        (
            &[
                "Sec-WebSocket-Protocol: chat",
                "Sec-WebSocket-Protocol: chat",
            ],
            false,
        ),
        (&["Sec-WebSocket-Extensions: permessage-deflate"], false),
        (
            &["Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover"],
            false,
        ),
        (
            &["Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover"],
            false,
        ),
        (
            &[
                "Sec-WebSocket-Extensions: Permessage-Deflate; CLIENT_no_context_takeover ;server_no_context_takeover; server_max_window_bits=\"10\"",
            ],
            true,
        ),
        (&["Sec-WebSocket-Extensions: x-own"], false),
        (
            &[
                "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover, x-own",
            ],
            false,
        ),
    ] {
        assert_eq!(judge(None, "101", fields).is_ok(), fits, "{fields:?}");
    }
}

#[test]
fn the_second_answer_is_the_first_in_any_spelling() {
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10";
    let first = judge(None, "101", &["Sec-WebSocket-Protocol: chat", deflate])
        .unwrap()
        .0;
    let second = |status: &str, fields: &[&str]| {
        judge(Some(&first), status, fields)
            .ok()
            .and_then(|(_, answer)| answer)
    };
    let respelled = "sec-websocket-extensions: PERMESSAGE-deflate;server_max_window_bits=\"10\";client_no_context_takeover; server_no_context_takeover";
    assert_eq!(
        second("101", &[respelled, "sec-websocket-protocol: chat"]),
        Some(Answer::Agreed)
    );
    for fields in [
        &[deflate][..],
        &["Sec-WebSocket-Protocol: chat"],
        &["Sec-WebSocket-Protocol: Chat", deflate],
        &[
            "Sec-WebSocket-Protocol: chat",
            &deflate.replace("=10", "=11"),
        ],
    ] {
        assert!(
            matches!(second("101", fields), Some(Answer::Never(_))),
            "{fields:?}"
        );
    }
    for (status, never) in [
        ("200", false),
        ("302", false),
        ("400", true),
        ("401", true),
        ("404", true),
        ("408", false),
        ("425", false),
        ("429", false),
        ("500", false),
        ("503", false),
    ] {
        let answer = second(status, &[]);
        assert_eq!(
            matches!(answer, Some(Answer::Never(_))),
            never,
            "{status} {answer:?}"
        );
        assert_eq!(
            matches!(answer, Some(Answer::Again(_))),
            !never,
            "{status} {answer:?}"
        );
    }
    let mut other = first.clone();
    other.accept = accept_key(b"x3JJHMbDL1EzLkh9GBhXDw==");
    let answer = judge(
        Some(&other),
        "101",
        &["Sec-WebSocket-Protocol: chat", deflate],
    )
    .unwrap()
    .1;
    assert!(matches!(answer, Some(Answer::Again(_))));
}

#[test]
fn deflate_is_asked_for_without_takeover() {
    for (offer, asked) in [
        (
            "permessage-deflate",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate;server_no_context_takeover,  Permessage-Deflate; a=\"b,c;d\"",
            "permessage-deflate;server_no_context_takeover; client_no_context_takeover, Permessage-Deflate; a=\"b,c;d\"; server_no_context_takeover; client_no_context_takeover",
        ),
        ("x-own; y=1", "x-own; y=1"),
    ] {
        let head = |value: &str| {
            std::format!(
                "GET /a:b HTTP/1.1\r\nHost: a\r\nsec-websocket-EXTENSIONS: {value}\r\nX: y\r\n\r\n"
            )
        };
        let out = String::from_utf8(without_takeover(head(offer).as_bytes())).unwrap();
        let expected = head(asked).replace("sec-websocket-EXTENSIONS", "Sec-WebSocket-Extensions");
        assert_eq!(out, expected);
    }
    let plain = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(without_takeover(plain), plain);
}

#[test]
fn a_repeated_handshake_says_what_it_is() {
    let again = repeated(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "0a1b", "app-1", 2);
    let expected =
        "GET / HTTP/1.1\r\nHost: a\r\nPybalancer-Resumed: 0a1b; previous=app-1; attempt=2\r\n\r\n";
    assert_eq!(str::from_utf8(&again), Ok(expected));
    let odd = repeated(b"GET / HTTP/1.1\r\n\r\n", "a;b\"\\", "app 1\r\nX: y", 1);
    let expected = "GET / HTTP/1.1\r\nPybalancer-Resumed: \"a;b\\\"\\\\\"; previous=\"app 1X: y\"; attempt=1\r\n\r\n";
    assert_eq!(str::from_utf8(&odd), Ok(expected));
}
