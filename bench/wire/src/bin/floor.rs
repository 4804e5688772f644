//! The least that a relay in user space can do: one thread, level-triggered epoll, one `recv` and one
//! `send` per message; no timers, no limits, no half-close, no statistics. What a proxy costs above
//! this is the price of what it does.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use pybalancer_bench::{
    EventFlags, Poll, accept, address, bound, connect, finish, listen, recv, send,
};

struct Side {
    socket: OwnedFd,
    /// Received from the other side and not yet taken by this one.
    left: Vec<u8>,
    ended: bool,
}

const LISTENER: u64 = u64::MAX;

fn main() -> io::Result<()> {
    let (at, to): (SocketAddr, SocketAddr) = (address("--listen"), address("--to"));
    let listener = listen(at)?;
    println!("{}", bound(&listener)?);
    let mut poll = Poll::new()?;
    poll.add(&listener, LISTENER, EventFlags::IN)?;
    // Connection n has its sides at 2n (client) and 2n + 1 (backend).
    let mut sides: Vec<Option<Side>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut closed: Vec<usize> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready)?;
        for (token, flags) in &ready {
            if *token == LISTENER {
                while let Some(client) = accept(&listener)? {
                    let place = free.pop().unwrap_or_else(|| {
                        sides.extend([None, None]);
                        sides.len() - 2
                    });
                    let backend = connect(to, None)?;
                    poll.add(&client, place as u64, EventFlags::IN)?;
                    poll.add(&backend, place as u64 + 1, EventFlags::IN)?;
                    for (index, socket) in [client, backend].into_iter().enumerate() {
                        sides[place + index] = Some(Side {
                            socket,
                            left: Vec::new(),
                            ended: false,
                        });
                    }
                }
                continue;
            }
            let here = *token as usize;
            if relay(&poll, &mut sides, here, *flags, &mut buffer).unwrap_or(true) {
                let place = here & !1;
                (sides[place], sides[place + 1]) = (None, None);
                closed.push(place);
            }
        }
        // Not before the batch is done: later events of it may name a place.
        free.append(&mut closed);
    }
}

/// Move what can be moved; true when the connection is over.
fn relay(
    poll: &Poll,
    sides: &mut [Option<Side>],
    here: usize,
    flags: EventFlags,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let pair = &mut sides[here & !1..(here & !1) + 2];
    let [Some(client), Some(backend)] = pair else {
        return Ok(false);
    };
    let (mine, other) = if here & 1 == 0 {
        (client, backend)
    } else {
        (backend, client)
    };
    if flags.contains(EventFlags::OUT) && !mine.left.is_empty() {
        let sent = send(&mine.socket, &mine.left)?;
        mine.left.drain(..sent);
        if mine.left.is_empty() {
            poll.modify(&mine.socket, here as u64, EventFlags::IN)?;
            poll.modify(&other.socket, (here ^ 1) as u64, EventFlags::IN)?;
        }
        return Ok(false);
    }
    match recv(&mine.socket, buffer)? {
        None => {}
        Some(0) => {
            finish(&other.socket);
            mine.ended = true;
            poll.modify(&mine.socket, here as u64, EventFlags::empty())?;
        }
        Some(received) => {
            let sent = match send(&other.socket, &buffer[..received]) {
                // Not connected yet.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => 0,
                result => result?,
            };
            if sent < received {
                other.left.extend_from_slice(&buffer[sent..received]);
                poll.modify(&mine.socket, here as u64, EventFlags::empty())?;
                poll.modify(&other.socket, (here ^ 1) as u64, EventFlags::OUT)?;
            }
        }
    }
    Ok(mine.ended && other.ended)
}
