//! Sockets with the options that long-lived connections need.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use pybalancer_core::endpoint::Endpoint;
use pybalancer_core::plan::Timeouts;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, connect, ipproto,
    socket_with, sockopt,
};

use crate::sys;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
/// Keepalive probes after the first, and how many go unanswered before the peer counts as gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// The address of a Unix socket; a path that starts with @ is a name in the abstract namespace.
fn unix_address(path: &str) -> io::Result<SocketAddrUnix> {
    Ok(match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(path)?,
    })
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    }
}

/// Listening sockets of one address.
pub struct Listening {
    /// One per worker; on a Unix socket one for all, since the kernel cannot spread those.
    pub sockets: Vec<OwnedFd>,
    /// What was bound, with the port that the kernel chose.
    pub address: Endpoint,
    /// The file of a Unix socket, removed when dropped.
    pub file: Option<SocketFile>,
}

impl Listening {
    /// The sockets that worker `index` of so many accepts from: one, shared where there are fewer than
    /// workers, or several where another process had more.
    pub fn of_worker(&self, index: usize, workers: usize) -> impl Iterator<Item = &OwnedFd> {
        let count = self.sockets.len().max(1);
        (0..count.max(workers))
            .filter(move |place| place % workers == index)
            .filter_map(move |place| self.sockets.get(place % count))
    }
}

/// Bind and listen, once per worker.
///
/// `alone`: make sure that nobody listens there. SO_REUSEPORT lets any process of the same user
/// join, and the kernel would then give a part of the clients to the other one, silently.
pub fn listen(
    at: &Endpoint,
    workers: usize,
    backlog: i32,
    mode: u32,
    alone: bool,
) -> io::Result<Listening> {
    match at {
        Endpoint::Tcp(address) => {
            let first = listen_tcp(*address, backlog, alone);
            // The wildcard means "everywhere": where there is no IPv6, that is IPv4.
            let first = match first {
                Err(error) if address.ip().is_unspecified() && no_ipv6(address, &error) => {
                    listen_tcp(
                        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
                        backlog,
                        alone,
                    )
                }
                other => other,
            }?;
            let bound = SocketAddr::try_from(rustix::net::getsockname(&first)?)?;
            let mut sockets = vec![first];
            for _ in 1..workers {
                sockets.push(listen_tcp(bound, backlog, false)?);
            }
            Ok(Listening {
                sockets,
                address: Endpoint::Tcp(bound),
                file: None,
            })
        }
        Endpoint::Unix(path) => {
            let (socket, file) = listen_unix(path, backlog, mode)?;
            Ok(Listening {
                sockets: vec![socket],
                address: at.clone(),
                file,
            })
        }
    }
}

fn no_ipv6(address: &SocketAddr, error: &io::Error) -> bool {
    let codes = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    address.is_ipv6()
        && error
            .raw_os_error()
            .is_some_and(|code| codes.contains(&code))
}

fn listen_tcp(address: SocketAddr, backlog: i32, alone: bool) -> io::Result<OwnedFd> {
    let new = || -> io::Result<OwnedFd> {
        let socket = socket_with(
            family(&address),
            SocketType::STREAM,
            FLAGS,
            Some(ipproto::TCP),
        )?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            // Dual-stack only where "everywhere" is meant, whatever the system's default says.
            sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
        }
        Ok(socket)
    };
    if alone && address.port() != 0 {
        bind(&new()?, &address)?;
    }
    let socket = new()?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &address)?;
    // Accepted sockets inherit this and what `tune` sets. An urgent byte stays in its place among the
    // others: there is nowhere else to pass it on.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// The process of a file that another one looks after.
const NOBODY: u32 = 0;

/// A Unix socket's file.
#[derive(Debug)]
pub struct SocketFile {
    path: String,
    device: u64,
    inode: u64,
    process: u32,
}

