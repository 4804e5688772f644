//! Telling live tunnels to go, each at its time.

use std::cell::RefCell;
use std::rc::Rc;

use pybalancer_core::drain::{Course, Duty, Pace, Queue, Standing, Terms, Turn};
use pybalancer_core::pool::{Draw, Policy, State};
use pybalancer_core::shed::{Load, Quota, surplus};
use pybalancer_core::time::Tick;

use super::order::Order;
use super::tunnel::{FAREWELL, Phase, Tunnel};
use super::{Balancer, How};
use crate::agenda::Wake;
use crate::world::Context;

/// An order, and a worker's part of it.
pub(super) struct Draining {
    order: Rc<Order>,
    waiting: Queue<(usize, u64)>,
}

impl Balancer {
    /// Drain these backends, or everything.
    pub fn drain(&mut self, scope: Option<Vec<u16>>, terms: Terms, cx: &mut Context) {
        let count = match &scope {
            Some(backends) => backends
                .iter()
                .map(|at| self.loads[usize::from(*at)] as usize)
                .sum(),
            None => self.tunnels.iter().flatten().count(),
        };
        let deadline = Some(cx.now + terms.deadline);
        self.begin(scope, terms, count, deadline, None, cx);
    }

    /// Take from each backend what is above `skew` times its share.
    pub fn shed(&mut self, skew: f64, terms: Terms, cx: &mut Context) -> Vec<u32> {
        let up = |at: &u16| self.states[usize::from(*at)] == State::Up;
        let backends: Vec<u16> = (0..self.loads.len() as u16).filter(up).collect();
        let load = |at: &u16| Load {
            tunnels: self.loads[usize::from(*at)],
            weight: self.scenario.weights[usize::from(*at)],
        };
        let loads: Vec<Load> = backends.iter().map(load).collect();
        let wanted = surplus(&loads, skew);
        for (load, wanted) in loads.iter().zip(&wanted) {
            crate::promises::surplus_is_fair(&loads, *load, *wanted, skew);
        }
        let count = wanted.iter().map(|wanted| *wanted as usize).sum();
        let quotas = wanted.iter().copied().map(Quota::new).collect();
        self.begin(Some(backends), terms, count, None, Some(quotas), cx);
        wanted
    }

    fn begin(
        &mut self,
        scope: Option<Vec<u16>>,
        terms: Terms,
        count: usize,
        deadline: Option<Tick>,
        quotas: Option<Vec<Quota>>,
        cx: &mut Context,
    ) {
        let pace = Pace::new(count as u64, terms.over, terms.rate);
        let order = Rc::new(Order {
            number: cx.ledger.order(count, terms.over, terms.rate),
            scope,
            terms,
            course: Course::new(pace, deadline, cx.now, cx.random.next()),
            quotas,
            released: RefCell::default(),
        });
        self.orders.push(Rc::clone(&order));
        for worker in 0..self.workers.len() {
            self.begin_drain(worker, Rc::clone(&order), cx);
        }
    }

    fn begin_drain(&mut self, worker: usize, order: Rc<Order>, cx: &mut Context) {
        let mut waiting = Vec::new();
        for slot in 0..self.tunnels.len() {
            let Some(tunnel) = self.tunnels[slot].as_ref().filter(|t| t.worker == worker) else {
                continue;
            };
            if order.concerns(tunnel).is_none() {
                continue;
            }
            if tunnel.opening.is_some() && (tunnel.away().is_none() || order.moves()) {
                continue;
            }
            let place = (slot, tunnel.generation);
            if order.quotas.is_some() && !self.is_misplaced(slot, cx) {
                continue;
            }
            waiting.push(place);
        }
        let waiting = Queue::new(waiting, || cx.random.next());
        self.workers[worker]
            .drains
            .push(Draining { order, waiting });
        self.advance_drains(worker, cx);
    }

