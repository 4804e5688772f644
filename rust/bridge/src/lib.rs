//! The extension module `pybalancer._core`: the only place where Rust and Python meet.
//!
//! Plans are frozen values, the engine a handle; what may wait releases the interpreter's lock. What
//! everything means is written in `_core.pyi`.
#![allow(
    missing_docs,
    reason = "_core.pyi documents what Python sees, and stubtest holds it to that"
)]

mod direct;
mod drains;
mod engine;
mod error;
mod handover;
mod packet;
mod plan;
mod probe;
mod web;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::direct::{DirectSpec, check_url};
    #[pymodule_export]
    use crate::drains::{Drain, skew, surplus};
    #[pymodule_export]
    use crate::engine::{Engine, Event};
    #[pymodule_export]
    use crate::error::{EngineError, PacketError, PlanError};
    #[pymodule_export]
    use crate::handover::{HandOver, Lent};
    #[pymodule_export]
    use crate::packet::{PacketPath, PacketRows, packet_support};
    #[pymodule_export]
    use crate::plan::{BackendSpec, Choice, ListenerSpec, Plan, PoolSpec};
    #[pymodule_export]
    use crate::probe::Probe;
    #[pymodule_export]
    use crate::web::{RouteSpec, WebSpec, check_host, check_key, check_path};
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python's own name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
