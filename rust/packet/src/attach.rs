//! Programs at interfaces.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{PacketError, refused};
use crate::loader::{ATTACH_EGRESS, ATTACH_XDP};
use crate::pins::Pins;
use crate::sys;

/// How a program runs at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP in the kernel's common code, for drivers without: slower.
    Generic,
    /// tcx at egress.
    Egress,
}

impl Mode {
    /// Its name, for people and for pins.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
            Mode::Egress => "egress",
        }
    }

    /// Attach type and flags of a link.
    fn flags(self) -> (u32, u32) {
        match self {
            Mode::Native => (ATTACH_XDP, 1 << 2),
            Mode::Generic => (ATTACH_XDP, 1 << 1),
            Mode::Egress => (ATTACH_EGRESS, 0),
        }
    }
}

/// The links of a process: while they live, the programs run.
pub struct Links {
    links: BTreeMap<(u32, Mode), OwnedFd>,
    /// Links that a process before has left, which still run its program.
    foreign: BTreeMap<(u32, Mode), OwnedFd>,
}

impl Links {
    /// With those that a process before has pinned. They run its program until [`attach`](Links::attach).
    pub fn find(pins: Option<&Pins>) -> Links {
        let mut foreign = BTreeMap::new();
        for mode in [Mode::Native, Mode::Generic, Mode::Egress] {
            for (number, link) in pins.map(|pins| pins.links(mode.name())).unwrap_or_default() {
                foreign.insert((number, mode), link);
            }
        }
        Links {
            links: BTreeMap::new(),
            foreign,
        }
    }

    /// Run `program` at an interface, in the first of `modes` that works there.
    pub fn attach(
        &mut self,
        number: u32,
        modes: &[Mode],
        program: BorrowedFd<'_>,
        pins: Option<&Pins>,
    ) -> Result<Mode, PacketError> {
        let there = modes
            .iter()
            .find(|mode| self.links.contains_key(&(number, **mode)));
        if let Some(mode) = there {
            return Ok(*mode);
        }
        // Taken over without a packet in between that nobody handles.
        for mode in modes {
            if let Some(link) = self.foreign.remove(&(number, *mode)) {
                sys::link_update(link.as_fd(), program)
                    .map_err(refused("take over the program that is attached"))?;
                self.links.insert((number, *mode), link);
                return Ok(*mode);
            }
        }
        if !modes.contains(&Mode::Egress) {
            self.detach(number, pins);
        }
        let mut last = PacketError::new("no mode was asked for");
        for mode in modes {
            let (attach, flags) = mode.flags();
            match sys::link_create(program, number, attach, flags) {
                Ok(link) => {
                    if let Some(pins) = pins {
                        pins.put(&pin(*mode, number), link.as_fd())?;
                    }
                    self.links.insert((number, *mode), link);
                    return Ok(*mode);
                }
                Err(error) => last = why_not(number, *mode, &error),
            }
        }
        Err(last)
    }

    /// Nothing of ours runs at this interface any more; whether something did.
    pub fn detach(&mut self, number: u32, pins: Option<&Pins>) -> bool {
        let mut found = false;
        for mode in [Mode::Native, Mode::Generic, Mode::Egress] {
            let link = self.links.remove(&(number, mode));
            let left = self.foreign.remove(&(number, mode));
            if link.is_some() || left.is_some() {
                found = true;
                if let Some(pins) = pins {
                    pins.remove(&pin(mode, number));
                }
            }
        }
        found
    }

    /// Interfaces with XDP, by number, and how. Those that were found, too.
    pub fn interfaces(&self) -> BTreeMap<u32, Mode> {
        self.links
            .keys()
            .chain(self.foreign.keys())
            .filter(|(_, mode)| *mode != Mode::Egress)
            .copied()
            .collect()
    }
}

fn pin(mode: Mode, number: u32) -> String {
    format!("{}_{number}", mode.name())
}

fn why_not(number: u32, mode: Mode, error: &io::Error) -> PacketError {
    let name = name_of(number).unwrap_or_else(|| format!("number {number}"));
    let hint = match (error.raw_os_error(), mode) {
        (Some(libc::EBUSY | libc::EEXIST), _) => {
            "another program is attached there (`ip link show` names it); detach it first, or choose another interface"
        }
        (Some(libc::EOPNOTSUPP), Mode::Native) => {
            "its driver does not run XDP; mode \"generic\" works with every driver"
        }
        (Some(libc::EINVAL | libc::ERANGE), Mode::Native) => {
            "its driver refuses XDP as the interface is set now: often an MTU above about 3,500, or LRO"
        }
        (Some(libc::EINVAL), Mode::Egress) => "checks through an outer header need Linux 6.6 (tcx)",
        _ => {
            return PacketError::refused(
                &format!("attach to {name} in {} mode", mode.name()),
                error,
            );
        }
    };
    PacketError::new(format!(
        "cannot attach to {name} in {} mode: {hint}",
        mode.name()
    ))
}

/// Number of an interface of the calling thread's network namespace.
pub fn number_of(name: &str) -> Result<u32, PacketError> {
    let socket = question().map_err(refused("ask for interfaces"))?;
    name_to_index(&socket, name).map_err(|_| {
        PacketError::new(format!(
            "there is no interface {name:?}; `ip link` lists those that there are"
        ))
    })
}

/// Name of an interface of the calling thread's network namespace.
pub fn name_of(number: u32) -> Option<String> {
    index_to_name(question().ok()?, number).ok()
}

fn question() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
