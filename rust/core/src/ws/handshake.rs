//! The proof that a server understood the handshake.

use base64ct::{Base64, Encoding};
use sha1::{Digest, Sha1};

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that answers `key`, the `Sec-WebSocket-Key` as sent (RFC 6455 section
/// 4.2.2): only this 101 opens a tunnel.
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut text = [0; 28];
    // 20 bytes are 28 characters, so it cannot fail.
    let encoded = Base64::encode(&digest, &mut text).map(str::len);
    debug_assert_eq!(encoded, Ok(28));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_6455() {
        // Sections 1.3 and 4.2.2 use the same key.
        assert_eq!(
            &accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn every_byte_of_the_key_counts() {
        let accepted = accept_key(b"x3JJHMbDL1EzLkh9GBhXDw==");
        assert_eq!(&accepted, b"HSmrc0sMlYUkAGmm5OPpG2HaGWk=");
        assert_ne!(accepted, accept_key(b"x3JJHMbDL1EzLkh9GBhXDW=="));
    }
}
