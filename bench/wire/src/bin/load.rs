//! The load generator: WebSocket clients on one thread.
//!
//! `load --to IP:PORT --mode echo --connections 200 --busy 100 --size 64 --messages 200000`
//! opens all connections, lets each echo once, prints `ready`, and waits for a line on its input.
//! Then the busy ones keep one message each under way until so many were echoed; every payload is
//! compared. It prints what it did as JSON and waits for its input to end before it lets go of the
//! connections. `--mode churn` opens, echoes once and closes `--messages` connections, `--busy` at a
//! time. `--mode hold` only opens.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use pybalancer_bench::{
    EventFlags, Poll, address, connect, frame_header, number, option, recv, send,
};

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &[u8] = b": s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x99];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Greeting,
    Idle,
    Asking,
}

struct Client {
    socket: OwnedFd,
    stage: Stage,
    /// Bytes of the message sent, and of its echo received.
    sent: usize,
    received: usize,
    greeting: Vec<u8>,
    wants_out: bool,
}

struct Load {
    poll: Poll,
    to: SocketAddr,
    question: Vec<u8>,
    echo: Vec<u8>,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    opened: usize,
    /// Messages echoed.
    done: usize,
}

fn main() -> io::Result<()> {
    let to = address("--to");
    let (connections, busy) = (number("--connections", 100), number("--busy", 100));
    let (size, messages) = (number("--size", 64), number("--messages", 10_000));
    let payload: Vec<u8> = (0..size).map(|index| ((index * 131) >> 3) as u8).collect();
    let mut question = frame_header(size, Some(MASK));
    question.extend(
        payload
            .iter()
            .enumerate()
            .map(|(index, byte)| byte ^ MASK[index & 3]),
    );
    let mut echo = frame_header(size, None);
    echo.extend_from_slice(&payload);
    let mut load = Load {
        poll: Poll::new()?,
        to,
        question,
        echo,
        clients: Vec::new(),
        buffer: vec![0; 256 * 1024],
        opened: 0,
        done: 0,
    };
    let mode = option("--mode").unwrap_or_else(|| "echo".to_owned());
    if mode == "churn" {
        load.open(busy.min(256))?;
        load.each_echoes_once()?;
    } else {
        // In groups, so that nobody's accept queue overflows.
        while load.clients.len() < connections {
            load.open((connections - load.clients.len()).min(256))?;
            load.each_echoes_once()?;
        }
    }
    load.done = 0;
    println!("ready");
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let started = Instant::now();
    match mode.as_str() {
        "echo" => load.echo(busy, messages)?,
        "churn" => load.churn(messages)?,
        _ => {}
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{{\"seconds\": {seconds:.6}, \"messages\": {}, \"size\": {size}}}",
        load.done
    );
    while io::stdin().read_line(&mut line)? > 0 {}
    Ok(())
}

impl Load {
    fn open(&mut self, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let client = self.fresh()?;
            self.poll
                .add(&client.socket, self.clients.len() as u64, EventFlags::OUT)?;
            self.clients.push(client);
        }
        Ok(())
    }

    fn fresh(&mut self) -> io::Result<Client> {
        // Many source addresses: ports that linger in TIME_WAIT do not run out.
        self.opened += 1;
        let from = Ipv4Addr::new(127, 0, 1, (self.opened % 32) as u8 + 1);
        Ok(Client {
            socket: connect(self.to, Some(from))?,
            stage: Stage::Connecting,
            sent: 0,
            received: 0,
            greeting: Vec::new(),
            wants_out: true,
        })
    }

    fn each_echoes_once(&mut self) -> io::Result<()> {
        let mut left = self
            .clients
            .iter()
            .filter(|client| client.stage == Stage::Connecting)
            .count();
        let mut ready = Vec::new();
        while left > 0 {
            self.poll.wait(&mut ready)?;
            for (token, flags) in &ready {
                let place = *token as usize;
                if self.turn(place, *flags)? {
                    left -= 1;
                }
            }
        }
        Ok(())
    }

    fn echo(&mut self, busy: usize, messages: usize) -> io::Result<()> {
        let busy = busy.min(self.clients.len());
        // Spread over all connections, as busy users are.
        let stride = self.clients.len() / busy;
        let mut begun = busy;
        for index in 0..busy {
            self.ask(index * stride)?;
        }
        let mut ready = Vec::new();
        while self.done < messages {
            self.poll.wait(&mut ready)?;
            for (token, flags) in &ready {
                let place = *token as usize;
                if self.turn(place, *flags)? && begun < messages {
                    begun += 1;
                    self.ask(place)?;
                }
            }
        }
        Ok(())
    }

    fn churn(&mut self, messages: usize) -> io::Result<()> {
        for place in 0..self.clients.len() {
            self.replace(place)?;
        }
        let mut begun = self.clients.len();
        let mut ready = Vec::new();
        while self.done < messages {
            self.poll.wait(&mut ready)?;
            for (token, flags) in &ready {
                let place = *token as usize;
                if self.turn(place, *flags)? && begun < messages {
                    begun += 1;
                    self.replace(place)?;
                }
            }
        }
        Ok(())
    }

    fn replace(&mut self, place: usize) -> io::Result<()> {
        let client = self.fresh()?;
        self.poll
            .add(&client.socket, place as u64, EventFlags::OUT)?;
        self.clients[place] = client;
        Ok(())
    }

    fn ask(&mut self, place: usize) -> io::Result<()> {
        let client = &mut self.clients[place];
        (client.stage, client.sent, client.received) = (Stage::Asking, 0, 0);
        self.push(place)
    }

    fn push(&mut self, place: usize) -> io::Result<()> {
        let client = &mut self.clients[place];
        client.sent += send(&client.socket, &self.question[client.sent..])?;
        let wants_out = client.sent < self.question.len();
        if wants_out != client.wants_out {
            client.wants_out = wants_out;
            let flags = if wants_out {
                EventFlags::IN | EventFlags::OUT
            } else {
                EventFlags::IN
            };
            self.poll.modify(&client.socket, place as u64, flags)?;
        }
        Ok(())
    }

    /// One event; true if it completed an echo.
    fn turn(&mut self, place: usize, flags: EventFlags) -> io::Result<bool> {
        let client = &mut self.clients[place];
        if client.stage == Stage::Connecting {
            send(&client.socket, REQUEST)?;
            client.stage = Stage::Greeting;
            client.wants_out = false;
            self.poll
                .modify(&client.socket, place as u64, EventFlags::IN)?;
            return Ok(false);
        }
        if flags.contains(EventFlags::OUT) && client.stage == Stage::Asking {
            self.push(place)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return Ok(false);
        }
        let client = &mut self.clients[place];
        let Some(received) = recv(&client.socket, &mut self.buffer)? else {
            return Ok(false);
        };
        if received == 0 {
            return Err(io::Error::other("the server ended the connection"));
        }
        let bytes = &self.buffer[..received];
        match client.stage {
            Stage::Greeting => {
                client.greeting.extend_from_slice(bytes);
                let accepted = client
                    .greeting
                    .windows(ACCEPT.len())
                    .any(|part| part == ACCEPT);
                if accepted && client.greeting.ends_with(b"\r\n\r\n") {
                    client.greeting = Vec::new();
                    self.ask(place)?;
                } else if client.greeting.len() > 4096
                    || !b"HTTP/1.1 101".starts_with(client.greeting.get(..12).unwrap_or(b"HTTP"))
                {
                    return Err(io::Error::other("the handshake was refused"));
                }
                Ok(false)
            }
            Stage::Asking => {
                let expected = self.echo.get(client.received..client.received + received);
                if expected != Some(bytes) {
                    return Err(io::Error::other("the echo differs"));
                }
                client.received += received;
                let complete = client.received == self.echo.len();
                if complete {
                    client.stage = Stage::Idle;
                    self.done += 1;
                }
                Ok(complete)
            }
            Stage::Connecting | Stage::Idle => Err(io::Error::other("bytes that nobody asked for")),
        }
    }
}
