//! The tracker against the model, and the examples of RFC 6455.

use super::model::{Spec, first_too_big, model, slices, spec, stream, view};
use super::*;
use alloc::vec::Vec;
use proptest::collection::vec;
use proptest::prelude::*;

/// Splits `bytes` by the sizes of `slices`, over and over; large ones less finely, for the time it takes.
fn split<'b>(mut bytes: &'b [u8], slices: &[usize]) -> Vec<&'b [u8]> {
    let least = if bytes.len() > 5000 { 700 } else { 1 };
    let mut sizes = slices.iter().map(|size| size.max(&least)).cycle();
    let mut split = Vec::new();
    while !bytes.is_empty() {
        let size = sizes.next().unwrap();
        let (slice, rest) = bytes.split_at(bytes.len().min(*size));
        split.push(slice);
        bytes = rest;
    }
    split
}

/// Gives `tracker` the stream as the engine does: what may not pass yet comes again, before the next
/// slice. Returns how much has passed, and the violation with its place in the stream.
fn feed(
    tracker: &mut Tracker,
    bytes: &[u8],
    slices: &[usize],
    rules: &Rules,
    mut passed: impl FnMut(&Tracker, usize),
) -> (usize, Option<Violation>) {
    let (mut start, mut end) = (0, 0);
    for slice in split(bytes, slices) {
        end += slice.len();
        match tracker.see(&bytes[start..end], rules) {
            Ok(count) => start += count,
            Err(violation) => return (start + violation.at, Some(violation)),
        }
        assert!(end - start < MAX_HEADER, "{} held", end - start);
        passed(tracker, start);
    }
    (start, None)
}

const ALL: Rules = Rules { max_message: 0 };

