//! Bytes that were read and not sent.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Bytes of which the receiver has not taken the first, and is not to get the last yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    bytes: Box<[u8]>,
    /// So many are gone.
    sent: usize,
    /// Those from here on are held back.
    due: usize,
}

impl Leftover {
    /// A copy of `bytes`: the first `due` of them go to the receiver as soon as it takes them, the others
    /// come back in front of what is read next. None where there are none.
    pub fn new(bytes: &[u8], due: usize) -> Option<Leftover> {
        (!bytes.is_empty()).then(|| Leftover {
            bytes: bytes.into(),
            sent: 0,
            due: due.min(bytes.len()),
        })
    }

    /// What the receiver is to get.
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..self.due).unwrap_or_default()
    }

    /// What is held back.
    pub fn held(&self) -> &[u8] {
        self.bytes.get(self.due..).unwrap_or_default()
    }

    /// Whether the receiver is to get anything: then nothing else is read for it.
    #[inline]
    pub fn is_owed(&self) -> bool {
        self.sent < self.due
    }

    /// The receiver has taken so many more.
    pub fn took(&mut self, count: usize) {
        self.sent = self.due.min(self.sent + count);
    }

    /// What is held back, and what is left without that.
    pub fn split(&self) -> (Vec<u8>, Option<Leftover>) {
        let rest = self.rest();
        (self.held().to_vec(), Leftover::new(rest, rest.len()))
    }

    /// What is left when `put` goes out in front of what is held back: a frame of our own between two of
    /// somebody else's. Only where nothing is owed.
    pub fn put_before(before: Option<&Leftover>, put: &[u8]) -> Option<Leftover> {
        let held = before.map_or(&[][..], Leftover::held);
        if held.is_empty() {
            return Leftover::new(put, put.len());
        }
        Leftover::new(&[put, held].concat(), put.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn what_is_owed_goes_and_what_is_held_comes_back() {
        let mut left = Leftover::new(b"owedheld", 4).unwrap();
        assert!(left.is_owed());
        left.took(1);
        assert_eq!((left.rest(), left.held()), (&b"wed"[..], &b"held"[..]));
        let (held, rest) = left.split();
        assert_eq!(
            (held, rest.unwrap().rest()),
            (b"held".to_vec(), &b"wed"[..])
        );
        left.took(9);
        assert!(!left.is_owed());
        let put = Leftover::put_before(Some(&left), b"ping").unwrap();
        assert_eq!((put.rest(), put.held()), (&b"ping"[..], &b"held"[..]));
        assert_eq!(Leftover::new(b"", 0), None);
        let all = Leftover::put_before(Some(&left), b"").unwrap();
        assert_eq!((all.rest(), all.held()), (&b""[..], &b"held"[..]));
        assert_eq!(vec![1_u8; 0], Leftover::new(b"x", 7).unwrap().held());
    }
}
