//! Moving the body of an HTTP message: seen where its framing is, unseen where only payload is.

use std::os::fd::{AsFd, OwnedFd};

use pybalancer_core::http::{Body, Piece, Refusal};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{BUDGET, BULK, BULK_PATIENCE, Flow, Step, Tap, Tools, copy, splice};

/// How far a body got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for one of its sockets, or has used its budget.
    Waiting,
    /// All of it was taken by the receiver.
    Complete,
    /// The sender ended its stream before the body ended.
    Cut,
    /// What the sender sent is no body.
    Bad(Refusal),
    /// The sender's socket failed.
    SenderFailed,
    /// The receiver's socket failed.
    ReceiverFailed,
}

/// Payload needs no look.
struct Payload<'a>(&'a mut Body);

impl Tap for Payload<'_> {
    fn unseen(&self) -> usize {
        usize::try_from(self.0.unseen()).unwrap_or(usize::MAX)
    }

    fn skip(&mut self, count: usize) {
        self.0.skip(count as u64);
    }

    fn see(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        self.skip(bytes.len());
        Ok(bytes.len())
    }
}

/// Move what can be moved of a body. `ahead` holds what was read of the sender's stream before; what
/// comes behind the body's end is left there.
pub fn pump(
    flow: &mut Flow,
    body: &mut Body,
    ahead: &mut Vec<u8>,
    sender: &OwnedFd,
    receiver: &OwnedFd,
    tools: &mut Tools,
) -> Progress {
    let before = flow.bytes;
    loop {
        if flow.blocked() {
            match super::flush(flow, receiver.as_fd(), tools) {
                Ok(true) => {}
                Ok(false) => return Progress::Waiting,
                Err(_) => return Progress::ReceiverFailed,
            }
        }
        if body.is_complete() {
            return Progress::Complete;
        }
        if !ahead.is_empty() {
            let waiting = std::mem::take(ahead);
            match pass(flow, body, &waiting, receiver, tools) {
                Ok(used) => *ahead = waiting.get(used..).unwrap_or_default().to_vec(),
                Err(progress) => return progress,
            }
            if !ahead.is_empty() && !flow.blocked() && !body.is_complete() {
                // Less than a chunk's size line: the rest of it has to come.
                match more(ahead, sender) {
                    Ok(0) => return ended(body),
                    Ok(_) => {}
                    Err(Errno::AGAIN) => return Progress::Waiting,
                    Err(_) => return Progress::SenderFailed,
                }
            }
            continue;
        }
        if flow.bytes - before >= BUDGET as u64 {
            return Progress::Waiting;
        }
        let mut payload = Payload(body);
        let much = payload.unseen();
        if flow.bulk > 0 && much >= BULK {
            let step = splice::step(
                flow,
                &mut payload,
                much,
                sender.as_fd(),
                receiver.as_fd(),
                tools,
            );
            match step {
                Step::Moved { .. } => continue,
                Step::Empty => return Progress::Waiting,
                Step::End => return ended(body),
                Step::Failed | Step::Stopped => return Progress::SenderFailed,
                Step::ReceiverFailed => return Progress::ReceiverFailed,
            }
        }
        let mut scratch = std::mem::take(&mut tools.scratch);
        let result = match rustix::net::recv(sender, &mut *scratch, RecvFlags::empty()) {
            Ok((_, 0)) => Err(ended(body)),
            Ok((_, got)) => {
                let bytes = scratch.get(..got).unwrap_or_default();
                pass(flow, body, bytes, receiver, tools)
                    .inspect(|used| ahead.extend_from_slice(bytes.get(*used..).unwrap_or_default()))
                    .map(|_| got)
            }
            Err(Errno::AGAIN) => Err(Progress::Waiting),
            Err(Errno::INTR) => Ok(0),
            Err(_) => Err(Progress::SenderFailed),
        };
        tools.scratch = scratch;
        match result {
            Ok(got) if got >= BULK && body.unseen() >= BULK as u64 => flow.bulk = BULK_PATIENCE,
            Ok(_) => {}
            Err(progress) => return progress,
        }
    }
}

fn ended(body: &mut Body) -> Progress {
    if body.end().is_ok() {
        Progress::Complete
    } else {
        Progress::Cut
    }
}

fn more(ahead: &mut Vec<u8>, sender: &OwnedFd) -> Result<usize, Errno> {
    let mut part = [0; 1024];
    match rustix::net::recv(sender, &mut part, RecvFlags::empty()) {
        Ok((_, got)) => {
            ahead.extend_from_slice(part.get(..got).unwrap_or_default());
            Ok(got)
        }
        Err(Errno::INTR) => Err(Errno::AGAIN),
        Err(error) => Err(error),
    }
}

/// Pass on what `input` has of the body; how much of it was used.
fn pass(
    flow: &mut Flow,
    body: &mut Body,
    input: &[u8],
    receiver: &OwnedFd,
    tools: &mut Tools,
) -> Result<usize, Progress> {
    tools.assembled.clear();
    let used = assemble(body, input, &mut tools.assembled).map_err(Progress::Bad)?;
    let sent = match copy::send(receiver.as_fd(), &tools.assembled) {
        Ok(sent) => sent,
        Err(Errno::AGAIN) => 0,
        Err(_) => return Err(Progress::ReceiverFailed),
    };
    flow.bytes += sent as u64;
    tools.copied += sent as u64;
    let rest = tools.assembled.get(sent..).unwrap_or_default();
    flow.owe(rest, rest.len());
    Ok(used)
}

/// Append to `out` what `input` means for the receiver; how much of it was used.
pub fn assemble(body: &mut Body, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
    let mut used = 0;
    loop {
        let rest = input.get(used..).unwrap_or_default();
        match body.next(rest)? {
            Piece::Pass(count) => {
                out.extend_from_slice(rest.get(..count).unwrap_or_default());
                used += count;
            }
            Piece::Replace(count, line) => {
                out.extend_from_slice(line.as_slice());
                used += count;
            }
            Piece::End | Piece::More => return Ok(used),
        }
    }
}