    /// A tunnel stands now: it may belong to what is being drained.
    pub(super) fn join_drains(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        let place = (slot, tunnel.generation);
        let open = tunnel
            .at
            .is_some_and(|at| self.states[usize::from(at)] == State::Up);
        let mut joined = false;
        for draining in &mut self.workers[tunnel.worker].drains {
            let order = &draining.order;
            if order.moves() && open || order.quotas.is_some() || order.course.cancelled() {
                continue;
            }
            if order.concerns(tunnel).is_some() {
                draining.waiting.join(place);
                joined = true;
            }
        }
        if joined {
            let worker = tunnel.worker;
            self.arm_worker(worker, cx.now, cx);
        }
    }

    /// The plan says what takes tunnels again: a drain is over for it.
    pub(super) fn release_drains(&mut self) {
        for order in self.orders.iter().filter(|order| order.quotas.is_none()) {
            let Some(backends) = &order.scope else {
                continue;
            };
            let mut released = order.released.borrow_mut();
            let up = |at: &&u16| self.states[usize::from(**at)] == State::Up;
            released.extend(backends.iter().filter(up));
            if released.len() == backends.len() {
                order.course.cancel();
            }
        }
    }

    /// Call an order off.
    pub fn cancel(&mut self, number: usize, cx: &mut Context) {
        self.orders[number].course.cancel();
        cx.ledger.orders[number].cancelled = true;
    }

