//! The PROXY protocol, versions 1 and 2 (proxy-protocol.txt by Willy Tarreau, revision of 2020).
//!
//! A proxy in front tells in a header before the first byte whom it brings. Whoever may send that
//! header may claim to be anybody, so it is read strictly: what is not exactly a header is refused,
//! not repaired.

use core::fmt::Write;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header taken: far above what any sender needs (TLVs included), far below what 16 bits
/// of length could make us wait for.
pub const MAX_HEADER: usize = 4096;
/// The longest line of version 1, CRLF included (section 2.1).
const MAX_LINE: usize = 107;
/// What begins version 2 (section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const LINE_START: &[u8] = b"PROXY ";
/// Type of the checksum TLV (section 2.2.3).
const TYPE_CRC32C: u8 = 0x03;

/// Which versions are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// The line.
    V1,
    /// The binary one.
    V2,
    /// Either.
    Any,
}

/// Which version is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The line.
    V1,
    /// The binary one.
    V2,
}

/// Whom a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The proxy itself: a health check.
    Local,
    /// Somebody of whom the proxy knows no IP address.
    Unknown,
    /// A client and the address that it connected to.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where it believes to be connected.
        destination: SocketAddr,
    },
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyError {
    /// The first bytes are no header of an accepted version.
    NotProxy,
    /// A line that version 1 does not allow.
    Line,
    /// Neither LOCAL nor PROXY of version 2.
    Command,
    /// A family or transport that cannot be on a stream.
    Family,
    /// Longer than [`MAX_HEADER`], or too short for its addresses.
    Length,
    /// The TLVs do not fill the rest exactly.
    Tlv,
    /// The checksum does not match.
    Checksum,
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Right so far.
    Incomplete,
    /// A whole header.
    Header {
        /// Its length.
        consumed: usize,
        /// Whom it announces.
        origin: Origin,
    },
    /// Never going to be one.
    Invalid(ProxyError),
}

/// Read a header from the first bytes of a connection.
pub fn parse(bytes: &[u8], accept: Accept) -> Parsed {
    let one = accept != Accept::V2 && begins(bytes, LINE_START);
    let two = accept != Accept::V1 && begins(bytes, &SIGNATURE);
    let result = match (one, two) {
        (true, _) => parse_line(bytes),
        (_, true) => parse_binary(bytes),
        _ => Err(ProxyError::NotProxy),
    };
    match result {
        Ok(None) => Parsed::Incomplete,
        Ok(Some((consumed, origin))) => Parsed::Header { consumed, origin },
        Err(error) => Parsed::Invalid(error),
    }
}

/// Whether `bytes` and `start` agree as far as both go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(a, b)| a == b)
}

type Step = Result<Option<(usize, Origin)>, ProxyError>;

fn parse_line(bytes: &[u8]) -> Step {
    let window = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() < MAX_LINE {
            Ok(None)
        } else {
            Err(ProxyError::Line)
        };
    };
    let line = window
        .get(..end)
        .and_then(|line| line.strip_suffix(b"\r"))
        .ok_or(ProxyError::Line)?;
    let line = core::str::from_utf8(line).map_err(|_| ProxyError::Line)?;
    let rest = line.strip_prefix("PROXY ").ok_or(ProxyError::Line)?;
    let origin = if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        // Whatever follows is to be ignored (section 2.1).
        Origin::Unknown
    } else {
        line_addresses(rest).ok_or(ProxyError::Line)?
    };
    Ok(Some((end + 1, origin)))
}

fn line_addresses(rest: &str) -> Option<Origin> {
    let mut words = rest.split(' ');
    let family = words.next()?;
    let (source, destination) = (words.next()?, words.next()?);
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            // Rust takes dotted decimals without leading zeros only, as the specification asks.
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    Some(Origin::Proxied {
        source: SocketAddr::new(address(source)?, source_port),
        destination: SocketAddr::new(address(destination)?, destination_port),
    })
}

fn port(text: &str) -> Option<u16> {
    let canonical = text == "0"
        || text
            .bytes()
            .next()
            .is_some_and(|first| (b'1'..=b'9').contains(&first));
    text.parse().ok().filter(|_| canonical)
}

