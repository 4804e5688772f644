//! What a tracker must say, worked out from frames that are known in advance, and strategies that make
//! them.

use super::Tracker;
use alloc::vec::Vec;
use proptest::collection::vec;
use proptest::prelude::*;

/// A frame as it is made, so that the model never has to parse one.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) first: u8,
    pub(super) mask: Option<[u8; 4]>,
    /// Bytes of extended length; too few are made enough, more than needed are the sender's choice.
    pub(super) form: usize,
    pub(super) payload: Vec<u8>,
}

impl Spec {
    fn header(&self) -> usize {
        let least = match self.payload.len() {
            0..=125 => 0,
            126..=0xffff => 2,
            _ => 8,
        };
        2 + self.form.max(least) + if self.mask.is_some() { 4 } else { 0 }
    }

    fn length(&self) -> usize {
        self.header() + self.payload.len()
    }

    fn wire(&self) -> Vec<u8> {
        let length = self.payload.len() as u64;
        let bit = if self.mask.is_some() { 0x80 } else { 0 };
        let mut wire = Vec::from([self.first]);
        match self.header() - if self.mask.is_some() { 4 } else { 0 } {
            2 => wire.push(bit | length as u8),
            4 => {
                wire.push(bit | 126);
                wire.extend((length as u16).to_be_bytes());
            }
            _ => {
                wire.push(bit | 127);
                wire.extend(length.to_be_bytes());
            }
        }
        let mask = self.mask.unwrap_or_default();
        wire.extend(self.mask.iter().flatten());
        wire.extend(
            self.payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(a, b)| a ^ b),
        );
        wire
    }

    fn is_data(&self) -> bool {
        self.first & 0x0f < 8
    }

    fn is_last(&self) -> bool {
        self.first >= 0x80
    }
}

/// What is to be seen of a tracker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    at_boundary: bool,
    in_message: bool,
    unseen: u64,
    messages: u32,
    closed: Option<u16>,
}

pub(super) fn view(tracker: &Tracker) -> View {
    View {
        at_boundary: tracker.at_boundary(),
        in_message: tracker.in_message(),
        unseen: tracker.unseen(),
        messages: tracker.messages(),
        closed: tracker.closed(),
    }
}

/// The same after `count` bytes of `frames`, from their offsets alone.
pub(super) fn model(frames: &[Spec], count: usize) -> View {
    let mut view = View {
        at_boundary: count == 0,
        in_message: false,
        unseen: 0,
        messages: 0,
        closed: None,
    };
    let mut start = 0;
    for frame in frames {
        let (body, end) = (start + frame.header(), start + frame.length());
        view.at_boundary |= end == count;
        if frame.is_data() && body <= count {
            view.in_message |= !frame.is_last();
            if end > count {
                view.unseen = (end - count) as u64;
            } else if frame.is_last() {
                view.in_message = false;
                view.messages += 1;
            }
        }
        if frame.first & 0x0f == 8 && end <= count && view.closed.is_none() {
            view.closed = Some(match frame.payload[..] {
                [high, low, ..] => u16::from_be_bytes([high, low]),
                _ => 1005,
            });
        }
        start = end;
    }
    view
}

/// The offset of the first frame that `max` forbids.
pub(super) fn first_too_big(frames: &[Spec], max: usize) -> Option<usize> {
    let (mut start, mut size) = (0, 0);
    for frame in frames {
        let length = frame.payload.len();
        if frame.is_data() {
            size += length;
        }
        if (frame.is_data() && size > max) || (!frame.is_data() && length > max.max(125)) {
            return Some(start);
        }
        if frame.is_data() && frame.is_last() {
            size = 0;
        }
        start += frame.length();
    }
    None
}

pub(super) fn stream(frames: &[Spec]) -> Vec<u8> {
    frames.iter().flat_map(Spec::wire).collect()
}

pub(super) fn spec() -> impl Strategy<Value = Spec> {
    let first = prop_oneof![
        4 => prop_oneof![Just(0x81_u8), Just(0x82), Just(0x01), Just(0x00), Just(0x80)],
        2 => prop_oneof![Just(0x88_u8), Just(0x89), Just(0x8a), Just(0x08)],
        1 => any::<u8>(),
    ];
    let length = prop_oneof![
        12 => 0..12_usize,
        4 => 120..132_usize,
        1 => 65_530..65_542_usize,
    ];
    let form = prop_oneof![4 => Just(0), 1 => Just(2), 1 => Just(8_usize)];
    (first, any::<Option<[u8; 4]>>(), form, length, any::<u8>()).prop_map(
        |(first, mask, form, length, seed)| Spec {
            first,
            mask,
            form,
            payload: (0..length)
                .map(|n| (n as u8).wrapping_mul(37) ^ seed)
                .collect(),
        },
    )
}

/// Sizes of slices, used in turn: any, small ones, and single bytes.
pub(super) fn slices() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        vec(1..40_usize, 1..12),
        vec(1..100_000_usize, 1..6),
        Just(Vec::from([1])),
        Just(Vec::from([usize::MAX])),
    ]
}
