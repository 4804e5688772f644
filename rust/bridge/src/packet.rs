//! Packet mode: rows, and the handle on programs and maps.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pybalancer_core::rows::{Member, Rows, Seen};
use pybalancer_packet::attach::{Mode, number_of};
use pybalancer_packet::error::PacketError;
use pybalancer_packet::layout::{Hop, Protocol, REASONS};
use pybalancer_packet::path::{self, Counts, Role};
use pybalancer_packet::support;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use crate::error::{packet_error, plan_error};
use crate::plan::secret_of;

/// Backends by name, weight and id.
type Members = Vec<(String, u32, u16)>;
/// A row, as a tuple.
type Ids = (u16, u16, u16, u16, u16, u16);
/// Counts, as a tuple: packets, bytes, flows, others.
type FourCounts = (u64, u64, u64, u64);
/// By reason, by number of a service, by id of a backend.
type AllCounts = (
    HashMap<&'static str, u64>,
    BTreeMap<u32, FourCounts>,
    BTreeMap<u16, FourCounts>,
);

#[pyclass(frozen, module = "pybalancer._core")]
pub struct PacketRows(Rows);

#[pymethods]
impl PacketRows {
    #[new]
    #[pyo3(signature = (generations, *, me=0, joined=None, late=None, secret, size=65537))]
    fn new(
        py: Python<'_>,
        generations: Vec<Members>,
        me: u16,
        joined: Option<Members>,
        late: Option<Vec<u16>>,
        secret: &[u8],
        size: u32,
    ) -> PyResult<PacketRows> {
        let secret = secret_of(secret)?;
        let members: Vec<Vec<Member<'_>>> = generations.iter().map(|set| borrowed(set)).collect();
        let sets: Vec<&[Member<'_>]> = members.iter().map(Vec::as_slice).collect();
        let joined = joined.unwrap_or_default();
        let (joined, late) = (borrowed(&joined), late.unwrap_or_default());
        let seen = Seen {
            me,
            joined: &joined,
            late: &late,
        };
        py.detach(|| Rows::build(&secret, &sets, seen, size))
            .map(PacketRows)
            .map_err(|error| plan_error(error.to_string()))
    }

    #[getter]
    fn digest(&self) -> String {
        format!("{:032x}", self.0.digest())
    }

    #[getter]
    fn owners_digest(&self) -> String {
        format!("{:032x}", self.0.owners())
    }

    #[getter]
    fn size(&self) -> usize {
        self.0.rows().len()
    }

    fn row(&self, slot: usize) -> PyResult<Ids> {
        let row = self.0.rows().get(slot).copied();
        row.map(<Ids>::from).ok_or_else(|| {
            PyIndexError::new_err(format!("the table has {} slots", self.0.rows().len()))
        })
    }

    fn moved(&self) -> u32 {
        self.0.moved()
    }
}

fn borrowed(set: &[(String, u32, u16)]) -> Vec<Member<'_>> {
    set.iter()
        .map(|(name, weight, id)| (&**name, *weight, *id))
        .collect()
}

#[pyclass(frozen, module = "pybalancer._core")]
pub struct PacketPath(Mutex<Option<path::PacketPath>>);

impl PacketPath {
    fn inner(&self) -> MutexGuard<'_, Option<path::PacketPath>> {
        // What a panic left is a handle on the kernel's state, which is whole at every moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do it without the interpreter's lock: a swap waits for the kernel.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut path::PacketPath) -> Result<T, PacketError> + Send,
    ) -> PyResult<T> {
        py.detach(|| match &mut *self.inner() {
            Some(path) => act(path),
            None => Err(PacketError::new("this packet path is closed")),
        })
        .map_err(packet_error)
    }
}

#[pymethods]
impl PacketPath {
    #[classattr]
    #[allow(non_snake_case, reason = "Python's name for a constant")]
    fn REASONS() -> BTreeMap<&'static str, &'static str> {
        REASONS.into_iter().collect()
    }

