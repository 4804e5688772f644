//! The copying relay: one `recv` into the scratch buffer, one `send` out of it.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Flow, Step, Tap, Tools, see};

#[inline]
pub(super) fn send(receiver: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::net::send(receiver, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[inline]
pub(super) fn step<T: Tap>(
    flow: &mut Flow,
    tap: &mut T,
    most: usize,
    sender: BorrowedFd<'_>,
    receiver: BorrowedFd<'_>,
    tools: &mut Tools,
) -> Step {
    let kept = flow.bring_back(&mut tools.scratch);
    let end = tools.scratch.len().min(kept + most);
    let Some(room) = tools.scratch.get_mut(kept..end) else {
        return Step::Failed;
    };
    let room_size = room.len();
    let received = match rustix::net::recv(sender, room, RecvFlags::empty()) {
        Ok((_, 0)) => {
            // Less than a header, and nothing follows: the receiver is to see what there was.
            let due = if tap.passes_end() { kept } else { 0 };
            flow.owe(tools.scratch.get(..kept).unwrap_or_default(), due);
            return Step::End;
        }
        Ok((_, received)) => received,
        Err(Errno::AGAIN) => {
            flow.owe(tools.scratch.get(..kept).unwrap_or_default(), 0);
            return Step::Empty;
        }
        Err(Errno::INTR) => {
            flow.owe(tools.scratch.get(..kept).unwrap_or_default(), 0);
            return Step::Moved {
                bytes: 0,
                drained: false,
            };
        }
        Err(_) => return Step::Failed,
    };
    let Some(bytes) = tools.scratch.get(..kept + received) else {
        return Step::Failed;
    };
    let passing = see(tap, bytes);
    let passes = bytes.get(..passing.count).unwrap_or_default();
    let sent = if passes.is_empty() {
        0
    } else {
        match send(receiver, passes) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(_) => {
                if tap.refused() {
                    flow.owe(bytes, 0);
                }
                return Step::ReceiverFailed;
            }
        }
    };
    flow.bytes += sent as u64;
    tools.copied += sent as u64;
    if passing.stopped || sent < bytes.len() {
        flow.keep(passing.left(tap, bytes, sent));
    }
    if passing.stopped {
        return Step::Stopped;
    }
    Step::Moved {
        bytes: received,
        drained: received < room_size,
    }
}