fn parse_binary(bytes: &[u8]) -> Step {
    let Some((version_command, rest)) = bytes.get(SIGNATURE.len()..).and_then(<[u8]>::split_first)
    else {
        return Ok(None);
    };
    let local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Command),
    };
    let Some((family, rest)) = rest.split_first() else {
        return Ok(None);
    };
    // Address lengths of UNSPEC, and of streams over INET, INET6, UNIX. Datagrams cannot have come here.
    let addresses_length = match family {
        // LOCAL is valid whatever the family says and the block holds (section 2.2).
        _ if local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return Err(ProxyError::Family),
    };
    let Some((length, rest)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    let consumed = SIGNATURE.len() + 4 + length;
    if consumed > MAX_HEADER {
        return Err(ProxyError::Length);
    }
    if local {
        return Ok((bytes.len() >= consumed).then_some((consumed, Origin::Local)));
    }
    if length < addresses_length {
        return Err(ProxyError::Length);
    }
    let Some(rest) = rest.get(..length) else {
        return Ok(None);
    };
    let (addresses, tlvs) = rest.split_at(addresses_length);
    let header = bytes.get(..consumed).ok_or(ProxyError::Length)?;
    check_tlvs(tlvs, header, consumed - tlvs.len())?;
    let origin = match family {
        0x11 => binary_addresses::<4>(addresses),
        0x21 => binary_addresses::<16>(addresses),
        _ => Some(Origin::Unknown),
    };
    Ok(Some((consumed, origin.ok_or(ProxyError::Length)?)))
}

fn binary_addresses<const N: usize>(bytes: &[u8]) -> Option<Origin>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    Some(Origin::Proxied {
        source: SocketAddr::new(IpAddr::from(*source), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(
            IpAddr::from(*destination),
            u16::from_be_bytes(*destination_port),
        ),
    })
}

/// TLVs fill the rest exactly, and the checksum, if there is one, is right. `start` is where they begin.
fn check_tlvs(mut tlvs: &[u8], header: &[u8], start: usize) -> Result<(), ProxyError> {
    let mut at = start;
    let mut checked = false;
    while let Some((kind, rest)) = tlvs.split_first() {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(ProxyError::Tlv)?;
        let (value, rest) = rest
            .split_at_checked(usize::from(u16::from_be_bytes(*length)))
            .ok_or(ProxyError::Tlv)?;
        at += 3;
        if *kind == TYPE_CRC32C {
            // A second one would make a header as costly to check as it has checksums.
            if core::mem::replace(&mut checked, true) {
                return Err(ProxyError::Tlv);
            }
            let said: [u8; 4] = value.try_into().map_err(|_| ProxyError::Tlv)?;
            // Over the whole header with the checksum itself as zeros.
            let own = at..at + 4;
            let crc = header.iter().enumerate().fold(!0, |crc, (place, byte)| {
                crc32c_step(crc, if own.contains(&place) { 0 } else { *byte })
            });
            if !crc != u32::from_be_bytes(said) {
                return Err(ProxyError::Checksum);
            }
        }
        at += value.len();
        tlvs = rest;
    }
    Ok(())
}

/// One byte of CRC-32C (Castagnoli, reflected polynomial; RFC 9260 appendix A). Headers are short and
/// few of them carry it: no table.
fn crc32c_step(crc: u32, byte: u8) -> u32 {
    (0..8).fold(crc ^ u32::from(byte), |crc, _| {
        if crc & 1 == 0 {
            crc >> 1
        } else {
            crc >> 1 ^ 0x82f6_3b78
        }
    })
}

/// Whether a connection begins with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// It does not.
    Not,
    /// Too few bytes to tell.
    NeedMore,
    /// It does.
    Proxy,
}

/// Tell from the first bytes, 12 of which are enough.
pub fn guess(bytes: &[u8]) -> Guess {
    let of = |start: &[u8]| match (begins(bytes, start), bytes.len() >= start.len()) {
        (false, _) => Guess::Not,
        (true, true) => Guess::Proxy,
        (true, false) => Guess::NeedMore,
    };
    match of(LINE_START) {
        Guess::Not => of(&SIGNATURE),
        other => other,
    }
}

/// A header to be sent.
#[derive(Clone, Debug)]
pub struct Encoded {
    bytes: [u8; MAX_LINE],
    length: usize,
}

impl Encoded {
    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            place.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }
}

