//! What went wrong, and what to do about it.

use std::fmt;
use std::io;

/// Something that the kernel refused, or a mistake of the caller; a sentence for people.
#[derive(Debug)]
pub struct PacketError(String);

impl PacketError {
    /// With these words.
    pub fn new(words: impl Into<String>) -> PacketError {
        PacketError(words.into())
    }

    /// The kernel refused to do `what`.
    pub fn refused(what: &str, error: &io::Error) -> PacketError {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let hint = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match crate::support::missing_capabilities() {
                names if names.is_empty() => {
                    ": the process has the capabilities, so a security module, a seccomp filter or kernel lockdown forbids it".to_owned()
                }
                names => format!(
                    ": the process needs {}; run it as root or give the service AmbientCapabilities={}",
                    enumerated(&names),
                    names.join(" "),
                ),
            },
            Some(libc::ENOSYS) => ": this kernel was built without bpf(2)".to_owned(),
            Some(libc::ENOMEM) => ": not enough memory, or RLIMIT_MEMLOCK is too low (before Linux 5.11)".to_owned(),
            _ => String::new(),
        };
        PacketError(format!("cannot {what}: {text}{hint}"))
    }
}

fn enumerated(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => names.concat(),
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PacketError {}

/// `error`, in words that begin with what was tried.
pub fn refused(what: impl fmt::Display) -> impl FnOnce(io::Error) -> PacketError {
    move |error| PacketError::refused(&what.to_string(), &error)
}
