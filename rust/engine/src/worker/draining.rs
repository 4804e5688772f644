//! Draining: telling live tunnels to go, each at its time.
//!
//! A WebSocket gets its Close between two frames. A plain stream gets its end (FIN) in a moment in which
//! nothing of the backend's is under way; what comes after all turns that end into a reset, since an end
//! must not lie. Whoever is still there at the deadline is cut. Where it is backends that shall have less, a
//! WebSocket that can goes on at another one ([`leaving`](super::leaving)), and its client is told nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pybalancer_core::drain::{Duty, Queue, Standing, Turn};
use pybalancer_core::pool::Draw;
use pybalancer_core::record::Reason;
use pybalancer_core::shed::Quota;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::close::Farewell;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};

use super::Worker;
use super::ending::How;
use crate::deployment::DeployedPool;
use crate::drains::{FAREWELL, Kind, Order, Scope};
use crate::poller::Side;
use crate::tunnel::{Closing, Phase, Tunnel, milliseconds};

/// Whether tunnels are frozen still is looked at after this time.
const THAWED: Duration = Duration::from_millis(10);

/// A plain stream is ended when nothing has passed for this long: what the backend is saying comes in
/// pieces, and the pause between two of them is no end. Less as the deadline comes near.
const QUIET_MS: u32 = 100;

/// An order, and this worker's part of it.
pub(super) struct Draining {
    order: Arc<Order>,
    /// Tunnels not told yet, by slot and generation.
    waiting: Queue<(u32, u32)>,
}

/// What came of telling one tunnel to go.
enum Sent {
    /// It was told, or is not there any more.
    Closed,
    /// It leaves its backend, and its client is told nothing; or it need not go.
    Moved,
    /// Something came in this very moment.
    NotNow,
}