impl Write for Encoded {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// The header that announces `source`, connected to `destination`. Without either it says UNKNOWN
/// (UNSPEC in version 2); where only one is IPv6, the other is written as IPv4-mapped.
pub fn encode(
    version: Version,
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
) -> Encoded {
    let mut out = Encoded {
        bytes: [0; MAX_LINE],
        length: 0,
    };
    let pair = source.zip(destination);
    match (version, pair) {
        (Version::V1, None) => out.push(b"PROXY UNKNOWN\r\n"),
        (Version::V1, Some((source, destination))) => {
            let (family, from, to) = match (source.ip(), destination.ip()) {
                (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => ("TCP4", from, to),
                (from, to) => ("TCP6", IpAddr::V6(wide(from)), IpAddr::V6(wide(to))),
            };
            let _ = write!(
                out,
                "PROXY {family} {from} {to} {} {}\r\n",
                source.port(),
                destination.port()
            );
        }
        (Version::V2, None) => {
            out.push(&SIGNATURE);
            out.push(&[0x21, 0x00, 0, 0]);
        }
        (Version::V2, Some((source, destination))) => {
            out.push(&SIGNATURE);
            match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    out.push(&[0x21, 0x11, 0, 12]);
                    out.push(&from.octets());
                    out.push(&to.octets());
                }
                (from, to) => {
                    out.push(&[0x21, 0x21, 0, 36]);
                    out.push(&wide(from).octets());
                    out.push(&wide(to).octets());
                }
            }
            out.push(&source.port().to_be_bytes());
            out.push(&destination.port().to_be_bytes());
        }
    }
    out
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn header(version: Version, source: &str, destination: &str) -> Vec<u8> {
        encode(version, source.parse().ok(), destination.parse().ok())
            .as_slice()
            .to_vec()
    }

