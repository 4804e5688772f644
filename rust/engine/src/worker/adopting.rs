//! The new process's side of a hand-over (see `crate::handover`).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{RESERVED, Worker};
use crate::deployment::Front;
use crate::handover::passport::Found;
use crate::handover::{Batch, Channel, Down, Guests, Taken, Waiting};
use crate::poller::Token;
use crate::tunnel::Tunnel;

/// An answer has a few bytes, and somebody waits for it: there is always room.
const ANSWER: Duration = Duration::from_secs(1);

/// Tunnels that come from another process.
pub(super) struct Adopting {
    guests: Arc<Guests>,
    channels: Vec<Arriving>,
    /// The other process has said that they are ours.
    active: bool,
}

struct Arriving {
    /// None once it has nothing more to say.
    channel: Option<Channel>,
    /// What it brought, not ours yet.
    held: Vec<Tunnel>,
    /// The same of connections between two requests.
    waiting: Vec<(Waiting, OwnedFd)>,
    /// All that stood has come.
    complete: bool,
}

impl Arriving {
    fn sockets(&self) -> usize {
        2 * self.held.len() + self.waiting.len()
    }
}

impl Worker {
    /// Listen to a channel.
    pub(super) fn receive(&mut self, guests: Arc<Guests>, channel: Option<Channel>) {
        let Some(channel) = channel else {
            return guests.note(|arrivals| {
                arrivals.error = Some("open files are used up (see ulimit -n)".to_owned());
            });
        };
        let adopting = self.adopting.get_or_insert_with(|| Adopting {
            guests,
            channels: Vec::new(),
            active: false,
        });
        let token = Token::Channel(adopting.channels.len() as u32);
        let watched = self.poller.add_level(&channel, token, false);
        if let Err(error) = watched {
            let text = error.to_string();
            adopting.guests.note(|arrivals| arrivals.error = Some(text));
        }
        adopting.channels.push(Arriving {
            channel: Some(channel),
            held: Vec::new(),
            waiting: Vec::new(),
            complete: false,
        });
    }

    /// Something has come over a channel.
    pub(super) fn on_channel(&mut self, number: u32) {
        let Some(mut adopting) = self.adopting.take() else {
            return;
        };
        let (guests, active) = (Arc::clone(&adopting.guests), adopting.active);
        if let Some(arriving) = adopting.channels.get_mut(number as usize)
            && let Err(error) = self.listen_to(arriving, &guests, active)
        {
            // Where all has come nobody knows yet whose it is: the other process may have died.
            if active || !arriving.complete {
                self.sockets -= arriving.sockets();
                arriving.held.clear();
                arriving.waiting.clear();
            }
            if !active && !arriving.complete {
                let text = format!("the old process's channel broke: {error}");
                guests.note(|arrivals| arrivals.error = Some(text));
            }
            if let Some(channel) = arriving.channel.take() {
                let _ = self.poller.remove(&channel);
            }
        }
        let over = adopting.active && adopting.channels.iter().all(|c| c.channel.is_none());
        if !over {
            self.adopting = Some(adopting);
        }
    }

    fn listen_to(
        &mut self,
        arriving: &mut Arriving,
        guests: &Arc<Guests>,
        active: bool,
    ) -> io::Result<()> {
        while let Some(channel) = &mut arriving.channel {
            let Some((message, sockets)) = channel.try_receive::<Down>()? else {
                return Ok(());
            };
            match message {
                Down::Batch(batch) => {
                    let before = arriving.held.len();
                    let refused = self.hold(batch, sockets, guests, &mut arriving.held)?;
                    let tunnels = (arriving.held.len() - before) as u64;
                    let taken = Taken { refused };
                    channel.send(&taken, &[], Instant::now() + ANSWER)?;
                    guests.note(|arrivals| arrivals.tunnels += tunnels);
                }
                Down::End(count) => {
                    if count != arriving.held.len() as u64 {
                        return Err(io::Error::other("some tunnels are missing"));
                    }
                    arriving.complete = true;
                    guests.note(|arrivals| arrivals.ended += 1);
                }
                Down::Between(waiting) => {
                    let refused = self.hold_waiting(waiting, sockets, &mut arriving.waiting);
                    channel.send(&Taken { refused }, &[], Instant::now() + ANSWER)?;
                }
                Down::Commit if active => {
                    for (waiting, client) in std::mem::take(&mut arriving.waiting) {
                        self.let_in(waiting, client, guests);
                    }
                    for tunnel in std::mem::take(&mut arriving.held) {
                        self.adopt(tunnel, guests);
                    }
                    self.close_orphans();
                }
                Down::Commit => return Err(io::Error::other("a word that is too early")),
            }
        }
        Ok(())
    }

