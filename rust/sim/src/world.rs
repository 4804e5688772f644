//! Everything joined in memory, and time, which jumps from one event to the next.

use std::time::Duration;

use pybalancer_core::pool::{Policy, State};
use pybalancer_core::shed::Load;
use pybalancer_core::time::Tick;

use crate::Seen;
use crate::agenda::{Agenda, Wake};
use crate::backend::Backend;
use crate::balancer::Balancer;
use crate::client::Client;
use crate::ledger::Ledger;
use crate::promises::is_within;
use crate::random::Random;
use crate::scenario::{Fall, Line, Scenario};
use crate::wire::{Owner, Weather, Wire};

/// What who connects to a backend finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// It is there.
    Open,
    /// Its host says that it is not.
    Refuses,
    /// Nothing.
    Silent,
}

/// What all share.
pub struct Context {
    /// The time.
    pub now: Tick,
    /// What is due.
    pub agenda: Agenda,
    /// All chance.
    pub random: Random,
    /// What was said and promised.
    pub ledger: Ledger,
    /// All connections.
    pub wires: Vec<Wire>,
    /// By backend.
    pub doors: Vec<Door>,
    /// Between clients and balancer.
    pub before: Weather,
    /// Nobody begins to speak after this.
    pub until: Tick,
    lateness: usize,
}

impl Context {
    /// How late a worker wakes.
    pub fn lateness(&mut self) -> Duration {
        match self.lateness {
            0 => Duration::ZERO,
            most => self.random.ms(0, most),
        }
    }
}

impl Context {
    /// Whose wake it is.
    fn story(&self, wake: Wake) -> Option<Owner> {
        match wake {
            Wake::Wire(end) => Some(self.owner(end)),
            _ => None,
        }
    }
}

/// Run the world of a seed to its end. Panics where a promise is broken. What happens to the connection
/// `traced` is printed, and what the world is like.
pub fn run(seed: u64, traced: Option<u32>) -> Seen {
    let mut random = Random::new(seed);
    let scenario = Scenario::new(&mut random);
    if traced.is_some() {
        println!("{scenario:#?}");
    }
    let mut cx = Context {
        now: Tick(0),
        agenda: Agenda::default(),
        random,
        ledger: Ledger {
            calm: scenario.calm && scenario.backends > 1,
            tries: scenario.rules.tries,
            timeout: scenario.rules.timeout,
            traced,
            ..Ledger::default()
        },
        wires: Vec::new(),
        doors: vec![Door::Open; scenario.backends],
        before: scenario.before,
        until: scenario.until,
        lateness: scenario.lateness,
    };
    let clients = (0..scenario.clients).map(|number| Client::new(number, &scenario, &mut cx));
    let mut clients: Vec<Client> = clients.collect();
    let backends = (0..scenario.backends).map(|number| Backend::new(number, &scenario, &mut cx));
    let mut backends: Vec<Backend> = backends.collect();
    let mut balancer = Balancer::new(&scenario);
    for (place, (at, _)) in scenario.script.iter().enumerate() {
        cx.agenda.at(*at, Wake::Script(place));
    }
    while let Some((at, wake)) = cx.agenda.next() {
        if at > scenario.end {
            break;
        }
        cx.now = cx.now.max(at);
        cx.ledger.seen.events += 1;
        assert!(
            cx.ledger.seen.events < 3_000_000,
            "it spins: {wake:?} at {at:?}, {:?}",
            cx.story(wake)
        );
        match wake {
            Wake::Wire(end) => match cx.owner(end) {
                Owner::Client(number) => clients[number].wake(end, &mut cx),
                Owner::Backend(number) => backends[number].wake(end, &mut cx),
                Owner::TunnelClient(usize::MAX, _) => balancer.accept(end, &mut cx),
                owner => balancer.wake(owner, &mut cx),
            },
            Wake::Client(number) => clients[number].tick(&mut cx),
            Wake::Backend(number) => backends[number].tick(&mut cx),
            Wake::Tunnel(slot, generation) => balancer.late(slot, generation, &mut cx),
            Wake::Worker(worker) => balancer.wake_worker(worker, &mut cx),
            Wake::Script(place) => {
                act(&scenario, place, &mut balancer, &mut backends, &mut cx);
            }
        }
        check(&scenario, &balancer, &cx);
    }
    cx.ledger.close();
    cx.ledger.seen
}

/// The next line of the scenario.
fn act(
    scenario: &Scenario,
    place: usize,
    balancer: &mut Balancer,
    backends: &mut [Backend],
    cx: &mut Context,
) {
    match scenario.script[place].1.clone() {
        Line::Drain(which, terms) => {
            for backend in &which {
                balancer.set_state(usize::from(*backend), State::Draining);
            }
            balancer.drain(Some(which), terms, cx);
        }
        Line::DrainAll(terms) => balancer.drain(None, terms, cx),
        Line::Undrain => {
            if let Some(order) = balancer.orders.len().checked_sub(1) {
                balancer.cancel(order, cx);
                for backend in balancer.orders[order].scope.clone().unwrap_or_default() {
                    if balancer.state(backend.into()) == State::Draining {
                        balancer.set_state(backend.into(), State::Up);
                    }
                }
            }
        }
        Line::Shed(skew, terms) => {
            balancer.shed(skew, terms, cx);
        }
        Line::Fall(backend, fall) => {
            if fall == Fall::Planned {
                balancer.set_state(backend, State::Down);
                let left = balancer.standing(backend);
                assert!(left.is_empty(), "left after the deadline: {left:?}");
            }
            backends[backend].fall(fall, cx);
        }
        Line::Rise(backend) => cx.doors[backend] = Door::Open,
        Line::Open(backend) => balancer.set_state(backend, State::Up),
        Line::Down(backend) => balancer.set_state(backend, State::Down),
        Line::Even(skew) => even(scenario, skew, balancer),
    }
}

/// After a shed, when all have come back: no backend has more than was wanted.
fn even(scenario: &Scenario, skew: f64, balancer: &Balancer) {
    if balancer.pool.policy != Policy::LeastConnections {
        return;
    }
    let loads: Vec<Load> = (balancer.loads.iter().zip(&scenario.weights))
        .map(|(tunnels, weight)| Load {
            tunnels: *tunnels,
            weight: *weight,
        })
        .collect();
    for load in &loads {
        assert!(
            is_within(&loads, *load, 0, skew),
            "{load:?} of {loads:?} after a shed to {skew}"
        );
    }
}

/// What holds in every moment.
fn check(scenario: &Scenario, balancer: &Balancer, cx: &Context) {
    // A drain's deadline, and a second to say farewell; then workers may be late twice.
    let grace = Duration::from_millis(1000 + 2 * scenario.lateness as u64 + 2);
    for order in &balancer.orders {
        let (Some(deadline), false) = (order.course.deadline(), order.course.cancelled()) else {
            continue;
        };
        let over = deadline + grace;
        // Looked at in one event, just behind it.
        if cx.now < over || cx.now > over + Duration::from_millis(300) {
            continue;
        }
        for backend in order
            .scope
            .iter()
            .flatten()
            .map(|backend| usize::from(*backend))
        {
            if balancer.state(backend) != State::Draining || !order.holds(backend as u16) {
                continue;
            }
            let left = balancer.standing(backend);
            assert!(
                left.is_empty(),
                "backend {backend} has {left:?} after the deadline"
            );
        }
    }
}