    fn binary(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version_command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn lines_of_the_specification() {
        let parsed = parse(
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\nGET",
            Accept::Any,
        );
        let address = "255.255.255.255:65535".parse().unwrap();
        let origin = Origin::Proxied {
            source: address,
            destination: address,
        };
        assert_eq!(
            parsed,
            Parsed::Header {
                consumed: 56,
                origin
            }
        );
        let longest = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
        assert_eq!(
            parse(longest, Accept::V1),
            Parsed::Header {
                consumed: longest.len(),
                origin: Origin::Unknown
            }
        );
        assert_eq!(
            header(Version::V1, "1.2.3.4:5", "[2001:db8::1]:6"),
            b"PROXY TCP6 ::ffff:1.2.3.4 2001:db8::1 5 6\r\n"
        );
        assert_eq!(header(Version::V1, "", ""), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn lines_that_are_not() {
        for line in [
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
        ] {
            assert_eq!(
                parse(line.as_bytes(), Accept::Any),
                Parsed::Invalid(ProxyError::Line),
                "{line:?}"
            );
        }
        let mut endless = LINE_START.to_vec();
        endless.resize(MAX_LINE, b'x');
        assert_eq!(
            parse(&endless, Accept::Any),
            Parsed::Invalid(ProxyError::Line)
        );
        assert_eq!(
            parse(b"GET / HTTP/1.1\r\n", Accept::Any),
            Parsed::Invalid(ProxyError::NotProxy)
        );
        assert_eq!(
            parse(b"PROXY", Accept::V2),
            Parsed::Invalid(ProxyError::NotProxy)
        );
    }

    #[test]
    fn bad_input_65_local_without_address_and_lying_lengths() {
        let local = binary(0x20, 0x00, &[]);
        assert_eq!(
            parse(&local, Accept::Any),
            Parsed::Header {
                consumed: 16,
                origin: Origin::Local
            }
        );
        // Neither its family nor its block counts.
        assert_eq!(
            parse(&binary(0x20, 0xff, &[0x03; 9]), Accept::Any),
            Parsed::Header {
                consumed: 25,
                origin: Origin::Local
            }
        );
        // A TLV that claims more than there is.
        let mut body = std::vec![0; 12];
        body.extend([0x04, 0x00, 0xff, 0x00]);
        assert_eq!(
            parse(&binary(0x21, 0x11, &body), Accept::Any),
            Parsed::Invalid(ProxyError::Tlv)
        );
        assert_eq!(
            parse(&binary(0x21, 0x11, &[0; 11]), Accept::Any),
            Parsed::Invalid(ProxyError::Length)
        );
        let invalid = |command, family, error| {
            assert_eq!(
                parse(&binary(command, family, &[0; 36]), Accept::Any),
                Parsed::Invalid(error)
            );
        };
        invalid(0x22, 0x11, ProxyError::Command);
        invalid(0x11, 0x11, ProxyError::Command);
        invalid(0x21, 0x12, ProxyError::Family);
        invalid(0x21, 0x41, ProxyError::Family);
        let mut huge = binary(0x21, 0x11, &[]);
        huge[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(
            parse(&huge, Accept::Any),
            Parsed::Invalid(ProxyError::Length)
        );
    }

    #[test]
    fn checksums_are_checked() {
        // The check value of CRC-32C.
        assert_eq!(
            !b"123456789"
                .iter()
                .fold(!0, |crc, byte| crc32c_step(crc, *byte)),
            0xe306_9283
        );
        let mut body = std::vec![9; 12];
        body.extend([TYPE_CRC32C, 0, 4, 0, 0, 0, 0, 0x04, 0, 1, 7]);
        let mut bytes = binary(0x21, 0x11, &body);
        let crc = !bytes.iter().fold(!0, |crc, byte| crc32c_step(crc, *byte));
        bytes[31..35].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(
            parse(&bytes, Accept::Any),
            Parsed::Header { consumed: 39, .. }
        ));
        let mut twice = binary(0x21, 0x11, &[&bytes[16..], &bytes[28..35]].concat());
        twice[31..35].fill(0);
        let crc = !twice.iter().fold(!0, |crc, byte| crc32c_step(crc, *byte));
        twice[31..35].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(parse(&twice, Accept::Any), Parsed::Invalid(ProxyError::Tlv));
        bytes[38] ^= 1;
        assert_eq!(
            parse(&bytes, Accept::Any),
            Parsed::Invalid(ProxyError::Checksum)
        );
    }

    #[test]
    fn guesses_need_no_more_than_they_must() {
        assert_eq!(guess(b""), Guess::NeedMore);
        assert_eq!(guess(b"P"), Guess::NeedMore);
        assert_eq!(guess(b"POST"), Guess::Not);
        assert_eq!(guess(b"PROXY "), Guess::Proxy);
        assert_eq!(guess(b"\r\n\r\n\0\r\nQUIT"), Guess::NeedMore);
        assert_eq!(guess(b"\r\n\r\n\0\r\nQUIT\n"), Guess::Proxy);
        assert_eq!(guess(b"\r\n\r\nGET"), Guess::Not);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(one: bool, source: SocketAddr, destination: SocketAddr, rest: Vec<u8>) {
            let version = if one { Version::V1 } else { Version::V2 };
            let encoded = encode(version, Some(source), Some(destination));
            for cut in 0..encoded.as_slice().len() {
                prop_assert_eq!(parse(&encoded.as_slice()[..cut], Accept::Any), Parsed::Incomplete);
            }
            let mut bytes = encoded.as_slice().to_vec();
            bytes.extend(&rest);
            let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            match parse(&bytes, Accept::Any) {
                Parsed::Header { consumed, origin: Origin::Proxied { source: s, destination: d } } => {
                    prop_assert_eq!(consumed, encoded.as_slice().len());
                    prop_assert_eq!((canonical(s), canonical(d)), (canonical(source), canonical(destination)));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn mutations_never_panic(source: SocketAddr, place: usize, byte: u8, tail: Vec<u8>, one: bool) {
            let version = if one { Version::V1 } else { Version::V2 };
            let mut bytes = encode(version, Some(source), Some(source)).as_slice().to_vec();
            let place = place % bytes.len();
            bytes[place] = byte;
            bytes.extend(tail);
            if let Parsed::Header { consumed, .. } = parse(&bytes, Accept::Any) {
                prop_assert!(consumed <= bytes.len());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = (parse(&bytes, Accept::Any), guess(&bytes));
            let mut bytes = [SIGNATURE.as_slice(), &bytes].concat();
            let _ = parse(&bytes, Accept::Any);
            bytes.splice(..12, LINE_START.iter().copied());
            let _ = parse(&bytes, Accept::Any);
        }
    }
}
