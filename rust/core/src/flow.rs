//! Keys of flows and their keyed hash.
//!
//! SipHash-1-3 (Aumasson and Bernstein, 2012) under a 128-bit secret: whoever does not know it cannot
//! choose addresses and ports that meet on one backend. An IPv4-mapped IPv6 address counts as IPv4: a
//! client is the same through a dual-stack listener. The packet program hashes the same bytes in
//! the same way, so both modes send a client to the same place.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

/// What keys every hash. All balancers of a fleet share it; nobody else knows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Secret {
        Secret(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Hashes the keys of flows: SipHash-1-3, its state after the key.
///
/// Written out because keys are short: 6 bytes of IPv4 address and port are one block, which never
/// has to leave the registers, where a general hasher buffers it first. A test holds it to the crate
/// that hashes everything else.
#[derive(Clone)]
pub struct FlowHasher([u64; 4]);

impl FlowHasher {
    /// Keyed by `secret`.
    pub fn new(secret: &Secret) -> FlowHasher {
        let (low, high) = secret.0.split_at(8);
        let (k0, k1) = (little_endian(low), little_endian(high));
        // The constants of the paper: "somepseudorandomlygeneratedbytes".
        FlowHasher([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    /// The state after the key, before any byte: what the packet programs start from.
    pub const fn state(&self) -> [u64; 4] {
        self.0
    }

    /// Of an address and port: 4 or 16 bytes of address, 2 of port, as they are on the wire.
    #[inline]
    pub fn source(&self, source: SocketAddr) -> u64 {
        let port = source.port().to_be_bytes();
        match source.ip().to_canonical() {
            IpAddr::V4(v4) => {
                let ([a, b, c, d], [e, f]) = (v4.octets(), port);
                self.bytes(&[a, b, c, d, e, f])
            }
            IpAddr::V6(v6) => {
                let mut key = [0; 18];
                let (address, end) = key.split_at_mut(16);
                address.copy_from_slice(&v6.octets());
                end.copy_from_slice(&port);
                self.bytes(&key)
            }
        }
    }

    /// Of an address alone.
    #[inline]
    pub fn source_ip(&self, source: IpAddr) -> u64 {
        match source.to_canonical() {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    /// Of any bytes.
    #[inline]
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let mut state = self.0;
        let blocks = bytes.chunks_exact(8);
        // The last block has what is left, and the length in its highest byte.
        let last = little_endian(blocks.remainder()) | (bytes.len() as u64) << 56;
        for block in blocks.map(little_endian).chain([last]) {
            state[3] ^= block;
            sip_round(&mut state);
            state[0] ^= block;
        }
        state[2] ^= 0xff;
        for _ in 0..3 {
            sip_round(&mut state);
        }
        state[0] ^ state[1] ^ state[2] ^ state[3]
    }
}

#[inline(always)]
fn little_endian(bytes: &[u8]) -> u64 {
    let byte = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
    bytes.iter().rev().fold(0, byte)
}

#[inline(always)]
fn sip_round([v0, v1, v2, v3]: &mut [u64; 4]) {
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

/// The slot of a table of `size` that `hash` falls into: its high half scaled down (Lemire, 2019).
/// Needs no division and no 128-bit product, so the packet program can do the same.
#[inline]
pub const fn slot(hash: u64, size: u32) -> u32 {
    (((hash >> 32) * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;
    use std::format;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn it_is_siphash_1_3(key: [u8; 16], bytes: Vec<u8>) {
            let mut reference = SipHasher13::new_with_key(&key);
            reference.write(&bytes);
            prop_assert_eq!(FlowHasher::new(&Secret::from_bytes(key)).bytes(&bytes), reference.finish());
        }
    }

    #[test]
    fn mapped_addresses_hash_as_ipv4() {
        let hasher = FlowHasher::new(&Secret::from_bytes([7; 16]));
        let hash = |text: &str| hasher.source(text.parse().unwrap());
        assert_eq!(hash("192.0.2.1:80"), hash("[::ffff:192.0.2.1]:80"));
        assert_ne!(hash("192.0.2.1:80"), hash("192.0.2.1:81"));
        assert_eq!(
            hasher.source_ip([192, 0, 2, 1].into()),
            hasher.bytes(&[192, 0, 2, 1])
        );
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(
            format!("{:?}", Secret::from_bytes(*b"0123456789abcdef")),
            "Secret(..)"
        );
    }

    #[test]
    fn slots_cover_the_table() {
        assert_eq!((slot(0, 65537), slot(u64::MAX, 65537)), (0, 65536));
    }
}
