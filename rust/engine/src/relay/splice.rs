//! The splicing relay: socket → pipe → socket, pages moved and never copied.
//!
//! `splice` into a pipe says EAGAIN both for an empty socket and for a full pipe. So a pipe is only
//! filled while it is empty: then EAGAIN can only mean the socket. And the length given for the way
//! out is exactly what the pipe holds: asking for more would make the kernel hold back the last
//! segment (MSG_MORE) in the hope of bytes that are not there.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::{Flow, SCRATCH, Step, Tap, Tools, copy};
use crate::pipes::Pipe;

/// More than any pipe holds.
const ALL: usize = 1 << 20;

pub(super) fn step<T: Tap>(
    flow: &mut Flow,
    tap: &mut T,
    most: usize,
    sender: BorrowedFd<'_>,
    receiver: BorrowedFd<'_>,
    tools: &mut Tools,
) -> Step {
    let Some(pipe) = tools.pipes.take() else {
        // Out of pipes or descriptors: slower, but the same bytes.
        return copy::step(flow, tap, most.min(SCRATCH), sender, receiver, tools);
    };
    let most = most.min(ALL);
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let filled = match rustix::pipe::splice(sender, None, &pipe.into, None, most, flags) {
        Ok(0) => {
            // The end of the stream, or an urgent byte, which only `recv` gives out.
            tools.pipes.give_back(pipe);
            return copy::step(flow, tap, most.min(SCRATCH), sender, receiver, tools);
        }
        Ok(filled) => filled,
        Err(Errno::AGAIN) => {
            tools.pipes.give_back(pipe);
            return Step::Empty;
        }
        Err(Errno::INTR) => {
            tools.pipes.give_back(pipe);
            return Step::Moved {
                bytes: 0,
                drained: false,
            };
        }
        Err(Errno::INVAL) => {
            // A kind of socket that cannot be spliced: copy it, and do not ask again soon.
            tools.pipes.give_back(pipe);
            flow.bulk = 0;
            return copy::step(flow, tap, most.min(SCRATCH), sender, receiver, tools);
        }
        Err(_) => {
            tools.pipes.discard(pipe);
            return Step::Failed;
        }
    };
    tap.skip(filled);
    // At most ALL, so it fits.
    let mut left = filled as u32;
    match drain(&pipe, &mut left, receiver) {
        Ok(sent) => {
            flow.bytes += u64::from(sent);
            tools.spliced += u64::from(sent);
        }
        Err(_) => {
            // It stays owed: whoever asks what became of it must not be told that all of it went.
            flow.owe_piped(pipe, left);
            return Step::ReceiverFailed;
        }
    }
    if left > 0 {
        flow.owe_piped(pipe, left);
    } else {
        tools.pipes.give_back(pipe);
    }
    Step::Moved {
        bytes: filled,
        drained: false,
    }
}

/// Move what the pipe holds to the receiver until it takes no more; how much went.
pub(super) fn drain(pipe: &Pipe, left: &mut u32, receiver: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut sent = 0;
    while *left > 0 {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        match rustix::pipe::splice(&pipe.out, None, receiver, None, *left as usize, flags) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(moved) => {
                // At most `left`, which is 32 bits wide.
                let moved = moved as u32;
                sent += moved;
                *left = left.saturating_sub(moved);
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{BULK_PATIENCE, Blind, Outcome, pump};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::OwnedFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    #[test]
    fn what_a_broken_receiver_did_not_take_is_owed() {
        let mut tools = Tools::default();
        let mut flow = Flow {
            bulk: BULK_PATIENCE,
            ..Flow::default()
        };
        let ((client, ours), (theirs, backend)) = (pair(), pair());
        rustix::io::write(&client, &[1; 1000]).unwrap();
        drop(backend);
        let outcome = pump(&mut flow, &mut Blind, &ours, &theirs, &mut tools);
        assert_eq!((outcome, flow.bytes), (Outcome::ReceiverFailed, 0));
        assert!(flow.blocked());
        flow.release(&mut tools.pipes);
        assert_eq!(tools.pipes.made(), 0);
    }
}
