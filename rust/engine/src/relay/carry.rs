//! A flow on its way to another process.

use std::io::{self, ErrorKind};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{BULK_PATIENCE, Flow, Pending, Tools};

/// All of a flow, wherever its bytes were.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    bytes: u64,
    eof: bool,
    done: bool,
    bulk: u8,
    /// Read and not yet taken by the receiver.
    owed: Vec<u8>,
    /// So many of them may go; the others wait for what comes behind them.
    due: u32,
}

impl Packed {
    /// Bytes that it carries.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    /// Whether it carries none.
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }
}

impl Flow {
    /// Write it down. The flow stays as good as it was: what was in a pipe is a copy then.
    pub fn pack(&mut self, tools: &mut Tools) -> io::Result<Packed> {
        self.unpipe(tools)?;
        let (owed, due) = match self.pending.as_deref() {
            Some(Pending::Copied(left)) => {
                let owed = [left.rest(), left.held()].concat();
                (owed, left.rest().len() as u32)
            }
            _ => (Vec::new(), 0),
        };
        Ok(Packed {
            bytes: self.bytes,
            eof: self.eof,
            done: self.done,
            bulk: self.bulk,
            owed,
            due,
        })
    }

    /// Read what a pipe holds: it cannot be in two processes.
    fn unpipe(&mut self, tools: &mut Tools) -> io::Result<()> {
        let Some(Pending::Piped(pipe, count)) = self.pending.as_deref() else {
            return Ok(());
        };
        let mut bytes = vec![0; *count as usize];
        let mut got = 0;
        while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(&pipe.out, rest) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(more) => got += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(pending) = self.pending.take()
            && let Pending::Piped(pipe, _) = *pending
        {
            tools.pipes.give_back(pipe);
        }
        self.owe(&bytes, got);
        Ok(())
    }

    /// What [`pack`](Flow::pack) wrote down, made a flow again.
    pub fn unpack(packed: &Packed) -> Flow {
        let mut flow = Flow {
            bytes: packed.bytes,
            pending: None,
            eof: packed.eof,
            done: packed.done,
            bulk: packed.bulk.min(BULK_PATIENCE),
        };
        let due = packed.owed.len().min(packed.due as usize);
        flow.owe(&packed.owed, due);
        flow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owed_and_held_bytes_stay_what_they_are() {
        let mut tools = Tools::default();
        let mut flow = Flow {
            bytes: 77,
            bulk: 3,
            ..Flow::default()
        };
        flow.owe(b"headbodyhe", 8);
        if let Some(Pending::Copied(left)) = flow.pending.as_deref_mut() {
            left.took(4);
        }
        let packed = flow.pack(&mut tools).unwrap();
        let mut copy = Flow::unpack(&packed);
        assert_eq!((copy.bytes, copy.bulk, copy.blocked()), (77, 3, true));
        let Some(Pending::Copied(left)) = copy.pending.as_deref() else {
            panic!("nothing is owed");
        };
        assert_eq!((left.rest(), left.held()), (&b"body"[..], &b"he"[..]));
        assert_eq!(copy.pack(&mut tools).unwrap(), packed);
    }

    #[test]
    fn what_a_pipe_holds_is_owed() {
        let mut tools = Tools::default();
        let pipe = tools.pipes.take().unwrap();
        rustix::io::write(&pipe.into, b"in the pipe").unwrap();
        let mut flow = Flow::default();
        flow.owe_piped(pipe, 11);
        let packed = flow.pack(&mut tools).unwrap();
        assert_eq!((&*packed.owed, packed.due), (&b"in the pipe"[..], 11));
        // Here too: it may turn out that nobody takes it over.
        assert!(flow.blocked() && Flow::unpack(&packed).blocked());
        assert_eq!(tools.pipes.made(), 1);
    }
}
