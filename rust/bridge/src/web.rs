//! What a listener of mode "websocket" does with requests.

use std::sync::Arc;

use pybalancer_core::directory::Action;
use pybalancer_core::http::{Limits, MAX_FIELDS, check_edit};
use pybalancer_core::rate::Gcra;
use pybalancer_core::reattach;
use pybalancer_core::route::{HostPattern, Key, Match, Pattern};
use pybalancer_core::web::{FieldEdits, Route, Script, TunnelRules, Web};
use pyo3::prelude::*;

use crate::error::{duration, plan_error};

type Wanted = Vec<(String, Option<String>)>;
type Pairs = Vec<(String, String)>;

/// What a route does instead of relaying, and the path that it sends clients to.
pub type Sends = Option<(Action, Option<Box<str>>)>;

#[pyclass(frozen, module = "pybalancer._core")]
pub struct RouteSpec {
    /// Its pool is known by name only until the plan is made; the index is 0 until then.
    route: Route,
    pool: String,
    direct: Sends,
}
fn boxed(texts: Vec<String>) -> Vec<Box<str>> {
    texts.into_iter().map(String::into_boxed_str).collect()
}

fn edits(name: &str, set: Pairs, remove: Vec<String>) -> PyResult<FieldEdits> {
    let bad = |error: &str| plan_error(format!("route {name:?}: {error}"));
    for (field, value) in &set {
        check_edit(field, Some(value)).map_err(bad)?;
    }
    for field in &remove {
        check_edit(field, None).map_err(bad)?;
    }
    let set = set.into_iter();
    Ok(FieldEdits {
        set: set
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        remove: boxed(remove),
    })
}

#[pymethods]
impl RouteSpec {
    #[new]
    #[pyo3(signature = (
        *, name, pool, path=None, host=None, headers=Vec::new(), cookies=Vec::new(), query=Vec::new(),
        key=None, strip_prefix=None, origins=Vec::new(), request_set=Vec::new(),
        request_remove=Vec::new(), response_set=Vec::new(), response_remove=Vec::new(), max_message=0,
        ping=0.0, ping_timeout=20.0, close_timeout=5.0, reattach="off", reattach_tries=5,
        reattach_timeout=15.0, reattach_buffer=65536, action="proxy", target=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments, all of them")]
    fn new(
        name: &str,
        pool: String,
        path: Option<&str>,
        host: Option<&str>,
        headers: Wanted,
        cookies: Wanted,
        query: Wanted,
        key: Option<&str>,
        strip_prefix: Option<String>,
        origins: Vec<String>,
        request_set: Pairs,
        request_remove: Vec<String>,
        response_set: Pairs,
        response_remove: Vec<String>,
        max_message: u32,
        ping: f64,
        ping_timeout: f64,
        close_timeout: f64,
        reattach: &str,
        reattach_tries: u32,
        reattach_timeout: f64,
        reattach_buffer: u32,
        action: &str,
        target: Option<String>,
    ) -> PyResult<RouteSpec> {
        let bad = |error: String| plan_error(format!("route {name:?}: {error}"));
        let wanted = |pairs: Wanted| {
            let pair = |(name, value): (String, Option<String>)| {
                (name.into(), value.map(String::into_boxed_str))
            };
            pairs.into_iter().map(pair).collect()
        };
        let reattach = match reattach {
            "off" => None,
            "replay" if reattach_tries > 0 && reattach_buffer > 0 => Some(reattach::Rules {
                tries: reattach_tries,
                timeout: duration("reattach_timeout", reattach_timeout)?,
                buffer: reattach_buffer,
            }),
            "replay" => return Err(bad("reattach needs tries and a buffer".to_owned())),
            _ => {
                return Err(bad(format!(
                    "reattach is \"off\" or \"replay\", not {reattach:?}"
                )));
            }
        };
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\".contains(&byte);
        if let Some(path) = &target
            && !(path.starts_with('/') && path.bytes().all(plain))
        {
            return Err(bad(format!("{path:?} is not a path that URLs may have")));
        }
        let target = target.map(String::into_boxed_str);
        Ok(RouteSpec {
            direct: crate::direct::action(action)?.map(|action| (action, target)),
            route: Route {
                direct: None,
                name: name.into(),
                matching: Match {
                    path: path.map(Pattern::parse).transpose().map_err(bad)?,
                    host: host.map(HostPattern::parse).transpose().map_err(bad)?,
                    headers: wanted(headers),
                    cookies: wanted(cookies),
                    query: wanted(query),
                },
                pool: 0,
                key: key.map(Key::parse).transpose().map_err(bad)?,
                strip_prefix: strip_prefix.map(String::into_boxed_str),
                origins: boxed(origins),
                request: edits(name, request_set, request_remove)?,
                response: edits(name, response_set, response_remove)?,
                rules: TunnelRules {
                    max_message,
                    ping: duration("ping", ping)?,
                    ping_timeout: duration("ping_timeout", ping_timeout)?,
                    close_timeout: duration("close_timeout", close_timeout)?,
                    reattach,
                },
            },
            pool,
        })
    }

