//! Drains and sheds as Python sees them.

use std::sync::atomic::Ordering;

use pybalancer_core::shed::Quota;
use pybalancer_core::shed::{self, Load};
use pybalancer_engine::drains::{Kind, Scope, State};
use pybalancer_engine::engine::DrainProgress;
use pyo3::prelude::*;

#[pyclass(frozen, get_all, module = "pybalancer._core")]
pub struct Drain {
    id: u64,
    kind: &'static str,
    pool: Option<String>,
    listener: Option<String>,
    parts: Vec<(String, u64, u64)>,
    total: u64,
    left: u64,
    closed: u64,
    cut: u64,
    moved: u64,
    age: f64,
    over: f64,
    deadline: f64,
    rate: f64,
    code: u16,
    counts_only: bool,
    state: &'static str,
}

impl From<DrainProgress> for Drain {
    fn from(progress: DrainProgress) -> Drain {
        let DrainProgress { order, state, age } = progress;
        let (closed, cut, moved) = (
            order.closed.load(Ordering::Relaxed),
            order.cut.load(Ordering::Relaxed),
            order.moved.load(Ordering::Relaxed),
        );
        let left = order.left();
        let of_quota = |quota: &Quota| {
            let found = quota.found().min(quota.wanted());
            (u64::from(found), u64::from(quota.left()))
        };
        let whole = |left| (order.total.max(left + closed + moved), left);
        let (mut pool, mut listener) = (None, None);
        let parts: Vec<(String, u64, u64)> = match &order.scope {
            Scope::Backends(entries) => {
                pool = entries.first().map(|entry| entry.pool.to_string());
                let part = |(at, entry): (usize, &std::sync::Arc<_>)| {
                    let entry: &pybalancer_engine::registry::BackendEntry = entry;
                    let load = u64::from(entry.load().load(Ordering::Relaxed));
                    let found = order.found.get(at).copied().unwrap_or_default();
                    let (found, left) = match order.quotas.get(at) {
                        Some(quota) => of_quota(quota),
                        None => (found.max(load), load),
                    };
                    (entry.name.to_string(), found, left)
                };
                entries.iter().enumerate().map(part).collect()
            }
            Scope::Listener(entry) => {
                listener = Some(entry.name.to_string());
                let (found, left) = whole(left);
                vec![(String::new(), found, left)]
            }
            Scope::All(_) => {
                let (found, left) = whole(left);
                vec![(String::new(), found, left)]
            }
        };
        let total = parts.iter().map(|(_, found, _)| found).sum();
        Drain {
            id: order.id,
            kind: match order.kind {
                Kind::Drain => "drain",
                Kind::Removed => "removed",
                Kind::Down => "down",
                Kind::Shed => "shed",
            },
            pool,
            listener,
            parts,
            total,
            left,
            closed,
            cut,
            moved,
            age: age.as_secs_f64(),
            over: order.terms.over.as_secs_f64(),
            deadline: order.terms.deadline.as_secs_f64(),
            rate: order.terms.rate,
            code: order.terms.code,
            counts_only: order.counts_only,
            state: match state {
                State::Running => "running",
                State::Done => "done",
                State::Cancelled => "cancelled",
            },
        }
    }
}

#[pymethods]
impl Drain {
    fn __repr__(&self) -> String {
        let Drain {
            id,
            kind,
            state,
            left,
            total,
            ..
        } = self;
        format!("<Drain {id} {kind} {state} left={left} of {total}>")
    }
}

fn loads(loads: &[(u32, u32)]) -> Vec<Load> {
    let load = |(tunnels, weight): &(u32, u32)| Load {
        tunnels: *tunnels,
        weight: *weight,
    };
    loads.iter().map(load).collect()
}

#[pyfunction]
#[pyo3(name = "surplus")]
pub fn surplus(tunnels_and_weights: Vec<(u32, u32)>, skew: f64) -> Vec<u32> {
    shed::surplus(&loads(&tunnels_and_weights), skew)
}

#[pyfunction]
#[pyo3(name = "skew")]
pub fn skew(tunnels_and_weights: Vec<(u32, u32)>) -> f64 {
    shed::skew(&loads(&tunnels_and_weights))
}
