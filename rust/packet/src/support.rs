//! What this host lacks for packet mode.

use crate::sys;

/// Capabilities that are needed, with their numbers (capabilities(7)). Without CAP_PERFMON the verifier lets no
/// program compute with the addresses of a packet's ends.
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_BPF", 39), ("CAP_PERFMON", 38)];
const SYS_ADMIN: u32 = 21;

/// The kernel that has all that is used: mmapable maps (5.5), links of XDP (5.9). Links of tcx, for checks
/// through an outer header, came with 6.6 and to kernels of distributions before: they are tried out.
pub const KERNEL: (u32, u32) = (5, 10);

/// Needed capabilities that the process does not have.
pub fn missing_capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    let has = |number: u32| effective >> number & 1 == 1;
    NEEDED
        .into_iter()
        // CAP_SYS_ADMIN was what bpf(2) asked for before there were CAP_BPF and CAP_PERFMON, and still does.
        .filter(|(name, number)| !(has(*number) || *name != "CAP_NET_ADMIN" && has(SYS_ADMIN)))
        .map(|(name, _)| name)
        .collect()
}

/// Major and minor version of the running kernel.
pub fn kernel() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text
        .split(|letter: char| !letter.is_ascii_digit())
        .map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether maps count as locked memory. Whoever has more than RLIMIT_MEMLOCK of it, 64 KiB by default, gets EPERM.
pub fn counts_locked() -> bool {
    kernel().is_some_and(|version| version < (5, 11))
}

/// Have as much locked memory as maps take, where that counts. It takes CAP_SYS_RESOURCE; who lacks it is told
/// when a map is refused.
pub fn lift_locked_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let endless = Rlimit {
        current: None,
        maximum: None,
    };
    if counts_locked() {
        let _ = setrlimit(Resource::Memlock, endless);
    }
}

/// What is missing, each a sentence that says what to do; none if all is there. `checks`: with what
/// [`attach_probe`](crate::path::PacketPath::attach_probe) needs.
pub fn missing(interface: Option<&str>, checks: bool) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((major, minor)) = kernel()
        && (major, minor) < KERNEL
    {
        found.push(format!(
            "Linux {major}.{minor} is too old: packet mode needs {}.{}; the nftables engine does with less",
            KERNEL.0, KERNEL.1
        ));
    }
    let capabilities = missing_capabilities();
    for name in &capabilities {
        found.push(format!(
            "{name} is missing: run as root, or give the service AmbientCapabilities={name}"
        ));
    }
    if let Some(name) = interface
        && let Err(error) = sys::hardware_address(name)
    {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        found.push(format!(
            "interface {name:?} cannot be used: {text}; `ip link` lists those that there are"
        ));
    }
    if found.is_empty() {
        let tried = crate::path::try_out().and_then(|()| match checks {
            true => crate::attach::try_egress(),
            false => Ok(()),
        });
        found.extend(tried.err().map(|error| error.to_string()));
    }
    found
}
