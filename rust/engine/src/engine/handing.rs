//! The engine's part of a hand-over between two processes (see `crate::handover`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pybalancer_core::endpoint::Endpoint;

use super::{Closing, Engine, PATIENCE, SocketKey, State};
use crate::deployment::decide_fates;
use crate::handover::guests::Arrivals;
use crate::handover::{BackendName, Channel, Guests, Manifest, Order, Report};
use crate::mailbox::Command;
use crate::socket::{Listening, SocketFile};

/// Slack for workers to report that a deadline has passed.
const SLACK: Duration = Duration::from_secs(1);

/// Listening sockets of one address, on their way to another process.
pub struct Lent {
    /// Their number in the engine that lends them.
    pub number: u32,
    /// The address as it is configured.
    pub bind: Endpoint,
    /// The listener, where the kernel has chosen the port.
    pub chosen_for: Option<Arc<str>>,
    /// The address that is bound.
    pub address: Endpoint,
    /// Device and inode of a Unix socket's file.
    pub file: Option<(u64, u64)>,
    /// In the order of their workers.
    pub sockets: Vec<OwnedFd>,
}

impl Lent {
    /// As a plan looks for it; its number.
    pub(super) fn into_listening(self) -> (SocketKey, (u32, Listening)) {
        let file = match (&self.address, self.file) {
            (Endpoint::Unix(path), Some((device, inode))) => {
                Some(SocketFile::inherited(path, device, inode))
            }
            _ => None,
        };
        let listening = Listening {
            sockets: self.sockets,
            address: self.address,
            file,
        };
        ((self.bind, self.chosen_for), (self.number, listening))
    }
}

// Of the process that hands over.
impl Engine {
    /// Copies of all listening sockets.
    pub fn lend(&self) -> io::Result<Vec<Lent>> {
        let state = self.state();
        let mut copies: HashMap<u32, Vec<OwnedFd>> = HashMap::new();
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        for mailbox in &self.mailboxes {
            let (ours, theirs) = Channel::pair()?;
            mailbox.send(Command::HandOver(Order::Lend), Some(theirs.as_fd()))?;
            drop(theirs);
            let mut channel = Channel::new(ours)?;
            loop {
                let (number, sockets) = match channel.receive::<u32>(deadline) {
                    Ok(message) => message,
                    // The worker has closed its end: that was all.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(error) => return Err(error),
                };
                for socket in sockets {
                    // Workers may share one.
                    let found = rustix::fs::fstat(&socket)?;
                    if !seen.contains(&(found.st_dev, found.st_ino)) {
                        seen.push((found.st_dev, found.st_ino));
                        copies.entry(number).or_default().push(socket);
                    }
                }
            }
        }
        let mut lent = Vec::new();
        for ((bind, chosen_for), bound) in &state.sockets {
            if bound.retired.is_some() {
                continue;
            }
            let sockets = copies.remove(&bound.number).unwrap_or_default();
            if sockets.is_empty() {
                return Err(io::Error::other(format!(
                    "no worker has a socket of {}",
                    bound.address
                )));
            }
            lent.push(Lent {
                number: bound.number,
                bind: bind.clone(),
                chosen_for: chosen_for.clone(),
                address: bound.address.clone(),
                file: bound.file.as_ref().map(SocketFile::identity),
                sockets,
            });
        }
        Ok(lent)
    }

    /// What tunnels may refer to, for the other process.
    pub fn manifest(&self) -> io::Result<Vec<u8>> {
        let state = self.state();
        let listeners = state.registry.listeners();
        let manifest = Manifest {
            listeners: listeners.map(|entry| (*entry.name).into()).collect(),
            backends: (state.registry.backends())
                .map(|entry| BackendName::of(&entry))
                .collect(),
        };
        postcard::to_allocvec(&manifest).map_err(io::Error::other)
    }

    /// Stop accepting, freeze every tunnel that stands, and send them over these channels, which are spread
    /// over the workers; how many. After an error they are frozen all the same: thaw them.
    pub fn freeze(&self, channels: Vec<OwnedFd>, patience: Duration) -> Result<u64, String> {
        for (index, channel) in channels.into_iter().enumerate() {
            let mailbox = self.mailboxes.get(index % self.mailboxes.len().max(1));
            let sent = mailbox.map(|mailbox| {
                mailbox.send(Command::HandOver(Order::Through), Some(channel.as_fd()))
            });
            if !matches!(sent, Some(Ok(()))) {
                return Err("a worker does not answer".to_owned());
            }
        }
        let deadline = Instant::now() + patience;
        self.command_all(patience + SLACK, |report| Order::Freeze {
            deadline,
            report,
        })
    }

    /// Go on with what is frozen; how many tunnels that are.
    pub fn thaw(&self) -> Result<u64, String> {
        self.command_all(PATIENCE, Order::Thaw)
    }

    /// What is frozen was the other process's, and that has died: abort it and go on.
    pub fn bury(&self) -> Result<u64, String> {
        self.command_all(PATIENCE, Order::Bury)
    }

