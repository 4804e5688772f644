//! Drains and sheds, as the host orders and sees them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pybalancer_core::drain::Terms;

use super::{Engine, State};
use crate::deployment::{Deployment, Leaving};
use crate::drains::{self, Asked, Kind, Order, Scope};
use crate::mailbox::Command;
use crate::registry::{BackendEntry, ListenerEntry};

/// How long an order is shown that is over.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What somebody wants drained.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Backends of a pool; without names all of them.
    Pool(&'a str, Option<&'a [String]>),
    /// A listener.
    Listener(&'a str),
    /// Everything.
    All,
}

/// An order as it stands.
pub struct Progress {
    /// The order.
    pub order: Arc<Order>,
    /// How far it is.
    pub state: drains::State,
    /// Time since it began.
    pub age: Duration,
}

impl Engine {
    /// Begin to tell tunnels to go; the order's id. An error says what is not there.
    pub fn drain(&self, target: Target<'_>, terms: Terms) -> Result<u64, String> {
        let mut state = self.state();
        let deployment = state.deployment.clone().ok_or("no plan is applied yet")?;
        let scope = scope(&deployment, target)?;
        let cap = match target {
            Target::Pool(pool, _) => cap_of(&deployment, pool),
            Target::Listener(_) | Target::All => 0.0,
        };
        let asked = Asked {
            kind: Kind::Drain,
            scope,
            terms,
            wanted: &[],
            counts_only: false,
            cap,
        };
        Ok(self.order(&mut state, asked))
    }

    /// Begin to tell up to so many tunnels of backends to go; the order's id.
    pub fn shed(
        &self,
        pool: &str,
        surplus: &[(String, u32)],
        rate: f64,
        code: u16,
        counts_only: bool,
    ) -> Result<u64, String> {
        let mut state = self.state();
        let deployment = state.deployment.clone().ok_or("no plan is applied yet")?;
        let names: Vec<String> = surplus.iter().map(|(name, _)| name.clone()).collect();
        let scope = scope(&deployment, Target::Pool(pool, Some(&names)))?;
        let wanted: Vec<u32> = surplus.iter().map(|(_, count)| *count).collect();
        let terms = Terms {
            over: Duration::ZERO,
            deadline: Duration::ZERO,
            code,
            rate,
        };
        let asked = Asked {
            kind: Kind::Shed,
            scope,
            terms,
            wanted: &wanted,
            counts_only,
            cap: cap_of(&deployment, pool),
        };
        Ok(self.order(&mut state, asked))
    }

    /// Call an order off: nobody else is told. False if there is none of that id under way.
    pub fn cancel_drain(&self, id: u64) -> bool {
        let workers = self.workers();
        let state = self.state();
        let Some(order) = state.drains.iter().find(|order| order.id == id) else {
            return false;
        };
        let running = order.state(workers) == drains::State::Running;
        // Also where nobody is left just now: until its deadline, somebody could join.
        order.cancel();
        running
    }

    /// Orders under way, and those that were over less than a minute ago.
    pub fn drains(&self) -> Vec<Progress> {
        let now = self.shared.clock.now();
        let workers = self.workers();
        let mut state = self.state();
        state.drains.retain(|order| {
            let running = order.state(workers) == drains::State::Running;
            running || order.is_open(workers) || now.since(order.over_at(now)) < REMEMBERED
        });
        let progress = |order: &Arc<Order>| Progress {
            order: Arc::clone(order),
            state: order.state(workers),
            age: now.since(order.began),
        };
        state.drains.iter().map(progress).collect()
    }

    fn order(&self, state: &mut State, asked: Asked<'_>) -> u64 {
        state.drained += 1;
        let now = self.shared.clock.now();
        // Where the first close falls within its interval: anything that differs each time will do.
        let draw = now.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let id = state.drained;
        let order = Order::new(id, asked, now, draw);
        let order = Arc::new(order);
        for mailbox in &self.mailboxes {
            let command = Command::Drain(Arc::clone(&order));
            if mailbox.send(command, None).is_err() {
                // It hangs or has ended, and will do nothing for it.
                order.finish();
            }
        }
        state.drains.push(order);
        id
    }

