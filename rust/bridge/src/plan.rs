//! Plans and their parts.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use pybalancer_core::directory::Nodes;
use pybalancer_core::endpoint::{Endpoint, Network};
use pybalancer_core::flow::{FlowHasher, Secret};
use pybalancer_core::plan::{self as core_plan, Dialing, Listener, Orphans, PlannedPool, Timeouts};
use pybalancer_core::pool::{Backend, Draw, FULL_RAMP, Key, Policy, Pool, State, Verdict};
use pybalancer_core::proxy::{Accept, Version};
use pybalancer_core::rate::Gcra;
use pybalancer_core::route::key_hash;
use pyo3::prelude::*;

use crate::direct::{DirectSpec, direct};
use crate::error::{duration, plan_error};
use crate::web::{Sends, WebSpec};

/// The value that a word of the configuration stands for.
fn word<T: Copy>(what: &str, text: &str, words: &[(&str, T)]) -> PyResult<T> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            plan_error(format!(
                "{what} is one of {}, not {text:?}",
                known.join(", ")
            ))
        })
}

fn parse<T: FromStr<Err: Display>>(what: &str, text: &str) -> PyResult<T> {
    text.parse()
        .map_err(|error| plan_error(format!("{what}: {error}")))
}

const STATES: [(&str, State); 3] = [
    ("up", State::Up),
    ("down", State::Down),
    ("draining", State::Draining),
];
const ORPHANS: [(&str, Orphans); 3] = [
    ("keep", Orphans::Keep),
    ("drain", Orphans::Drain),
    ("close", Orphans::Close),
];

fn state_word(state: State) -> &'static str {
    STATES
        .iter()
        .find(|(_, known)| *known == state)
        .map_or("up", |(word, _)| word)
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Picked => "picked",
        Verdict::Next => "next",
        Verdict::Down => "down",
        Verdict::Draining => "draining",
        Verdict::Weightless => "weight-0",
        Verdict::OverSkew => "over-skew",
        Verdict::SlowStart => "slow-start",
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct BackendSpec(Backend);

#[pymethods]
impl BackendSpec {
    #[new]
    #[pyo3(signature = (*, name, address, weight=1, state="up", ramp=1.0))]
    fn new(
        name: &str,
        address: &str,
        weight: u32,
        state: &str,
        ramp: f64,
    ) -> PyResult<BackendSpec> {
        if !(ramp > 0.0 && ramp <= 1.0) {
            return Err(plan_error(format!(
                "backend {name:?}: ramp is above 0 and at most 1, not {ramp}"
            )));
        }
        if weight > 65_535 {
            return Err(plan_error(format!(
                "backend {name:?}: weight is at most 65535, not {weight}"
            )));
        }
        core_plan::check_name("backend", name).map_err(plan_error)?;
        Ok(BackendSpec(Backend {
            name: name.into(),
            endpoint: parse(&format!("backend {name:?}"), address)?,
            weight,
            state: word("state", state, &STATES)?,
            ramp: (ramp * f64::from(FULL_RAMP)).round() as u32,
        }))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn address(&self) -> String {
        self.0.endpoint.to_string()
    }

    #[getter]
    fn weight(&self) -> u32 {
        self.0.weight
    }

    #[getter]
    fn state(&self) -> &'static str {
        state_word(self.0.state)
    }

