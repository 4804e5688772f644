//! A drain or shed under way.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use pybalancer_core::drain::{Course, Terms};
use pybalancer_core::shed::Quota;
use pybalancer_core::time::Tick;

use super::tunnel::Tunnel;
use crate::world::Context;

/// Time in which a tunnel can leave its backend in peace, whatever is under way.
const ROOMY: Duration = Duration::from_secs(3);

/// A drain or shed.
pub struct Order {
    /// In the ledger.
    pub number: usize,
    /// Of these backends; None for all tunnels there are.
    pub scope: Option<Vec<u16>>,
    /// How.
    pub terms: Terms,
    /// When who is told to go.
    pub course: Course,
    /// Of a shed, for each of the scope's backends.
    pub quotas: Option<Vec<Quota>>,
    /// Backends that are taken back.
    pub released: RefCell<BTreeSet<u16>>,
}

impl Order {
    /// Whether what is told to go now has time enough.
    pub fn is_roomy(&self, now: Tick) -> bool {
        self.course
            .deadline()
            .is_none_or(|deadline| deadline.since(now) >= ROOMY)
    }

    /// Whether it is about this backend, still.
    pub fn holds(&self, backend: u16) -> bool {
        let scope = self
            .scope
            .as_ref()
            .is_some_and(|scope| scope.contains(&backend));
        scope && !self.released.borrow().contains(&backend)
    }

    /// Which of the scope's backends has this tunnel.
    pub fn concerns(&self, tunnel: &Tunnel) -> Option<usize> {
        let Some(backends) = &self.scope else {
            return Some(0);
        };
        let at = tunnel.at?;
        let place = backends.iter().position(|backend| *backend == at)?;
        (!self.released.borrow().contains(&at)).then_some(place)
    }

    pub fn moves(&self) -> bool {
        self.scope.is_some()
    }

    /// It will be closed with this code. Behind an end there is no Close.
    pub fn promise(&self, tunnel: &Tunnel, cx: &mut Context) {
        if !tunnel.to_client.eof {
            cx.ledger.promise(tunnel.connection, self.terms.code);
        }
    }

    pub fn quota(&self, tunnel: &Tunnel) -> Option<&Quota> {
        self.quotas.as_ref()?.get(self.concerns(tunnel)?)
    }
}
