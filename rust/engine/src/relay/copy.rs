//! The copying relay: one `recv` into the scratch buffer, one `send` out of it.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Flow, Leftover, Pending, Step, Tools};

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
pub(super) fn step(
    flow: &mut Flow,
    sender: BorrowedFd<'_>,
    receiver: BorrowedFd<'_>,
    tools: &mut Tools,
) -> Step {
    let room = tools.scratch.len();
    let received = match rustix::net::recv(sender, &mut *tools.scratch, RecvFlags::empty()) {
        Ok((_, 0)) => return Step::End,
        Ok((_, received)) => received,
        Err(Errno::AGAIN) => return Step::Empty,
        Err(Errno::INTR) => {
            return Step::Moved {
                bytes: 0,
                drained: false,
            };
        }
        Err(_) => return Step::Failed,
    };
    let Some(bytes) = tools.scratch.get(..received) else {
        return Step::Failed;
    };
    let sent = match send(receiver, bytes) {
        Ok(sent) => sent,
        Err(Errno::AGAIN) => 0,
        Err(_) => return Step::ReceiverFailed,
    };
    flow.bytes += sent as u64;
    tools.copied += sent as u64;
    if let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        flow.pending = Pending::Copied(Leftover::new(rest));
    }
    Step::Moved {
        bytes: received,
        drained: received < room,
    }
}