    #[getter]
    fn ramp(&self) -> f64 {
        f64::from(self.0.ramp) / f64::from(FULL_RAMP)
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct PoolSpec {
    name: Arc<str>,
    backends: Vec<Backend>,
    policy: Policy,
    key: Key,
    table_size: u32,
    max_skew: Option<f64>,
    dialing: Dialing,
    direct: Option<Py<DirectSpec>>,
}

#[pymethods]
impl PoolSpec {
    #[new]
    #[pyo3(signature = (
        *, name, backends, policy="maglev", key="source", table_size=65537, max_skew=None, sources=Vec::new(),
        tries=3, connect_timeout=5.0, idle_timeout=0.0, half_closed_timeout=30.0, keepalive=60.0,
        user_timeout=120.0, response_timeout=60.0, body_timeout=60.0, send_proxy=None, transparent=false, on_remove="keep", on_down="keep",
        drain_over=30.0, drain_deadline=60.0, drain_code=1012, drain_rate=0.0,
        direct=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments, all of them")]
    fn new(
        name: &str,
        backends: Vec<PyRef<'_, BackendSpec>>,
        policy: &str,
        key: &str,
        table_size: u32,
        max_skew: Option<f64>,
        sources: Vec<String>,
        tries: u8,
        connect_timeout: f64,
        idle_timeout: f64,
        half_closed_timeout: f64,
        keepalive: f64,
        user_timeout: f64,
        response_timeout: f64,
        body_timeout: f64,
        send_proxy: Option<&str>,
        transparent: bool,
        on_remove: &str,
        on_down: &str,
        drain_over: f64,
        drain_deadline: f64,
        drain_code: u16,
        drain_rate: f64,
        direct: Option<Py<DirectSpec>>,
    ) -> PyResult<PoolSpec> {
        let policies = [
            ("maglev", Policy::Maglev),
            ("least-connections", Policy::LeastConnections),
            ("round-robin", Policy::RoundRobin),
            ("random-two", Policy::RandomTwo),
        ];
        let sources = sources
            .iter()
            .map(|source| parse::<IpAddr>(&format!("pool {name:?}: source {source:?}"), source))
            .collect::<PyResult<_>>()?;
        let versions = [("v1", Version::V1), ("v2", Version::V2)];
        Ok(PoolSpec {
            direct,
            name: name.into(),
            backends: backends.iter().map(|backend| backend.0.clone()).collect(),
            policy: word("policy", policy, &policies)?,
            key: Key::parse(key).map_err(|error| plan_error(format!("pool {name:?}: {error}")))?,
            table_size,
            max_skew,
            dialing: Dialing {
                timeouts: Timeouts {
                    connect: duration("connect_timeout", connect_timeout)?,
                    idle: duration("idle_timeout", idle_timeout)?,
                    half_closed: duration("half_closed_timeout", half_closed_timeout)?,
                    keepalive: duration("keepalive", keepalive)?,
                    user: duration("user_timeout", user_timeout)?,
                    response: duration("response_timeout", response_timeout)?,
                    body: duration("body_timeout", body_timeout)?,
                },
                sources,
                tries: tries.max(1),
                send_proxy: send_proxy
                    .map(|version| word("send_proxy", version, &versions))
                    .transpose()?,
                transparent,
                on_remove: word("on_remove", on_remove, &ORPHANS)?,
                on_down: word("on_down", on_down, &ORPHANS)?,
                drain: crate::engine::terms(drain_over, drain_deadline, drain_code, drain_rate)?,
            },
        })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn backends(&self) -> Vec<BackendSpec> {
        self.backends.iter().cloned().map(BackendSpec).collect()
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct ListenerSpec {
    /// Its pool is known by name only until the plan is made; the index is 0 until then.
    listener: Listener,
    pool: String,
    /// The pools of its routes, by name, and what these do instead of relaying.
    routes: Vec<(String, Sends)>,
}

#[pymethods]
impl ListenerSpec {
    #[new]
    #[pyo3(signature = (
        *, name, bind, pool, backlog=4096, unix_mode=0o666, accept_proxy=None, proxy_local="close",
        trusted=Vec::new(), proxy_timeout=3.0, refuse_unexpected_proxy=true, max_connections=0,
        max_connections_per_source=0, accept_rate=0.0, accept_burst=1, accept_queue=0, queue_timeout=1.0,
        draining=false, web=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments, all of them")]
    fn new(
        name: &str,
        bind: &str,
        pool: &str,
        backlog: i32,
        unix_mode: u32,
        accept_proxy: Option<&str>,
        proxy_local: &str,
        trusted: Vec<String>,
        proxy_timeout: f64,
        refuse_unexpected_proxy: bool,
        max_connections: u32,
        max_connections_per_source: u32,
        accept_rate: f64,
        accept_burst: u32,
        accept_queue: u32,
        queue_timeout: f64,
        draining: bool,
        web: Option<PyRef<'_, WebSpec>>,
    ) -> PyResult<ListenerSpec> {
        let accepts = [("v1", Accept::V1), ("v2", Accept::V2), ("any", Accept::Any)];
        let networks = trusted
            .iter()
            .map(|network| parse::<Network>(&format!("listener {name:?}"), network))
            .collect::<PyResult<_>>()?;
        let rate = if accept_rate == 0.0 {
            None
        } else {
            let rate = Gcra::new(accept_rate, accept_burst);
            Some(rate.ok_or_else(|| {
                plan_error(format!("listener {name:?}: accept_rate {accept_rate} with burst {accept_burst} is no rate"))
            })?)
        };
        let listener = Listener {
            name: name.into(),
            bind: parse::<Endpoint>(&format!("listener {name:?}"), bind)?,
            pool: 0,
            backlog: backlog.max(1),
            unix_mode,
            accept_proxy: accept_proxy
                .map(|version| word("accept_proxy", version, &accepts))
                .transpose()?,
            serve_proxy_local: word(
                "proxy_local",
                proxy_local,
                &[("close", false), ("serve", true)],
            )?,
            trusted: networks,
            proxy_timeout: duration("proxy_timeout", proxy_timeout)?,
            refuse_unexpected_proxy,
            max_connections,
            max_connections_per_source,
            accept_rate: rate,
            accept_queue,
            queue_timeout: duration("queue_timeout", queue_timeout)?,
            draining,
            web: web.as_ref().map(|web| web.web.clone()),
        };
        Ok(ListenerSpec {
            listener,
            pool: pool.to_owned(),
            routes: web.map_or_else(Vec::new, |web| web.pools.clone()),
        })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.listener.name
    }

    #[getter]
    fn bind(&self) -> String {
        self.listener.bind.to_string()
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct Choice {
    backend: Arc<str>,
    address: String,
    state: State,
    active: u32,
    verdict: Verdict,
}

impl Choice {
    /// Choices from indexes into a pool's backends, with verdict and load.
    pub fn list(pool: &Pool, order: impl IntoIterator<Item = (u16, Verdict, u32)>) -> Vec<Choice> {
        let choice = |(index, verdict, active): (u16, Verdict, u32)| {
            let backend = pool.backends.get(usize::from(index))?;
            Some(Choice {
                backend: Arc::clone(&backend.name),
                address: backend.endpoint.to_string(),
                state: backend.state,
                active,
                verdict,
            })
        };
        order.into_iter().filter_map(choice).collect()
    }
}

#[pymethods]
impl Choice {
    #[getter]
    fn backend(&self) -> &str {
        &self.backend
    }

    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    #[getter]
    fn state(&self) -> &'static str {
        state_word(self.state)
    }

    #[getter]
    fn active(&self) -> u32 {
        self.active
    }

    #[getter]
    fn verdict(&self) -> &'static str {
        verdict_word(self.verdict)
    }

    fn __repr__(&self) -> String {
        format!(
            "<Choice {:?} {} {}>",
            self.backend,
            self.address,
            self.verdict()
        )
    }
}

/// `"ip:port"` of a client.
pub fn source_address(text: &str) -> PyResult<SocketAddr> {
    let address = text.parse::<SocketAddr>().map_err(|_| {
        plan_error(format!(
            "{text:?} is not a client's address: IP:PORT or [IPv6]:PORT"
        ))
    })?;
    Ok(pybalancer_core::endpoint::canonical(address))
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct Plan(Arc<core_plan::Plan>);

impl Plan {
    pub fn inner(&self) -> &core_plan::Plan {
        &self.0
    }

    pub fn pool(&self, name: &str) -> PyResult<&Pool> {
        self.0
            .pool(name)
            .map(|planned| &planned.pool)
            .ok_or_else(|| plan_error(format!("there is no pool {name:?}")))
    }
}

/// 16 bytes of a secret.
pub fn secret_of(bytes: &[u8]) -> PyResult<Secret> {
    let bytes: [u8; 16] = bytes
        .try_into()
        .map_err(|_| plan_error(format!("the secret has 16 bytes, not {}", bytes.len())))?;
    Ok(Secret::from_bytes(bytes))
}

#[pymethods]
impl Plan {
    #[new]
    #[pyo3(signature = (*, listeners, pools, secret, previous=None))]
    fn new(
        py: Python<'_>,
        listeners: Vec<PyRef<'_, ListenerSpec>>,
        pools: Vec<PyRef<'_, PoolSpec>>,
        secret: &[u8],
        previous: Option<PyRef<'_, Plan>>,
    ) -> PyResult<Plan> {
        let secret = secret_of(secret)?;
        // Tables are keyed: under another secret none can be shared.
        let previous = previous
            .map(|plan| Arc::clone(&plan.0))
            .filter(|plan| plan.secret.as_bytes() == secret.as_bytes());
        let of_pool = |pool: &PyRef<'_, PoolSpec>| {
            let direct = pool.direct.as_ref()?;
            Some(direct.get().nodes(&secret, &pool.name))
        };
        let nodes: Vec<Option<Arc<Nodes>>> = pools.iter().map(of_pool).collect();
        let listeners = listeners
            .iter()
            .map(|spec| {
                let find = |name: &str| {
                    let found = pools.iter().position(|pool| *pool.name == *name);
                    found.ok_or_else(|| {
                        plan_error(format!(
                            "listener {:?} names pool {name:?}, which is not there",
                            spec.listener.name
                        ))
                    })
                };
                let mut listener = Listener {
                    pool: find(&spec.pool)?,
                    ..spec.listener.clone()
                };
                let routes = listener.web.iter_mut().flat_map(|web| &mut web.routes);
                for (route, (pool, sends)) in routes.zip(&spec.routes) {
                    route.pool = find(pool)?;
                    let Some((action, path)) = sends else {
                        continue;
                    };
                    let nodes = nodes.get(route.pool).and_then(Option::as_ref);
                    let nodes = nodes.ok_or_else(|| {
                        plan_error(format!(
                            "route {:?} sends clients to pool {pool:?}, whose backends have no URLs",
                            route.name
                        ))
                    })?;
                    route.direct = Some(direct(*action, path.clone(), nodes));
                }
                Ok(listener)
            })
            .collect::<PyResult<Vec<Listener>>>()?;
        let pools: Vec<&PoolSpec> = pools.iter().map(|pool| &**pool).collect();
        // Tables take milliseconds each.
        let plan = py.detach(|| {
            let pools = pools
                .into_iter()
                .map(|spec| {
                    let old = previous
                        .as_ref()
                        .and_then(|plan| plan.pool(&spec.name))
                        .map(|planned| &planned.pool);
                    let pool = Pool::new(
                        Arc::clone(&spec.name),
                        spec.policy,
                        spec.key.clone(),
                        spec.max_skew,
                        spec.backends.clone(),
                        spec.table_size,
                        &secret,
                        old,
                    )?;
                    Ok(PlannedPool {
                        pool,
                        dialing: spec.dialing.clone(),
                    })
                })
                .collect::<Result<Vec<PlannedPool>, String>>()?;
            core_plan::Plan::new(listeners, pools, secret.clone())
        });
        Ok(Plan(Arc::new(plan.map_err(plan_error)?)))
    }

    fn digest(&self, pool: &str) -> PyResult<String> {
        Ok(format!("{:032x}", self.pool(pool)?.table.digest()))
    }

    fn shares(&self, pool: &str) -> PyResult<HashMap<String, f64>> {
        let pool = self.pool(pool)?;
        let size = f64::from(pool.table.size());
        let counts = pool.table.counts();
        let share = |index: usize| f64::from(counts.get(index).copied().unwrap_or(0)) / size;
        Ok(pool
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| (backend.name.to_string(), share(index)))
            .collect())
    }

    /// Share of keys that would go to another backend, were they all up.
    fn moved(&self, py: Python<'_>, other: &Plan, pool: &str) -> PyResult<f64> {
        let (ours, theirs) = (self.pool(pool)?, other.pool(pool)?);
        Ok(py.detach(|| moved(ours, theirs)))
    }

    fn explain(&self, pool: &str, source: &str) -> PyResult<Vec<Choice>> {
        let pool = self.pool(pool)?;
        let source = source_address(source)?;
        let hasher = FlowHasher::new(&self.0.secret);
        let hash = key_hash(&pool.key, &hasher, Some(source), None, 0);
        let order = pool.explain(Draw { hash, entropy: 0 }, |_| 0);
        Ok(Choice::list(
            pool,
            order
                .into_iter()
                .map(|(index, verdict)| (index, verdict, 0)),
        ))
    }
}

/// Slots of the larger table whose keys have another backend in the other.
fn moved(ours: &Pool, theirs: &Pool) -> f64 {
    let name = |pool: &Pool, hash: u64| {
        let index = pool.table.pick(hash)?;
        let backend = pool.backends.get(usize::from(index))?;
        Some(Arc::clone(&backend.name))
    };
    // Hashes are spread evenly, as those of keys are. So many that a tenth of a per cent is told apart.
    const SAMPLES: u64 = 1 << 20;
    let step = u64::MAX / SAMPLES;
    let differs = |hash: &u64| name(ours, *hash) != name(theirs, *hash);
    let hashes = (0..SAMPLES).map(|at| at.wrapping_mul(step).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    hashes.filter(differs).count() as f64 / SAMPLES as f64
}
