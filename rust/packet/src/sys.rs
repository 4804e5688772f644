//! What needs `unsafe`: bpf(2), memory shared with the programs, and two questions about interfaces.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Commands of bpf(2) that are used (linux/bpf.h).
#[derive(Clone, Copy, Debug)]
#[repr(i64)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    Pin = 6,
    Get = 7,
    TestRun = 10,
    Info = 15,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The kernel's argument: a union of structs that all fit. Unused bytes are zero, as the kernel asks.
#[repr(C, align(8))]
struct Attributes([u8; 144]);

impl Attributes {
    fn new() -> Attributes {
        Attributes([0; 144])
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(place) = self.0.get_mut(at..at + N) {
            place.copy_from_slice(&bytes);
        }
    }

    fn u32(mut self, at: usize, value: u32) -> Attributes {
        self.put(at, value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Attributes {
        self.put(at, value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Attributes {
        self.u32(at, fd.as_raw_fd() as u32)
    }

    /// A name of at most 15 bytes.
    fn name(mut self, at: usize, name: &str) -> Attributes {
        for (place, byte) in (at..at + 15).zip(name.bytes()) {
            self.put(place, [byte]);
        }
        self
    }

    /// The address of bytes that the kernel only reads.
    fn from(self, at: usize, bytes: &[u8]) -> Attributes {
        self.u64(at, bytes.as_ptr() as u64)
    }

    /// The address of bytes that the kernel may write.
    fn into(self, at: usize, bytes: &mut [u8]) -> Attributes {
        self.u64(at, bytes.as_mut_ptr() as u64)
    }

    fn get(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|four| four.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    }
}

/// Size of what is handed over: the newest command used here needs 80 bytes (`BPF_PROG_TEST_RUN`), and old
/// kernels refuse a longer argument only where it is not zero.
const SIZE: usize = 120;

/// # Safety
/// Addresses in `attributes` must be of live memory, as long as the lengths beside them say, and writable where
/// `command` writes.
unsafe fn bpf(command: Command, attributes: &mut Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the argument lives through the call and has SIZE bytes; for what it points at, see above.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            (&raw mut *attributes).cast::<u8>(),
            SIZE,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// # Safety
/// As for [`bpf`]; and `command` must be one that answers with a new descriptor.
unsafe fn bpf_fd(command: Command, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new, so nobody else owns it (it is close-on-exec).
    unsafe {
        let number = bpf(command, attributes)?;
        Ok(OwnedFd::from_raw_fd(number as i32))
    }
}

/// What a map is: its type is the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// `BPF_MAP_TYPE_…`
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries.
    pub entries: u32,
    /// `BPF_F_…`
    pub flags: u32,
}

/// Make a map. `inner` is one of the kind that a map of maps will hold.
pub fn map_create(
    name: &str,
    shape: MapShape,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::new()
        .u32(0, shape.kind)
        .u32(4, shape.key)
        .u32(8, shape.value)
        .u32(12, shape.entries)
        .u32(16, shape.flags)
        .name(28, name);
    if let Some(inner) = inner {
        attributes = attributes.fd(20, inner);
    }
    // SAFETY: no addresses are handed over.
    unsafe { bpf_fd(Command::MapCreate, &mut attributes) }
}

/// The value at `key`: false if there is none. `value` is as long as the map's are, times the CPUs where each has
/// its own.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = Attributes::new().fd(0, map).from(8, key).into(16, value);
    // SAFETY: both slices live through the call; that they are as long as the map says is what callers check by
    // making them from the map's own shape.
    match unsafe { bpf(Command::MapLookup, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Set the value at `key`.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes::new().fd(0, map).from(8, key).from(16, value);
    // SAFETY: as in `map_lookup`; the kernel only reads.
    unsafe { bpf(Command::MapUpdate, &mut attributes) }.map(drop)
}

/// Remove `key`; fine if it is not there.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes::new().fd(0, map).from(8, key);
    // SAFETY: as in `map_lookup`; the kernel only reads.
    match unsafe { bpf(Command::MapDelete, &mut attributes) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Every key of a map with keys of `size` bytes.
pub fn map_keys(map: BorrowedFd<'_>, size: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut next = vec![0; size];
        let mut attributes = Attributes::new().fd(0, map).into(16, &mut next);
        if let Some(last) = keys.last() {
            attributes = attributes.from(8, last);
        }
        // SAFETY: as in `map_lookup`; the last key is read, the next one written.
        match unsafe { bpf(Command::MapNextKey, &mut attributes) } {
            Ok(_) => keys.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
            Err(error) => return Err(error),
        }
    }
}

/// A program before it is loaded.
pub struct Program<'a> {
    /// Shown by the system's tools; 15 bytes at most.
    pub name: &'a str,
    /// `BPF_PROG_TYPE_…`
    pub kind: u32,
    /// `BPF_XDP` and such.
    pub attach: u32,
    /// Eight bytes each.
    pub instructions: &'a [u8],
}

/// Load a program. The error's text is the last of what the verifier said, if it said anything.
pub fn program_load(program: &Program<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let license = c"GPL";
    let attributes = || {
        Attributes::new()
            .u32(0, program.kind)
            .u32(4, (program.instructions.len() / 8) as u32)
            .from(8, program.instructions)
            .from(16, license.to_bytes_with_nul())
            .name(48, program.name)
            .u32(68, program.attach)
    };
    // SAFETY: instructions and licence live through the call, and the count is that of the instructions.
    let error = match unsafe { bpf_fd(Command::ProgramLoad, &mut attributes()) } {
        Ok(fd) => return Ok(fd),
        Err(error) => error,
    };
    // Once more, to hear why: writing a log costs the verifier time that the first try should not need.
    let mut log = vec![0; 1 << 20];
    let mut told = attributes()
        .u32(24, 1)
        .u32(28, log.len() as u32)
        .into(32, &mut log);
    // SAFETY: as before, and the log lives through the call and is as long as it says.
    match unsafe { bpf_fd(Command::ProgramLoad, &mut told) } {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(log.get(..end).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.trim().lines().collect();
            let last = lines.len().saturating_sub(6);
            Err((error, lines.get(last..).unwrap_or_default().join("\n")))
        }
    }
}

/// What a test run gave.
pub struct Ran {
    /// What the program returned.
    pub verdict: u32,
    /// The packet after it.
    pub packet: Vec<u8>,
    /// Nanoseconds per run, on average.
    pub duration: u32,
}

/// Run a program on a packet. `context` is its `xdp_md` or `__sk_buff`.
pub fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    repeat: u32,
    context: &[u8],
) -> io::Result<Ran> {
    let mut out = vec![0; packet.len() + 512];
    let mut attributes = Attributes::new()
        .fd(0, program)
        .u32(8, packet.len() as u32)
        .u32(12, out.len() as u32)
        .from(16, packet)
        .into(24, &mut out)
        .u32(32, repeat);
    if !context.is_empty() {
        attributes = attributes.u32(40, context.len() as u32).from(48, context);
    }
    // SAFETY: packet, room for the answer and context live through the call and are as long as they say.
    unsafe { bpf(Command::TestRun, &mut attributes) }?;
    out.truncate(attributes.get(12) as usize);
    Ok(Ran {
        verdict: attributes.get(4),
        packet: out,
        duration: attributes.get(36),
    })
}

/// Keep an object (map, program, link) under a name in a BPF file system.
pub fn pin(path: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = Attributes::new()
        .from(0, path.as_bytes_with_nul())
        .fd(8, object);
    // SAFETY: the path lives through the call and ends with a zero.
    unsafe { bpf(Command::Pin, &mut attributes) }.map(drop)
}

/// The object that was pinned under a name.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = Attributes::new().from(0, path.as_bytes_with_nul());
    // SAFETY: the path lives through the call and ends with a zero.
    unsafe { bpf_fd(Command::Get, &mut attributes) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn info<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u8; N]> {
    let mut info = [0; N];
    let mut attributes = Attributes::new()
        .fd(0, object)
        .u32(4, N as u32)
        .into(8, &mut info);
    // SAFETY: the answer's place lives through the call and is as long as it says.
    unsafe { bpf(Command::Info, &mut attributes) }?;
    Ok(info)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    u32::from_ne_bytes(four.unwrap_or_default())
}

/// What a map is, asked from the kernel (`struct bpf_map_info`).
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let info: [u8; 28] = info(map)?;
    Ok(MapShape {
        kind: word(&info, 0),
        key: word(&info, 8),
        value: word(&info, 12),
        entries: word(&info, 16),
        flags: word(&info, 20),
    })
}

/// The interface that a link of XDP or tcx is attached to; 0 once that is gone (`struct bpf_link_info`).
pub fn link_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    let info: [u8; 32] = info(link)?;
    Ok(word(&info, 16))
}

/// Attach a program to an interface. The program runs while the link lives.
pub fn link_create(
    program: BorrowedFd<'_>,
    interface: u32,
    attach: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::new()
        .fd(0, program)
        .u32(4, interface)
        .u32(8, attach)
        .u32(12, flags);
    // SAFETY: no addresses are handed over.
    unsafe { bpf_fd(Command::LinkCreate, &mut attributes) }
}

/// Let a link run another program from the next packet on.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::new().fd(0, link).fd(4, program);
    // SAFETY: no addresses are handed over.
    unsafe { bpf(Command::LinkUpdate, &mut attributes) }.map(drop)
}

