//! Commands to a worker, some with a socket.
//!
//! A worker's descriptor table is its own, so a listener can only reach it as SCM_RIGHTS over a Unix
//! socket. That socket also wakes the worker, which makes an eventfd beside it superfluous: one
//! message is one command; the command itself waits in a queue, the descriptor in the message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use pybalancer_core::time::Tick;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::deployment::Deployment;
use crate::drains::Order;
use crate::sys::above_standard_streams;

/// What a worker is told.
pub enum Command {
    /// Keep this socket; the next deployment says what it is for. The descriptor comes with it.
    Listen {
        /// Number of the socket among the engine's.
        socket: u32,
        /// Whether other workers accept from the same one.
        shared: bool,
    },
    /// Run this plan from now on.
    Apply(Arc<Deployment>),
    /// Tell tunnels to go.
    Drain(Arc<Order>),
    /// Accept no more; tunnels go on.
    StopAccepting,
    /// Accept no more, and end when the last tunnel has, or at the deadline.
    Finish(Tick),
    /// Panic, for the test of it.
    Panic,
}

type Queue = Arc<Mutex<VecDeque<Command>>>;

/// The sending end.
pub struct Mailbox {
    queue: Queue,
    socket: OwnedFd,
}

/// The worker's end.
pub struct Inbox {
    queue: Queue,
    socket: OwnedFd,
}

/// A pair of ends.
pub fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let ours = above_standard_streams(ours)?;
    let theirs = above_standard_streams(theirs)?;
    let queue = Queue::default();
    Ok((
        Mailbox {
            queue: Arc::clone(&queue),
            socket: ours,
        },
        Inbox {
            queue,
            socket: theirs,
        },
    ))
}

impl Mailbox {
    /// Send a command, with a socket if it needs one. EAGAIN if the worker has not read the last
    /// few hundred: it hangs.
    pub fn send(&self, command: Command, socket: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        // The lock is held over both, so that messages and commands have the same order.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
        if !sockets.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&sockets));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(b"!")],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        queue.push_back(command);
        Ok(())
    }
}

impl Inbox {
    /// The next command, if there is one.
    pub fn receive(&self) -> Result<Option<(Command, Option<OwnedFd>)>, Errno> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        match recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(message) if message.bytes == 0 => return Err(Errno::PIPE),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut socket = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                socket = sockets.last();
            }
        }
        let command = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        Ok(command.map(|command| (command, socket)))
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
