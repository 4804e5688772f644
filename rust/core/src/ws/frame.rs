//! The control frames that a balancer sends in its own name.

/// A control frame carries at most this much (RFC 6455 section 5.5).
const MAX_PAYLOAD: usize = 125;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// A control frame, ready to be sent. Kept in place: no allocation.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    bytes: [u8; 2 + 4 + MAX_PAYLOAD],
    length: u8,
}

impl Frame {
    /// Its bytes on the wire.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }

    fn new(opcode: u8, payload: impl Iterator<Item = u8>, mask: Option<[u8; 4]>) -> Frame {
        let mut frame = Frame {
            bytes: [0; 131],
            length: 0,
        };
        let [first, second, rest @ ..] = &mut frame.bytes;
        *first = 0x80 | opcode;
        let (start, key) = match mask {
            Some(key) => (4, key),
            None => (0, [0; 4]),
        };
        for (place, byte) in rest.iter_mut().zip(&key).take(start) {
            *place = *byte;
        }
        let places = rest.iter_mut().skip(start).take(MAX_PAYLOAD);
        let mut length = 0;
        for ((place, byte), key) in places.zip(payload).zip(key.iter().cycle()) {
            *place = byte ^ key;
            length += 1;
        }
        *second = length | if mask.is_some() { 0x80 } else { 0 };
        frame.length = 2 + length + if mask.is_some() { 4 } else { 0 };
        frame
    }
}

/// A Close with `code` and as much of `reason` as fits: 123 bytes, cut between characters.
///
/// Towards a backend the balancer stands where the client stood, so the frame must be masked; towards
/// a client it must not. A code that may not be sent (RFC 6455 section 7.4: below 1000, above 4999,
/// 1005, 1006, 1015) makes a Close without code and reason, which is what 1005 stands for.
pub fn close_frame(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Frame {
    if !(1000..=4999).contains(&code) || matches!(code, 1005 | 1006 | 1015) {
        return Frame::new(CLOSE, core::iter::empty(), mask);
    }
    let end = (0..=reason.len().min(MAX_PAYLOAD - 2))
        .rev()
        .find(|at| reason.is_char_boundary(*at));
    let reason = end.and_then(|end| reason.get(..end)).unwrap_or_default();
    let payload = code.to_be_bytes().into_iter().chain(reason.bytes());
    Frame::new(CLOSE, payload, mask)
}

/// A Ping. Of `payload` the first 125 bytes are taken.
pub fn ping_frame(payload: &[u8], mask: Option<[u8; 4]>) -> Frame {
    Frame::new(PING, payload.iter().copied(), mask)
}

/// A Pong. Of `payload` the first 125 bytes are taken.
pub fn pong_frame(payload: &[u8], mask: Option<[u8; 4]>) -> Frame {
    Frame::new(PONG, payload.iter().copied(), mask)
}

#[cfg(test)]
mod tests {
    use super::super::{Rules, Tracker};
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn frames_of_our_own_are_whole(code: u16, reason: String, mask: Option<[u8; 4]>, payload: Vec<u8>) {
            let sendable = (1000..5000).contains(&code) && ![1005, 1006, 1015].contains(&code);
            for (opcode, frame) in [
                (0x88, close_frame(code, &reason, mask)),
                (0x89, ping_frame(&payload, mask)),
                (0x8a, pong_frame(&payload, mask)),
            ] {
                let [first, second, rest @ ..] = frame.as_slice() else { panic!("too short") };
                prop_assert_eq!(*first, opcode);
                prop_assert_eq!(second >> 7 == 1, mask.is_some());
                let (key, body) = if mask.is_some() { rest.split_at(4) } else { (&[0; 4][..], rest) };
                prop_assert_eq!(key, mask.unwrap_or_default());
                prop_assert_eq!(usize::from(second & 0x7f), body.len());
                let plain: Vec<u8> = body.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b).collect();
                let mut tracker = Tracker::default();
                tracker.see(frame.as_slice(), &Rules::default()).unwrap();
                prop_assert!(tracker.at_boundary());
                if opcode != 0x88 {
                    prop_assert_eq!(plain, &payload[..payload.len().min(125)]);
                } else if sendable {
                    prop_assert_eq!(&plain[..2], code.to_be_bytes());
                    let sent = str::from_utf8(&plain[2..]).unwrap();
                    prop_assert!(reason.starts_with(sent));
                    // No room was left for one more character.
                    let next = reason[sent.len()..].chars().next().map_or(124, char::len_utf8);
                    prop_assert!(sent.len() + next > 123);
                    prop_assert_eq!(tracker.closed(), Some(code));
                } else {
                    prop_assert!(plain.is_empty());
                    prop_assert_eq!(tracker.closed(), Some(1005));
                }
            }
        }
    }
}
