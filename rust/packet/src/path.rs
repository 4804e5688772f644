//! One role on this host: its programs and what they decide by.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use pybalancer_core::flow::{FlowHasher, Secret, slot};
use pybalancer_core::rows::{Rows, WIDTH};

use crate::attach::{self, Links, Mode};
use crate::error::{PacketError, refused};
use crate::kernel::Kernel;
use crate::layout::{HOP_WORDS, Hop, LAYOUT, MAX_ID, REASONS};
use crate::loader::{self, Maps};
use crate::object;
use crate::pins::Pins;
use crate::services::{Key, Services};
use crate::support;
use crate::sys;
use crate::trusted::{self, Network};

/// What a host is to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends them to backends.
    Director,
    /// Is a backend.
    Agent,
}

impl Role {
    fn program(self) -> &'static str {
        match self {
            Role::Director => "director",
            Role::Agent => "agent",
        }
    }
}

/// Counts of a service or a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Of those, ones that open a connection (SYN without ACK).
    pub flows: u64,
    /// Of a backend: second hops to it. Of a service: ICMP errors.
    pub others: u64,
}

/// All that was counted, up to one moment or nearly.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Packets by reason, since the maps were made.
    pub reasons: Vec<(&'static str, u64)>,
    /// Of services, by number.
    pub services: BTreeMap<u32, Counts>,
    /// Of backends, by id.
    pub backends: BTreeMap<u16, Counts>,
}

/// Programs and maps of one role.
pub struct PacketPath {
    program: OwnedFd,
    probe: Option<OwnedFd>,
    kernel: Kernel,
    services: Services,
    links: Links,
    pins: Option<Pins>,
    secret: Secret,
    size: u32,
    adopted: bool,
}

impl PacketPath {
    /// Load a role's program. `pin` is a directory below the BPF file system; what is found there of a process
    /// before is taken over, if it has the same secret and size, else replaced when the program is attached.
    pub fn new(
        role: Role,
        secret: Secret,
        size: u32,
        pin: Option<&str>,
    ) -> Result<PacketPath, PacketError> {
        if size == 0 || size > pybalancer_core::maglev::MAX_SIZE {
            return Err(PacketError::new(format!(
                "a table cannot have {size} slots"
            )));
        }
        support::lift_locked_limit();
        if object::layout().map_err(PacketError::new)? != LAYOUT {
            return Err(PacketError::new(
                "the object and this program do not belong together: run `make bpf`",
            ));
        }
        let pins = pin.map(Pins::open).transpose()?;
        let found = pins.as_ref().and_then(|pins| Maps::find(pins.directory()));
        let found = found
            .and_then(|maps| Kernel::open(maps).ok())
            .filter(|kernel| kernel.is_of(&secret, size));
        let adopted = found.is_some();
        let kernel = match found {
            Some(kernel) => kernel,
            None => {
                let kernel = Kernel::open(Maps::create(size)?)?;
                kernel.set_key(&secret, size);
                trusted::set(kernel.maps.trusted.as_fd(), None)?;
                kernel
            }
        };
        let program = kernel.maps.load(role.program())?;
        Ok(PacketPath {
            program,
            probe: None,
            services: Services::find(&kernel, size)?,
            links: Links::find(pins.as_ref()),
            kernel,
            pins,
            secret,
            size,
            adopted,
        })
    }

    /// Whether maps of a process before were taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Handle the packets of an interface; again to learn its MAC anew. The mode that it became.
    pub fn attach(&mut self, name: &str, modes: &[Mode]) -> Result<Mode, PacketError> {
        let number = attach::number_of(name)?;
        let mac = hardware_address(name)?;
        self.forget_gone();
        self.kernel.set_interface(number, mac)?;
        let mode = self
            .links
            .attach(number, modes, self.program.as_fd(), self.pins.as_ref())?;
        // Not before: until then others are in use, which a process that takes over must find.
        if let Some(pins) = &self.pins {
            for (name, map) in self.kernel.maps.named() {
                pins.keep(name, map)?;
            }
        }
        Ok(mode)
    }

    /// Let marked packets that leave by this interface take the way of packets.
    pub fn attach_probe(&mut self, name: &str) -> Result<(), PacketError> {
        let number = attach::number_of(name)?;
        let program = match self.probe.take() {
            Some(program) => program,
            None => self.kernel.maps.load("probe")?,
        };
        let done = self
            .links
            .attach(number, &[Mode::Egress], program.as_fd(), self.pins.as_ref());
        self.probe = Some(program);
        done.map(drop)
    }

