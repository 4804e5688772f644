//! The handle on the workers.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use pybalancer_core::drain::Terms;
use pybalancer_engine::engine::Target;
use pybalancer_engine::outbox::Event as Told;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::direct::word;
use crate::drains::Drain;
use crate::error::{EngineError, apply_error, duration, os_error, plan_error};
use crate::plan::{Choice, Plan, source_address};

#[pyclass(frozen, get_all, module = "pybalancer._core")]
pub struct Event {
    kind: &'static str,
    worker: Option<usize>,
    pool: Option<String>,
    backend: Option<String>,
    count: u64,
    message: Option<String>,
}

impl From<Told> for Event {
    fn from(told: Told) -> Event {
        let blank = |kind, worker| Event {
            kind,
            worker: Some(worker),
            pool: None,
            backend: None,
            count: 1,
            message: None,
        };
        match told {
            Told::ConnectFailed {
                worker,
                pool,
                backend,
                count,
                message,
            } => Event {
                pool: Some(pool.to_string()),
                backend: Some(backend.to_string()),
                count,
                message: Some(message),
                ..blank("connect-failed", worker)
            },
            Told::WorkerDied {
                worker,
                tunnels,
                message,
            } => Event {
                count: tunnels,
                message: Some(message),
                ..blank("worker-died", worker)
            },
            Told::WorkerRestarted { worker } => blank("worker-restarted", worker),
            Told::AcceptPaused { worker, message } => Event {
                message: Some(message),
                ..blank("accept-paused", worker)
            },
            Told::AcceptResumed { worker } => blank("accept-resumed", worker),
            Told::SourceFailed {
                worker,
                pool,
                count,
                message,
            } => Event {
                pool: Some(pool.to_string()),
                count,
                message: Some(message),
                ..blank("source-failed", worker)
            },
            Told::PortsExhausted {
                worker,
                pool,
                backend,
                count,
            } => Event {
                pool: Some(pool.to_string()),
                backend: Some(backend.to_string()),
                count,
                ..blank("ports-exhausted", worker)
            },
        }
    }
}

#[pymethods]
impl Event {
    fn __repr__(&self) -> String {
        let part = |name: &str, value: &Option<String>| {
            value
                .as_ref()
                .map(|v| format!(" {name}={v:?}"))
                .unwrap_or_default()
        };
        let (pool, backend, message) = (
            part("pool", &self.pool),
            part("backend", &self.backend),
            part("message", &self.message),
        );
        format!(
            "<Event {} count={}{pool}{backend}{message}>",
            self.kind, self.count
        )
    }
}

/// How long Python's signal handlers may have to wait.
pub const SLICE: Duration = Duration::from_millis(50);

