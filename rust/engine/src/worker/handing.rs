//! The old process's side of a hand-over (see `crate::handover`).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;

use super::Worker;
use super::ending::How;
use crate::handover::passport::Writer;
use crate::handover::{Channel, Down, MOST_BYTES, MOST_TUNNELS, Order, Report, Taken, Waiting};
use crate::poller::{Interest, Side};
use crate::relay::Tools;
use crate::socket;
use crate::tunnel::Tunnel;

/// How long the new process may take to answer for a tunnel that comes late.
const LATE: Duration = Duration::from_secs(1);
/// How long lending a listener may take: the engine waits for it.
const LENDING: Duration = Duration::from_secs(5);

/// Deadlines of tunnels that stood still are not over earlier than this.
const CATCH_UP: Duration = Duration::from_secs(1);

/// A hand-over under way.
#[derive(Default)]
pub(super) struct Handing {
    channels: Vec<Channel>,
    /// Whose turn it is.
    next: usize,
    /// Out of the poller and the slab, and the new process's as soon as it says so.
    frozen: Vec<Tunnel>,
    /// They were: what stands now follows them.
    leaving: bool,
}

impl Handing {
    /// Sockets of frozen tunnels.
    pub(super) fn sockets(&self) -> usize {
        2 * self.frozen.len()
    }
}

impl Worker {
    pub(super) fn on_order(&mut self, order: Order, descriptor: Option<OwnedFd>) {
        let channel = descriptor.and_then(|descriptor| Channel::new(descriptor).ok());
        match order {
            Order::Lend => {
                if let Some(channel) = channel {
                    // The engine notices what is missing.
                    let _ = self.lend(channel);
                }
            }
            Order::Through => {
                let handing = self.handing.get_or_insert_default();
                handing.channels.extend(channel);
            }
            Order::Freeze { deadline, report } => {
                let result = self.freeze(deadline);
                tell(&report, result.map_err(|error| why(&error)));
            }
            Order::Thaw(report) => {
                let count = self.thaw();
                tell(&report, Ok(count));
            }
            Order::Bury(report) => {
                let count = self.thaw_as(|worker, slot| {
                    worker.end(slot, Reason::Shutdown, How::Abort);
                });
                tell(&report, Ok(count));
            }
            Order::LetGo { taken, until } => self.let_go(&taken, until),
            Order::Receive(guests) => self.receive(guests, channel),
            Order::Activate(report) => {
                let count = self.activate();
                tell(&report, Ok(count));
            }
        }
    }

    /// Send copies of the listening sockets, with their numbers.
    fn lend(&mut self, mut channel: Channel) -> io::Result<()> {
        let deadline = Instant::now() + LENDING;
        let ordered: BTreeMap<_, _> = self.listening.iter().collect();
        for (number, listening) in ordered {
            for socket in &listening.sockets {
                channel.send(number, &[socket.as_fd()], deadline)?;
            }
        }
        Ok(())
    }

    /// Stop serving what stands, and send it. An error leaves everything frozen.
    fn freeze(&mut self, deadline: Instant) -> io::Result<u64> {
        self.suspend_accepting();
        for slot in self.standing() {
            self.take_out(slot);
        }
        match &mut self.handing {
            Some(handing) => send_frozen(handing, &mut self.tools, deadline),
            None => Ok(0),
        }
    }

    /// Tunnels that another process could serve as they are.
    fn standing(&self) -> Vec<u32> {
        let stands = |tunnel: &Tunnel| {
            tunnel.opening.is_none()
                && tunnel.closing.is_none()
                && tunnel.leaving().is_none()
                && tunnel.backend.is_some()
        };
        let standing = self.tunnels.iter().filter(|(_, tunnel)| stands(tunnel));
        standing.map(|(slot, _)| slot as u32).collect()
    }

