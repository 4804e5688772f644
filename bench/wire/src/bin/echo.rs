//! A WebSocket echo server: the backend of all measurements. It streams: a frame is sent back as it
//! comes in, unmasked.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use pybalancer_bench::{
    EventFlags, Poll, accept, accept_key, address, bound, frame_header, listen, number, recv, send,
};

#[derive(Default)]
struct Connection {
    socket: Option<OwnedFd>,
    open: bool,
    /// Bytes of a request or of a frame's header that is not complete.
    partial: Vec<u8>,
    mask: [u8; 4],
    /// Of the frame under way.
    remaining: usize,
    turned: usize,
    out: Vec<u8>,
    sent: usize,
    waiting: bool,
}

const LISTENER: u64 = u64::MAX;
/// Unsent bytes above which nothing more is read.
const ENOUGH: usize = 1 << 20;

fn main() -> io::Result<()> {
    let first = listen(address("--listen"))?;
    let at = bound(&first)?;
    println!("{at}");
    let threads = number("--threads", 1);
    for _ in 1..threads {
        std::thread::spawn(move || serve(listen(at)?, at));
    }
    serve(first, at)
}

fn serve(listener: OwnedFd, _at: SocketAddr) -> io::Result<()> {
    let mut poll = Poll::new()?;
    poll.add(&listener, LISTENER, EventFlags::IN)?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready)?;
        let mut closed = Vec::new();
        for (token, _) in &ready {
            if *token == LISTENER {
                while let Some(socket) = accept(&listener)? {
                    let place = free.pop().unwrap_or_else(|| {
                        connections.push(Connection::default());
                        connections.len() - 1
                    });
                    poll.add(&socket, place as u64, EventFlags::IN)?;
                    connections[place] = Connection {
                        socket: Some(socket),
                        ..Connection::default()
                    };
                }
                continue;
            }
            let place = *token as usize;
            let connection = &mut connections[place];
            if connection.socket.is_some()
                && !turn(&poll, connection, place, &mut buffer).unwrap_or(false)
            {
                *connection = Connection::default();
                closed.push(place);
            }
        }
        free.append(&mut closed);
    }
}

/// One event; false when the connection is over.
fn turn(
    poll: &Poll,
    connection: &mut Connection,
    place: usize,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let Some(socket) = connection.socket.take() else {
        return Ok(false);
    };
    let pending = connection.out.len() - connection.sent;
    let alive = if pending < ENOUGH {
        match recv(&socket, buffer)? {
            Some(0) => false,
            Some(received) => {
                digest(connection, &mut buffer[..received])?;
                true
            }
            None => true,
        }
    } else {
        true
    };
    if connection.sent < connection.out.len() {
        connection.sent += send(&socket, &connection.out[connection.sent..])?;
    }
    let done = connection.sent == connection.out.len();
    if done {
        connection.out.clear();
        connection.sent = 0;
        if connection.out.capacity() > ENOUGH {
            connection.out = Vec::new();
        }
    }
    if done == connection.waiting {
        connection.waiting = !done;
        let flags = if done {
            EventFlags::IN
        } else {
            EventFlags::OUT | EventFlags::IN
        };
        poll.modify(&socket, place as u64, flags)?;
    }
    connection.socket = Some(socket);
    Ok(alive)
}

/// Turn received bytes into bytes to be sent.
fn digest(connection: &mut Connection, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        if connection.remaining > 0 {
            let (payload, rest) = bytes.split_at_mut(bytes.len().min(connection.remaining));
            let mask = connection.mask;
            for (index, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[(connection.turned + index) & 3];
            }
            connection.turned += payload.len();
            connection.remaining -= payload.len();
            connection.out.extend_from_slice(payload);
            bytes = rest;
            continue;
        }
        connection.partial.push(bytes[0]);
        bytes = &mut bytes[1..];
        if connection.open {
            frame(connection)?;
        } else if connection.partial.ends_with(b"\r\n\r\n") {
            handshake(connection)?;
        }
    }
    Ok(())
}

fn handshake(connection: &mut Connection) -> io::Result<()> {
    let text = String::from_utf8_lossy(&connection.partial).to_string();
    let key = text.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        (name.eq_ignore_ascii_case("sec-websocket-key")).then_some(value)
    });
    let key = key.ok_or_else(|| io::Error::other("no key"))?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept_key(key.as_bytes())
    );
    connection.out.extend_from_slice(answer.as_bytes());
    connection.partial = Vec::new();
    connection.open = true;
    Ok(())
}

fn frame(connection: &mut Connection) -> io::Result<()> {
    let head = &connection.partial;
    let Some(second) = head.get(1) else {
        return Ok(());
    };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if head.len() < 2 + extended + 4 {
        return Ok(());
    }
    let length = match extended {
        0 => usize::from(second & 0x7f),
        _ => head[2..2 + extended]
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    };
    if head[0] & 0x0f == 8 {
        return Err(io::Error::other("closed"));
    }
    connection.mask.copy_from_slice(&head[2 + extended..]);
    connection.remaining = length;
    connection.turned = 0;
    connection
        .out
        .extend_from_slice(&frame_header(length, None));
    connection.partial.clear();
    Ok(())
}
