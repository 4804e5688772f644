//! The balancer: the engine's worker over fake sockets.
//!
//! What the engine decides it asks of the core, and so does this: nothing is decided here that is decided
//! there. The rest has the engine's names and order, so that the two can be read side by side.

mod away;
mod closing;
mod draining;
mod flow;
mod leaving;
mod opening;
mod order;
mod relaying;
mod tunnel;

use std::rc::Rc;
use std::time::Duration;

use pybalancer_core::endpoint::Endpoint;
use pybalancer_core::flow::{FlowHasher, Secret};
use pybalancer_core::pool::{Backend, Draw, FULL_RAMP, Key, Pool, State};
use pybalancer_core::time::Tick;
use pybalancer_core::ws::Tracker;

use crate::agenda::Wake;
use crate::heads::name;
use crate::scenario::Scenario;
use crate::wire::{End, Owner};
use crate::world::Context;
use draining::Draining;
use flow::Flow;
use order::Order;
use tunnel::{Opening, Phase, Side, Tunnel};

const SECRET: [u8; 16] = *b"sixteen bytes it";
/// A prime: small, so that a table is quickly built.
const TABLE: u32 = 251;

/// How a tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Nothing is missing.
    Clean,
    /// Something may be.
    Abort,
}

/// All workers of it.
pub struct Balancer {
    scenario: Scenario,
    tunnels: Vec<Option<Tunnel>>,
    generations: u64,
    /// The plan.
    pub pool: Pool,
    states: Vec<State>,
    /// Tunnels and connects of each backend.
    pub loads: Vec<u32>,
    /// All drains and sheds there were.
    pub orders: Vec<Rc<Order>>,
    workers: Vec<Worker>,
}

#[derive(Default)]
struct Worker {
    drains: Vec<Draining>,
    /// When it looks at them again.
    armed: Option<Tick>,
}

impl Balancer {
    /// With all backends up.
    pub fn new(scenario: &Scenario) -> Balancer {
        let states = vec![State::Up; scenario.backends];
        Balancer {
            pool: plan(scenario, &states, None),
            tunnels: Vec::new(),
            generations: 0,
            loads: vec![0; scenario.backends],
            orders: Vec::new(),
            workers: (0..scenario.workers).map(|_| Worker::default()).collect(),
            scenario: scenario.clone(),
            states,
        }
    }

    /// Another plan, in which this backend is in that state.
    pub fn set_state(&mut self, backend: usize, state: State) {
        self.states[backend] = state;
        self.pool = plan(&self.scenario, &self.states, Some(&self.pool));
        self.release_drains();
    }

    /// Of this backend.
    pub fn state(&self, backend: usize) -> State {
        self.states[backend]
    }

    /// Tunnels of a backend that stand.
    pub fn standing(&self, backend: usize) -> Vec<u32> {
        let of = |tunnel: &&Tunnel| tunnel.at == Some(backend as u16) && tunnel.opening.is_none();
        self.tunnels
            .iter()
            .flatten()
            .filter(of)
            .map(|tunnel| tunnel.connection)
            .collect()
    }

