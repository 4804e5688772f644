//! The compiled programs, which are part of this crate, and how they are read.
//!
//! `balancer.bpf.c` is compiled by `make bpf` and the object is committed: nobody who builds or installs
//! needs a compiler for BPF. Its maps are names without a definition, so that the object needs neither BTF
//! nor a library's conventions; the loader fills in descriptors where the names are used.

use object::elf::R_BPF_64_64;
use object::read::elf::ElfFile64;
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget,
};

/// The map that programs read as memory of their own.
const IN_PLACE: &str = "settings";

/// Aligned as ELF wants its structs.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../balancer.bpf.o"));

/// One program: instructions, and where which map's descriptor belongs.
pub struct Code {
    /// Eight bytes each.
    pub instructions: Vec<u8>,
    /// Offset of the instruction, name of the map.
    pub maps: Vec<(usize, String)>,
}

impl Code {
    /// With descriptors in place of names. None if a map is not there.
    pub fn link(&self, descriptor: impl Fn(&str) -> Option<i32>) -> Option<Vec<u8>> {
        // The instruction that loads 8 bytes says by its source register what they are: a map, or the place of
        // its first value (BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE).
        const MAP: u8 = 1 << 4;
        const VALUE: u8 = 2 << 4;
        let mut linked = self.instructions.clone();
        for (at, name) in &self.maps {
            let number = descriptor(name)?;
            let registers = linked.get_mut(at + 1)?;
            *registers = (*registers & 0x0f) | if name == IN_PLACE { VALUE } else { MAP };
            // Where in the value is said by the second half.
            let offset: [u8; 4] = linked.get(at + 4..at + 8)?.try_into().ok()?;
            linked.get_mut(at + 12..at + 16)?.copy_from_slice(&offset);
            linked
                .get_mut(at + 4..at + 8)?
                .copy_from_slice(&number.to_le_bytes());
        }
        Some(linked)
    }
}

/// The program in a section of the object, `xdp/director` and so on.
pub fn code(section: &str) -> Result<Code, String> {
    let file = file()?;
    let found = file
        .section_by_name(section)
        .ok_or_else(|| format!("the object has no program {section}"))?;
    let instructions = found.data().map_err(|error| error.to_string())?.to_vec();
    let mut maps = Vec::new();
    for (offset, relocation) in found.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            return Err(format!("{section}: a relocation without a symbol"));
        };
        let symbol = file
            .symbol_by_index(index)
            .map_err(|error| error.to_string())?;
        let name = symbol.name().map_err(|error| error.to_string())?;
        if !matches!(relocation.flags(), RelocationFlags::Elf { r_type } if r_type == R_BPF_64_64)
            || !symbol.is_undefined()
        {
            return Err(format!(
                "{section}: {name} is no map; functions and data of their own are not supported"
            ));
        }
        maps.push((offset as usize, name.to_owned()));
    }
    Ok(Code { instructions, maps })
}

/// The sizes that the object was compiled with, see [`LAYOUT`](crate::layout::LAYOUT).
pub fn layout() -> Result<Vec<u32>, String> {
    let file = file()?;
    let data = file
        .section_by_name(".layout")
        .and_then(|section| section.data().ok())
        .ok_or("the object does not say its layout")?;
    let words = data.chunks_exact(4).filter_map(|four| four.try_into().ok());
    Ok(words.map(u32::from_le_bytes).collect())
}

fn file() -> Result<ElfFile64<'static, LittleEndian>, String> {
    ElfFile64::parse(&OBJECT.0).map_err(|error| format!("the object cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LAYOUT;

    #[test]
    fn the_object_was_compiled_with_this_layout() {
        assert_eq!(layout().unwrap(), LAYOUT);
    }

    #[test]
    fn programs_name_their_maps() {
        let code = code("xdp/director").unwrap();
        let linked = code.link(|_| Some(0x0102_0304)).unwrap();
        // One is looked up, the other read in its place.
        for (name, kind) in [("tables", 1), (IN_PLACE, 2)] {
            let mut maps = code.maps.iter();
            let at = maps.find(|(_, found)| found == name).unwrap().0;
            assert_eq!(linked[at + 1] >> 4, kind);
            assert_eq!(linked[at + 4..at + 8], [4, 3, 2, 1]);
        }
        assert!(code.link(|_| None).is_none());
    }
}