    /// What the new plan says takes tunnels again is drained no more.
    pub(super) fn end_drains(&self, state: &State, next: &Deployment) {
        let workers = self.workers();
        let takes = |entry: &Arc<BackendEntry>| {
            let mut pools = next.pools.iter();
            pools.any(|pool| pool.takes(entry))
        };
        let open = |entry: &Arc<ListenerEntry>| {
            let mut fronts = next.fronts.iter();
            fronts.any(|front| Arc::ptr_eq(&front.entry, entry) && !front.listener.draining)
        };
        let asked = |order: &&Arc<Order>| order.kind == Kind::Drain && order.is_open(workers);
        for order in state.drains.iter().filter(asked) {
            order.release(takes);
            if let Scope::Listener(entry) = &order.scope
                && open(entry)
            {
                order.cancel();
            }
        }
    }

    /// Drain the backends that the new plan has not or says are down, where their pools want that; and leave
    /// alone what it says is back.
    pub(super) fn drain_leaving(&self, state: &mut State, leaving: &[Leaving]) {
        let workers = self.workers();
        // Those with nobody left, too: until their deadline, somebody could join.
        let running = |order: &&Arc<Order>| {
            matches!(order.kind, Kind::Removed | Kind::Down) && order.is_open(workers)
        };
        let of = |order: &Order, leaving: &Leaving| {
            let Scope::Backends(entries) = &order.scope else {
                return false;
            };
            let mut entries = entries.iter();
            order.kind == leaving.kind && entries.any(|entry| Arc::ptr_eq(entry, &leaving.entry))
        };
        for order in state.drains.iter().filter(running) {
            if !leaving.iter().any(|leaving| of(order, leaving)) {
                order.cancel();
            }
        }
        for leaving in leaving {
            let known = state.drains.iter().filter(running);
            let known = known.into_iter().any(|order| of(order, leaving));
            if known || leaving.entry.load().load(Ordering::Relaxed) == 0 {
                continue;
            }
            let scope = Scope::Backends(vec![Arc::clone(&leaving.entry)]);
            let asked = Asked {
                kind: leaving.kind,
                scope,
                terms: leaving.terms,
                wanted: &[],
                counts_only: false,
                cap: leaving.terms.rate,
            };
            self.order(state, asked);
        }
    }
}

/// Tunnels of a pool that are told to go per second at most, by whichever orders; 0 for any number.
fn cap_of(deployment: &Deployment, name: &str) -> f64 {
    let mut pools = deployment.pools.iter();
    let pool = pools.find(|pool| &*pool.planned.pool.name == name);
    pool.map_or(0.0, |pool| pool.planned.dialing.drain.rate)
}

fn scope(deployment: &Deployment, target: Target<'_>) -> Result<Scope, String> {
    match target {
        Target::All => {
            let entries = deployment.fronts.iter().map(|front| &front.entry);
            Ok(Scope::All(entries.cloned().collect()))
        }
        Target::Listener(name) => {
            let mut fronts = deployment.fronts.iter();
            let front = fronts.find(|front| &*front.listener.name == name);
            let front = front.ok_or_else(|| format!("there is no listener {name:?}"))?;
            Ok(Scope::Listener(Arc::clone(&front.entry)))
        }
        Target::Pool(name, names) => {
            let mut pools = deployment.pools.iter();
            let pool = pools.find(|pool| &*pool.planned.pool.name == name);
            let pool = pool.ok_or_else(|| format!("there is no pool {name:?}"))?;
            let Some(names) = names else {
                return Ok(Scope::Backends(pool.backends.clone()));
            };
            let entry = |name: &String| {
                let mut entries = pool.backends.iter();
                let entry = entries.find(|entry| *entry.name == **name).cloned();
                entry.ok_or_else(|| {
                    format!("pool {:?} has no backend {name:?}", pool.planned.pool.name)
                })
            };
            Ok(Scope::Backends(
                names.iter().map(entry).collect::<Result<_, _>>()?,
            ))
        }
    }
}
