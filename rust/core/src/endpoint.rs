//! Where a listener is bound or a backend is reached.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

/// A stream address: TCP, or a Unix socket by its path (`@name` for the abstract namespace).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// IPv4 or IPv6 address and port.
    Tcp(SocketAddr),
    /// Path in the file system, or `@name`.
    Unix(Arc<str>),
}

/// `sun_path` holds 108 bytes, of which a path needs one for its end.
const MAX_UNIX_PATH: usize = 107;

impl Endpoint {
    /// The address, if this is TCP.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Endpoint::Tcp(address) => Some(address.ip()),
            Endpoint::Unix(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => address.fmt(f),
            Endpoint::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path == "@" || path.contains('\0') {
                return Err(alloc::format!("{text:?} names no Unix socket"));
            }
            if path.len() > MAX_UNIX_PATH {
                return Err(alloc::format!(
                    "the path of a Unix socket has at most {MAX_UNIX_PATH} bytes, this one {}",
                    path.len()
                ));
            }
            return Ok(Endpoint::Unix(path.into()));
        }
        text.parse()
            .map(Endpoint::Tcp)
            .map_err(|_| alloc::format!("{text:?} is not IP:PORT, [IPv6]:PORT or unix:/path"))
    }
}

/// The same address with an IPv4-mapped IPv6 one (`::ffff:192.0.2.1`) turned into plain IPv4.
///
/// A dual-stack listener reports IPv4 clients in mapped form; hashes, logs and limits must not
/// depend on which kind of listener a client came through.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A range of addresses in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: u128,
    mask: u128,
    v4: bool,
}

impl Network {
    /// Whether `address` lies in this range. IPv4-mapped addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.v4 && bits(address) & self.mask == self.address
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text
            .split_once('/')
            .map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| {
            alloc::format!("{text:?} is not an address or a network such as 10.0.0.0/8")
        })?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => widest,
            Some(digits) => digits
                .parse::<u32>()
                .ok()
                .filter(|length| *length <= widest && digits == length.to_string())
                .ok_or_else(|| {
                    alloc::format!("{text:?}: the prefix length goes from 0 to {widest}")
                })?,
        };
        // IPv4 lives in the low 32 bits, so its mask must not reach above them.
        let host_bits = widest - prefix;
        let mask = if host_bits == 128 {
            0
        } else {
            u128::MAX << host_bits
        };
        let address_bits = bits(address);
        if address_bits & !mask != 0 {
            return Err(alloc::format!("{text:?} has bits set beyond its prefix"));
        }
        Ok(Network {
            address: address_bits,
            mask,
            v4: address.is_ipv4(),
        })
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// What counts as one client address for per-source limits: an IPv4 address, or an IPv6 /64.
///
/// A single IPv6 host is usually given a whole /64, so counting addresses would limit nobody.
pub fn source_group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_read_back_as_written() {
        for text in [
            "192.0.2.1:80",
            "[2001:db8::1]:443",
            "unix:/run/app.sock",
            "unix:@app",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "192.0.2.1",
            "host:80",
            "unix:",
            "unix:@",
            "192.0.2.1:99999",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        assert!(
            alloc::format!("unix:/{}", "x".repeat(107))
                .parse::<Endpoint>()
                .is_err()
        );
    }

    #[test]
    fn networks_contain_what_their_prefix_covers() {
        let ten: Network = "10.0.0.0/8".parse().unwrap();
        assert!(ten.contains(ip("10.255.0.1")) && ten.contains(ip("::ffff:10.1.2.3")));
        assert!(!ten.contains(ip("11.0.0.1")) && !ten.contains(ip("::a00:1")));
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(ip("203.0.113.9")) && !all.contains(ip("2001:db8::1")));
        let six: Network = "2001:db8::/32".parse().unwrap();
        assert!(six.contains(ip("2001:db8:1::1")) && !six.contains(ip("2001:db9::1")));
        let one: Network = "127.0.0.1".parse().unwrap();
        assert!(one.contains(ip("127.0.0.1")) && !one.contains(ip("127.0.0.2")));
        for text in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "x/8",
            "10.0.0.0/-1",
            "::/129",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        assert!(
            "::/0"
                .parse::<Network>()
                .unwrap()
                .contains(ip("2001:db8::1"))
        );
    }

    #[test]
    fn ipv6_sources_are_counted_by_their_64() {
        assert_eq!(
            source_group(ip("2001:db8::1")),
            source_group(ip("2001:db8::ffff:1"))
        );
        assert_ne!(
            source_group(ip("2001:db8::1")),
            source_group(ip("2001:db8:0:1::1"))
        );
        assert_eq!(source_group(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    }
}