impl SocketFile {
    /// The file of a socket that another process has bound, and still its own.
    pub fn inherited(path: &str, device: u64, inode: u64) -> SocketFile {
        SocketFile {
            path: path.to_owned(),
            device,
            inode,
            process: NOBODY,
        }
    }

    /// It is ours from now on.
    pub fn adopt(&mut self) {
        self.process = std::process::id();
    }

    /// Device and inode.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Leave the file where it is: another process has taken it over.
    pub fn leave(mut self) {
        self.process = NOBODY;
    }

    /// Change its permissions, if it is still ours.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        if self.is_ours() {
            rustix::fs::chmod(&*self.path, rustix::fs::Mode::from_raw_mode(mode & 0o777))?;
        }
        Ok(())
    }

    /// Another process may have put its own there since, or this may be a fork's copy.
    fn is_ours(&self) -> bool {
        self.process == std::process::id()
            && rustix::fs::lstat(&*self.path)
                .is_ok_and(|stat| stat.st_dev == self.device && stat.st_ino == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = rustix::fs::unlink(&*self.path);
        }
    }
}

fn listen_unix(path: &str, backlog: i32, mode: u32) -> io::Result<(OwnedFd, Option<SocketFile>)> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    if path.starts_with('@') {
        bind(&socket, &unix_address(path)?)?;
        rustix::net::listen(&socket, backlog)?;
        return Ok((socket, None));
    }
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
        Ok(stat) => {
            let is_socket =
                rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket;
            // Left behind by a process that died: nobody answers. Anything else is somebody's.
            let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
            if !is_socket || connect(&probe, &unix_address(path)?) != Err(Errno::CONNREFUSED) {
                return Err(Errno::ADDRINUSE.into());
            }
        }
    }
    // Under another name first, so that at no time there is a socket with other permissions, or one
    // that does not listen yet.
    let temporary = format!("{path}.{}", std::process::id());
    let _ = rustix::fs::unlink(&*temporary);
    bind(&socket, &unix_address(&temporary)?)?;
    let made = || -> io::Result<SocketFile> {
        rustix::fs::chmod(&*temporary, rustix::fs::Mode::from_raw_mode(mode & 0o777))?;
        rustix::net::listen(&socket, backlog)?;
        let stat = rustix::fs::lstat(&*temporary)?;
        rustix::fs::rename(&*temporary, path)?;
        Ok(SocketFile {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
            process: std::process::id(),
        })
    };
    match made() {
        Ok(file) => Ok((socket, Some(file))),
        Err(error) => {
            let _ = rustix::fs::unlink(&*temporary);
            Err(error)
        }
    }
}

/// Set the kernel's own timers. On a listener: for what it accepts from now on.
pub fn tune(socket: impl AsFd, timeouts: &Timeouts) -> Result<(), Errno> {
    let socket = socket.as_fd();
    sockopt::set_socket_keepalive(socket, !timeouts.keepalive.is_zero())?;
    if !timeouts.keepalive.is_zero() {
        let idle = timeouts
            .keepalive
            .clamp(Duration::from_secs(1), Duration::from_secs(32_767));
        sockopt::set_tcp_keepidle(socket, Duration::from_secs(idle.as_secs()))?;
        if timeouts.user.is_zero() {
            // Otherwise that decides, at the first probe that comes after it.
            sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
            sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
        }
    }
    let user = i32::try_from(timeouts.user.as_millis()).unwrap_or(i32::MAX);
    sockopt::set_tcp_user_timeout(socket, user.unsigned_abs())
}

/// From where a connect starts.
#[derive(Clone, Copy, Debug)]
pub enum From {
    /// As the kernel likes.
    Any,
    /// One of our addresses.
    Source(IpAddr),
    /// Somebody else's address (IP_TRANSPARENT).
    Client(IpAddr),
}

