//! Where clients are sent that connect to backends themselves.

use std::sync::Arc;

use pybalancer_core::directory::{Action, Direct, Nodes, PublicUrl, Retry, TicketKey};
use pybalancer_core::flow::Secret;
use pyo3::prelude::*;

use crate::error::{duration, plan_error};

/// What a word of the configuration does; None: it relays.
pub fn action(word: &str) -> PyResult<Option<Action>> {
    match word {
        "proxy" => Ok(None),
        "directory" => Ok(Some(Action::Directory)),
        "redirect" => Ok(Some(Action::Redirect)),
        _ => Err(plan_error(format!(
            "action is one of proxy, directory, redirect, not {word:?}"
        ))),
    }
}

/// The word of an action.
pub fn word(action: Action) -> &'static str {
    match action {
        Action::Directory => "directory",
        Action::Redirect => "redirect",
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct DirectSpec {
    nodes: Nodes,
    tickets: bool,
}

#[pymethods]
impl DirectSpec {
    #[new]
    #[pyo3(signature = (
        *, urls, expires_in=30.0, alternatives=2, retry_min=0.0, retry_max=30.0, retry_base=0.5,
        stable=10.0, window=5.0, fallback=None, tickets=false, ticket_key=None, ticket_address=true
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments, all of them")]
    fn new(
        urls: Vec<Option<String>>,
        expires_in: f64,
        alternatives: u8,
        retry_min: f64,
        retry_max: f64,
        retry_base: f64,
        stable: f64,
        window: f64,
        fallback: Option<&str>,
        tickets: bool,
        ticket_key: Option<[u8; 32]>,
        ticket_address: bool,
    ) -> PyResult<DirectSpec> {
        let url = |text: &str| PublicUrl::parse(text).map_err(plan_error);
        let urls = urls.iter().map(|text| text.as_deref().map(url).transpose());
        Ok(DirectSpec {
            nodes: Nodes {
                urls: urls.collect::<PyResult<_>>()?,
                expires_in: duration("expires_in", expires_in)?,
                alternatives,
                retry: Retry {
                    min: duration("retry_min", retry_min)?,
                    max: duration("retry_max", retry_max)?,
                    base: duration("retry_base", retry_base)?,
                    stable: duration("stable", stable)?,
                    window: duration("window", window)?,
                },
                fallback: fallback.map(url).transpose()?,
                tickets: ticket_key.map(TicketKey::from_bytes),
                bound: ticket_address,
            },
            tickets,
        })
    }
}

impl DirectSpec {
    /// As it is for a pool.
    pub fn nodes(&self, secret: &Secret, pool: &str) -> Arc<Nodes> {
        let mut nodes = self.nodes.clone();
        if !self.tickets {
            nodes.tickets = None;
        } else if nodes.tickets.is_none() {
            nodes.tickets = Some(TicketKey::derive(secret, pool));
        }
        Arc::new(nodes)
    }
}

/// A route's way to send clients there.
pub fn direct(action: Action, path: Option<Box<str>>, nodes: &Arc<Nodes>) -> Direct {
    Direct {
        action,
        path,
        nodes: Arc::clone(nodes),
    }
}

/// What the core would say of a backend's public URL, before there is a plan.
#[pyfunction]
pub fn check_url(text: &str) -> PyResult<()> {
    PublicUrl::parse(text).map(drop).map_err(plan_error)
}