    /// Freeze one. It is not looked at from here on.
    fn take_out(&mut self, slot: u32) {
        let unwatched = [Side::Client, Side::Backend]
            .into_iter()
            .all(|side| self.watch(slot, side, Interest::UNWATCHED));
        if !unwatched {
            return;
        }
        self.wheel.cancel(slot);
        if let Some(tunnel) = self.tunnels.try_remove(slot as usize) {
            let handing = self.handing.get_or_insert_default();
            handing.frozen.push(tunnel);
        }
    }

    /// Go on as if nothing had been; with how many tunnels.
    pub(super) fn thaw(&mut self) -> u64 {
        self.thaw_as(|worker, slot| {
            worker.watch_anew(slot);
            worker.join_sheds(slot);
        })
    }

    /// Whether there are tunnels of which it is not decided whose they are.
    pub(super) fn is_frozen(&self) -> bool {
        let handing = self.handing.as_ref();
        handing.is_some_and(|handing| !handing.frozen.is_empty())
    }

    fn thaw_as(&mut self, then: impl Fn(&mut Worker, u32)) -> u64 {
        let frozen = self.handing.take().map(|handing| handing.frozen);
        let mut count = 0;
        for tunnel in frozen.unwrap_or_default() {
            let slot = self.seat(tunnel);
            then(self, slot);
            count += 1;
        }
        if self.finish_at.is_none() {
            self.accepting = true;
            self.retune();
            self.resume_accepting();
        }
        count
    }

    /// Give a tunnel a slot. Its sockets are counted already.
    pub(super) fn seat(&mut self, mut tunnel: Tunnel) -> u32 {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        tunnel.generation = self.generation;
        self.tunnels.insert(tunnel) as u32
    }

    /// Watch a tunnel that nobody watched, and set its timer.
    pub(super) fn watch_anew(&mut self, slot: u32) {
        for side in [Side::Client, Side::Backend] {
            // Also where only an end is waited for: it may have come meanwhile.
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                return;
            };
            let wanted = tunnel.wanted(side);
            if !self.watch(slot, side, wanted) {
                return;
            }
        }
        if let Some(at) = (self.tunnels.get(slot as usize)).and_then(|tunnel| tunnel.due(self.now))
        {
            // Not before what has come meanwhile could be read: it may be what was waited for.
            self.wheel.set(slot, at.max(self.now + CATCH_UP));
        }
        // It has another place now, or comes from elsewhere.
        if !self.drains.is_empty() {
            self.join_drains(slot);
        }
    }

    /// Ask for no more connections. Those who come wait in the kernel's queue, for us or for the new process.
    fn suspend_accepting(&mut self) {
        self.accepting = false;
        self.resume_at = None;
        for listening in self.listening.values_mut().filter(|each| each.watched) {
            for socket in &listening.sockets {
                let _ = self.poller.remove(socket);
            }
            listening.watched = false;
        }
    }

    /// The new process may have set these options as its plan says.
    fn retune(&self) {
        for listening in self.listening.values() {
            let Some(front) = &listening.front else {
                continue;
            };
            for socket in &listening.sockets {
                let _ = socket::tune(socket, &front.pool.planned.dialing.timeouts);
                let _ = rustix::net::listen(socket, front.listener.backlog);
            }
        }
    }

    /// What is frozen is the new process's, and so are the listening sockets that it took. Closing our
    /// copies ends nothing.
    fn let_go(&mut self, taken: &[u32], until: Tick) {
        let handing = self.handing.get_or_insert_default();
        handing.leaving = true;
        for tunnel in std::mem::take(&mut handing.frozen) {
            self.forget(tunnel);
        }
        let numbers: Vec<u32> = self.listening.keys().copied().collect();
        for number in numbers {
            if taken.contains(&number) {
                // The entry stays: connections may wait for their turn there.
                if let Some(listening) = self.listening.get_mut(&number) {
                    listening.sockets.clear();
                }
            } else {
                self.stop_listening(number);
            }
        }
        self.finish_at = Some(until);
    }

    /// Whether somebody is there to whom late ones can be handed over.
    pub(super) fn is_leaving(&self) -> bool {
        let handing = self.handing.as_ref();
        handing.is_some_and(|handing| handing.leaving && !handing.channels.is_empty())
    }

    /// Take a tunnel off the books that lives on elsewhere.
    fn forget(&mut self, mut tunnel: Tunnel) {
        self.sockets -= 2;
        self.uncount(&tunnel);
        if let Some(entry) = &tunnel.entry {
            entry.load().fetch_sub(1, Ordering::Relaxed);
        }
        tunnel.to_backend.release(&mut self.tools.pipes);
        tunnel.to_client.release(&mut self.tools.pipes);
    }

    /// While we leave: hand over what has become a tunnel since.
    pub(super) fn hand_over_late(&mut self) {
        if !self.is_leaving() {
            return;
        }
        self.hand_over_waiting();
        for slot in self.standing() {
            self.take_out(slot);
        }
        while let Some(handing) = &mut self.handing
            && !handing.frozen.is_empty()
            && !handing.channels.is_empty()
        {
            handing.next = (handing.next + 1) % handing.channels.len();
            match hand_over_some(handing, &mut self.tools) {
                Ok(gone) => {
                    for tunnel in gone {
                        self.forget(tunnel);
                    }
                }
                // Nobody is there any more, or nobody knows what is: the others may be better.
                Err(_) => drop(handing.channels.remove(handing.next)),
            }
        }
        let left = (self.handing.as_mut()).map(|handing| std::mem::take(&mut handing.frozen));
        for tunnel in left.unwrap_or_default() {
            let slot = self.seat(tunnel);
            self.watch_anew(slot);
        }
    }
}