impl Worker {
    /// Begin this worker's part of a drain or shed.
    pub(super) fn begin_drain(&mut self, order: Arc<Order>) {
        let mut waiting = Vec::new();
        for slot in self.slots() {
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                continue;
            };
            let Some(part) = order.concerns(tunnel) else {
                continue;
            };
            // One that looks for another backend is none of a backend's.
            if tunnel.opening.is_some() && (tunnel.away().is_none() || order.moves()) {
                self.drain_opening(slot, &order);
                continue;
            }
            let generation = tunnel.generation;
            if order.kind == Kind::Shed {
                let may_go = tunnel.closing.is_none() && self.is_misplaced(slot, part, &order);
                let quota = order.quotas.get(part).filter(|_| may_go);
                let Some(quota) = quota else { continue };
                quota.find();
            }
            waiting.push((slot, generation));
        }
        if order.counts_only {
            return order.finish();
        }
        let waiting = Queue::new(waiting, || self.entropy());
        self.drains.push(Draining { order, waiting });
        self.advance_drains();
    }

    /// What is no tunnel yet and belongs to what is drained.
    fn drain_opening(&mut self, slot: u32, order: &Order) {
        if order.kind == Kind::Shed || self.phase(slot) != Some(Phase::Request) {
            // It finishes what it has begun; if a tunnel comes of it, that joins.
            return;
        }
        match order.scope {
            Scope::Backends(_) => self.drop_backend(slot),
            Scope::Listener(_) | Scope::All(_) => self.end_idle_request(slot),
        }
    }

    /// A tunnel stands now: it may belong to what is being drained.
    pub(super) fn join_drains(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let place = (slot, tunnel.generation);
        // A backend that takes new ones again is not being drained, whatever was ordered before.
        let open = tunnel.entry.as_ref().is_some_and(|entry| {
            let pools = self
                .deployment
                .iter()
                .flat_map(|deployment| &deployment.pools);
            pools.into_iter().any(|pool| pool.takes(entry))
        });
        for draining in &mut self.drains {
            let order = &draining.order;
            if order.moves() && open {
                continue;
            }
            if order.kind != Kind::Shed && !order.cancelled() && order.concerns(tunnel).is_some() {
                draining.waiting.join(place);
                self.drain_at = Some(self.now);
            }
        }
    }

    /// A tunnel has another place among ours than before: what sheds knew it by is none any more.
    pub(super) fn join_sheds(&mut self, slot: u32) {
        let mut drains = std::mem::take(&mut self.drains);
        for draining in &mut drains {
            let order = &draining.order;
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                break;
            };
            let place = (slot, tunnel.generation);
            if order.kind == Kind::Shed
                && let Some(part) = order.concerns(tunnel)
                && self.is_misplaced(slot, part, order)
            {
                draining.waiting.join(place);
            }
        }
        self.drains = drains;
    }

    /// Tell those whose time has come, and cut those whose time is over.
    pub(super) fn advance_drains(&mut self) {
        if self.is_frozen() {
            // They are neither here nor gone: nobody is told, or cut, or missed, before that is decided.
            self.drain_at = Some(self.now + THAWED);
            return;
        }
        self.drain_at = None;
        let mut drains = std::mem::take(&mut self.drains);
        drains.retain_mut(|draining| self.advance_drain(draining));
        // Whoever joined meanwhile was not seen by those that were taken out.
        drains.append(&mut self.drains);
        // They may share a cap: another one is asked first the next time.
        if drains.len() > 1 {
            drains.rotate_left(1);
        }
        self.drains = drains;
    }

    /// False once there is nothing more to do for it.
    fn advance_drain(&mut self, draining: &mut Draining) -> bool {
        let order = Arc::clone(&draining.order);
        let now = self.now;
        match order.course().duty(now) {
            Duty::Nothing => return false,
            Duty::Cut => {
                self.cut(&order);
                order.finish();
                return false;
            }
            Duty::Tell => {}
        }
        let again = loop {
            let draw = self.entropy();
            let tunnels = &self.tunnels;
            let look = |(slot, generation): (u32, u32)| {
                let tunnel = tunnels.get(slot as usize);
                let tunnel = tunnel.filter(|tunnel| tunnel.generation == generation);
                tunnel.map_or(Standing::Gone, |tunnel| standing(tunnel, &order, now))
            };
            let admit = || order.course().admit(now, draw);
            match draining.waiting.next(now, look, admit) {
                Turn::Tell((slot, generation)) => match self.send_off(slot, &order) {
                    Sent::Closed => {
                        order.closed.fetch_add(1, Ordering::Relaxed);
                    }
                    // Counted when it arrives.
                    Sent::Moved => {}
                    Sent::NotNow => {
                        break Some(draining.waiting.put_back((slot, generation), now));
                    }
                },
                Turn::Wait(at) => break Some(at),
                Turn::Empty => break None,
            }
        };
        let deadline = order.deadline();
        if deadline.is_none() && draining.waiting.is_empty() {
            order.finish();
            return false;
        }
        let next = again.into_iter().chain(deadline).min();
        self.drain_at = self.drain_at.into_iter().chain(next).min();
        true
    }

    /// Tell one tunnel to go.
    fn send_off(&mut self, slot: u32, order: &Arc<Order>) -> Sent {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return Sent::Closed;
        };
        let part = order.concerns(tunnel);
        let quota = part.and_then(|part| order.quotas.get(part));
        if order.kind == Kind::Shed
            && !part.is_some_and(|part| self.is_misplaced(slot, part, order))
        {
            // Places have changed since it was counted.
            return Sent::Moved;
        }
        if order.kind == Kind::Shed && !quota.is_some_and(Quota::take) {
            // Another worker took the last one.
            return Sent::Moved;
        }
        let until = order.deadline();
        if order.moves() && self.leave_for(slot, order, until) {
            return Sent::Moved;
        }
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return Sent::Closed;
        };
        if tunnel.framed {
            self.close_until(slot, order.terms.code, order.reason(), until);
            return Sent::Closed;
        }
        if self.end_stream(slot, order.reason(), until) {
            return Sent::Closed;
        }
        if let Some(quota) = quota {
            quota.give_back();
        }
        Sent::NotNow
    }

    /// End what the client gets of a plain stream, if nothing is under way; false if something is.
    fn end_stream(&mut self, slot: u32, reason: Reason, until: Option<Tick>) -> bool {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return true;
        };
        let Some(backend) = &tunnel.backend else {
            return true;
        };
        if tunnel.to_client.eof {
            // It is ending already, and goes when the client has said what it has to say.
            return true;
        }
        let peeked = rustix::net::recv(backend, &mut [0_u8; 1], RecvFlags::PEEK);
        let quiet = matches!(peeked, Err(Errno::AGAIN)) && !tunnel.to_client.blocked();
        if !quiet {
            return false;
        }
        if rustix::net::shutdown(&tunnel.client, Shutdown::Write).is_err() {
            self.fail(slot, Side::Client);
            return true;
        }
        (tunnel.to_client.eof, tunnel.to_client.done) = (true, true);
        let patience = super::closing::patience(&tunnel.terms);
        let until = until.unwrap_or(now + patience) + FAREWELL;
        tunnel.closing = Some(Box::new(Closing {
            farewell: Farewell {
                client_mute: tunnel.to_backend.eof,
                backend_mute: true,
                ..Farewell::default()
            },
            ended: [tunnel.to_backend.eof, false],
            reason,
            until,
            patience,
        }));
        self.wheel.set(slot, until);
        self.continue_closing(slot);
        true
    }

    /// The deadline: whatever is left ends now, as politely as that can be done.
    fn cut(&mut self, order: &Arc<Order>) {
        for slot in self.slots() {
            let concerned = |slot: &u32| {
                let tunnel = self.tunnels.get(*slot as usize);
                tunnel.is_some_and(|tunnel| order.concerns(tunnel).is_some())
            };
            if !concerned(&slot) {
                continue;
            }
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                continue;
            };
            let reason = Reason::DrainDeadline;
            let phase = tunnel.opening.as_ref().map(|opening| opening.phase);
            let framed = tunnel.framed;
            if tunnel.closing.is_some() {
                // Told in time, and slow to answer.
                self.hurry(slot, self.now + FAREWELL);
                continue;
            }
            if tunnel.away().is_some() && order.moves() {
                // It has dialed this one, and asks another.
                self.redirect(slot);
                continue;
            }
            // Who cannot go on then has the other half to read why.
            if order.moves() && self.leave_for(slot, order, Some(self.now + FAREWELL / 2)) {
                continue;
            }
            order.cut.fetch_add(1, Ordering::Relaxed);
            match phase {
                // It has its last answer, and reads it.
                Some(Phase::Lingering) => {}
                _ if framed => {
                    self.close_until(slot, order.terms.code, reason, None);
                    self.hurry(slot, self.now + FAREWELL);
                }
                Some(Phase::Request) => self.end(slot, reason, How::Clean),
                Some(Phase::Dialing) if matches!(order.scope, Scope::Backends(_)) => {
                    self.dial_elsewhere(slot);
                }
                Some(_) => self.give_up(slot, reason),
                None => self.end(slot, reason, How::Abort),
            }
        }
    }

    /// Whether the pool would place this tunnel elsewhere today; where it places by load, any other place
    /// is as good.
    fn is_misplaced(&mut self, slot: u32, part: usize, order: &Order) -> bool {
        let entropy = self.entropy();
        let Scope::Backends(entries) = &order.scope else {
            return false;
        };
        let (Some(entry), Some(tunnel)) = (entries.get(part), self.tunnels.get(slot as usize))
        else {
            return false;
        };
        let pool = (self.deployment.as_ref()).and_then(|deployment| {
            let mut pools = deployment.pools.iter();
            pools.find(|pool| pool.planned.pool.name == entry.pool)
        });
        let Some(deployed) = pool else { return false };
        let draw = Draw {
            hash: tunnel.hash,
            entropy,
        };
        let load = |index: usize| deployed.load(index);
        let here = |index: u16| is_of(deployed, index, entry);
        (deployed.planned.pool).is_misplaced(draw, load, here)
    }

    /// A panic has ended every tunnel: there is nothing left to be told.
    pub(super) fn forget_drains(&mut self) {
        self.drain_at = None;
        for draining in self.drains.drain(..) {
            draining.order.finish();
        }
    }
}

