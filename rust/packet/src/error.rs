//! What went wrong, and what to do about it.

use std::fmt;
use std::io;

use crate::support;

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
            Some(libc::EPERM | libc::EACCES) => {
                not_permitted(&support::missing_capabilities(), support::counts_locked())
            }
            Some(libc::ENOSYS) => ": this kernel was built without bpf(2)".to_owned(),
            Some(libc::ENOMEM) => ": not enough memory".to_owned(),
            _ => String::new(),
        };
        PacketError(format!("cannot {what}: {text}{hint}"))
    }
}

/// Why that may be: capabilities that are missing, or what else there is.
fn not_permitted(missing: &[&str], counts_locked: bool) -> String {
    match (missing, counts_locked) {
        ([], false) => {
            ": the process has the capabilities, so a security module, a seccomp filter or kernel lockdown forbids it".to_owned()
        }
        ([], true) => {
            ": before Linux 5.11 maps count as locked memory, which RLIMIT_MEMLOCK bounds; give the service LimitMEMLOCK=infinity".to_owned()
        }
        (names, _) => format!(
            ": the process needs {}; run it as root or give the service AmbientCapabilities={}",
            enumerated(names),
            names.join(" "),
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_permitted_is_missing_or_counted_or_forbidden() {
        assert!(not_permitted(&["CAP_BPF"], true).contains("needs CAP_BPF; run it as root"));
        assert!(not_permitted(&[], true).ends_with("give the service LimitMEMLOCK=infinity"));
        assert!(not_permitted(&[], false).contains("a seccomp filter"));
    }
}