/// Why a connect did not even begin, by whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// No port is left from this source to this destination.
    Ports,
    /// Descriptors or memory have run out.
    Shortage(Errno),
    /// The source address cannot be used: not ours, or no right to use a foreign one.
    Source(Errno),
    /// The backend cannot be reached.
    Backend(Errno),
    /// The backend's queue of connections is full.
    Busy,
}

impl DialError {
    fn of(error: Errno) -> DialError {
        match error {
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                DialError::Shortage(error)
            }
            _ => DialError::Backend(error),
        }
    }
}

/// Begin to connect: the socket becomes writable when it is decided. `ports` are named where many of
/// them are taken already (see [`sys::set_local_port_range`]).
pub fn dial(
    to: &Endpoint,
    from: From,
    ports: Option<RangeInclusive<u16>>,
    timeouts: &Timeouts,
) -> Result<OwnedFd, DialError> {
    let address = match to {
        Endpoint::Unix(path) => {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)
                .map_err(DialError::of)?;
            let address = unix_address(path).map_err(|_| DialError::Backend(Errno::INVAL))?;
            // Unknown to kernels whose Unix sockets have no urgent bytes.
            let _ = sockopt::set_socket_oobinline(&socket, true);
            // On a Unix socket EAGAIN means a full queue, and nothing will tell when it is not.
            return match connect(&socket, &address) {
                Ok(()) => Ok(socket),
                Err(Errno::AGAIN) => Err(DialError::Busy),
                Err(error) => Err(DialError::of(error)),
            };
        }
        Endpoint::Tcp(address) => address,
    };
    let socket = socket_with(
        family(address),
        SocketType::STREAM,
        FLAGS,
        Some(ipproto::TCP),
    )
    .map_err(DialError::of)?;
    sockopt::set_tcp_nodelay(&socket, true).map_err(DialError::of)?;
    sockopt::set_socket_oobinline(&socket, true).map_err(DialError::of)?;
    tune(&socket, timeouts).map_err(DialError::of)?;
    if let Some(ports) = ports {
        // Unknown before Linux 6.3: then connects get slow when half of the ports are taken.
        let _ = sys::set_local_port_range(&socket, *ports.start(), *ports.end());
    }
    let source = match from {
        From::Any => None,
        From::Source(ip) => Some(ip),
        From::Client(ip) => {
            sys::set_transparent(&socket, ip.is_ipv6()).map_err(|error| {
                DialError::Source(Errno::from_io_error(&error).unwrap_or(Errno::PERM))
            })?;
            Some(ip)
        }
    };
    if let Some(ip) = source {
        let _ = sys::set_bind_address_no_port(&socket);
        bind(&socket, &SocketAddr::new(ip, 0)).map_err(DialError::Source)?;
    }
    match connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(Errno::ADDRNOTAVAIL | Errno::AGAIN) => Err(DialError::Ports),
        Err(error) => Err(DialError::of(error)),
    }
}

/// The next connection of a listener, and who it is (None on a Unix socket).
pub fn accept(listener: impl AsFd) -> Result<(OwnedFd, Option<SocketAddr>), Errno> {
    let (socket, peer) = rustix::net::acceptfrom_with(listener, FLAGS)?;
    let peer = peer.and_then(ip_address);
    if peer.is_none() {
        // Not inherited on Unix sockets.
        let _ = sockopt::set_socket_oobinline(&socket, true);
    }
    Ok((socket, peer))
}

/// The address of this end of a connection (None on a Unix socket).
pub fn local_address(socket: impl AsFd) -> Option<SocketAddr> {
    rustix::net::getsockname(socket).ok().and_then(ip_address)
}

fn ip_address(address: SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(address).ok()?;
    Some(pybalancer_core::endpoint::canonical(address))
}

/// Close so that the peer sees an abort (RST), not an end: some of what was promised is missing.
///
/// A Unix socket has no such thing. Its peer sees ECONNRESET if it sent what was not read, and an end
/// like any other if not.
pub fn abort(socket: OwnedFd) {
    // On a socket that is dead already there is nothing left to say.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
}