/// What a route does instead of relaying, and the URLs that it names.
type Sent = (&'static str, Vec<String>);

/// Backend → outgoing ports in use, and ports there are.
type Usage = HashMap<String, (u32, u32)>;

#[pyclass(frozen, module = "pybalancer._core")]
pub struct Engine(pybalancer_engine::Engine);

impl Engine {
    /// The engine, if this process started it.
    pub fn ours(&self) -> PyResult<&pybalancer_engine::Engine> {
        if self.0.is_ours() {
            Ok(&self.0)
        } else {
            Err(EngineError::new_err(
                "this balancer was started by the parent process: a fork copies its memory but not its workers; \
                 start one after the fork",
            ))
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, workers=0, stats_path=None))]
    fn new(py: Python<'_>, workers: usize, stats_path: Option<PathBuf>) -> PyResult<Engine> {
        if workers > 1024 {
            return Err(plan_error(format!(
                "{workers} workers are more than any machine has cores"
            )));
        }
        let started =
            py.detach(|| pybalancer_engine::Engine::start(workers, stats_path.as_deref()));
        let file = stats_path.map(|path| path.display().to_string());
        Ok(Engine(started.map_err(|error| os_error(&error, file))?))
    }

    #[getter]
    fn workers(&self) -> usize {
        self.0.workers()
    }

    #[getter]
    fn generation(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.ours()?;
        Ok(py.detach(|| engine.generation()))
    }

    #[getter]
    fn stats_fd(&self) -> i32 {
        self.0.stats_file().as_raw_fd()
    }

    #[getter]
    fn event_fd(&self) -> i32 {
        self.0.wake().as_raw_fd()
    }

    fn apply(&self, py: Python<'_>, plan: &Plan) -> PyResult<u64> {
        let engine = self.ours()?;
        py.detach(|| engine.apply(plan.inner()))
            .map_err(|error| apply_error(&error))
    }

    fn take_events(&self) -> PyResult<Vec<Event>> {
        Ok(self
            .ours()?
            .outbox()
            .take_events()
            .into_iter()
            .map(Event::from)
            .collect())
    }

    fn log_connections(&self, enabled: bool) -> PyResult<()> {
        self.ours()?.outbox().set_logging(enabled);
        Ok(())
    }

    #[pyo3(signature = (format, max_records=4096))]
    fn take_log<'py>(
        &self,
        py: Python<'py>,
        format: &str,
        max_records: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let json = match format {
            "json" => true,
            "human" => false,
            other => {
                return Err(plan_error(format!(
                    "format is json or human, not {other:?}"
                )));
            }
        };
        let engine = self.ours()?;
        let text = py.detach(|| {
            let mut text = Vec::new();
            engine
                .outbox()
                .take_lines(max_records, |line| line.write(json, &mut text));
            text
        });
        Ok(PyBytes::new(py, &text))
    }

    // These take a lock that `apply` may hold for as long as a worker takes to answer.

    fn bound(&self, py: Python<'_>) -> PyResult<HashMap<String, String>> {
        let engine = self.ours()?;
        let bound = py.detach(|| engine.bound());
        Ok(bound
            .into_iter()
            .map(|(name, address)| (name.to_string(), address.to_string()))
            .collect())
    }

    fn explain(&self, py: Python<'_>, pool: &str, source: &str) -> PyResult<Vec<Choice>> {
        let source = source_address(source)?;
        let engine = self.ours()?;
        let unknown = || plan_error(format!("there is no pool {pool:?}"));
        let (order, deployment) = py.detach(|| (engine.explain(pool, source), engine.deployment()));
        let (order, deployment) = order.zip(deployment).ok_or_else(unknown)?;
        let deployed = deployment
            .pools
            .iter()
            .find(|deployed| &*deployed.planned.pool.name == pool);
        Ok(Choice::list(
            &deployed.ok_or_else(unknown)?.planned.pool,
            order,
        ))
    }

    /// Listener, client and a request's head, to route, pool and the order of its backends.
    fn explain_request(
        &self,
        py: Python<'_>,
        listener: &str,
        source: &str,
        head: &[u8],
    ) -> PyResult<(String, String, Vec<Choice>, Option<Sent>)> {
        let source = source_address(source)?;
        let engine = self.ours()?;
        let told = py.detach(|| engine.explain_request(listener, source, head));
        let told = told.map_err(plan_error)?;
        let choices = Choice::list(&told.pool.planned.pool, told.order);
        let pool = told.pool.planned.pool.name.to_string();
        let direct = told.direct.map(|(action, urls)| (word(action), urls));
        Ok((told.route.to_string(), pool, choices, direct))
    }

    /// What a backend says of itself: 0 is idle, 1 full; None: nothing.
    #[pyo3(signature = (pool, backend, busy))]
    fn report_load(
        &self,
        py: Python<'_>,
        pool: &str,
        backend: &str,
        busy: Option<f64>,
    ) -> PyResult<bool> {
        let engine = self.ours()?;
        Ok(py.detach(|| engine.report_load(pool, backend, busy)))
    }

    fn ports(&self, py: Python<'_>) -> PyResult<HashMap<String, Usage>> {
        let engine = self.ours()?;
        let Some(deployment) = py.detach(|| engine.deployment()) else {
            return Ok(HashMap::new());
        };
        let of_pool = |pool: &pybalancer_engine::deployment::DeployedPool| {
            let entries = pool.backends.iter().zip(&pool.ways);
            entries
                .map(|(entry, ways)| (entry.name.to_string(), ways.usage()))
                .collect()
        };
        Ok(deployment
            .pools
            .iter()
            .map(|pool| (pool.planned.pool.name.to_string(), of_pool(pool)))
            .collect())
    }

    #[pyo3(signature = (*, pool=None, backends=None, listener=None, over, deadline, code=1012, rate=0.0))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments, all of them")]
    fn drain(
        &self,
        py: Python<'_>,
        pool: Option<&str>,
        backends: Option<Vec<String>>,
        listener: Option<&str>,
        over: f64,
        deadline: f64,
        code: u16,
        rate: f64,
    ) -> PyResult<u64> {
        let target = match (pool, listener, &backends) {
            (Some(pool), None, names) => Target::Pool(pool, names.as_deref()),
            (None, Some(listener), None) => Target::Listener(listener),
            (None, None, None) => Target::All,
            _ => {
                let why = "a drain is of a pool, of backends of a pool, of a listener, or of all";
                return Err(plan_error(why));
            }
        };
        let terms = terms(over, deadline, code, rate)?;
        let engine = self.ours()?;
        py.detach(|| engine.drain(target, terms))
            .map_err(plan_error)
    }

    #[pyo3(signature = (pool, surplus, *, rate, code=1012, dry_run=false))]
    fn shed(
        &self,
        py: Python<'_>,
        pool: &str,
        surplus: Vec<(String, u32)>,
        rate: f64,
        code: u16,
        dry_run: bool,
    ) -> PyResult<u64> {
        let Terms { code, rate, .. } = terms(0.0, 0.0, code, rate)?;
        let engine = self.ours()?;
        py.detach(|| engine.shed(pool, &surplus, rate, code, dry_run))
            .map_err(plan_error)
    }

    fn cancel_drain(&self, py: Python<'_>, id: u64) -> PyResult<bool> {
        let engine = self.ours()?;
        Ok(py.detach(|| engine.cancel_drain(id)))
    }

    fn drains(&self, py: Python<'_>) -> PyResult<Vec<Drain>> {
        let engine = self.ours()?;
        let drains = py.detach(|| engine.drains());
        Ok(drains.into_iter().map(Drain::from).collect())
    }

    fn stop_accepting(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.ours()?;
        py.detach(|| engine.stop_accepting());
        Ok(())
    }

    fn active(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.ours()?;
        Ok(py.detach(|| engine.active()))
    }

    #[pyo3(signature = (timeout=0.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<u64> {
        let grace = duration("timeout", timeout)?;
        let engine = self.ours()?;
        let wait = py.detach(|| engine.begin_close(grace));
        // In slices, so that Ctrl-C is heard.
        loop {
            if let Some(aborted) = py.detach(|| engine.wait_closed(&wait, SLICE)) {
                return Ok(aborted);
            }
            py.check_signals()?;
        }
    }
}

/// How a drain is to be done.
pub fn terms(over: f64, deadline: f64, code: u16, rate: f64) -> PyResult<Terms> {
    if !(rate >= 0.0 && rate.is_finite()) {
        return Err(plan_error(format!("rate is a number from 0, not {rate}")));
    }
    if !(1000..=4999).contains(&code) || matches!(code, 1004..=1006 | 1015) {
        return Err(plan_error(format!(
            "{code} is no code that a Close may carry (RFC 6455, section 7.4)"
        )));
    }
    Ok(Terms {
        over: duration("over", over)?,
        deadline: duration("deadline", deadline)?,
        code,
        rate,
    })
}
