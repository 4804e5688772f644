//! What lies in the maps: `balancer.bpf.c` reads what is written here, and the loader compares the sizes.
//!
//! Addresses have 16 bytes, IPv4 as `::ffff:a.b.c.d`. Ports and what goes into headers are in network
//! order, the rest in the machine's.

use std::net::{IpAddr, Ipv6Addr};

use pybalancer_core::flow::{FlowHasher, Secret};
use pybalancer_core::rows::WIDTH;

/// Backends are known by numbers from 1 to this.
pub const MAX_ID: u16 = 1023;
/// Services are known by numbers below this.
pub const MAX_SERVICES: u32 = 256;
/// Interfaces that programs can be attached to.
pub const MAX_INTERFACES: u32 = 64;
/// Networks from which outer headers are taken.
pub const MAX_TRUSTED: u32 = 4096;
/// Bytes of a row: six backend ids of 10 bits.
pub const ROW: usize = 8;

/// Why packets went where, in the order of `enum reason`: name, and what it means.
pub const REASONS: [(&str, &str); 19] = [
    ("forwarded", "went on to a backend"),
    (
        "forwarded_error",
        "ICMP errors that went on to the backend of the packet in them",
    ),
    (
        "second_hop",
        "no socket here, went on to the backend that had the flow before",
    ),
    (
        "delivered",
        "to this host's stack: opens a connection or belongs to one",
    ),
    (
        "delivered_udp",
        "to this host's stack: UDP has no second hop",
    ),
    (
        "delivered_unclaimed",
        "no socket here and nobody else to ask: the stack answers",
    ),
    (
        "passed_not_ours",
        "not for a service, to the stack untouched",
    ),
    (
        "dropped_fragment",
        "a fragment, which does not say whose it is",
    ),
    ("dropped_extension", "IPv6 extension headers"),
    ("dropped_malformed", "shorter than its headers say"),
    ("dropped_no_backend", "the table names nobody"),
    ("dropped_unresolved", "the way to the backend is not known"),
    ("dropped_too_big", "does not fit with the outer header"),
    (
        "delivered_hops",
        "all that its row names were asked, the stack answers",
    ),
    ("dropped_room", "the interface left no room for headers"),
    ("dropped_ttl", "TTL or hop limit is used up"),
    (
        "dropped_loop",
        "a second hop came to a director: somebody takes it for a backend",
    ),
    (
        "dropped_congestion",
        "marked as congested on the way (ECN), and its sender knows no marks",
    ),
    (
        "dropped_stranger",
        "an outer header of somebody from whom this backend takes none",
    ),
];

/// What the object says of its structs: settings, interface, service key, service, backend, count of a
/// service, count of a backend, number of reasons.
pub const LAYOUT: [u32; 8] = [
    40 + 4 * MAX_SERVICES + 12 * MAX_INTERFACES + (32 << NEAR_BITS),
    12,
    20,
    8,
    128,
    32,
    32,
    REASONS.len() as u32,
];

/// Words of 4 bytes of a hop.
pub const HOP_WORDS: usize = 15;
/// Words of 4 bytes of a backend: which hop is live, and two of them.
pub const BACKEND_WORDS: usize = 2 + 2 * HOP_WORDS;

/// An address as it lies in maps.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that lies so in maps.
pub fn address_of(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

/// The beginning of `struct settings`: SipHash's state after the key, and the number of slots.
pub fn settings(secret: &Secret, size: u32) -> [u8; 36] {
    let mut bytes = [0; 36];
    let words = FlowHasher::new(secret)
        .state()
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .chain(size.to_ne_bytes());
    for (place, byte) in bytes.iter_mut().zip(words) {
        *place = byte;
    }
    bytes
}

/// Which word of 4 bytes of `struct settings` says who we are.
pub const ME_WORD: usize = 9;
/// From which word on it says which table of each service is live.
pub const LIVE_WORD: usize = 10;
/// From which word on it has the interfaces, three words each.
pub const INTERFACE_WORD: usize = LIVE_WORD + MAX_SERVICES as usize;
/// How many places an interface may lie in.
pub const INTERFACE_TRIES: u32 = 4;

/// From which word on most services are in it once more, eight words each.
const NEAR_WORD: usize = INTERFACE_WORD + 3 * MAX_INTERFACES as usize;
const NEAR_BITS: u32 = 10;

/// The word where a service has its place in the settings: key, number and 1, MTU (`struct near`).
pub fn near(key: &[u8; 20]) -> usize {
    let words = key.chunks_exact(4).map(|four| match *four {
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    });
    // As `find_service` mixes them.
    let mixed = words.fold(0, |mixed, word| mixed ^ word);
    NEAR_WORD + 8 * (mixed.wrapping_mul(0x9e37_79b1) >> (32 - NEAR_BITS)) as usize
}

/// A row as packets read it.
pub fn row(ids: [u16; WIDTH]) -> u64 {
    ids.iter()
        .rev()
        .fold(0, |row, id| row << 10 | u64::from(*id & MAX_ID))
}

/// The ids of a row.
pub fn ids(row: u64) -> [u16; WIDTH] {
    std::array::from_fn(|place| (row >> (10 * place)) as u16 & MAX_ID)
}

/// Protocols that services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// With second hops.
    Tcp = 6,
    /// Without.
    Udp = 17,
}

/// `struct service_key`; without a port it says that there is a service at the address.
pub fn service_key(address: IpAddr, service: Option<(u16, Protocol)>) -> [u8; 20] {
    let mut key = [0; 20];
    let (port, protocol) = service.map_or((0, 0), |(port, protocol)| (port, protocol as u8));
    let bytes = address_bytes(address)
        .into_iter()
        .chain(port.to_be_bytes())
        .chain([protocol]);
    for (place, byte) in key.iter_mut().zip(bytes) {
        *place = byte;
    }
    key
}