    /// Keep the tunnels of a batch as they are; which of them find no room.
    fn hold(
        &mut self,
        batch: Batch,
        sockets: Vec<OwnedFd>,
        guests: &Guests,
        held: &mut Vec<Tunnel>,
    ) -> io::Result<Vec<u16>> {
        let found = Found::of(&batch, guests)?;
        let mut sockets = sockets.into_iter();
        let mut refused = Vec::new();
        for (place, passport) in (0..).zip(batch.tunnels) {
            let (Some(client), Some(backend), true) =
                (sockets.next(), sockets.next(), self.table_has_room())
            else {
                refused.push(place);
                continue;
            };
            let tunnel = passport.unpack(client, backend, &found, guests);
            held.push(tunnel.ok_or_else(|| io::Error::other("a passport without sense"))?);
            self.sockets += 2;
        }
        Ok(refused)
    }

    /// The same for connections that wait for their next request. Without their listener they find no room.
    fn hold_waiting(
        &mut self,
        waiting: Vec<Waiting>,
        sockets: Vec<OwnedFd>,
        held: &mut Vec<(Waiting, OwnedFd)>,
    ) -> Vec<u16> {
        let mut sockets = sockets.into_iter();
        let mut refused = Vec::new();
        for (place, waiting) in (0..).zip(waiting) {
            match (sockets.next(), self.front_of(&waiting)) {
                (Some(client), Some(_)) if self.table_has_room() => {
                    held.push((waiting, client));
                    self.sockets += 1;
                }
                _ => refused.push(place),
            }
        }
        refused
    }

    fn front_of(&self, waiting: &Waiting) -> Option<Arc<Front>> {
        let mut fronts = (self.deployment.iter()).flat_map(|deployment| &deployment.fronts);
        let same = |front: &&Arc<Front>| {
            *front.listener.name == *waiting.listener && front.listener.web.is_some()
        };
        fronts.find(same).cloned()
    }

    /// A connection that another process has let go of, and that has nothing to say just now.
    fn let_in(&mut self, waiting: Waiting, client: OwnedFd, guests: &Guests) {
        // Counted again where it gets its slot.
        self.sockets -= 1;
        let Some(front) = self.front_of(&waiting) else {
            return;
        };
        let peer = waiting.peer.address();
        front.entry.live().fetch_add(1, Ordering::Relaxed);
        let counted = guests.most_per_source(&front.entry) > 0
            && peer.is_some_and(|peer| front.entry.enter(peer.ip(), u32::MAX));
        let slot = self.take_in(&front, client, peer, false, counted, false);
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize) {
            if let Some(opening) = &mut tunnel.opening {
                opening.destination = waiting.destination;
            }
            tunnel.story = waiting.story();
        }
        self.begin(slot);
    }

    /// All that is held is ours, and so are the listeners; how many tunnels.
    pub(super) fn activate(&mut self) -> u64 {
        let mut count = 0;
        if let Some(mut adopting) = self.adopting.take() {
            adopting.active = true;
            for arriving in &mut adopting.channels {
                for tunnel in std::mem::take(&mut arriving.held) {
                    self.adopt(tunnel, &adopting.guests);
                    count += 1;
                }
            }
            self.adopting = Some(adopting);
            // Of backends that this plan does not know any more.
            self.close_orphans();
        }
        self.accepting = true;
        self.resume_accepting();
        count
    }

    /// A tunnel that another process has let go of: count it and serve it.
    fn adopt(&mut self, mut tunnel: Tunnel, guests: &Guests) {
        let listener = &tunnel.terms.listener;
        listener.live().fetch_add(1, Ordering::Relaxed);
        if guests.most_per_source(listener) > 0
            && let Some(address) = tunnel.peer.address()
        {
            // It was let in already, whatever the limit is now.
            tunnel.counted = listener.enter(address.ip(), u32::MAX);
        }
        if let Some(entry) = &tunnel.entry {
            entry.load().fetch_add(1, Ordering::Relaxed);
        }
        let slot = self.seat(tunnel);
        self.watch_anew(slot);
    }

    /// A table has room for two more, beside what is kept back.
    fn table_has_room(&self) -> bool {
        let most = self.shared.most_files.load(Ordering::Relaxed);
        self.descriptors() + 2 + RESERVED <= usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Whether another process may still hand over something that we are to hand on.
    pub(super) fn passes_on(&self) -> bool {
        self.adopting.is_some() && self.is_leaving()
    }

    /// Sockets of tunnels that are held, not ours yet.
    pub(super) fn sockets_held(&self) -> usize {
        let channels = self.adopting.iter().flat_map(|adopting| &adopting.channels);
        channels.map(Arriving::sockets).sum()
    }
}