    /// Leave the packets of an interface alone, probes too.
    pub fn detach(&mut self, name: &str) -> Result<(), PacketError> {
        let number = attach::number_of(name)?;
        if !self.links.detach(number, self.pins.as_ref()) {
            return Err(PacketError::new(format!("nothing is attached to {name}")));
        }
        self.forget_gone();
        Ok(())
    }

    /// Keep nothing of interfaces that have gone, to another network namespace too.
    pub fn forget_gone(&mut self) {
        let there = self.links.forget_gone(self.pins.as_ref());
        self.kernel.keep_interfaces(&there);
    }

    /// Interfaces with a program, by name.
    pub fn interfaces(&self) -> BTreeMap<String, Mode> {
        let named = |(number, mode)| Some((attach::name_of(number)?, mode));
        self.links
            .interfaces()
            .into_iter()
            .filter_map(named)
            .collect()
    }

    /// The way to a backend. A packet takes the old way or the new one, never a mix.
    pub fn set_backend(&mut self, id: u16, hop: Hop) -> Result<(), PacketError> {
        check_id(id)?;
        if let Some((source, fixed)) = hop.outer {
            let v6 = hop.address.to_canonical().is_ipv6();
            if source.to_canonical().is_ipv6() != v6 || fixed > if v6 { 128 } else { 32 } {
                return Err(PacketError::new(format!(
                    "packets to {} cannot have the source {source}/{fixed}",
                    hop.address
                )));
            }
        }
        self.kernel.set_hop(id, &hop.to_bytes())
    }

    /// Forget a backend: packets to it are dropped. Its counts begin anew.
    pub fn drop_backend(&mut self, id: u16) -> Result<(), PacketError> {
        check_id(id)?;
        self.kernel.set_hop(id, &[0; HOP_WORDS * 4])?;
        let none = vec![0; LAYOUT[6] as usize * self.kernel.cpus];
        sys::map_update(
            self.kernel.maps.of_backends.as_fd(),
            &u32::from(id).to_ne_bytes(),
            &none,
        )
        .map_err(refused("clear the counts of a backend"))
    }

    /// Backends that are known, and where they are; after a take-over those of the process before.
    pub fn backends(&self) -> BTreeMap<u16, IpAddr> {
        (1..=MAX_ID)
            .filter_map(|id| Some((id, self.kernel.address(id)?)))
            .collect()
    }

    /// Which backend this host is.
    pub fn set_me(&mut self, id: u16) -> Result<(), PacketError> {
        check_id(id)?;
        self.kernel.set_me(id);
        Ok(())
    }

    /// Whose outer headers an agent takes off, see [`trusted::set`]; everybody's until this is called.
    pub fn set_trusted(&mut self, networks: Option<&[Network]>) -> Result<(), PacketError> {
        trusted::set(self.kernel.maps.trusted.as_fd(), networks)
    }

    /// What was set by that, of a process before, too; None: everybody's.
    pub fn trusted(&self) -> Result<Option<Vec<Network>>, PacketError> {
        trusted::get(self.kernel.maps.trusted.as_fd())
    }

    /// A service and its rows, see [`Services::set`].
    pub fn set_service(
        &mut self,
        number: u32,
        key: Key,
        rows: &Rows,
        mtu: u32,
    ) -> Result<(), PacketError> {
        self.services.set(&mut self.kernel, number, key, rows, mtu)
    }

    /// Take a service away: its packets are no longer ours. Its counts begin anew.
    pub fn drop_service(&mut self, number: u32) -> Result<(), PacketError> {
        self.services.drop(&mut self.kernel, number)
    }

    /// Services that are there, by number; after a take-over those of the process before.
    pub fn services(&self) -> BTreeMap<u32, Key> {
        self.services.keys()
    }