    /// The other process has what is frozen, and the listening sockets of these numbers. End like
    /// [`close`](Engine::close), within `grace`; what becomes a tunnel until then is handed over too.
    pub fn let_go(&self, taken: &[u32], grace: Duration) -> Closing {
        {
            let mut state = self.state();
            state.closed = true;
            for (_, bound) in state.sockets.drain() {
                if let (true, Some(file)) = (taken.contains(&bound.number), bound.file) {
                    file.leave();
                }
            }
        }
        let until = self.shared.clock.now() + grace;
        let taken: Arc<[u32]> = taken.into();
        for mailbox in &self.mailboxes {
            let taken = Arc::clone(&taken);
            let order = Order::LetGo { taken, until };
            let _ = mailbox.send(Command::HandOver(order), None);
        }
        Closing {
            give_up_at: until + PATIENCE,
        }
    }

    /// Give an order to every worker, and add up what they report.
    fn command_all(
        &self,
        patience: Duration,
        order: impl Fn(Report) -> Order,
    ) -> Result<u64, String> {
        let (report, reports) = mpsc::channel();
        for mailbox in &self.mailboxes {
            let order = Command::HandOver(order(report.clone()));
            if mailbox.send(order, None).is_err() {
                return Err("a worker does not answer".to_owned());
            }
        }
        drop(report);
        let deadline = Instant::now() + patience;
        let mut total = Ok(0);
        for _ in &self.mailboxes {
            let left = deadline.saturating_duration_since(Instant::now());
            let reported = match reports.recv_timeout(left) {
                Ok(reported) => reported,
                Err(mpsc::RecvTimeoutError::Timeout) => Err("a worker does not answer".to_owned()),
                Err(mpsc::RecvTimeoutError::Disconnected) => Err("a worker has died".to_owned()),
            };
            // All are waited for, whatever the first one says.
            total = total.and_then(|sum| Ok(sum + reported?));
        }
        total
    }
}

// Of the process that takes over.
impl Engine {
    /// Accept nothing before [`activate`](Engine::activate), and use these sockets for plans that ask for
    /// their addresses.
    pub fn inherit(&self, lent: Vec<Lent>) {
        self.shared.holding.store(true, Ordering::Relaxed);
        self.state().inherited = lent.into_iter().map(Lent::into_listening).collect();
    }

    /// Numbers of those that no plan has asked for, as their old engine knows them.
    pub fn unwanted(&self) -> Vec<u32> {
        let state = self.state();
        state
            .inherited
            .values()
            .map(|(number, _)| *number)
            .collect()
    }

    /// Hold the tunnels that come over these channels, which are spread over the workers.
    pub fn receive(&self, manifest: &[u8], channels: Vec<OwnedFd>) -> Result<(), String> {
        let nonsense = || "what the other process says makes no sense".to_owned();
        let manifest: Manifest = postcard::from_bytes(manifest).map_err(|_| nonsense())?;
        let mut state = self.state();
        let deployment = state.deployment.clone().ok_or("no plan is applied")?;
        let ledger = Arc::clone(&state.ledger);
        let registry = &mut state.registry;
        let guests = Guests::new(&manifest, &deployment, registry, &ledger, channels.len());
        let guests = Arc::new(guests.ok_or("more listeners and backends than there is room for")?);
        // Of those that this plan does not name any more too.
        state.leaving = decide_fates(&deployment.pools, &state.registry, None).1;
        state.guests = Some(Arc::clone(&guests));
        for (index, channel) in channels.into_iter().enumerate() {
            let mailbox = self.mailboxes.get(index % self.mailboxes.len().max(1));
            let order = Command::HandOver(Order::Receive(Arc::clone(&guests)));
            if mailbox.is_none_or(|mailbox| mailbox.send(order, Some(channel.as_fd())).is_err()) {
                return Err("a worker does not answer".to_owned());
            }
        }
        Ok(())
    }

    /// Wait up to `slice` until all tunnels have come; what came, once they have or something went wrong.
    pub fn wait_received(&self, slice: Duration) -> Option<Arrivals> {
        let guests = self.state().guests.clone();
        guests.map_or_else(|| Some(Arrivals::default()), |guests| guests.wait(slice))
    }

    /// What came is ours: serve it, and accept; how many tunnels.
    pub fn activate(&self) -> Result<u64, String> {
        {
            let mut state = self.state();
            state.guests = None;
            // Nobody asked for these; their old process serves who waits there.
            state.inherited.clear();
            let State {
                sockets,
                deployment,
                ..
            } = &mut *state;
            for bound in sockets.values_mut() {
                let mut fronts = deployment.iter().flat_map(|deployment| &deployment.fronts);
                let front = fronts.find(|front| front.socket == bound.number);
                if let (Some(file), Some(front)) = (&mut bound.file, front) {
                    file.adopt();
                    let _ = file.set_mode(front.listener.unix_mode);
                }
            }
        }
        self.shared.holding.store(false, Ordering::Relaxed);
        let tunnels = self.command_all(PATIENCE, Order::Activate)?;
        let mut state = self.state();
        let leaving = std::mem::take(&mut state.leaving);
        self.drain_leaving(&mut state, &leaving);
        Ok(tunnels)
    }
}
