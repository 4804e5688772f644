//! What must hold for any bytes: the entry points of the fuzz targets, and of the property tests.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use pybalancer_core::http::*;

/// How a scan of bytes that come in pieces of these sizes, over and over, ends; and the last verdict
/// if they are all used up.
pub fn scan_in_pieces(
    data: &[u8],
    sizes: &[usize],
    limits: &Limits,
) -> Result<Option<usize>, Refusal> {
    let mut scanner = Scanner::default();
    let mut seen = 0;
    let mut sizes = sizes.iter().cycle();
    loop {
        seen = data
            .len()
            .min(seen + sizes.next().map_or(1, |size| *size).max(1));
        let verdict = scanner.scan(&data[..seen], limits)?;
        if verdict.is_some() || seen == data.len() {
            return Ok(verdict);
        }
    }
}

/// Any bytes as the beginning of a connection. The first few choose limits and pieces.
pub fn head(data: &[u8]) {
    let Some((choice, data)) = data.split_first_chunk::<2>() else {
        return;
    };
    let limits = match choice[0] % 4 {
        0 => Limits {
            head: 200,
            target: 40,
            fields: 5,
        },
        1 => Limits {
            head: 60,
            target: 100,
            fields: 300,
        },
        _ => Limits::default(),
    };
    let mut once = Scanner::default();
    let whole = once.scan(data, &limits);
    for sizes in [&[1][..], &[usize::from(choice[1]) + 1, 3]] {
        assert_eq!(scan_in_pieces(data, sizes, &limits), whole);
    }
    let mut fields = storage();
    if parse_request(data, &mut fields, &limits).is_ok() {
        assert_eq!(whole, Ok(Some(data.len())), "read, but not found");
    }
    let Ok(Some(length)) = whole else { return };
    assert!(length <= limits.head.min(data.len()));
    let head = &data[..length];
    let mut fields = storage();
    if let Ok(request) = parse_request(head, &mut fields, &limits) {
        for trusted in [false, true] {
            request_goes_on(&request, trusted);
        }
        let _ = (
            request.cookie("a"),
            request.query_value("q"),
            request.field("host"),
        );
    }
    let mut fields = storage();
    if let Ok(response) = parse_response(head, choice[1] % 2 == 0, &mut fields, &limits) {
        response_goes_on(&response);
    }
}

fn request_goes_on(request: &Request<'_, '_>, trusted: bool) {
    let limits = Limits {
        head: usize::MAX,
        target: 8192,
        fields: MAX_FIELDS,
    };
    let edits = Edits {
        target: None,
        set: &[
            ("X-Set".into(), "1".into()),
            ("Connection".into(), "x".into()),
        ],
        remove: &["Accept".into(), "Host".into()],
        forwarded: Forwarded {
            client: Some([192, 0, 2, 1].into()),
            proto: "http",
            trusted,
        },
        request_id: "0123456789abcdef",
    };
    let mut out = Vec::new();
    write_request(request, &edits, &mut out);
    assert_eq!(Scanner::default().scan(&out, &limits), Ok(Some(out.len())));
    let mut fields = storage();
    let again = parse_request(&out, &mut fields, &limits).expect("what we write is what we take");
    assert_eq!(again.method, request.method);
    assert_eq!(again.target, request.target);
    assert_eq!((again.path, again.query), (request.path, request.query));
    assert_eq!((again.minor, again.host), (request.minor, request.host));
    assert_eq!((again.body, again.upgrade), (request.body, request.upgrade));
    assert_eq!(again.expects_continue, request.expects_continue);
    for single in ["x-request-id", "x-set", "host"] {
        assert_eq!(count(&again, single), 1, "{single}");
    }
    for none in ["accept", "te", "keep-alive", "trailer", "http2-settings"] {
        assert_eq!(count(&again, none), 0, "{none}");
    }
    // Nothing is invented: every field but ours is the client's.
    for field in again.fields {
        let name = field.name.to_ascii_lowercase();
        let ours = name.starts_with("x-") || name == "forwarded";
        let hop = ["connection", "upgrade", "transfer-encoding"].contains(&name.as_str());
        let theirs = |other: &Header<'_>| other.name == field.name && other.value == field.value;
        assert!(ours || hop || request.fields.iter().any(theirs), "{name}");
    }
}

fn count(request: &Request<'_, '_>, name: &str) -> usize {
    let same = |field: &&Header<'_>| field.name.eq_ignore_ascii_case(name);
    request.fields.iter().filter(same).count()
}

fn response_goes_on(response: &Response<'_, '_>) {
    let limits = Limits {
        head: usize::MAX,
        target: usize::MAX / 2,
        fields: MAX_FIELDS,
    };
    let how = ResponseEdits {
        websocket: response.upgrades_to_websocket,
        close: !response.keep_alive,
        ..ResponseEdits::default()
    };
    let mut out = Vec::new();
    write_response(response, &how, &mut out);
    assert_eq!(Scanner::default().scan(&out, &limits), Ok(Some(out.len())));
    let mut fields = storage();
    let again = parse_response(&out, false, &mut fields, &limits).expect("ours");
    assert_eq!(
        (again.status, again.reason),
        (response.status, response.reason)
    );
    assert_eq!(again.upgrades_to_websocket, response.upgrades_to_websocket);
    assert_eq!(again.accept, response.accept);
    if response.body != Framing::None {
        assert_eq!(again.body, response.body);
    }
}

