//! The entry points of the fuzz targets (rust/fuzz) over random and mutated inputs, on stable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod http_entry;

use proptest::prelude::*;

const HEADS: [&[u8]; 9] = [
    b"GET /chat?q=a%20b HTTP/1.1\r\nHost: example.com:8080\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nCookie: a=1; b=2\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nTE: trailers\r\n\r\n",
    b"POST http://Example.com/y HTTP/1.0\r\nHost: example.com\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX_Real_IP: 1\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close, x-one\r\nX-One: 1\r\nX-Request-Id: abc\r\nAccept: */*\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\nSet-Cookie: a=1\r\nConnection: close\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n",
    b"HTTP/1.0 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
];

const BODIES: [&[u8]; 5] = [
    b"5\r\nhello\r\n1f\r\n0123456789abcdef0123456789abcde\r\n0\r\n\r\n",
    b"0005;name=value\r\nhello\r\n000\r\nX-Trailer: 1\r\nContent-Length: 5\r\n\r\nrest",
    b"A\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
    b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n00000000\r\n\r\n",
    b"7fffffffffffffff\r\nendless",
];

/// What attacks are made of.
const PARTS: [&[u8]; 36] = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"\x0b",
    b"\xa0",
    b",",
    b";",
    b"_",
    b"#",
    b"*",
    b"\\",
    b"\r\n ",
    b"\r\n\r\n",
    b"chunked",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer_Encoding: chunked",
    b"\r\nContent-Length: 5",
    b"\r\nHost: b",
    b"\r\nConnection: host",
    b"\r\nConnection: x-a, TE",
    b"\r\nUpgrade: h2c",
    b"\r\nExpect: 100-continue",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"0x",
    b"+",
    b"-",
    b"0\r\n",
    b"5;\r\n",
    b"\r\nX-Forwarded-For: 9.9.9.9",
    b"\x7f",
    b"\xff",
];

#[derive(Clone, Debug)]
enum Mutation {
    Set(u8),
    Insert(usize),
    Delete(usize),
    Repeat(usize),
    Case,
}

fn mutation() -> impl Strategy<Value = (prop::sample::Index, Mutation)> {
    let kind = prop_oneof![
        any::<u8>().prop_map(Mutation::Set),
        (0..PARTS.len()).prop_map(Mutation::Insert),
        (1..9_usize).prop_map(Mutation::Delete),
        (1..40_usize).prop_map(Mutation::Repeat),
        Just(Mutation::Case),
    ];
    (any::<prop::sample::Index>(), kind)
}

fn mutate(mut data: Vec<u8>, mutations: &[(prop::sample::Index, Mutation)]) -> Vec<u8> {
    for (place, mutation) in mutations {
        let at = place.index(data.len() + 1);
        let upto = |count: usize| data.len().min(at + count);
        match mutation {
            Mutation::Set(byte) if at < data.len() => data[at] = *byte,
            Mutation::Case if at < data.len() => data[at] ^= 0x20,
            Mutation::Insert(part) => drop(data.splice(at..at, PARTS[*part].iter().copied())),
            Mutation::Delete(count) => drop(data.drain(at..upto(*count))),
            Mutation::Repeat(count) => {
                let again = data[at..upto(*count)].to_vec();
                drop(data.splice(at..at, again));
            }
            _ => {}
        }
    }
    data
}

/// Two bytes of choices, then mostly something near to what is valid.
fn inputs(seeds: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let near = (0..seeds.len(), prop::collection::vec(mutation(), 0..4))
        .prop_map(|(seed, mutations)| mutate(seeds[seed].to_vec(), &mutations));
    let any_bytes = prop::collection::vec(any::<u8>(), 0..120);
    let parts = prop::collection::vec(0..PARTS.len(), 0..20).prop_map(|parts| {
        parts
            .iter()
            .flat_map(|part| PARTS[*part])
            .copied()
            .collect()
    });
    (
        any::<[u8; 2]>(),
        prop_oneof![8 => near, 1 => any_bytes, 1 => parts],
    )
        .prop_map(|(choice, data): (_, Vec<u8>)| [&choice[..], &data].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn heads_are_the_same_in_any_pieces_and_mean_the_same_written_again(data in inputs(&HEADS)) {
        http_entry::head(&data);
    }

    #[test]
    fn bodies_are_the_same_in_any_pieces_and_written_again(data in inputs(&BODIES)) {
        http_entry::body(&data);
    }
}

/// Else the properties above would hold of nothing.
#[test]
fn the_seeds_are_taken() {
    use pybalancer_core::http::*;
    for seed in HEADS {
        let length = Scanner::default()
            .scan(seed, &Limits::default())
            .unwrap()
            .unwrap();
        let mut fields = storage();
        if seed.starts_with(b"HTTP/") {
            parse_response(&seed[..length], false, &mut fields, &Limits::default()).unwrap();
        } else {
            parse_request(&seed[..length], &mut fields, &Limits::default()).unwrap();
        }
    }
    assert!(
        BODIES[..4]
            .iter()
            .all(|seed| http_entry::model(seed).is_some())
    );
}