impl Worker {
    /// Connections between two requests: nobody waits for anything, so they change hands unnoticed.
    fn hand_over_waiting(&mut self) {
        loop {
            let waiting = self.tunnels.iter().filter_map(|(slot, tunnel)| {
                Some((slot as u32, Waiting::of(tunnel)?, tunnel.client.as_fd()))
            });
            let (mut slots, mut passports, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
            for (slot, passport, socket) in waiting.take(2 * MOST_TUNNELS) {
                slots.push(slot);
                passports.push(passport);
                sockets.push(socket);
            }
            if slots.is_empty() {
                return;
            }
            let Some(handing) = &mut self.handing else {
                return;
            };
            let full = slots.len() == 2 * MOST_TUNNELS;
            match send_waiting(handing, passports, &sockets) {
                Ok(refused) => {
                    for (place, slot) in (0_u16..).zip(slots) {
                        if refused.contains(&place) {
                            self.end(slot, Reason::Finished, How::Clean);
                        } else {
                            self.hand_over_one(slot);
                        }
                    }
                }
                // As at the end of any process: they hold nothing that anybody waits for.
                Err(_) => return self.end_idle_requests(),
            }
            if !full {
                return;
            }
        }
    }

    /// A connection between two requests is the new process's.
    fn hand_over_one(&mut self, slot: u32) {
        self.drop_backend(slot);
        // Its registration would outlive our copy of the socket.
        if !self.watch(slot, Side::Client, Interest::UNWATCHED) {
            return;
        }
        self.wheel.cancel(slot);
        if let Some(tunnel) = self.tunnels.try_remove(slot as usize) {
            self.opening -= 1;
            self.sockets -= 1;
            self.uncount(&tunnel);
        }
    }

    /// One connection less, though not one that has ended.
    fn uncount(&self, tunnel: &Tunnel) {
        tunnel.terms.listener.live().fetch_sub(1, Ordering::Relaxed);
        if let (true, Some(address)) = (tunnel.counted, tunnel.peer.address()) {
            tunnel.terms.listener.leave(address.ip());
        }
    }
}

fn send_waiting(
    handing: &mut Handing,
    waiting: Vec<Waiting>,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<Vec<u16>> {
    let deadline = Instant::now() + LATE;
    handing.next = (handing.next + 1) % handing.channels.len().max(1);
    let channel = handing.channels.get_mut(handing.next);
    let channel = channel.ok_or(io::ErrorKind::NotConnected)?;
    channel.send(&Down::Between(waiting), sockets, deadline)?;
    let (taken, _): (Taken, _) = channel.receive(deadline)?;
    channel.send(&Down::Commit, &[], deadline)?;
    Ok(taken.refused)
}

fn send_frozen(handing: &mut Handing, tools: &mut Tools, deadline: Instant) -> io::Result<u64> {
    let mut counts = vec![0; handing.channels.len()];
    let mut rest = handing.frozen.as_mut_slice();
    while !rest.is_empty() {
        handing.next = (handing.next + 1) % handing.channels.len().max(1);
        let channel = handing.channels.get_mut(handing.next);
        let channel = channel.ok_or_else(|| io::Error::other("no way to the new process"))?;
        let (sent, refused) = send_batch(channel, rest, tools, deadline)?;
        if !refused.is_empty() {
            return Err(io::Error::other(
                "the new process has no room for all tunnels (see ulimit -n)",
            ));
        }
        if let Some(count) = counts.get_mut(handing.next) {
            *count += sent as u64;
        }
        rest = rest.get_mut(sent..).unwrap_or_default();
    }
    for (channel, count) in handing.channels.iter_mut().zip(counts) {
        channel.send(&Down::End(count), &[], deadline)?;
    }
    Ok(handing.frozen.len() as u64)
}

/// Send the first of `tunnels`; how many, and which of them are refused.
fn send_batch(
    channel: &mut Channel,
    tunnels: &mut [Tunnel],
    tools: &mut Tools,
    deadline: Instant,
) -> io::Result<(usize, Vec<u16>)> {
    let mut writer = Writer::default();
    for tunnel in tunnels.iter_mut().take(MOST_TUNNELS) {
        writer.add(tunnel, tools)?;
        if writer.bytes > MOST_BYTES {
            break;
        }
    }
    let sent = writer.batch.tunnels.len();
    let descriptors: Vec<BorrowedFd<'_>> = (tunnels.iter().take(sent))
        .flat_map(|tunnel| [Some(&tunnel.client), tunnel.backend.as_ref()])
        .flatten()
        .map(OwnedFd::as_fd)
        .collect();
    channel.send(&Down::Batch(writer.batch), &descriptors, deadline)?;
    let (taken, _): (Taken, _) = channel.receive(deadline)?;
    Ok((sent, taken.refused))
}

/// Hand over the first of what is frozen; what is gone with that.
fn hand_over_some(handing: &mut Handing, tools: &mut Tools) -> io::Result<Vec<Tunnel>> {
    let deadline = Instant::now() + LATE;
    let channel = handing.channels.get_mut(handing.next);
    let channel = channel.ok_or(io::ErrorKind::NotConnected)?;
    let (sent, refused) = send_batch(channel, &mut handing.frozen, tools, deadline)?;
    channel.send(&Down::Commit, &[], deadline)?;
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    for (place, tunnel) in (0_u16..).zip(handing.frozen.drain(..sent)) {
        let pile = if refused.contains(&place) {
            &mut kept
        } else {
            &mut gone
        };
        pile.push(tunnel);
    }
    if !kept.is_empty() {
        // It is full: what is left stays here.
        handing.frozen.append(&mut kept);
        handing.channels.clear();
    }
    Ok(gone)
}

fn tell(report: &Report, result: Result<u64, String>) {
    // Whoever asked may have given up.
    let _ = report.send(result);
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "the new process does not take the tunnels in time".to_owned(),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => "the new process is gone".to_owned(),
        _ => error.to_string(),
    }
}