/// What became of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// What was sent on.
    pub out: Vec<u8>,
    /// `Some(n)`: complete after n bytes of input.
    pub complete: Option<usize>,
    /// It was refused.
    pub refused: Option<Refusal>,
}

/// Send a body through, in pieces of these sizes, over and over. `splice`: what may go by unseen does.
pub fn pass_in_pieces(framing: Framing, data: &[u8], sizes: &[usize], splice: bool) -> Passed {
    let mut body = Body::new(framing);
    let mut passed = Passed {
        out: Vec::new(),
        complete: None,
        refused: None,
    };
    let mut sizes = sizes.iter().cycle();
    let (mut at, mut seen) = (0, 0);
    loop {
        let count = (data.len() - at).min(usize::try_from(body.unseen()).unwrap_or(usize::MAX));
        if splice && count > 0 {
            passed.out.extend_from_slice(&data[at..at + count]);
            body.skip(count as u64);
            at += count;
            seen = seen.max(at);
        }
        match body.next(&data[at..seen]) {
            Ok(Piece::Pass(count)) => {
                assert!(count > 0);
                passed.out.extend_from_slice(&data[at..at + count]);
                at += count;
            }
            Ok(Piece::Replace(count, line)) => {
                assert!(count > 0);
                passed.out.extend_from_slice(line.as_slice());
                at += count;
            }
            Ok(Piece::End) => {
                assert!(body.is_complete() && body.end().is_ok());
                passed.complete = Some(at);
                return passed;
            }
            Ok(Piece::More) => {
                assert!(at == seen && !body.is_complete());
                if seen == data.len() {
                    assert_eq!(body.end().is_ok(), framing == Framing::UntilClose);
                    return passed;
                }
                seen = data
                    .len()
                    .min(seen + sizes.next().map_or(1, |size| *size).max(1));
            }
            Err(refusal) => {
                passed.refused = Some(refusal);
                return passed;
            }
        }
    }
}

/// Chunked framing written down as plainly as possible: the payload of a complete body at the start of
/// `data`, and the body's length.
pub fn model(data: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |at: usize| -> Option<(&[u8], usize)> {
        let end = data[at..].windows(2).position(|pair| pair == b"\r\n")? + at;
        Some((&data[at..end], end + 2))
    };
    let clean = |text: &[u8]| text.iter().all(|b| *b == 9 || *b >= 32 && *b != 127);
    let (mut at, mut payload) = (0, Vec::new());
    loop {
        let (first, next) = line(at)?;
        let end = first.iter().position(|b| *b == b';').unwrap_or(first.len());
        let (size, extension) = first.split_at(end);
        let digits = !size.is_empty() && size.len() <= 16 && size.iter().all(u8::is_ascii_hexdigit);
        if !digits || !clean(extension) || extension.len() > 256 {
            return None;
        }
        let size = i64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        let size = usize::try_from(size).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        let end = at.checked_add(size)?;
        payload.extend_from_slice(data.get(at..end)?);
        if data.get(end..end + 2)? != b"\r\n" {
            return None;
        }
        at = end + 2;
    }
    let start = at;
    loop {
        let (trailer, next) = line(at)?;
        at = next;
        if trailer.is_empty() {
            return (at - start <= 8192).then_some((payload, at));
        }
        let colon = trailer.iter().position(|b| *b == b':')?;
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let (name, value) = trailer.split_at(colon);
        if name.is_empty() || !name.iter().all(token) || !clean(value) {
            return None;
        }
    }
}

/// Any bytes as a body. The first few choose framing and pieces.
pub fn body(data: &[u8]) {
    let Some((choice, data)) = data.split_first_chunk::<2>() else {
        return;
    };
    let framing = match choice[0] % 8 {
        0 => Framing::None,
        1 => Framing::Length(u64::from(choice[1])),
        2 => Framing::UntilClose,
        _ => Framing::Chunked,
    };
    let whole = pass_in_pieces(framing, data, &[data.len()], false);
    for sizes in [&[1][..], &[usize::from(choice[1] % 16) + 1, 3]] {
        for splice in [false, true] {
            assert_eq!(pass_in_pieces(framing, data, sizes, splice), whole);
        }
    }
    let expected = match framing {
        Framing::None => Some((Vec::new(), 0)),
        Framing::Length(length) => {
            let length = usize::try_from(length).expect("a byte");
            data.get(..length).map(|payload| (payload.to_vec(), length))
        }
        Framing::UntilClose => None,
        Framing::Chunked => model(data),
    };
    assert_eq!(whole.complete, expected.as_ref().map(|(_, length)| *length));
    let Some((payload, _)) = expected else { return };
    if framing != Framing::Chunked {
        assert_eq!(whole.out, payload);
        return;
    }
    // Read again it means the same, and there is nothing left to change.
    let (again, length) = model(&whole.out).expect("what we write is chunked");
    assert_eq!((again, length), (payload, whole.out.len()));
    let twice = pass_in_pieces(framing, &whole.out, &[whole.out.len()], false);
    assert_eq!(twice.out, whole.out);
    assert!(!whole.out.contains(&b';') || data.contains(&b';'));
}
