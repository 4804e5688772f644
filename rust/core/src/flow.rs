//! Keys of flows and their keyed hash.
//!
//! SipHash-1-3 (Aumasson and Bernstein, 2012) under a 128-bit secret: whoever does not know it cannot
//! choose addresses and ports that meet on one backend. The packet program hashes the same bytes in
//! the same way, so both modes send a client to the same place.

use core::fmt;
use core::hash::Hasher;
use core::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;

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

/// Hashes the keys of flows.
#[derive(Clone)]
pub struct FlowHasher(SipHasher13);

impl FlowHasher {
    /// Keyed by `secret`.
    pub fn new(secret: &Secret) -> FlowHasher {
        FlowHasher(SipHasher13::new_with_key(&secret.0))
    }

    /// Of an address and port: 4 or 16 bytes of address, 2 of port, as they are on the wire.
    #[inline]
    pub fn source(&self, source: SocketAddr) -> u64 {
        let mut key = [0; 18];
        let length = write_address(&mut key, source.ip());
        if let Some(place) = key.get_mut(length..length + 2) {
            place.copy_from_slice(&source.port().to_be_bytes());
        }
        self.bytes(key.get(..length + 2).unwrap_or_default())
    }

    /// Of an address alone.
    #[inline]
    pub fn source_ip(&self, source: IpAddr) -> u64 {
        let mut key = [0; 18];
        let length = write_address(&mut key, source);
        self.bytes(key.get(..length).unwrap_or_default())
    }

    /// Of any bytes.
    #[inline]
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.0;
        hasher.write(bytes);
        hasher.finish()
    }
}

/// IPv4-mapped addresses count as IPv4: a client is the same through a dual-stack listener.
#[inline]
fn write_address(key: &mut [u8; 18], address: IpAddr) -> usize {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            (key[0], key[1], key[2], key[3]) = (a, b, c, d);
            4
        }
        IpAddr::V6(v6) => {
            let (place, _) = key.split_at_mut(16);
            place.copy_from_slice(&v6.octets());
            16
        }
    }
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
    use std::format;

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
