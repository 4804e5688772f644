//! Internals shown to the tests.

use std::collections::HashMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use pybalancer_core::flow::FlowHasher;
use pybalancer_core::maglev::Table;
use pybalancer_core::pool::Draw;
use pybalancer_core::route::{Key, key_hash};
use pybalancer_engine::stats;
use pyo3::prelude::*;

use crate::engine::Engine;
use crate::error::{EngineError, plan_error};
use crate::plan::{Plan, secret_of, source_address};

#[pyclass(frozen, name = "probe", module = "pybalancer._core")]
pub struct Probe;

#[pymethods]
impl Probe {
    #[staticmethod]
    #[pyo3(signature = (secret, source, key="source"))]
    fn flow_hash(secret: &[u8], source: &str, key: &str) -> PyResult<u64> {
        let hasher = FlowHasher::new(&secret_of(secret)?);
        let source = source_address(source)?;
        let key = Key::parse(key).map_err(plan_error)?;
        Ok(key_hash(&key, &hasher, Some(source), None, 0))
    }

    #[staticmethod]
    fn maglev_table(
        secret: &[u8],
        backends: Vec<(String, u32)>,
        table_size: u32,
    ) -> PyResult<Vec<u16>> {
        let backends: Vec<(&str, u32)> = backends
            .iter()
            .map(|(name, weight)| (&**name, *weight))
            .collect();
        let table = Table::build(&secret_of(secret)?, &backends, table_size);
        Ok(table
            .map_err(|error| plan_error(error.to_string()))?
            .slots()
            .to_vec())
    }

    #[staticmethod]
    fn lookups(py: Python<'_>, plan: &Plan, pool: &str, count: u32) -> PyResult<u64> {
        let planned = plan.pool(pool)?;
        let hasher = FlowHasher::new(&plan.inner().secret);
        Ok(py.detach(|| {
            let one = |number: u32| {
                let source = SocketAddr::new(Ipv4Addr::from_bits(number).into(), number as u16);
                let draw = Draw {
                    hash: hasher.source(black_box(source)),
                    entropy: 0,
                };
                u64::from(planned.pick(draw, |_| 0, &[]).unwrap_or(0))
            };
            (0..count).map(one).sum()
        }))
    }

    #[staticmethod]
    fn stats_layout() -> HashMap<&'static str, HashMap<&'static str, (usize, usize)>> {
        let fields = |layout: Vec<(&'static str, usize, usize)>| {
            layout
                .into_iter()
                .map(|(field, offset, size)| (field, (offset, size)))
                .collect()
        };
        HashMap::from([
            ("pb_header", fields(stats::Header::layout())),
            ("pb_entry", fields(stats::Entry::layout())),
            ("pb_worker", fields(stats::WorkerSlot::layout())),
            ("pb_listener", fields(stats::ListenerSlot::layout())),
            ("pb_backend", fields(stats::BackendSlot::layout())),
        ])
    }

    #[staticmethod]
    fn panic_worker(engine: &Engine, worker: usize) -> PyResult<()> {
        if engine.ours()?.sabotage(worker) {
            Ok(())
        } else {
            Err(EngineError::new_err(format!(
                "there is no worker {worker}, or it does not listen"
            )))
        }
    }
}