    /// A client has connected.
    pub fn accept(&mut self, client: End, cx: &mut Context) {
        let slot = match self.tunnels.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                self.tunnels.push(None);
                self.tunnels.len() - 1
            }
        };
        self.generations += 1;
        let generation = self.generations;
        cx.give(client, Owner::TunnelClient(slot, generation));
        self.tunnels[slot] = Some(Tunnel {
            connection: u32::MAX,
            generation,
            worker: cx.random.below(self.workers.len()),
            client,
            backend: None,
            at: None,
            hash: 0,
            to_backend: Flow::default(),
            to_client: Flow::default(),
            from_client: Tracker::default(),
            from_backend: Tracker::default(),
            opening: Some(Opening {
                phase: Phase::Request,
                head: Vec::new(),
                scanner: Default::default(),
                answer: Vec::new(),
                answer_scanner: Default::default(),
                tried: Vec::new(),
                until: None,
                away: None,
            }),
            closing: None,
            recall: None,
            active: cx.now,
            armed: None,
        });
        self.on_wire(slot, generation, Side::Client, cx);
    }

    /// Something happened at one of a tunnel's ends.
    pub fn wake(&mut self, owner: Owner, cx: &mut Context) {
        match owner {
            Owner::TunnelClient(slot, generation) => {
                self.on_wire(slot, generation, Side::Client, cx);
            }
            Owner::TunnelBackend(slot, generation) => {
                self.on_wire(slot, generation, Side::Backend, cx);
            }
            Owner::Client(_) | Owner::Backend(_) => {}
        }
    }

    fn on_wire(&mut self, slot: usize, generation: u64, side: Side, cx: &mut Context) {
        if self.current(slot, generation) {
            self.on_tunnel(slot, side, cx);
        }
        if self.current(slot, generation) {
            // Readiness is told again while there is something to be done.
            self.arm(slot, cx);
            for side in [Side::Client, Side::Backend] {
                let tunnel = self.tunnels[slot].as_ref();
                let tunnel = tunnel.filter(|tunnel| wants_read(tunnel, side));
                if let Some(end) = tunnel.and_then(|tunnel| tunnel.end(side))
                    && cx.readable(end)
                {
                    cx.agenda
                        .at(cx.now + Duration::from_micros(20), Wake::Wire(end));
                }
            }
        }
    }

    /// A timer of a tunnel.
    pub fn late(&mut self, slot: usize, generation: u64, cx: &mut Context) {
        let Some(tunnel) = self.tunnels.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if tunnel.generation != generation {
            return;
        }
        tunnel.armed = None;
        let now = cx.now;
        if tunnel.due(now).is_some_and(|due| due <= now) {
            if tunnel.away().is_some() {
                self.away_late(slot, cx);
            } else if tunnel.opening.is_some() {
                self.opening_late(slot, cx);
            } else if tunnel.closing.is_some() {
                self.closing_late(slot, cx);
            } else {
                self.step_leaving(slot, cx);
            }
        }
        if self.current(slot, generation) {
            self.arm(slot, cx);
        }
    }

    fn arm(&mut self, slot: usize, cx: &mut Context) {
        let late = cx.lateness();
        let now = cx.now;
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        if let Some(due) = tunnel.due(now)
            && tunnel
                .armed
                .is_none_or(|armed| armed > due + late || armed < now)
        {
            let at = due.max(now) + late + Duration::from_nanos(1);
            tunnel.armed = Some(at);
            cx.agenda.at(at, Wake::Tunnel(slot, tunnel.generation));
        }
    }

    /// Close the ends and the books.
    fn end(&mut self, slot: usize, how: How, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].take() else {
            return;
        };
        cx.ledger.note(tunnel.connection, cx.now, || {
            format!("ends, {how:?}: {tunnel:?}")
        });
        if let Some(at) = tunnel.at {
            self.loads[usize::from(at)] -= 1;
        }
        if tunnel.away().is_some() {
            cx.ledger.settled(tunnel.connection, None);
        }
        for end in [Some(tunnel.client), tunnel.backend].into_iter().flatten() {
            match how {
                How::Clean => cx.close(end),
                How::Abort => cx.abort(end),
            }
        }
    }

    fn drop_backend(&mut self, slot: usize, cx: &mut Context) {
        let Some(tunnel) = self.tunnels[slot].as_mut() else {
            return;
        };
        if let Some(at) = tunnel.at.take() {
            self.loads[usize::from(at)] -= 1;
        }
        if let Some(backend) = tunnel.backend.take() {
            cx.close(backend);
        }
    }

    fn current(&self, slot: usize, generation: u64) -> bool {
        let tunnel = self.tunnels.get(slot).and_then(Option::as_ref);
        tunnel.is_some_and(|tunnel| tunnel.generation == generation)
    }

    fn pick(&mut self, slot: usize, cx: &mut Context) -> Option<u16> {
        let tunnel = self.tunnels[slot].as_ref()?;
        let tried = &tunnel.opening.as_ref()?.tried;
        let draw = Draw {
            hash: tunnel.hash,
            entropy: cx.random.next(),
        };
        self.pool.pick(draw, |index| self.loads[index], tried)
    }
}

/// Whether what this side sends is read now.
fn wants_read(tunnel: &Tunnel, side: Side) -> bool {
    let (flow, mute) = match side {
        Side::Client => (
            &tunnel.to_backend,
            tunnel.closing.as_ref().map(|c| c.farewell.client_mute),
        ),
        Side::Backend => (
            &tunnel.to_client,
            tunnel.closing.as_ref().map(|c| c.farewell.backend_mute),
        ),
    };
    if let (Some(mute), Some(closing)) = (mute, &tunnel.closing) {
        return !closing.ended[side as usize] && (mute || !flow.blocked() && !flow.eof);
    }
    tunnel.opening.is_none() && !flow.eof && !flow.blocked() && !tunnel.withheld(side)
}

fn plan(scenario: &Scenario, states: &[State], previous: Option<&Pool>) -> Pool {
    let backend = |(number, state): (usize, &State)| Backend {
        name: name(number).into(),
        endpoint: Endpoint::Unix(name(number).into()),
        weight: scenario.weights[number],
        state: *state,
        ramp: FULL_RAMP,
    };
    let backends = states.iter().enumerate().map(backend).collect();
    let secret = Secret::from_bytes(SECRET);
    Pool::new(
        "chat".into(),
        scenario.policy,
        Key::Source,
        None,
        backends,
        TABLE,
        &secret,
        previous,
    )
    .unwrap_or_else(|error| panic!("{error}"))
}

fn hash(connection: u32) -> u64 {
    FlowHasher::new(&Secret::from_bytes(SECRET)).bytes(&connection.to_be_bytes())
}
