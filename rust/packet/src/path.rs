//! One role on this host: its programs and what they decide by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use pybalancer_core::flow::{FlowHasher, Secret, slot};
use pybalancer_core::rows::{Rows, WIDTH};

use crate::attach::{self, Links, Mode};
use crate::error::{PacketError, refused};
use crate::layout::{
    self, BACKEND_WORDS, HOP_WORDS, Hop, LAYOUT, MAX_ID, MAX_SERVICES, Protocol, REASONS, ROW,
};
use crate::loader::{self, Maps};
use crate::object;
use crate::pins::Pins;
use crate::sys::{self, Program, Shared};

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

/// A service as it is in the maps.
struct Service {
    key: (IpAddr, u16, Protocol),
    mtu: u32,
    /// None for one that a process before has left.
    table: Option<OwnedFd>,
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

/// Programs and maps of one role.
pub struct PacketPath {
    program: OwnedFd,
    probe: Option<OwnedFd>,
    maps: Maps,
    /// The map of backends.
    backends: Shared,
    /// Backends whose other hop a packet may still hold.
    fresh: BTreeSet<u16>,
    services: BTreeMap<u32, Service>,
    links: Links,
    pins: Option<Pins>,
    secret: Secret,
    size: u32,
    me: u16,
    cpus: usize,
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
        if object::layout().map_err(PacketError::new)? != LAYOUT {
            return Err(PacketError::new(
                "the object and this program do not belong together: run `make bpf`",
            ));
        }
        let pins = pin.map(Pins::open).transpose()?;
        let found = pins
            .as_ref()
            .and_then(|pins| Maps::find(pins.directory()))
            .filter(|maps| is_of(maps, &secret, size));
        let adopted = found.is_some();
        let maps = match found {
            Some(maps) => maps,
            None => {
                let maps = Maps::create(size)?;
                let settings = layout::settings(&secret, size, 0);
                sys::map_update(maps.settings.as_fd(), &[0; 4], &settings)
                    .map_err(refused("write the settings"))?;
                maps
            }
        };
        let program = maps.load(role.program())?;
        if let (Some(pins), false) = (&pins, adopted) {
            for (name, map) in maps.named() {
                pins.put(name, map)?;
            }
        }
        let words = (usize::from(MAX_ID) + 1) * BACKEND_WORDS;
        let backends =
            Shared::map(&maps.backends, words * 4).map_err(refused("map the backends"))?;
        let mut path = PacketPath {
            program,
            probe: None,
            backends,
            fresh: BTreeSet::new(),
            services: BTreeMap::new(),
            links: Links::find(pins.as_ref()),
            pins,
            secret,
            size,
            me: 0,
            cpus: loader::possible_cpus()?,
            adopted,
            maps,
        };
        if adopted {
            path.fresh = path.backends_there().into_iter().collect();
            path.find_services()?;
        }
        Ok(path)
    }

    fn find_services(&mut self) -> Result<(), PacketError> {
        let services = self.maps.services.as_fd();
        for key in
            sys::map_keys(services, LAYOUT[2] as usize).map_err(refused("read the services"))?
        {
            let mut value = [0; 8];
            let there =
                sys::map_lookup(services, &key, &mut value).map_err(refused("read a service"))?;
            if let (true, Some(key)) = (there, layout::service_of(&key)) {
                let [a, b, c, d, e, f, g, h] = value;
                let number = u32::from_ne_bytes([a, b, c, d]);
                let mtu = u32::from_ne_bytes([e, f, g, h]);
                self.services.insert(
                    number,
                    Service {
                        key,
                        mtu,
                        table: None,
                    },
                );
            }
        }
        Ok(())
    }

    /// Whether maps of a process before were taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Handle the packets of an interface; again to learn its MAC anew. The mode that it became.
    pub fn attach(&mut self, name: &str, modes: &[Mode]) -> Result<Mode, PacketError> {
        let number = attach::number_of(name)?;
        let mac = hardware_address(name)?;
        sys::map_update(
            self.maps.interfaces.as_fd(),
            &number.to_ne_bytes(),
            &layout::interface(mac),
        )
        .map_err(refused(format_args!("note the interface {name}")))?;
        self.links
            .attach(number, modes, self.program.as_fd(), self.pins.as_ref())
    }

