//! Messages with descriptors, over a stream between two processes.
//!
//! A frame is a length, a count of descriptors, and as many bytes as the length says. The descriptors travel
//! with its first byte; the kernel never joins two such bytes in one `recvmsg`, so they come in order.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Descriptors that the kernel takes with one message (SCM_MAX_FD).
const MOST_DESCRIPTORS: usize = 253;
/// Bytes of a frame; more can only be nonsense.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Length and count.
const HEADER: usize = 8;
/// Bytes read at once.
const WINDOW: usize = 64 * 1024;
/// Pause after the kernel had too many descriptors under way (unix(7), ETOOMANYREFS).
const CROWDED: Duration = Duration::from_millis(1);

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    incoming: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

impl Channel {
    /// Over a stream socket.
    pub fn new(socket: OwnedFd) -> io::Result<Channel> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Channel {
            socket,
            incoming: Vec::new(),
            descriptors: VecDeque::new(),
        })
    }

    /// Two ends, to be handed to whoever makes channels of them.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            flags,
            None,
        )?)
    }

    /// Send a message; an error if that takes until `deadline`. After an error the channel is of no use.
    pub fn send(
        &mut self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<()> {
        let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
        if body.len() > MOST_BYTES || descriptors.len() > MOST_DESCRIPTORS {
            return Err(nonsense("too much for one message"));
        }
        let mut frame = Vec::with_capacity(HEADER + body.len());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&(descriptors.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body);
        let mut rest: &[u8] = &frame;
        let mut descriptors = Some(descriptors).filter(|descriptors| !descriptors.is_empty());
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if let Some(descriptors) = descriptors {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            match sendmsg(
                &self.socket,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    descriptors = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::TOOMANYREFS) if Instant::now() < deadline => std::thread::sleep(CROWDED),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message; an error if there is none until `deadline`, or the other end is gone.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        deadline: Instant,
    ) -> io::Result<(T, Vec<OwnedFd>)> {
        loop {
            if let Some(message) = self.try_receive()? {
                return Ok(message);
            }
            self.wait(PollFlags::IN, deadline)?;
        }
    }

    /// The next message, if all of it is there. Where the table was full some of its descriptors are missing.
    pub fn try_receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            let start = self.incoming.len();
            self.incoming.resize(start + WINDOW, 0);
            let window = self.incoming.get_mut(start..).unwrap_or_default();
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(window)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(sockets) = message {
                    self.descriptors.extend(sockets);
                }
            }
            let got = received.as_ref().map_or(0, |message| message.bytes);
            self.incoming.truncate(start + got);
            match received {
                Ok(message) if message.bytes == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(([l0, l1, l2, l3, d0, d1, d2, d3], rest)) =
            self.incoming.split_first_chunk::<HEADER>()
        else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
        let count = u32::from_le_bytes([*d0, *d1, *d2, *d3]) as usize;
        if length > MOST_BYTES || count > MOST_DESCRIPTORS {
            return Err(nonsense("no message of ours"));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = postcard::from_bytes(body).map_err(|_| nonsense("no message of ours"))?;
        self.incoming.drain(..HEADER + length);
        // One message is under way at a time, so if some are missing they are this one's.
        let count = count.min(self.descriptors.len());
        Ok(Some((message, self.descriptors.drain(..count).collect())))
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn pair() -> (Channel, Channel) {
        let (a, b) = Channel::pair().unwrap();
        (Channel::new(a).unwrap(), Channel::new(b).unwrap())
    }

    #[test]
    fn messages_and_descriptors_come_in_order_however_large() {
        let (mut here, mut there) = pair();
        let sizes = [0_usize, 1, 70_000, 3_000_000, 5];
        let sender = std::thread::spawn(move || {
            for (number, size) in sizes.into_iter().enumerate() {
                let files: Vec<OwnedFd> = (0..number * 60)
                    .map(|_| rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC))
                    .collect::<Result<_, _>>()
                    .unwrap();
                for file in &files {
                    rustix::fs::ftruncate(file, number as u64).unwrap();
                }
                let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
                here.send(&vec![number as u8; size], &borrowed, soon())
                    .unwrap();
            }
        });
        for (number, size) in sizes.into_iter().enumerate() {
            let (bytes, files): (Vec<u8>, _) = there.receive(soon()).unwrap();
            assert_eq!(bytes, vec![number as u8; size]);
            assert_eq!(files.len(), number * 60);
            for file in files {
                assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, number as i64);
            }
        }
        sender.join().unwrap();
        let end = there.receive::<Vec<u8>>(soon()).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn deadlines_hold() {
        let (mut here, mut there) = pair();
        let past = Instant::now();
        let late = there.receive::<u8>(past).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        let stuck = here.send(&vec![0_u8; 3_000_000], &[], past).unwrap_err();
        assert_eq!(stuck.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn nonsense_is_an_error() {
        let (here, mut there) = pair();
        let header = [0xff_u8; HEADER];
        rustix::io::write(&here, &header).unwrap();
        let error = there.try_receive::<u8>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