/// Take a link off its interface now, whoever else has it open or pinned.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::new().fd(0, link);
    // SAFETY: no addresses are handed over.
    unsafe { bpf(Command::LinkDetach, &mut attributes) }.map(drop)
}

/// The kernel's number of a map or a link: two descriptors of one object have the same.
pub fn id_of(object: BorrowedFd<'_>) -> io::Result<u32> {
    // Second in `struct bpf_map_info` and in `struct bpf_link_info`.
    let info: [u8; 32] = info(object)?;
    Ok(word(&info, 4))
}

/// Memory of a map (`BPF_F_MMAPABLE`), shared with the programs that run.
pub struct Shared {
    start: *mut libc::c_void,
    length: usize,
}

// SAFETY: the memory is reached through atomics only, and is unmapped by its one owner.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The first `length` bytes of a map's values.
    pub fn map(map: impl AsFd, length: usize) -> io::Result<Shared> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let length = length.next_multiple_of(4096);
        // SAFETY: a new mapping at a place that the kernel chooses takes nobody's memory.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )
        }?;
        Ok(Shared { start, length })
    }

    /// The word of 8 bytes at `index`.
    pub fn long(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.length / 8 {
            return None;
        }
        // SAFETY: inside the mapping, which is aligned to a page and lives as long as `self`; programs and
        // we agree to use whole words.
        Some(unsafe { &*self.start.cast::<AtomicU64>().add(index) })
    }

    /// The word of 4 bytes at `index`.
    pub fn word(&self, index: usize) -> Option<&AtomicU32> {
        if index >= self.length / 4 {
            return None;
        }
        // SAFETY: as in `long`.
        Some(unsafe { &*self.start.cast::<AtomicU32>().add(index) })
    }

    /// Write bytes, whole words of them, from the word of 4 bytes at `index` on.
    pub fn write(&self, index: usize, bytes: &[u8]) {
        for (place, four) in (index..).zip(bytes.chunks_exact(4)) {
            if let (Some(word), Ok(four)) = (self.word(place), four.try_into()) {
                word.store(u32::from_ne_bytes(four), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: what `map` got, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}

/// Wait until every packet that is being handled has been handled: what was taken out of the programs' sight before
/// is in no program's hands after. (`MEMBARRIER_CMD_GLOBAL` waits for a grace period of RCU.)
pub fn wait_for_packets() -> io::Result<()> {
    // SAFETY: takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, 1, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Hardware address of an interface of the calling thread's network namespace.
///
/// By ioctl and not from /sys, which shows the namespace in which it was mounted.
pub fn hardware_address(name: &str) -> io::Result<[u8; 6]> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    // SAFETY: the request lives through the call, and its name ends with a zero.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFHWADDR as _,
            &raw mut request,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFHWADDR has filled in this member of the union.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut address = [0; 6];
    for (place, byte) in address.iter_mut().zip(data) {
        *place = byte as u8;
    }
    Ok(address)
}