    /// Let marked packets that leave by this interface take the way of packets.
    pub fn attach_probe(&mut self, name: &str) -> Result<(), PacketError> {
        let number = attach::number_of(name)?;
        let program = match self.probe.take() {
            Some(program) => program,
            None => self.maps.load("probe")?,
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
        sys::map_delete(self.maps.interfaces.as_fd(), &number.to_ne_bytes())
            .map_err(refused(format_args!("forget the interface {name}")))
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
        self.write_backend(id, hop.to_bytes())
    }

    /// Forget a backend: packets to it are dropped. Its counts begin anew.
    pub fn drop_backend(&mut self, id: u16) -> Result<(), PacketError> {
        check_id(id)?;
        self.write_backend(id, [0; HOP_WORDS * 4])?;
        let none = vec![0; 32 * self.cpus];
        sys::map_update(
            self.maps.of_backends.as_fd(),
            &u32::from(id).to_ne_bytes(),
            &none,
        )
        .map_err(refused("clear the counts of a backend"))
    }

    /// Backends that are known.
    pub fn backends_there(&self) -> Vec<u16> {
        let known = |id: &u16| {
            let at = usize::from(*id) * BACKEND_WORDS;
            let live = self.word(at) as usize & 1;
            // The flags, behind two MACs and the interface.
            self.word(at + 2 + live * HOP_WORDS + 4) & 1 == 1
        };
        (1..=MAX_ID).filter(known).collect()
    }

    fn word(&self, index: usize) -> u32 {
        self.backends
            .word(index)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn write_backend(&mut self, id: u16, hop: [u8; HOP_WORDS * 4]) -> Result<(), PacketError> {
        let at = usize::from(id) * BACKEND_WORDS;
        let live = self.word(at) & 1;
        let place = |which: u32| at + 2 + which as usize * HOP_WORDS;
        let same = hop
            .chunks_exact(4)
            .zip(place(live)..)
            .all(|(four, index)| four == self.word(index).to_ne_bytes());
        if same {
            return Ok(());
        }
        // Who read `live` before it changed last may still be reading what is to be overwritten.
        if self.fresh.contains(&id) {
            sys::wait_for_packets().map_err(refused("wait for packets under way"))?;
            self.fresh.clear();
        }
        let other = live ^ 1;
        self.backends.write(place(other), &hop);
        if let Some(word) = self.backends.word(at) {
            word.store(other, Ordering::Release);
        }
        self.fresh.insert(id);
        Ok(())
    }

    /// Which backend this host is.
    pub fn set_me(&mut self, id: u16) -> Result<(), PacketError> {
        check_id(id)?;
        let settings = layout::settings(&self.secret, self.size, id);
        sys::map_update(self.maps.settings.as_fd(), &[0; 4], &settings)
            .map_err(refused("write the settings"))?;
        self.me = id;
        Ok(())
    }

    /// A service and its rows: from one packet to the next, the whole table.
    pub fn set_service(
        &mut self,
        number: u32,
        key: (IpAddr, u16, Protocol),
        rows: &Rows,
        mtu: u32,
    ) -> Result<(), PacketError> {
        if number >= MAX_SERVICES {
            return Err(PacketError::new(format!(
                "services have numbers below {MAX_SERVICES}, not {number}"
            )));
        }
        if rows.rows().len() != self.size as usize {
            return Err(PacketError::new(format!(
                "these rows are {}, the table has {} slots",
                rows.rows().len(),
                self.size
            )));
        }
        let (address, port, protocol) = key;
        let key = (address.to_canonical(), port, protocol);
        if port == 0 {
            return Err(PacketError::new("a service has a port from 1 to 65535"));
        }
        let taken = self
            .services
            .iter()
            .find(|(other, service)| service.key == key && **other != number);
        if let Some((other, _)) = taken {
            return Err(PacketError::new(format!(
                "{address} port {port} is service {other} already"
            )));
        }
        let table = self.fill(rows)?;
        sys::map_update(
            self.maps.tables.as_fd(),
            &number.to_ne_bytes(),
            &std::os::fd::AsRawFd::as_raw_fd(&table).to_ne_bytes(),
        )
        .map_err(refused("swap the table"))?;
        let old = self.services.insert(
            number,
            Service {
                key,
                mtu,
                table: Some(table),
            },
        );
        let unchanged = old
            .as_ref()
            .is_some_and(|old| old.key == key && old.mtu == mtu);
        if !unchanged {
            let value = layout::service(number, mtu);
            for name in [Some((port, protocol)), None] {
                sys::map_update(
                    self.maps.services.as_fd(),
                    &layout::service_key(address, name),
                    &value,
                )
                .map_err(refused("note a service"))?;
            }
        }
        match old {
            Some(old) if old.key != key => self.forget(old.key),
            _ => Ok(()),
        }
    }

    fn fill(&self, rows: &Rows) -> Result<OwnedFd, PacketError> {
        let table = loader::new_table(self.size)?;
        let shared =
            Shared::map(&table, rows.rows().len() * ROW).map_err(refused("map a table"))?;
        for (index, row) in rows.rows().iter().enumerate() {
            let [a, b, c, d] = row.map(u64::from);
            if let Some(word) = shared.long(index) {
                word.store(a | b << 16 | c << 32 | d << 48, Ordering::Relaxed);
            }
        }
        Ok(table)
    }

    /// Take a service away: its packets are no longer ours. Its counts begin anew.
    pub fn drop_service(&mut self, number: u32) -> Result<(), PacketError> {
        let Some(service) = self.services.remove(&number) else {
            return Ok(());
        };
        self.forget(service.key)?;
        sys::map_delete(self.maps.tables.as_fd(), &number.to_ne_bytes())
            .map_err(refused("forget a table"))?;
        let none = vec![0; 32 * self.cpus];
        sys::map_update(self.maps.of_services.as_fd(), &number.to_ne_bytes(), &none)
            .map_err(refused("clear the counts of a service"))
    }

    /// Take a key out of the map, and its address if no service is there any more.
    fn forget(
        &self,
        (address, port, protocol): (IpAddr, u16, Protocol),
    ) -> Result<(), PacketError> {
        let others = self
            .services
            .values()
            .any(|service| service.key.0 == address);
        let keys = [Some(Some((port, protocol))), (!others).then_some(None)];
        for name in keys.into_iter().flatten() {
            sys::map_delete(
                self.maps.services.as_fd(),
                &layout::service_key(address, name),
            )
            .map_err(refused("forget a service"))?;
        }
        Ok(())
    }

    /// Services that are there, by number; after a take-over those of the process before.
    pub fn services(&self) -> BTreeMap<u32, (IpAddr, u16, Protocol)> {
        self.services
            .iter()
            .map(|(number, service)| (*number, service.key))
            .collect()
    }

    /// Packets by reason, since the maps were made.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, PacketError> {
        let count = |index: u32| {
            Maps::sums(self.maps.counters.as_fd(), index, 1, self.cpus)
                .map_err(refused("read the counters"))
                .map(|sums| sums.first().copied().unwrap_or(0))
        };
        (0..)
            .zip(REASONS)
            .map(|(index, (name, _))| Ok((name, count(index)?)))
            .collect()
    }

    /// Counts of a service.
    pub fn service_counts(&self, number: u32) -> Result<Counts, PacketError> {
        if number >= MAX_SERVICES {
            return Err(PacketError::new(format!(
                "services have numbers below {MAX_SERVICES}, not {number}"
            )));
        }
        let sums = Maps::sums(self.maps.of_services.as_fd(), number, 4, self.cpus);
        sums.map(|sums| counts(&sums))
            .map_err(refused("read the counts of a service"))
    }

    /// Counts of a backend.
    pub fn backend_counts(&self, id: u16) -> Result<Counts, PacketError> {
        check_id(id)?;
        let sums = Maps::sums(self.maps.of_backends.as_fd(), u32::from(id), 4, self.cpus);
        sums.map(|sums| counts(&sums))
            .map_err(refused("read the counts of a backend"))
    }

    /// Slot and row of a client, as they are in the kernel.
    pub fn row_of(
        &self,
        number: u32,
        address: IpAddr,
        port: u16,
    ) -> Result<(u32, [u16; WIDTH]), PacketError> {
        let table = self
            .services
            .get(&number)
            .and_then(|service| service.table.as_ref())
            .ok_or_else(|| PacketError::new(format!("service {number} has no table yet")))?;
        let hash = FlowHasher::new(&self.secret).source((address, port).into());
        let slot = slot(hash, self.size);
        let mut bytes = [0; ROW];
        sys::map_lookup(table.as_fd(), &slot.to_ne_bytes(), &mut bytes)
            .map_err(refused("read a row"))?;
        let row = u64::from_ne_bytes(bytes);
        Ok((
            slot,
            [
                row as u16,
                (row >> 16) as u16,
                (row >> 32) as u16,
                (row >> 48) as u16,
            ],
        ))
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
                other = self.maps.load(name)?;
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
    pub fn close(self, keep: bool) {
        if let (Some(pins), false) = (&self.pins, keep) {
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

fn counts(sums: &[u64]) -> Counts {
    let at = |index: usize| sums.get(index).copied().unwrap_or(0);
    Counts {
        packets: at(0),
        bytes: at(1),
        flows: at(2),
        others: at(3),
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

/// Whether maps belong to this secret and size.
fn is_of(maps: &Maps, secret: &Secret, size: u32) -> bool {
    let mut found = [0; 40];
    let wanted = layout::settings(secret, size, 0);
    sys::map_lookup(maps.settings.as_fd(), &[0; 4], &mut found).is_ok()
        && found.split_at(36).0 == wanted.split_at(36).0
}

/// A program that lets everything pass: what it costs to run one at all.
fn baseline() -> Result<OwnedFd, PacketError> {
    // r0 = XDP_PASS; exit
    let instructions = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    sys::program_load(&Program {
        name: "pb_baseline",
        kind: 6,
        attach: loader::ATTACH_XDP,
        instructions: &instructions,
    })
    .map_err(|(error, _)| PacketError::refused("load a program", &error))
}

/// Whether the kernel lets this process have programs and maps at all.
pub fn try_out() -> Result<(), PacketError> {
    loader::new_table(8)?;
    baseline().map(drop)
}