/// What a drain can do with a tunnel now.
fn standing(tunnel: &Tunnel, order: &Order, now: Tick) -> Standing {
    if tunnel.closing.is_some()
        || order.moves() && has_left(tunnel, order)
        || order.kind == Kind::Shed && !is_wanted(order, tunnel)
    {
        return Standing::Gone;
    }
    let between = if tunnel.framed {
        tunnel.from_backend.at_boundary()
    } else {
        is_quiet(tunnel, now, order.deadline())
    };
    match between && !tunnel.to_client.blocked() {
        true => Standing::Ready,
        // The Close waits at the end of its frame.
        false if tunnel.framed => Standing::Later,
        false => Standing::Busy,
    }
}

/// Whether it is another backend's by now, or on its way there.
fn has_left(tunnel: &Tunnel, order: &Order) -> bool {
    order.concerns(tunnel).is_none() || tunnel.leaving().is_some() || tunnel.away().is_some()
}

fn is_of(pool: &DeployedPool, index: u16, entry: &Arc<crate::registry::BackendEntry>) -> bool {
    (pool.backends.get(usize::from(index))).is_some_and(|ours| Arc::ptr_eq(ours, entry))
}

/// Whether nothing has passed for a while.
fn is_quiet(tunnel: &Tunnel, now: Tick, deadline: Option<Tick>) -> bool {
    let left = deadline.map_or(Duration::MAX, |deadline| deadline.since(now));
    let needed = milliseconds(left / 20).min(QUIET_MS);
    needed == 0 || tunnel.active.plus(needed, now) <= now
}

fn is_wanted(order: &Order, tunnel: &Tunnel) -> bool {
    let quota = (order.concerns(tunnel)).and_then(|part| order.quotas.get(part));
    quota.is_some_and(|quota| quota.left() > 0)
}