    #[new]
    #[pyo3(signature = (role, *, secret, size=65537, pin=None))]
    fn new(
        py: Python<'_>,
        role: &str,
        secret: &[u8],
        size: u32,
        pin: Option<&str>,
    ) -> PyResult<PacketPath> {
        let role = match role {
            "director" => Role::Director,
            "agent" => Role::Agent,
            _ => {
                return Err(packet_error(format!(
                    "a role is director or agent, not {role:?}"
                )));
            }
        };
        let secret = secret_of(secret)?;
        py.detach(|| path::PacketPath::new(role, secret, size, pin))
            .map(|path| PacketPath(Mutex::new(Some(path))))
            .map_err(packet_error)
    }

    #[getter]
    fn adopted(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |path| Ok(path.adopted()))
    }

    #[pyo3(signature = (interface, mode="auto"))]
    fn attach(&self, py: Python<'_>, interface: &str, mode: &str) -> PyResult<&'static str> {
        let modes: &[Mode] = match mode {
            "auto" => &[Mode::Native, Mode::Generic],
            "native" => &[Mode::Native],
            "generic" => &[Mode::Generic],
            _ => {
                return Err(packet_error(format!(
                    "a mode is auto, native or generic, not {mode:?}"
                )));
            }
        };
        self.with(py, |path| path.attach(interface, modes))
            .map(Mode::name)
    }

    fn attach_probe(&self, py: Python<'_>, interface: &str) -> PyResult<()> {
        self.with(py, |path| path.attach_probe(interface))
    }

    fn detach(&self, py: Python<'_>, interface: &str) -> PyResult<()> {
        self.with(py, |path| path.detach(interface))
    }

    fn forget_gone(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |path| {
            path.forget_gone();
            Ok(())
        })
    }

    fn interfaces(&self, py: Python<'_>) -> PyResult<BTreeMap<String, &'static str>> {
        let found = self.with(py, |path| Ok(path.interfaces()))?;
        Ok(found
            .into_iter()
            .map(|(name, mode)| (name, mode.name()))
            .collect())
    }

    #[pyo3(signature = (id, *, address, mac, interface, encapsulate, source))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn set_backend(
        &self,
        py: Python<'_>,
        id: u16,
        address: &str,
        mac: Option<Cow<'_, [u8]>>,
        interface: Option<&str>,
        encapsulate: bool,
        source: Option<&str>,
    ) -> PyResult<()> {
        let address = ip(address)?;
        let mac = mac
            .map(|bytes| {
                <[u8; 6]>::try_from(&*bytes)
                    .map_err(|_| packet_error(format!("a MAC has 6 bytes, not {}", bytes.len())))
            })
            .transpose()?;
        let outer = match (encapsulate, source) {
            (false, _) => None,
            (true, Some(source)) => Some(network(source)?),
            (true, None) => return Err(packet_error("an outer header needs a source")),
        };
        self.with(py, |path| {
            let interface = interface
                .map(|name| {
                    let number = number_of(name)?;
                    Ok((number, path::hardware_address(name)?))
                })
                .transpose()?;
            path.set_backend(
                id,
                Hop {
                    address,
                    mac,
                    interface,
                    outer,
                },
            )
        })
    }

    fn drop_backend(&self, py: Python<'_>, id: u16) -> PyResult<()> {
        self.with(py, |path| path.drop_backend(id))
    }

    fn backends(&self, py: Python<'_>) -> PyResult<BTreeMap<u16, String>> {
        self.with(py, |path| Ok(path.backends())).map(|found| {
            found
                .into_iter()
                .map(|(id, address)| (id, address.to_string()))
                .collect()
        })
    }

    fn set_me(&self, py: Python<'_>, id: u16) -> PyResult<()> {
        self.with(py, |path| path.set_me(id))
    }

    fn set_trusted(&self, py: Python<'_>, networks: Option<Vec<String>>) -> PyResult<()> {
        let networks = networks
            .map(|texts| {
                let read = texts.iter().map(|text| network(text));
                read.collect::<PyResult<Vec<_>>>()
            })
            .transpose()?;
        self.with(py, |path| path.set_trusted(networks.as_deref()))
    }

    fn trusted(&self, py: Python<'_>) -> PyResult<Option<Vec<String>>> {
        let networks = self.with(py, |path| path.trusted())?;
        let written = |(address, fixed): (IpAddr, u8)| format!("{address}/{fixed}");
        Ok(networks.map(|all| all.into_iter().map(written).collect()))
    }

    #[pyo3(signature = (number, address, port, protocol, rows, *, mtu=1500))]
    #[allow(clippy::too_many_arguments, reason = "named in Python")]
    fn set_service(
        &self,
        py: Python<'_>,
        number: u32,
        address: &str,
        port: u16,
        protocol: &str,
        rows: &PacketRows,
        mtu: u32,
    ) -> PyResult<()> {
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => {
                return Err(packet_error(format!(
                    "a protocol is tcp or udp, not {protocol:?}"
                )));
            }
        };
        let key = (ip(address)?, port, protocol);
        self.with(py, |path| path.set_service(number, key, &rows.0, mtu))
    }

    fn drop_service(&self, py: Python<'_>, number: u32) -> PyResult<()> {
        self.with(py, |path| path.drop_service(number))
    }

    fn services(&self, py: Python<'_>) -> PyResult<BTreeMap<u32, (String, u16, &'static str)>> {
        let found = self.with(py, |path| Ok(path.services()))?;
        let named = |(address, port, protocol): (IpAddr, u16, Protocol)| {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            (address.to_string(), port, protocol)
        };
        Ok(found
            .into_iter()
            .map(|(number, key)| (number, named(key)))
            .collect())
    }

    fn counters(&self, py: Python<'_>) -> PyResult<HashMap<&'static str, u64>> {
        let found = self.with(py, |path| path.counters())?;
        Ok(found.into_iter().collect())
    }

    fn counts(&self, py: Python<'_>) -> PyResult<AllCounts> {
        let found = self.with(py, |path| path.counts())?;
        Ok((
            found.reasons.into_iter().collect(),
            in_order(found.services),
            in_order(found.backends),
        ))
    }

    fn slot(&self, py: Python<'_>, number: u32, address: &str, port: u16) -> PyResult<(u32, Ids)> {
        let address = ip(address)?;
        let (slot, row) = self.with(py, |path| path.row_of(number, address, port))?;
        Ok((slot, row.into()))
    }

    #[pyo3(signature = (packet, *, repeat=1, program=None, interface=None, mark=0))]
    fn test_run(
        &self,
        py: Python<'_>,
        packet: &[u8],
        repeat: u32,
        program: Option<&str>,
        interface: Option<&str>,
        mark: u32,
    ) -> PyResult<(String, Cow<'static, [u8]>, u32)> {
        let (verdict, after, duration) = self.with(py, |path| {
            path.test_run(packet, repeat, program, interface, mark)
        })?;
        Ok((verdict, Cow::Owned(after), duration))
    }

    #[pyo3(signature = (*, keep))]
    fn close(&self, py: Python<'_>, keep: bool) {
        py.detach(|| {
            if let Some(path) = self.inner().take() {
                path.close(keep);
            }
        });
    }
}

#[pyfunction]
#[pyo3(signature = (interface=None, *, checks=false))]
pub fn packet_support(py: Python<'_>, interface: Option<&str>, checks: bool) -> Vec<String> {
    py.detach(|| support::missing(interface, checks))
}

fn in_order<K: Ord>(found: BTreeMap<K, Counts>) -> BTreeMap<K, FourCounts> {
    let in_order = |counts: Counts| (counts.packets, counts.bytes, counts.flows, counts.others);
    found
        .into_iter()
        .map(|(number, counts)| (number, in_order(counts)))
        .collect()
}

fn ip(text: &str) -> PyResult<IpAddr> {
    text.parse()
        .map_err(|_| packet_error(format!("{text:?} is not an IP address")))
}

/// An address, or a network with the number of its fixed bits.
fn network(text: &str) -> PyResult<(IpAddr, u8)> {
    let Some((address, fixed)) = text.split_once('/') else {
        let address = ip(text)?;
        return Ok((address, if address.is_ipv4() { 32 } else { 128 }));
    };
    let fixed = fixed
        .parse()
        .map_err(|_| packet_error(format!("{text:?} is not a network")))?;
    Ok((ip(address)?, fixed))
}
