//! Errors of core and engine as Python's.

use std::io;
use std::time::Duration;

use pybalancer_engine::ApplyError;
use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

create_exception!(
    pybalancer._core,
    PlanError,
    PyValueError,
    "The plan contradicts itself (unknown pool, duplicate name, bad address): the configuration's fault."
);
create_exception!(
    pybalancer._core,
    EngineError,
    PyRuntimeError,
    "The engine cannot do this: it is closed, or it was made before a ``fork`` in another process."
);

create_exception!(
    pybalancer._core,
    PacketError,
    PyRuntimeError,
    "The kernel refuses packet mode something, or it was asked for what cannot be; says what to do."
);

/// A `PlanError` that says so.
pub fn plan_error(message: impl Into<String>) -> PyErr {
    PlanError::new_err(message.into())
}

/// OSError with number, text and, where there is one, the file or address that it is about.
pub fn os_error(error: &io::Error, about: Option<String>) -> PyErr {
    let code = error.raw_os_error().unwrap_or(0);
    let text = error.to_string();
    // "Address in use (os error 98)": Python shows the number in its own way.
    let text = text.split(" (os error").next().unwrap_or_default();
    PyOSError::new_err((code, text.to_owned(), about))
}

/// Why a plan was not applied.
pub fn apply_error(error: &ApplyError) -> PyErr {
    match error {
        ApplyError::Bind { address, error } => os_error(error, Some(address.to_string())),
        ApplyError::TooMany => plan_error(error.to_string()),
        ApplyError::Closed | ApplyError::Stuck => EngineError::new_err(error.to_string()),
    }
}

/// Why packet mode cannot do it.
pub fn packet_error(error: impl ToString) -> PyErr {
    PacketError::new_err(error.to_string())
}

/// A span of time from Python's seconds.
pub fn duration(what: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|_| {
        plan_error(format!(
            "{what} is a number of seconds from 0, not {seconds}"
        ))
    })
}
