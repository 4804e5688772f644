//! Handing tunnels over to another process, or taking them over.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pybalancer_engine::engine::Lent as Sockets;
use pybalancer_engine::handover::FORMAT;
use pybalancer_engine::sys::take_number;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::{Engine, SLICE};
use crate::error::{EngineError, duration, os_error, plan_error};

#[pyclass(frozen, get_all, module = "pybalancer._core")]
pub struct Lent {
    number: u32,
    bind: String,
    chosen_for: Option<String>,
    address: String,
    file: Option<(u64, u64)>,
    descriptors: Vec<i32>,
}

#[pymethods]
impl Lent {
    #[new]
    #[pyo3(signature = (*, number, bind, chosen_for, address, file, descriptors))]
    fn new(
        number: u32,
        bind: String,
        chosen_for: Option<String>,
        address: String,
        file: Option<(u64, u64)>,
        descriptors: Vec<i32>,
    ) -> Lent {
        Lent {
            number,
            bind,
            chosen_for,
            address,
            file,
            descriptors,
        }
    }
}

impl From<Sockets> for Lent {
    fn from(lent: Sockets) -> Lent {
        Lent {
            number: lent.number,
            bind: lent.bind.to_string(),
            chosen_for: lent.chosen_for.as_deref().map(str::to_owned),
            address: lent.address.to_string(),
            file: lent.file,
            descriptors: lent.sockets.into_iter().map(OwnedFd::into_raw_fd).collect(),
        }
    }
}

/// Take over what the caller gives away.
fn taken(numbers: &[i32]) -> PyResult<Vec<OwnedFd>> {
    let owned = numbers.iter().map(|number| take_number(*number));
    let owned: Result<Vec<OwnedFd>, _> = owned.collect();
    owned.map_err(|error| os_error(&error, None))
}

impl Lent {
    fn sockets(&self) -> PyResult<Sockets> {
        Ok(Sockets {
            number: self.number,
            bind: self.bind.parse().map_err(|why: String| plan_error(why))?,
            chosen_for: self.chosen_for.as_deref().map(Arc::from),
            address: self
                .address
                .parse()
                .map_err(|why: String| plan_error(why))?,
            file: self.file,
            sockets: taken(&self.descriptors)?,
        })
    }
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct HandOver(Py<Engine>);

impl HandOver {
    fn engine(&self) -> PyResult<&pybalancer_engine::Engine> {
        self.0.get().ours()
    }
}

fn failed(why: String) -> PyErr {
    EngineError::new_err(why)
}

#[pymethods]
impl HandOver {
    #[classattr]
    #[pyo3(name = "FORMAT")]
    const FORMAT: u32 = FORMAT;

    #[new]
    fn new(engine: Py<Engine>) -> HandOver {
        HandOver(engine)
    }

    fn lend(&self, py: Python<'_>) -> PyResult<Vec<Lent>> {
        let engine = self.engine()?;
        let lent = py.detach(|| engine.lend());
        let lent = lent.map_err(|error| os_error(&error, None))?;
        Ok(lent.into_iter().map(Lent::from).collect())
    }

    fn manifest<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let engine = self.engine()?;
        let manifest = py.detach(|| engine.manifest());
        let manifest = manifest.map_err(|error| os_error(&error, None))?;
        Ok(PyBytes::new(py, &manifest))
    }

    fn freeze(&self, py: Python<'_>, channels: Vec<i32>, timeout: f64) -> PyResult<u64> {
        let patience = duration("timeout", timeout)?;
        let engine = self.engine()?;
        let channels = taken(&channels)?;
        py.detach(|| engine.freeze(channels, patience))
            .map_err(failed)
    }

    fn thaw(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.engine()?;
        py.detach(|| engine.thaw()).map_err(failed)
    }

    fn bury(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.engine()?;
        py.detach(|| engine.bury()).map_err(failed)
    }

    fn let_go(&self, py: Python<'_>, taken: Vec<u32>, grace: f64) -> PyResult<u64> {
        let grace = duration("grace", grace)?;
        let engine = self.engine()?;
        let wait = py.detach(|| engine.let_go(&taken, grace));
        // In slices, so that Ctrl-C is heard.
        loop {
            if let Some(aborted) = py.detach(|| engine.wait_closed(&wait, SLICE)) {
                return Ok(aborted);
            }
            py.check_signals()?;
        }
    }

    fn inherit(&self, lent: Vec<Py<Lent>>) -> PyResult<()> {
        let engine = self.engine()?;
        let sockets = lent.iter().map(|lent| lent.get().sockets());
        engine.inherit(sockets.collect::<PyResult<_>>()?);
        Ok(())
    }

    fn unwanted(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        let engine = self.engine()?;
        Ok(py.detach(|| engine.unwanted()))
    }

    fn receive(&self, py: Python<'_>, manifest: Vec<u8>, channels: Vec<i32>) -> PyResult<()> {
        let engine = self.engine()?;
        let channels = taken(&channels)?;
        py.detach(|| engine.receive(&manifest, channels))
            .map_err(failed)
    }

    fn wait_received(&self, py: Python<'_>, timeout: f64) -> PyResult<Option<u64>> {
        let patience: Duration = duration("timeout", timeout)?;
        let engine = self.engine()?;
        let Some(arrivals) = py.detach(|| engine.wait_received(patience)) else {
            return Ok(None);
        };
        match arrivals.error {
            Some(error) => Err(failed(error)),
            None => Ok(Some(arrivals.tunnels)),
        }
    }

    fn activate(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.engine()?;
        py.detach(|| engine.activate()).map_err(failed)
    }
}