    fn arm_worker(&mut self, worker: usize, at: Tick, cx: &mut Context) {
        let at = at + cx.lateness();
        let armed = &mut self.workers[worker].armed;
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            cx.agenda.at(at, Wake::Worker(worker));
        }
    }

    /// A worker's time for its drains has come.
    pub fn wake_worker(&mut self, worker: usize, cx: &mut Context) {
        if self.workers[worker]
            .armed
            .is_some_and(|armed| armed <= cx.now)
        {
            self.workers[worker].armed = None;
            self.advance_drains(worker, cx);
        }
    }

    /// Tell those whose time has come.
    fn advance_drains(&mut self, worker: usize, cx: &mut Context) {
        let mut drains = std::mem::take(&mut self.workers[worker].drains);
        drains.retain_mut(|draining| self.advance_drain(worker, draining, cx));
        drains.append(&mut self.workers[worker].drains);
        self.workers[worker].drains = drains;
    }

    fn advance_drain(&mut self, worker: usize, draining: &mut Draining, cx: &mut Context) -> bool {
        let order = Rc::clone(&draining.order);
        let now = cx.now;
        match order.course.duty(now) {
            Duty::Nothing => return false,
            Duty::Cut => {
                self.cut(worker, &order, cx);
                return false;
            }
            Duty::Tell => {}
        }
        let again = loop {
            let draw = cx.random.next();
            let tunnels = &self.tunnels;
            let look = |(slot, generation): (usize, u64)| {
                let tunnel = tunnels[slot].as_ref();
                let tunnel = tunnel.filter(|tunnel| tunnel.generation == generation);
                tunnel.map_or(Standing::Gone, |tunnel| standing(tunnel, &order))
            };
            match draining
                .waiting
                .next(now, look, || order.course.admit(now, draw))
            {
                Turn::Tell((slot, _)) => {
                    cx.ledger.told(order.number, now);
                    self.send_off(slot, &order, cx);
                    self.arm(slot, cx);
                }
                Turn::Wait(at) => break Some(at),
                Turn::Empty => break None,
            }
        };
        let deadline = order.course.deadline();
        if deadline.is_none() && draining.waiting.is_empty() {
            return false;
        }
        if let Some(at) = again.into_iter().chain(deadline).min() {
            self.arm_worker(worker, at, cx);
        }
        true
    }

    /// Tell one tunnel to go.
    fn send_off(&mut self, slot: usize, order: &Rc<Order>, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        if order.quotas.is_some() {
            if !self.is_misplaced(slot, cx) {
                // Places have changed meanwhile.
                return;
            }
            if !order.quota(tunnel).is_some_and(Quota::take) {
                return;
            }
            self.check_shed(slot);
        }
        let until = order.course.deadline();
        if order.moves() && self.leave_for(slot, order, until, cx) {
            return;
        }
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        order.promise(tunnel, cx);
        if !order.is_roomy(cx.now) {
            cx.ledger.of(tunnel.connection).lossy = true;
        }
        self.close_until(slot, order.terms.code, until, cx);
    }

    /// The deadline: whatever is left ends now.
    fn cut(&mut self, worker: usize, order: &Rc<Order>, cx: &mut Context) {
        let soon = cx.now + FAREWELL;
        for slot in 0..self.tunnels.len() {
            let Some(tunnel) = self.tunnels[slot].as_ref().filter(|t| t.worker == worker) else {
                continue;
            };
            if order.concerns(tunnel).is_none() {
                continue;
            }
            let (connection, phase) = (tunnel.connection, tunnel.opening.as_ref().map(|o| o.phase));
            if tunnel.closing.is_some() {
                cx.ledger.of(connection).lossy = true;
                self.hurry(slot, soon, cx);
                self.arm(slot, cx);
                continue;
            }
            if tunnel.away().is_some() && order.moves() {
                self.redirect(slot, cx);
                self.arm(slot, cx);
                continue;
            }
            cx.ledger.seen.late += 1;
            if connection != u32::MAX {
                cx.ledger.of(connection).lossy = true;
            }
            if order.moves() && self.leave_for(slot, order, Some(cx.now + FAREWELL / 2), cx) {
                self.arm(slot, cx);
                continue;
            }
            let Some(tunnel) = self.tunnels[slot].as_ref() else {
                continue;
            };
            match phase {
                None => {
                    order.promise(tunnel, cx);
                    self.close_until(slot, order.terms.code, None, cx);
                    self.hurry(slot, soon, cx);
                }
                Some(Phase::Dialing) if order.moves() => self.dial_elsewhere(slot, cx),
                Some(_) if connection == u32::MAX => self.end(slot, How::Clean, cx),
                Some(_)
                    if self.tunnels[slot]
                        .as_ref()
                        .is_some_and(|t| t.away().is_some()) =>
                {
                    order.promise(tunnel, cx);
                    self.close_until(slot, order.terms.code, None, cx);
                    self.hurry(slot, soon, cx);
                }
                Some(_) => self.end(slot, How::Abort, cx),
            }
            self.arm(slot, cx);
        }
    }

    fn is_misplaced(&self, slot: usize, cx: &mut Context) -> bool {
        let Some(tunnel) = self.tunnels[slot].as_ref().filter(|t| t.closing.is_none()) else {
            return false;
        };
        let draw = Draw {
            hash: tunnel.hash,
            entropy: cx.random.next(),
        };
        let here = |index| Some(index) == tunnel.at;
        self.pool
            .is_misplaced(draw, |index| self.loads[index], here)
    }

    /// What is shed was misplaced, by the table alone.
    fn check_shed(&self, slot: usize) {
        let Some(tunnel) = self.tunnels[slot].as_ref() else {
            return;
        };
        if self.pool.policy == Policy::Maglev {
            let mut order = self.pool.table.walk(tunnel.hash);
            let up = |at: &u16| self.states[usize::from(*at)] == State::Up;
            let wanted = order.find(up);
            assert!(
                wanted != tunnel.at,
                "shed, though the table would place it there again"
            );
        }
    }
}

/// What a drain can do with a tunnel now.
fn standing(tunnel: &Tunnel, order: &Order) -> Standing {
    let left =
        order.concerns(tunnel).is_none() || tunnel.leaving().is_some() || tunnel.away().is_some();
    let wanted =
        order.quotas.is_none() || order.quota(tunnel).is_some_and(|quota| quota.left() > 0);
    if tunnel.closing.is_some() || order.moves() && left || !wanted {
        return Standing::Gone;
    }
    match tunnel.from_backend.at_boundary() && !tunnel.to_client.blocked() {
        true => Standing::Ready,
        false => Standing::Later,
    }
}