    #[getter]
    fn name(&self) -> &str {
        &self.route.name
    }

    #[getter]
    fn pool(&self) -> &str {
        &self.pool
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct WebSpec {
    pub web: Web,
    /// Of its routes: the pools, by name, and what they do instead of relaying.
    pub pools: Vec<(String, Sends)>,
}

#[pymethods]
impl WebSpec {
    #[new]
    #[pyo3(signature = (
        *, routes, head_limit=16384, target_limit=8192, field_limit=100, request_timeout=10.0,
        keepalive_timeout=60.0, handshakes=0.0, handshakes_burst=1, handshakes_queue=0,
        handshakes_wait=1.0, script=None, script_etag=""
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments, all of them")]
    fn new(
        routes: Vec<PyRef<'_, RouteSpec>>,
        head_limit: usize,
        target_limit: usize,
        field_limit: usize,
        request_timeout: f64,
        keepalive_timeout: f64,
        handshakes: f64,
        handshakes_burst: u32,
        handshakes_queue: u32,
        handshakes_wait: f64,
        script: Option<&[u8]>,
        script_etag: &str,
    ) -> PyResult<WebSpec> {
        if field_limit > MAX_FIELDS || field_limit == 0 || !(512..=1 << 20).contains(&head_limit) {
            return Err(plan_error(format!(
                "a head has 512 to {} bytes and 1 to {MAX_FIELDS} fields",
                1 << 20
            )));
        }
        let rate = if handshakes == 0.0 {
            None
        } else {
            let rate = Gcra::new(handshakes, handshakes_burst);
            Some(rate.ok_or_else(|| {
                plan_error(format!(
                    "handshakes {handshakes} with burst {handshakes_burst} is no rate"
                ))
            })?)
        };
        let quoted = |tag: &str| {
            let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            bare.is_some_and(|tag| tag.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        };
        if script.is_some() && !quoted(script_etag) {
            return Err(plan_error("an ETag is letters and digits in quotes"));
        }
        let part = |route: &PyRef<'_, RouteSpec>| (route.pool.clone(), route.direct.clone());
        Ok(WebSpec {
            pools: routes.iter().map(part).collect(),
            web: Web {
                limits: Limits {
                    head: head_limit,
                    target: target_limit.min(head_limit),
                    fields: field_limit,
                },
                request_timeout: duration("request_timeout", request_timeout)?,
                keepalive_timeout: duration("keepalive_timeout", keepalive_timeout)?,
                handshakes: rate,
                handshake_queue: handshakes_queue,
                handshake_wait: duration("handshakes_wait", handshakes_wait)?,
                routes: routes.iter().map(|route| route.route.clone()).collect(),
                script: script.map(|body| {
                    let (body, etag) = (body.into(), script_etag.into());
                    Arc::new(Script { body, etag })
                }),
            },
        })
    }
}

/// What the core would say of a key, before there is a plan.
#[pyfunction]
pub fn check_key(text: &str) -> PyResult<()> {
    Key::parse(text).map(drop).map_err(plan_error)
}

/// The same of a route's path.
#[pyfunction]
pub fn check_path(text: &str) -> PyResult<()> {
    Pattern::parse(text).map(drop).map_err(plan_error)
}

/// The same of a route's host.
#[pyfunction]
pub fn check_host(text: &str) -> PyResult<()> {
    HostPattern::parse(text).map(drop).map_err(plan_error)
}
