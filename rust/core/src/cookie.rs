//! The cookie that keeps a client with its backend.
//!
//! Its value is 22 characters: base64url of the backend's id and of a MAC. The id is a keyed hash of the
//! backend's name, so the value tells nothing of the servers, and holds over reloads, restarts and in the
//! whole fleet. The MAC, keyed by the same secret, ties it to the pool: nobody can choose a backend.

use core::hash::Hasher;

use base64ct::{Base64UrlUnpadded, Encoding};
use siphasher::sip::SipHasher24;

use crate::flow::Secret;

/// Length of a value.
pub const STICKY_LENGTH: usize = 22;

/// The value that ties a client to the backend of this name in this pool.
pub fn sticky_value(secret: &Secret, pool: &str, backend_name: &str) -> [u8; STICKY_LENGTH] {
    let id = sticky_id(secret, backend_name);
    let mut value = [0; STICKY_LENGTH];
    // 16 bytes are 22 characters, so it cannot fail.
    let encoded = Base64UrlUnpadded::encode(&signed(secret, pool, id), &mut value).map(str::len);
    debug_assert_eq!(encoded, Ok(STICKY_LENGTH));
    value
}

/// The index in `names` of the backend that `value` ties its client to. None if we have not made the value
/// for this pool, or if the backend is not there any more: then the client counts as new.
pub fn sticky_backend<'n>(
    secret: &Secret,
    pool: &str,
    value: &[u8],
    names: impl Iterator<Item = &'n str>,
) -> Option<usize> {
    let id = sticky_open(secret, pool, value)?;
    names
        .map(|name| sticky_id(secret, name))
        .position(|own| own == id)
}

/// The id that `value` holds, if we have made it for this pool.
pub fn sticky_open(secret: &Secret, pool: &str, value: &[u8]) -> Option<u64> {
    let mut bytes = [0; 16];
    if value.len() != STICKY_LENGTH
        || Base64UrlUnpadded::decode(value, &mut bytes).ok()?.len() != bytes.len()
    {
        return None;
    }
    let (id, _) = bytes.split_first_chunk()?;
    let id = u64::from_le_bytes(*id);
    // All bytes are compared, however many are right: the time taken tells nothing of the MAC.
    let expected = signed(secret, pool, id);
    let difference = bytes
        .iter()
        .zip(&expected)
        .fold(0, |difference, (a, b)| difference | (a ^ b));
    (core::hint::black_box(difference) == 0).then_some(id)
}

/// What stands for a backend in cookies. For who looks up many cookies in a large pool: made once per plan,
/// ids spare [`sticky_backend`]'s walk over the names.
pub fn sticky_id(secret: &Secret, backend_name: &str) -> u64 {
    // What is hashed for different ends begins differently, else one would be a source of the other.
    let mut hasher = SipHasher24::new_with_key(secret.as_bytes());
    hasher.write(b"sticky backend\0");
    hasher.write(backend_name.as_bytes());
    hasher.finish()
}

/// The id, and the MAC of it and the pool.
fn signed(secret: &Secret, pool: &str, id: u64) -> [u8; 16] {
    let id = id.to_le_bytes();
    let mut hasher = SipHasher24::new_with_key(secret.as_bytes());
    // Fixed lengths first: no two pairs of id and pool are the same bytes.
    hasher.write(b"sticky cookie\0");
    hasher.write(&id);
    hasher.write(pool.as_bytes());
    let mac = hasher.finish().to_le_bytes();
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(id.iter().chain(&mac)) {
        *place = *byte;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    const SECRET: Secret = Secret::from_bytes(*b"0123456789abcdef");
    const NAMES: [&str; 3] = ["app-1", "app-2", "app-3"];

    fn find(value: &[u8]) -> Option<usize> {
        sticky_backend(&SECRET, "chat", value, NAMES.into_iter())
    }

    #[test]
    fn a_value_finds_its_backend_wherever_it_stands_now() {
        for (index, name) in NAMES.into_iter().enumerate() {
            let value = sticky_value(&SECRET, "chat", name);
            assert!(
                value
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
            );
            assert_eq!(find(&value), Some(index));
            let reordered = NAMES.into_iter().rev();
            let place = sticky_backend(&SECRET, "chat", &value, reordered);
            assert_eq!(place, Some(2 - index));
            assert_eq!(
                sticky_open(&SECRET, "chat", &value),
                Some(sticky_id(&SECRET, name))
            );
        }
    }

    #[test]
    fn values_of_other_pools_secrets_and_backends_are_nobodys() {
        let other = Secret::from_bytes(*b"0123456789abcdeF");
        assert_eq!(find(&sticky_value(&SECRET, "chat", "gone")), None);
        assert_eq!(find(&sticky_value(&SECRET, "chat2", "app-1")), None);
        assert_eq!(find(&sticky_value(&SECRET, "", "app-1")), None);
        assert_eq!(find(&sticky_value(&other, "chat", "app-1")), None);
    }

    #[test]
    fn a_value_with_any_bit_changed_is_nobodys() {
        let value = sticky_value(&SECRET, "chat", "app-1");
        for at in 0..value.len() {
            for byte in 0..=255 {
                let mut forged = value;
                forged[at] = byte;
                // Also in the last character, of which only two bits count: one spelling is right.
                assert_eq!(find(&forged).is_some(), forged == value, "{at} {byte}");
            }
        }
        let longer = [&value[..], b"="].concat();
        assert_eq!(
            (find(&longer), find(&value[..21]), find(b"")),
            (None, None, None)
        );
    }

    #[test]
    fn the_id_of_one_and_the_mac_of_another_do_not_add_up() {
        let signed = |name| signed(&SECRET, "chat", sticky_id(&SECRET, name));
        let mix = |id: [u8; 16], mac: [u8; 16]| {
            let mut value = [0; STICKY_LENGTH];
            let bytes = [&id[..8], &mac[8..]].concat();
            Base64UrlUnpadded::encode(&bytes, &mut value).unwrap();
            find(&value)
        };
        let (one, two) = (signed("app-1"), signed("app-2"));
        assert_eq!((mix(one, two), mix(two, one)), (None, None));
        assert_eq!((mix(one, one), mix(two, two)), (Some(0), Some(1)));
    }

    #[test]
    fn values_stay_the_same_over_versions() {
        // Clients hold on to them through upgrades, and balancers of a fleet share them.
        assert_eq!(
            &sticky_value(&SECRET, "chat", "app-1"),
            b"K8W7QtydO7yVcyQuF5KD-A"
        );
    }

    proptest! {
        #[test]
        fn noise_is_nobodys(value: Vec<u8>, text in "[A-Za-z0-9_-]{22}") {
            prop_assert_eq!(find(&value), None);
            prop_assert_eq!(find(text.as_bytes()), None);
        }

        #[test]
        fn any_names_do(pool: String, name: String) {
            let value = sticky_value(&SECRET, &pool, &name);
            prop_assert_eq!(sticky_backend(&SECRET, &pool, &value, ["", &name].into_iter()), Some(usize::from(!name.is_empty())));
        }
    }
}
