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
