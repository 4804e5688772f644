//! Tickets: what shows a backend that a client was sent to it by us, a moment ago.
//!
//! 57 bytes in base64url, 76 characters: version, expiry (8 bytes, Unix seconds), nonce (16), and a MAC (32):
//! HMAC-SHA256 (RFC 2104) over what is before it, the pool, the backend, and the client's address. The last
//! three are not in the ticket: the backend knows them, and whoever finds one cannot tell what it is for.
//! Python's half is `pybalancer/tickets.py`; a file of vectors holds the two together.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use base64ct::{Base64UrlUnpadded, Encoding};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::flow::Secret;

/// Characters of a ticket.
const LENGTH: usize = 76;
/// Made for one address.
const BOUND: u8 = 1;
/// Made for whoever has it.
const UNBOUND: u8 = 2;

/// What tickets are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey([u8; 32]);

impl core::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

impl TicketKey {
    /// A key of one's own.
    pub fn from_bytes(bytes: [u8; 32]) -> TicketKey {
        TicketKey(bytes)
    }

    /// The key of a pool that has none of its own. From it nobody learns the secret, which backends must
    /// not know: with that, one could aim at them.
    pub fn derive(secret: &Secret, pool: &str) -> TicketKey {
        TicketKey(mac(
            secret.as_bytes(),
            &[b"pybalancer-ticket-key", pool.as_bytes()],
        ))
    }

    /// A ticket for a client at `address`, or for whoever has it, to a backend, until `expiry` (Unix seconds).
    pub fn sign(
        &self,
        pool: &str,
        backend: &str,
        address: Option<IpAddr>,
        expiry: u64,
        nonce: [u8; 16],
    ) -> String {
        let mut bytes = Vec::with_capacity(57);
        bytes.push(if address.is_some() { BOUND } else { UNBOUND });
        bytes.extend_from_slice(&expiry.to_be_bytes());
        bytes.extend_from_slice(&nonce);
        let address = address.map_or([0; 16], |address| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        let signed = mac(
            &self.0,
            &[&bytes, pool.as_bytes(), backend.as_bytes(), &address],
        );
        bytes.extend_from_slice(&signed);
        let mut text = [0; LENGTH];
        // 57 bytes are 76 characters, so it cannot fail.
        let encoded = Base64UrlUnpadded::encode(&bytes, &mut text);
        debug_assert!(encoded.is_ok());
        encoded.map(String::from).unwrap_or_default()
    }
}

/// Each part goes in with its length before it, so that no two lists of parts are the same bytes.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        // HMAC takes keys of any length.
        return [0; 32];
    };
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_differ_in_everything_that_is_signed() {
        let key = TicketKey::derive(&Secret::from_bytes([7; 16]), "chat");
        let other = TicketKey::derive(&Secret::from_bytes([7; 16]), "rooms");
        assert_ne!(key, other);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let first = key.sign("chat", "app-1", Some(address), 1_800_000_000, [9; 16]);
        assert_eq!(first.len(), 76);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(
            first,
            key.sign("chat", "app-1", Some(mapped), 1_800_000_000, [9; 16])
        );
        for different in [
            other.sign("chat", "app-1", Some(address), 1_800_000_000, [9; 16]),
            key.sign("chata", "pp-1", Some(address), 1_800_000_000, [9; 16]),
            key.sign("chat", "app-2", Some(address), 1_800_000_000, [9; 16]),
            key.sign(
                "chat",
                "app-1",
                Some("192.0.2.2".parse().unwrap()),
                1_800_000_000,
                [9; 16],
            ),
            key.sign("chat", "app-1", None, 1_800_000_000, [9; 16]),
            key.sign("chat", "app-1", Some(address), 1_800_000_001, [9; 16]),
            key.sign("chat", "app-1", Some(address), 1_800_000_000, [8; 16]),
        ] {
            assert_ne!(
                first[33..],
                different[33..],
                "the signature, not only what is in the clear"
            );
        }
        assert_eq!(std::format!("{key:?}"), "TicketKey(..)");
    }
}