    /// Packets by reason, since the maps were made.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, PacketError> {
        let map = self.kernel.maps.counters.as_fd();
        (0..)
            .zip(REASONS)
            .map(|(index, (name, _))| {
                let [count] = self.kernel.sums(map, index)?;
                Ok((name, count))
            })
            .collect()
    }

    /// Reasons, and the counts of all services and backends that are there.
    pub fn counts(&self) -> Result<Tally, PacketError> {
        let maps = &self.kernel.maps;
        let of = |map, number| self.kernel.sums(map, number).map(Counts::from);
        let (of_services, of_backends) = (maps.of_services.as_fd(), maps.of_backends.as_fd());
        Ok(Tally {
            reasons: self.counters()?,
            services: self
                .services
                .keys()
                .into_keys()
                .map(|number| Ok((number, of(of_services, number)?)))
                .collect::<Result<_, PacketError>>()?,
            backends: (1..=MAX_ID)
                .filter(|id| self.kernel.knows(*id))
                .map(|id| Ok((id, of(of_backends, u32::from(id))?)))
                .collect::<Result<_, PacketError>>()?,
        })
    }

    /// Slot and row of a client, as they are in the kernel.
    pub fn row_of(
        &self,
        number: u32,
        address: IpAddr,
        port: u16,
    ) -> Result<(u32, [u16; WIDTH]), PacketError> {
        let hash = FlowHasher::new(&self.secret).source((address, port).into());
        let slot = slot(hash, self.size);
        Ok((slot, self.services.row(&self.kernel, number, slot)?))
    }

    /// Run a program on a packet: what it says, the packet after it, nanoseconds a run.
    ///
    /// As if the packet had come by `interface`; without one, by number 1 (`lo`). `mark` is the probe's only.
    pub fn test_run(
        &mut self,
        packet: &[u8],
        repeat: u32,
        program: Option<&str>,
        interface: Option<&str>,
        mark: u32,
    ) -> Result<(String, Vec<u8>, u32), PacketError> {
        let number = interface.map(attach::number_of).transpose()?.unwrap_or(1);
        let mut context: Vec<u8> = Vec::new();
        let mut words =
            |words: &[u32]| context.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        let other;
        let probe = program == Some("probe");
        if probe {
            // len, pkt_type, mark, …, ifindex: struct __sk_buff.
            words(&[0, 0, mark, 0, 0, 0, 0, 0, 0, 0, number]);
        } else {
            words(&[0, packet.len() as u32, 0, number, 0, 0]);
        }
        let program = match program {
            None => self.program.as_fd(),
            Some("baseline") => {
                other = baseline()?;
                other.as_fd()
            }
            Some(name @ ("director" | "agent" | "probe")) => {
                other = self.kernel.maps.load(name)?;
                other.as_fd()
            }
            Some(name) => return Err(PacketError::new(format!("there is no program {name:?}"))),
        };
        let ran = sys::test_run(program, packet, repeat, &context)
            .map_err(refused("run the program on a packet"))?;
        let verdict = match (probe, ran.verdict) {
            (false, 1) | (true, 2) => "drop".to_owned(),
            (false, 2) => "pass".to_owned(),
            (false, 3) => "tx".to_owned(),
            (false, 4) | (true, 7) => "redirect".to_owned(),
            (true, u32::MAX) => "next".to_owned(),
            (_, other) => other.to_string(),
        };
        Ok((verdict, ran.packet, ran.duration))
    }

    /// The end. With `keep`, what is pinned goes on; else everything is detached and forgotten.
    pub fn close(mut self, keep: bool) {
        if keep && self.pins.is_some() {
            return;
        }
        self.links.detach_all(self.pins.as_ref());
        if let Some(pins) = &self.pins {
            pins.clear();
        }
    }
}

/// Hardware address of an interface of the calling thread's network namespace.
pub fn hardware_address(name: &str) -> Result<[u8; 6], PacketError> {
    sys::hardware_address(name).map_err(refused(format_args!(
        "ask for the hardware address of {name}"
    )))
}

impl From<[u64; 4]> for Counts {
    fn from([packets, bytes, flows, others]: [u64; 4]) -> Counts {
        Counts {
            packets,
            bytes,
            flows,
            others,
        }
    }
}

fn check_id(id: u16) -> Result<(), PacketError> {
    if (1..=MAX_ID).contains(&id) {
        Ok(())
    } else {
        Err(PacketError::new(format!(
            "backends have numbers from 1 to {MAX_ID}, not {id}"
        )))
    }
}

/// A program that lets everything pass: what it costs to run one at all.
fn baseline() -> Result<OwnedFd, PacketError> {
    // r0 = XDP_PASS; exit
    let instructions = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    loader::load_plain(
        "pb_baseline",
        loader::XDP,
        loader::ATTACH_XDP,
        &instructions,
    )
}

/// Whether the kernel lets this process have programs and maps at all.
pub fn try_out() -> Result<(), PacketError> {
    support::lift_locked_limit();
    loader::new_table(8)?;
    baseline().map(drop)
}
