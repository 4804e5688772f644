//! Programs at interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{PacketError, refused};
use crate::loader::{self, ATTACH_EGRESS, ATTACH_XDP};
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

const ALL: [Mode; 3] = [Mode::Native, Mode::Generic, Mode::Egress];
const XDP: [Mode; 2] = [Mode::Native, Mode::Generic];

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
        for mode in ALL {
            for (number, link) in pins.map(|pins| pins.links(mode.name())).unwrap_or_default() {
                foreign.insert((number, mode), link);
            }
        }
        Links {
            links: BTreeMap::new(),
            foreign,
        }
    }

    /// Run `program` at an interface, in the first of `modes` that works there. If none does, what was there runs
    /// as before.
    pub fn attach(
        &mut self,
        number: u32,
        modes: &[Mode],
        program: BorrowedFd<'_>,
        pins: Option<&Pins>,
    ) -> Result<Mode, PacketError> {
        for mode in modes {
            if self.take_over(number, *mode, program, pins)? {
                return Ok(*mode);
            }
        }
        // The kernel has XDP in one mode at a time: packets are the stack's for a moment.
        let former = XDP
            .into_iter()
            .find(|mode| !modes.contains(&Mode::Egress) && self.detach_mode(number, *mode, pins));
        let mut last = PacketError::new("no mode was asked for");
        for mode in modes {
            match self.create(number, *mode, program, pins) {
                Ok(()) => return Ok(*mode),
                Err(error) => last = error,
            }
        }
        match former.map(|former| self.create(number, former, program, pins)) {
            Some(Err(error)) => Err(PacketError::new(format!(
                "{last}; and nothing is attached now: {error}"
            ))),
            _ => Err(last),
        }
    }

    /// Let a link that is there run `program`, without a packet in between that nobody handles.
    fn take_over(
        &mut self,
        number: u32,
        mode: Mode,
        program: BorrowedFd<'_>,
        pins: Option<&Pins>,
    ) -> Result<bool, PacketError> {
        let key = (number, mode);
        let Some(link) = self
            .links
            .remove(&key)
            .or_else(|| self.foreign.remove(&key))
        else {
            return Ok(false);
        };
        match sys::link_update(link.as_fd(), program) {
            Ok(()) => {}
            // Its interface has gone, and another one has the number.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                forget(&key, pins);
                return Ok(false);
            }
            Err(error) => {
                self.links.insert(key, link);
                return Err(refused("take over the program that is attached")(error));
            }
        }
        let link = self.links.entry(key).or_insert(link);
        pins.map_or(Ok(()), |pins| pins.keep(&pin(mode, number), link.as_fd()))?;
        Ok(true)
    }

    fn create(
        &mut self,
        number: u32,
        mode: Mode,
        program: BorrowedFd<'_>,
        pins: Option<&Pins>,
    ) -> Result<(), PacketError> {
        let (attach, flags) = mode.flags();
        let link = sys::link_create(program, number, attach, flags)
            .map_err(|error| why_not(number, mode, &error))?;
        if let Some(pins) = pins {
            pins.keep(&pin(mode, number), link.as_fd())?;
        }
        self.links.insert((number, mode), link);
        Ok(())
    }

    /// Nothing of ours runs at this interface any more; whether something did.
    pub fn detach(&mut self, number: u32, pins: Option<&Pins>) -> bool {
        ALL.into_iter().fold(false, |found, mode| {
            self.detach_mode(number, mode, pins) | found
        })
    }

    fn detach_mode(&mut self, number: u32, mode: Mode, pins: Option<&Pins>) -> bool {
        let key = (number, mode);
        let links = [self.links.remove(&key), self.foreign.remove(&key)];
        let found = links.iter().any(Option::is_some);
        for link in links.into_iter().flatten() {
            // It may have gone with its interface.
            let _ = sys::link_detach(link.as_fd());
        }
        if found {
            forget(&key, pins);
        }
        found
    }

    /// Nothing of ours runs anywhere.
    pub fn detach_all(&mut self, pins: Option<&Pins>) {
        let keys: Vec<(u32, Mode)> = self
            .links
            .keys()
            .chain(self.foreign.keys())
            .copied()
            .collect();
        for (number, mode) in keys {
            self.detach_mode(number, mode, pins);
        }
    }

    /// Forget the links of interfaces that are not in this network namespace any more; the numbers of the others.
    pub fn forget_gone(&mut self, pins: Option<&Pins>) -> BTreeSet<u32> {
        let all = self.links.iter().chain(&self.foreign);
        let (there, gone): (Vec<_>, Vec<_>) = all
            .map(|(key, link)| (*key, may_be_at(link.as_fd(), key.0)))
            .partition(|(_, there)| *there);
        for ((number, mode), _) in gone {
            // One that is in another namespace now still runs the program.
            self.detach_mode(number, mode, pins);
        }
        there.into_iter().map(|((number, _), _)| number).collect()
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

/// Whether a link is still at the interface of this number, in this network namespace. Where that cannot be found out
/// (this process has no descriptor left) it is: a program that is detached by mistake costs connections.
fn may_be_at(link: BorrowedFd<'_>, number: u32) -> bool {
    let elsewhere = sys::link_interface(link).is_ok_and(|found| found != number);
    let gone = question().is_ok_and(|socket| {
        let error = index_to_name(&socket, number).err();
        error.is_some_and(|error| matches!(error, Errno::NODEV | Errno::NXIO))
    });
    !elsewhere && !gone
}

fn forget((number, mode): &(u32, Mode), pins: Option<&Pins>) {
    if let Some(pins) = pins {
        pins.remove(&pin(*mode, *number));
    }
}

fn pin(mode: Mode, number: u32) -> String {
    format!("{}_{number}", mode.name())
}

/// What is said where links of tcx are not known.
const NO_TCX: &str = "checks through an outer header need Linux 6.6 (tcx)";

/// Whether the kernel has what [`Mode::Egress`] needs: asked for an interface that cannot be there.
pub fn try_egress() -> Result<(), PacketError> {
    // r0 = TCX_NEXT; exit
    let instructions = [
        0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0,
    ];
    let program = loader::load_plain("pb_try", loader::CLASSIFIER, 0, &instructions)?;
    let (attach, flags) = Mode::Egress.flags();
    match sys::link_create(program.as_fd(), i32::MAX as u32, attach, flags) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(PacketError::new(format!(
            "this kernel is too old for forward = \"ipip\": {NO_TCX}"
        ))),
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
            Err(refused("attach a program for checks")(error))
        }
        _ => Ok(()),
    }
}

fn why_not(number: u32, mode: Mode, error: &io::Error) -> PacketError {
    let name = name_of(number).unwrap_or_else(|| format!("number {number}"));
    let hint = match (error.raw_os_error(), mode) {
        (Some(libc::EBUSY | libc::EEXIST), _) => {
            "another program is attached there (`ip link show` names it): end what has attached it, or choose another interface"
        }
        (Some(libc::EOPNOTSUPP), Mode::Native) => {
            "its driver does not run XDP; mode \"generic\" works with every driver"
        }
        (Some(libc::EINVAL | libc::ERANGE), Mode::Native) => {
            "its driver refuses XDP as the interface is set now: often an MTU above about 3,500, or LRO"
        }
        (Some(libc::EINVAL), Mode::Egress) => NO_TCX,
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