proptest! {
    #[test]
    fn a_tracker_of_any_bytes_keeps_its_promises(bytes in any::<[u8; PACKED]>(), stream in vec(any::<u8>(), 0..64)) {
        let mut tracker = Tracker::from_bytes(bytes);
        prop_assert_eq!(Tracker::from_bytes(tracker.to_bytes()).to_bytes(), tracker.to_bytes());
        for byte in stream {
            if tracker.see(&[byte], &ALL).is_err() {
                break;
            }
        }
    }

    #[test]
    fn without_limit_all_passes_and_is_seen(frames in vec(spec(), 0..12), slices in slices()) {
        let bytes = stream(&frames);
        let mut tracker = Tracker::default();
        let mut count = 0;
        for slice in split(&bytes, &slices) {
            prop_assert_eq!(tracker.see(slice, &ALL), Ok(slice.len()));
            // Wherever the stream is cut, the tracker may go on in another process.
            tracker = Tracker::from_bytes(tracker.to_bytes());
            count += slice.len();
            prop_assert_eq!(view(&tracker), model(&frames, count), "after {}", count);
        }
        prop_assert!(tracker.at_boundary());
    }

    #[test]
    fn with_a_limit_headers_pass_whole_or_not_at_all(
        frames in vec(spec(), 0..12),
        slices in slices(),
        max in prop_oneof![1..40_u32, 100..400_u32, Just(65_535), Just(u32::MAX)],
    ) {
        let bytes = stream(&frames);
        let rules = Rules { max_message: max };
        let forbidden = first_too_big(&frames, max as usize);
        let mut tracker = Tracker::default();
        let mut misplaced = None;
        let (count, violation) = feed(&mut tracker, &bytes, &slices, &rules, |tracker, count| {
            if view(tracker) != model(&frames, count) {
                misplaced = misplaced.or(Some(count));
            }
        });
        prop_assert_eq!(misplaced, None);
        prop_assert_eq!(count, forbidden.unwrap_or(bytes.len()));
        prop_assert_eq!(violation.map(|v| (v.kind, v.passed)), forbidden.map(|_| (ViolationKind::TooBig, 0)));
        // The frame's place is free for a Close, and the frame is not let in by asking again.
        prop_assert_eq!(view(&tracker), model(&frames, count));
        if forbidden.is_some() {
            prop_assert!(tracker.at_boundary());
            prop_assert_eq!(tracker.see(&bytes[count..], &rules).map_err(|v| v.at), Err(0));
        }
    }

    #[test]
    fn payload_may_pass_unseen(frames in vec(spec(), 0..12), slices in slices(), shares in vec(1..=4_u64, 1..9)) {
        let bytes = stream(&frames);
        let mut tracker = Tracker::default();
        let (mut count, mut sizes, mut shares) = (0, slices.iter().cycle(), shares.iter().cycle());
        while count < bytes.len() {
            let unseen = tracker.unseen();
            if unseen > 0 {
                let skipped = unseen.div_ceil(*shares.next().unwrap());
                tracker.skip(skipped);
                count += skipped as usize;
            } else {
                let end = bytes.len().min(count.saturating_add(*sizes.next().unwrap()));
                prop_assert_eq!(tracker.see(&bytes[count..end], &ALL), Ok(end - count));
                count = end;
            }
            prop_assert_eq!(view(&tracker), model(&frames, count), "after {}", count);
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_found_in_any_split(
        frames in vec(spec(), 0..5),
        slices in slices(),
        length in 1 << 63..=u64::MAX,
        first: u8,
        mask: Option<[u8; 4]>,
        max: Option<u32>,
    ) {
        let mut bytes = stream(&frames);
        let start = bytes.len();
        bytes.extend([first, if mask.is_some() { 255 } else { 127 }]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(mask.iter().flatten());
        let header = bytes.len() - start;
        bytes.extend([1, 2, 3]);
        let rules = Rules { max_message: max.map_or(0, |max| max | 1 << 31) };

        let mut tracker = Tracker::default();
        let (count, violation) = feed(&mut tracker, &bytes, &slices, &rules, |_, _| ());
        let violation = violation.unwrap();
        prop_assert_eq!(violation.kind, ViolationKind::LengthMsb);
        prop_assert_eq!(count, start + usize::from(violation.passed));
        prop_assert!(usize::from(violation.passed) < header);
        prop_assert_eq!(tracker.at_boundary(), violation.passed == 0);
        prop_assert!(violation.passed == 0 || rules == ALL, "headers are held with a limit");
        prop_assert_eq!(tracker.see(&bytes[count..], &rules), Err(Violation { at: 0, ..violation }));
    }

    #[test]
    fn noise_never_panics(bytes: Vec<u8>, slices in slices(), max: u32) {
        let mut tracker = Tracker::default();
        feed(&mut tracker, &bytes, &slices, &Rules { max_message: max }, |_, _| ());
        feed(&mut tracker, &bytes, &slices, &ALL, |_, _| ());
        tracker.skip(tracker.unseen());
    }
}

#[test]
fn the_examples_of_rfc_6455_section_5_7() {
    let mut tracker = Tracker::default();
    let mut see = |bytes: &[u8]| {
        assert_eq!(tracker.see(bytes, &ALL), Ok(bytes.len()));
        assert!(tracker.at_boundary());
        (tracker.messages(), tracker.in_message(), tracker.closed())
    };
    let hello = [0x48, 0x65, 0x6c, 0x6c, 0x6f];
    let masked = [0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    // A single-frame unmasked text message, and the same masked.
    assert_eq!(see(&[&[0x81, 0x05][..], &hello].concat()), (1, false, None));
    assert_eq!(
        see(&[&[0x81, 0x85][..], &masked].concat()),
        (2, false, None)
    );
    // A fragmented unmasked text message, here with the Ping and Pong of the next example inside it.
    assert_eq!(see(&[0x01, 0x03, 0x48, 0x65, 0x6c]), (2, true, None));
    assert_eq!(see(&[&[0x89, 0x05][..], &hello].concat()), (2, true, None));
    assert_eq!(see(&[&[0x8a, 0x85][..], &masked].concat()), (2, true, None));
    assert_eq!(see(&[0x80, 0x02, 0x6c, 0x6f]), (3, false, None));
    // 256 bytes and 64 KiB of binary data, each in a single unmasked frame.
    assert_eq!(
        see(&[&[0x82, 0x7e, 0x01, 0x00][..], &[7; 256]].concat()),
        (4, false, None)
    );
    let header = [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(see(&[&header[..], &[7; 65536]].concat()), (5, false, None));

    assert_eq!(
        pong_frame(&hello, Some([0x37, 0xfa, 0x21, 0x3d])).as_slice()[2..],
        masked
    );
    assert_eq!(ping_frame(&hello, None).as_slice()[2..], hello);
}

#[test]
fn every_single_cut_of_a_stream() {
    let frame = |first, masked, form, length| Spec {
        first,
        mask: if masked { Some([1, 2, 3, 4]) } else { None },
        form,
        payload: (0..length).map(|n| n as u8 ^ 3).collect(),
    };
    let frames = [
        frame(0x82, true, 0, 5),
        frame(0x01, false, 0, 0),
        frame(0x89, true, 2, 3),
        frame(0x00, true, 8, 7),
        frame(0x80, false, 0, 130),
        frame(0x88, true, 8, 4),
        frame(0x88, false, 0, 2),
    ];
    let bytes = stream(&frames);
    for cut in 0..=bytes.len() {
        let mut tracker = Tracker::default();
        for (slice, end) in [(&bytes[..cut], cut), (&bytes[cut..], bytes.len())] {
            assert_eq!(tracker.see(slice, &ALL), Ok(slice.len()));
            assert_eq!(
                view(&tracker),
                model(&frames, end),
                "cut at {cut}, after {end}"
            );
        }
    }
}

#[test]
fn a_close_that_says_nothing_is_1005_and_the_first_counts() {
    for (close, code) in [
        (&[0x88, 0][..], 1005),
        (&[0x88, 0x80, 9, 9, 9, 9], 1005),
        (&[0x88, 1, 3], 1005),
        (&[0x88, 2, 3, 0xe8], 1000),
        (&[0x88, 0x82, 1, 2, 3, 4, 3 ^ 1, 0xe8 ^ 2], 1000),
    ] {
        let mut tracker = Tracker::default();
        for byte in close {
            assert_eq!(tracker.closed(), None);
            tracker.see(&[*byte], &ALL).unwrap();
        }
        assert_eq!(tracker.closed(), Some(code), "{close:?}");
        tracker.see(&[0x88, 2, 3, 0xf3, 0x88, 0], &ALL).unwrap();
        assert_eq!(tracker.closed(), Some(code), "{close:?}");
        assert!(tracker.at_boundary());
    }
}

#[test]
fn fragments_add_up_and_messages_do_not() {
    // Messages of 3 fragments of 10 bytes, with a Ping inside that does not count.
    let fragment = |first| [&[first, 10][..], &[1; 10]].concat();
    let message = [0x02, 0x89, 0x00, 0x80].map(fragment).concat();
    let bytes = message.repeat(4);
    for slices in [&[usize::MAX][..], &[1], &[5, 7]] {
        for (max, expected) in [(30, None), (29, Some(36)), (19, Some(24)), (9, Some(0))] {
            let rules = Rules { max_message: max };
            let (count, violation) =
                feed(&mut Tracker::default(), &bytes, slices, &rules, |_, _| ());
            assert_eq!(violation.map(|_| count), expected, "{slices:?} {max}");
        }
    }
}

#[test]
fn a_limit_that_comes_later_counts_what_has_passed() {
    let mut tracker = Tracker::default();
    tracker.see(&[0x01, 3, 1, 2, 3, 0x00], &ALL).unwrap();
    // A reload: the open message has 3 bytes, and one byte of the next header has gone by.
    let rules = Rules { max_message: 5 };
    let too_big = Violation {
        at: 0,
        passed: 1,
        kind: ViolationKind::TooBig,
    };
    assert_eq!(tracker.see(&[3, 1, 2, 3], &rules), Err(too_big));
    assert!(!tracker.at_boundary());
    assert_eq!(tracker.see(&[2, 1, 2], &rules), Ok(3));
}

#[test]
fn counters_end_nowhere() {
    let mut tracker = Tracker::default();
    let huge = [0x02, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    for _ in 0..3 {
        tracker.see(&huge, &ALL).unwrap();
        assert_eq!(tracker.unseen(), u64::MAX >> 1);
        tracker.skip(tracker.unseen());
    }
    let rules = Rules {
        max_message: u32::MAX,
    };
    assert!(tracker.see(&[0x80, 1, 0], &rules).is_err());
    assert_eq!(tracker.see(&[0x80, 1, 0], &ALL), Ok(3));
}

#[test]
fn a_tracker_is_small() {
    assert!(size_of::<Tracker>() <= 24, "{}", size_of::<Tracker>());
}
