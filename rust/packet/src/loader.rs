//! Maps and programs of one role: made anew, or found where a process before left them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::error::{PacketError, refused};
use crate::layout::{BACKEND_WORDS, LAYOUT, MAX_ID, MAX_SERVICES, REASONS, ROW};
use crate::object;
use crate::sys::{self, MapShape, Program};

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const ARRAY_OF_MAPS: u32 = 12;
const MMAPABLE: u32 = 1 << 10;

/// `BPF_PROG_TYPE_XDP`
pub const XDP: u32 = 6;
/// `BPF_PROG_TYPE_SCHED_CLS`
pub const CLASSIFIER: u32 = 3;
/// `BPF_XDP`
pub const ATTACH_XDP: u32 = 37;
/// `BPF_TCX_EGRESS`
pub const ATTACH_EGRESS: u32 = 47;

/// All maps but the tables, which are in `tables`. The field's name is the map's, in the object and among the pins.
pub struct Maps {
    /// Key of the hash, number of slots, who we are.
    pub settings: OwnedFd,
    /// Address, port, protocol → number.
    pub services: OwnedFd,
    /// Number → table.
    pub tables: OwnedFd,
    /// Id → ways.
    pub backends: OwnedFd,
    /// Reason → packets.
    pub counters: OwnedFd,
    /// Number → counts.
    pub of_services: OwnedFd,
    /// Id → counts.
    pub of_backends: OwnedFd,
}

fn shape(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> MapShape {
    MapShape {
        kind,
        key,
        value,
        entries,
        flags,
    }
}

/// What a table of `size` rows is.
pub fn table_shape(size: u32) -> MapShape {
    shape(ARRAY, 4, ROW as u32, size, MMAPABLE)
}

/// An empty table: all rows name nobody.
pub fn new_table(size: u32) -> Result<OwnedFd, PacketError> {
    sys::map_create("pb_table", table_shape(size), None).map_err(refused("make a table"))
}

impl Maps {
    const SHAPES: [(&'static str, MapShape); 7] = {
        const fn of(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> MapShape {
            MapShape {
                kind,
                key,
                value,
                entries,
                flags,
            }
        }
        let ids = MAX_ID as u32 + 1;
        [
            ("settings", of(ARRAY, 4, LAYOUT[0], 1, MMAPABLE)),
            (
                "services",
                of(HASH, LAYOUT[2], LAYOUT[3], 2 * MAX_SERVICES, 0),
            ),
            ("tables", of(ARRAY_OF_MAPS, 4, 4, 2 * MAX_SERVICES, 0)),
            (
                "backends",
                of(ARRAY, 4, (BACKEND_WORDS * 4) as u32, ids, MMAPABLE),
            ),
            ("counters", of(PER_CPU_ARRAY, 4, 8, REASONS.len() as u32, 0)),
            (
                "of_services",
                of(PER_CPU_ARRAY, 4, LAYOUT[5], MAX_SERVICES, 0),
            ),
            ("of_backends", of(PER_CPU_ARRAY, 4, LAYOUT[6], ids, 0)),
        ]
    };

    /// Empty ones, for tables of `size` slots.
    pub fn create(size: u32) -> Result<Maps, PacketError> {
        // The kernel learns from an example what a map of maps holds.
        let example = new_table(size)?;
        Maps::from(|name, shape| {
            let inner = (name == "tables").then(|| example.as_fd());
            sys::map_create(&format!("pb_{name}"), shape, inner)
                .map_err(refused(format_args!("make the map {name}")))
        })
    }

    /// Those that are pinned in a directory; None if they are not all there, or of other shapes.
    pub fn find(directory: &Path) -> Option<Maps> {
        Maps::from(|name, shape| {
            let map = sys::pinned(&directory.join(name)).map_err(refused("open a pinned map"))?;
            let found = sys::map_shape(map.as_fd()).map_err(refused("look at a pinned map"))?;
            if found == shape {
                Ok(map)
            } else {
                Err(PacketError::new(format!(
                    "the pinned map {name} has another shape"
                )))
            }
        })
        .ok()
    }

    fn from(
        mut each: impl FnMut(&'static str, MapShape) -> Result<OwnedFd, PacketError>,
    ) -> Result<Maps, PacketError> {
        let mut made = Vec::new();
        for (name, shape) in Maps::SHAPES {
            made.push(each(name, shape)?);
        }
        let made: [OwnedFd; 7] = made
            .try_into()
            .map_err(|_| PacketError::new("maps are missing"))?;
        let [
            settings,
            services,
            tables,
            backends,
            counters,
            of_services,
            of_backends,
        ] = made;
        Ok(Maps {
            settings,
            services,
            tables,
            backends,
            counters,
            of_services,
            of_backends,
        })
    }

    /// Each with its name.
    pub fn named(&self) -> [(&'static str, BorrowedFd<'_>); 7] {
        [
            ("settings", self.settings.as_fd()),
            ("services", self.services.as_fd()),
            ("tables", self.tables.as_fd()),
            ("backends", self.backends.as_fd()),
            ("counters", self.counters.as_fd()),
            ("of_services", self.of_services.as_fd()),
            ("of_backends", self.of_backends.as_fd()),
        ]
    }

    /// Load a program of the object that uses these maps.
    pub fn load(&self, name: &str) -> Result<OwnedFd, PacketError> {
        let (section, kind, attach) = match name {
            "probe" => ("tc/probe", CLASSIFIER, 0),
            _ => ("", XDP, ATTACH_XDP),
        };
        let xdp = format!("xdp/{name}");
        let section = if section.is_empty() { &xdp } else { section };
        let code = object::code(section).map_err(PacketError::new)?;
        let named = self.named();
        let find = |map: &str| {
            let found = named.iter().find(|(name, _)| *name == map);
            found.map(|(_, fd)| fd.as_raw_fd())
        };
        let instructions = code.link(find).ok_or_else(|| {
            PacketError::new(format!("the program {name} wants a map that is not made"))
        })?;
        sys::program_load(&Program {
            name: &format!("pb_{name}"),
            kind,
            attach,
            instructions: &instructions,
        })
        .map_err(|(error, log)| {
            let refused = PacketError::refused(&format!("load the program {name}"), &error);
            if log.is_empty() {
                refused
            } else {
                PacketError::new(format!("{refused}; the verifier says:\n{log}"))
            }
        })
    }
}

/// Load a program that uses no maps.
pub fn load_plain(
    name: &str,
    kind: u32,
    attach: u32,
    instructions: &[u8],
) -> Result<OwnedFd, PacketError> {
    let program = Program {
        name,
        kind,
        attach,
        instructions,
    };
    sys::program_load(&program).map_err(|(error, _)| PacketError::refused("load a program", &error))
}

/// CPUs for which per-CPU maps have a value: all that could ever be there.
pub fn possible_cpus() -> Result<usize, PacketError> {
    let path = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(path).map_err(refused(format_args!("read {path}")))?;
    // "0-3", "0", "0-3,8-11": the last number tells, for the kernel counts by it.
    text.trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|last| last.parse::<usize>().ok())
        .map(|last| last + 1)
        .ok_or_else(|| PacketError::new(format!("{path} says {text:?}")))
}