/// Address, port and protocol of a `struct service_key`; None for one without a port.
pub fn service_of(key: &[u8]) -> Option<(IpAddr, u16, Protocol)> {
    let (address, rest) = key.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let protocol = match rest.first()? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some((address_of(*address), u16::from_be_bytes(*port), protocol))
}

/// A network as a key of `trusted`, where addresses of IPv4 are mapped ones: bits that count, address with no others.
pub fn network_key(address: IpAddr, fixed: u8) -> [u8; 20] {
    let fixed = u32::from(fixed)
        + if address.to_canonical().is_ipv4() {
            96
        } else {
            0
        };
    let mask = u128::MAX
        .checked_shl(128_u32.saturating_sub(fixed))
        .unwrap_or(0);
    let address = u128::from_be_bytes(address_bytes(address)) & mask;
    let mut key = [0; 20];
    let bytes = fixed.to_ne_bytes().into_iter().chain(address.to_be_bytes());
    for (place, byte) in key.iter_mut().zip(bytes) {
        *place = byte;
    }
    key
}

/// The network that lies so in `trusted`.
pub fn network_of(key: &[u8]) -> Option<(IpAddr, u8)> {
    let (fixed, address) = key.split_first_chunk::<4>()?;
    let address = address_of(address.try_into().ok()?);
    let fixed = u32::from_ne_bytes(*fixed);
    let fixed = if address.is_ipv4() {
        fixed.checked_sub(96)?
    } else {
        fixed
    };
    Some((address, u8::try_from(fixed).ok()?))
}

/// `struct service`
pub fn service(number: u32, mtu: u32) -> [u8; 8] {
    let mut value = [0; 8];
    let (low, high) = value.split_at_mut(4);
    low.copy_from_slice(&number.to_ne_bytes());
    high.copy_from_slice(&mtu.to_ne_bytes());
    value
}

/// `struct interface`, behind its number.
pub fn interface(mac: [u8; 6]) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [a, b, c, d, e, f, 0, 0]
}

/// The way to a backend: `struct hop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The underlay's address of the backend.
    pub address: IpAddr,
    /// Of the next hop; without it packets to the backend are dropped.
    pub mac: Option<[u8; 6]>,
    /// Number of the interface towards it, and that one's own MAC.
    pub interface: Option<(u32, [u8; 6])>,
    /// The outer header's source and how many of its first bits are fixed; the rest varies with the flow. None:
    /// without an outer header.
    pub outer: Option<(IpAddr, u8)>,
}

impl Hop {
    /// As it lies in the map.
    pub fn to_bytes(self) -> [u8; HOP_WORDS * 4] {
        const KNOWN: u32 = 1;
        const ENCAPSULATE: u32 = 2;
        const OUTER_V6: u32 = 4;
        let (mac, interface, from) = match (self.mac, self.interface) {
            (Some(mac), Some((number, from))) => (mac, number, from),
            _ => ([0; 6], 0, [0; 6]),
        };
        let v6 = self.address.to_canonical().is_ipv6();
        // A backend knows by it which outer headers are to itself, also where it puts none around anything.
        let mut flags = KNOWN | if v6 { OUTER_V6 } else { 0 };
        let (mut source, mut spread) = ([0; 16], 0);
        if let Some((from, fixed)) = self.outer {
            flags |= ENCAPSULATE;
            let bits: u32 = if v6 { 128 } else { 32 };
            // At most the last 32 bits vary: that is as much as a hash has to give.
            let free = bits.saturating_sub(u32::from(fixed)).min(32);
            spread = (u64::from(u32::MAX) >> (32 - free)) as u32;
            source = address_bytes(from);
            let (_, end) = source.split_at_mut(12);
            for (place, mask) in end.iter_mut().zip(spread.to_be_bytes()) {
                *place &= !mask;
            }
        }
        let mut bytes = [0; HOP_WORDS * 4];
        let all = mac
            .into_iter()
            .chain(from)
            .chain(interface.to_ne_bytes())
            .chain(flags.to_ne_bytes())
            .chain(address_bytes(self.address))
            .chain(source)
            .chain(spread.to_be_bytes());
        for (place, byte) in bytes.iter_mut().zip(all) {
            *place = byte;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_known_by_their_fixed_bits() {
        let key = |text: &str, fixed| network_key(text.parse().unwrap(), fixed);
        assert_eq!(key("10.0.1.77", 28), key("10.0.1.64", 28));
        assert_ne!(key("10.0.1.77", 28), key("10.0.1.64", 27));
        assert_eq!(key("2001:db8::1", 64), key("2001:db8::", 64));
        assert_eq!(key("::1", 0), [0; 20]);
        for (text, fixed) in [
            ("10.0.1.64", 28),
            ("0.0.0.0", 0),
            ("2001:db8::", 32),
            ("::", 0),
        ] {
            let network = (text.parse().unwrap(), fixed);
            assert_eq!(network_of(&key(text, fixed)), Some(network));
        }
        let all_v4 = key("1.2.3.4", 0);
        assert_eq!(all_v4[..4], 96_u32.to_ne_bytes());
        assert_eq!(all_v4[14..], [0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn rows_are_one_word_and_back() {
        let all = [1, MAX_ID, 0, 512, 7, MAX_ID];
        assert_eq!(ids(row(all)), all);
        assert_eq!(row([1, 2, 0, 0, 0, 0]), 1 | 2 << 10);
    }
}
