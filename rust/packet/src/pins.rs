//! Where maps and links outlive the process: a directory of a BPF file system.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::error::{PacketError, refused};
use crate::sys;

const ROOT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (linux/magic.h)
const MAGIC: u32 = 0xcafe_4a11;

/// One role's directory. Entries are maps by name, and `link_N`, `probe_N` of interface number N: names of
/// interfaces may have dots, which such a file system does not allow.
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The directory `name` below the BPF file system, which is mounted if it is not.
    pub fn open(name: &str) -> Result<Pins, PacketError> {
        let fine = !name.is_empty()
            && name.split('/').all(|part| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            });
        if !fine {
            return Err(PacketError::new(format!(
                "{name:?} cannot be a directory for pins: letters, digits, - and _, parts divided by /"
            )));
        }
        mount()?;
        let directory = Path::new(ROOT).join(name);
        fs::create_dir_all(&directory).map_err(|error| not_made(&directory, error))?;
        Ok(Pins { directory })
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keep an object under a name, in place of what was there.
    pub fn keep(&self, name: &str, object: BorrowedFd<'_>) -> Result<(), PacketError> {
        let path = self.directory.join(name);
        let what = || format!("pin {}", path.display());
        let wanted = sys::id_of(object).map_err(refused(what()))?;
        // Untouched if it is there: a process that is killed in between would leave nothing.
        if let Ok(found) = sys::pinned(&path)
            && sys::id_of(found.as_fd()).is_ok_and(|id| id == wanted)
        {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(refused(what())(error));
            }
            _ => {}
        }
        sys::pin(&path, object).map_err(refused(what()))
    }

    /// Links of a kind (`link`, `probe`) whose interfaces are there: number and link.
    pub fn links(&self, kind: &str) -> Vec<(u32, OwnedFd)> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| {
                name.strip_prefix(kind)?
                    .strip_prefix('_')?
                    .parse::<u32>()
                    .ok()
            });
            let (Some(number), Ok(link)) = (number, sys::pinned(&entry.path())) else {
                continue;
            };
            match sys::link_interface(link.as_fd()) {
                Ok(interface) if interface == number => found.push((number, link)),
                // The interface has gone, and the link with it.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        found
    }

    /// Forget a name.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// Forget everything, the directory too.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

fn not_made(directory: &Path, error: io::Error) -> PacketError {
    let user = rustix::process::geteuid().as_raw();
    if error.kind() != io::ErrorKind::PermissionDenied || user == 0 {
        return refused(format_args!("make {}", directory.display()))(error);
    }
    PacketError::new(format!(
        "user {user} cannot make {}: as root, after each boot, `install -d -m 0700 -o {user} {ROOT}/pybalancer && \
         chmod o+x {ROOT}` (in a service file: ExecStartPre=+)",
        directory.display()
    ))
}

fn mount() -> Result<(), PacketError> {
    let is_bpf = || statfs(ROOT).is_ok_and(|found| found.f_type as u32 == MAGIC);
    if is_bpf() {
        return Ok(());
    }
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("bpf", ROOT, "bpf", flags, c"mode=0700").map_err(|error| {
        PacketError::new(format!(
            "{ROOT} has no BPF file system and it cannot be mounted ({error}): needs CAP_SYS_ADMIN, or \
             `mount -t bpf bpf {ROOT}` before the start"
        ))
    })
}
