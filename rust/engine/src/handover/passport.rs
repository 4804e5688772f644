//! What a tunnel is, written down for another process.
//!
//! Names stand for what is shared, so that the new process finds its own entry of it. Times are as they are:
//! both processes read the same clock (`crate::clock`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pybalancer_core::reattach::Agreed;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::{PACKED, Tracker};
use serde::{Deserialize, Serialize};

use super::{Batch, Guests};
use crate::log::RequestLine;
use crate::poller::Interest;
use crate::recall::Recall;
use crate::registry::BackendEntry;
use crate::relay::{Flow, Packed, Tools};
use crate::tunnel::{Moment, Peer, Phase, Story, Terms, Tunnel};

/// What the old process has entries of: all that a passport may name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Names of listeners.
    pub listeners: Vec<Box<str>>,
    /// Backends, those of live tunnels that no plan names any more too.
    pub backends: Vec<BackendName>,
}

/// Which backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BackendName {
    /// Its pool.
    pub pool: Box<str>,
    /// Its name there.
    pub name: Box<str>,
    /// Where it is.
    pub endpoint: Box<str>,
}

impl BackendName {
    /// That of an entry.
    pub fn of(entry: &BackendEntry) -> BackendName {
        BackendName {
            pool: (*entry.pool).into(),
            name: (*entry.name).into(),
            endpoint: entry.endpoint.to_string().into(),
        }
    }
}

/// Whose rules a tunnel keeps to; and what they were, in case that its listener or route is gone.
#[derive(Debug, Serialize, Deserialize)]
pub struct TermsPassport {
    /// Name of the listener.
    pub listener: Box<str>,
    /// Name of the route, in mode "websocket".
    pub route: Option<Box<str>>,
    /// As in [`Terms`], in the order of its fields.
    pub values: [u32; 7],
}

impl TermsPassport {
    /// Of these.
    pub fn of(terms: &Terms) -> TermsPassport {
        TermsPassport {
            listener: (*terms.listener.name).into(),
            route: terms.route.as_deref().map(Into::into),
            values: [
                terms.idle_ms,
                terms.half_closed_ms,
                terms.guard_ms,
                terms.ping_ms,
                terms.ping_timeout_ms,
                terms.close_ms,
                terms.max_message,
            ],
        }
    }
}

/// One tunnel, without its sockets.
#[derive(Debug, Serialize, Deserialize)]
pub struct Passport {
    /// Index into the batch's.
    terms: u16,
    backend: u16,
    to_backend: Packed,
    to_client: Packed,
    from_client: [u8; PACKED],
    from_backend: [u8; PACKED],
    peer: Peer,
    active: Moment,
    heard: Moment,
    hash: u64,
    tries: u8,
    framed: bool,
    pinged: bool,
    guarded: bool,
    held: bool,
    untrusted: bool,
    /// Under which address its outgoing port is counted.
    port: Option<IpAddr>,
    story: Option<StoryPassport>,
    recall: Option<RecallPassport>,
}

/// A connection in mode "websocket" that has asked for nothing, or has all of its answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Name of the listener.
    pub listener: Box<str>,
    /// Who it is.
    pub peer: Peer,
    /// Where it believes to be connected, if a proxy has told.
    pub destination: Option<SocketAddr>,
    story: Option<StoryPassport>,
}

impl Waiting {
    /// Of a connection that is one; None of any other.
    pub fn of(tunnel: &Tunnel) -> Option<Waiting> {
        let opening = tunnel.opening.as_deref()?;
        let exchange = opening.exchange.as_deref()?;
        let idle = exchange.ahead.is_empty() && exchange.inflight.is_none() && !exchange.ended;
        if opening.phase != Phase::Request || !idle || !opening.admitted {
            return None;
        }
        Some(Waiting {
            listener: (*tunnel.terms.listener.name).into(),
            peer: tunnel.peer,
            destination: opening.destination,
            story: tunnel.story.as_deref().map(StoryPassport::from),
        })
    }

    /// What the log wants to know of it.
    pub fn story(self) -> Option<Box<Story>> {
        self.story.map(|story| Box::new(story.into()))
    }
}

/// The recorded handshake of a tunnel that may go on elsewhere.
#[derive(Debug, Serialize, Deserialize)]
struct RecallPassport {
    head: Box<[u8]>,
    /// The accept key is text.
    accept: Box<str>,
    protocol: Option<Box<[u8]>>,
    extensions: Box<[u8]>,
    id: Box<str>,
    moved: u32,
}

impl From<&Recall> for RecallPassport {
    fn from(recall: &Recall) -> RecallPassport {
        RecallPassport {
            head: recall.head.clone(),
            accept: String::from_utf8_lossy(&recall.agreed.accept).into(),
            protocol: recall.agreed.protocol.clone(),
            extensions: recall.agreed.extensions.clone(),
            id: recall.id.clone(),
            moved: recall.moved,
        }
    }
}

impl RecallPassport {
    /// None if the accept key is none: then it stays where it is.
    fn unpack(self) -> Option<Box<Recall>> {
        Some(Box::new(Recall {
            head: self.head,
            agreed: Agreed {
                accept: self.accept.as_bytes().try_into().ok()?,
                protocol: self.protocol,
                extensions: self.extensions,
            },
            id: self.id,
            moved: self.moved,
            leaving: None,
            left: None,
            order: None,
            deadline: None,
        }))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct StoryPassport {
    accepted_at: u64,
    proxied_by: Option<SocketAddr>,
    connect: Duration,
    request: Option<RequestPassport>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RequestPassport {
    method: Box<str>,
    host: Box<str>,
    target: Box<str>,
    route: Box<str>,
    id: Box<str>,
    status: u16,
}

impl From<&Story> for StoryPassport {
    fn from(story: &Story) -> StoryPassport {
        StoryPassport {
            accepted_at: story.accepted_at.0,
            proxied_by: story.proxied_by,
            connect: story.connect,
            request: story.request.as_ref().map(|line| RequestPassport {
                method: line.method.clone(),
                host: line.host.clone(),
                target: line.target.clone(),
                route: (*line.route).into(),
                id: line.id.clone(),
                status: line.status,
            }),
        }
    }
}

impl From<StoryPassport> for Story {
    fn from(passport: StoryPassport) -> Story {
        Story {
            accepted_at: Tick(passport.accepted_at),
            proxied_by: passport.proxied_by,
            connect: passport.connect,
            request: passport.request.map(|line| {
                Box::new(RequestLine {
                    method: line.method,
                    host: line.host,
                    target: line.target,
                    route: line.route.into(),
                    id: line.id,
                    status: line.status,
                    // Known at the end only.
                    messages: (0, 0),
                    close: (None, None),
                    moved: 0,
                })
            }),
        }
    }
}

/// A batch in the making. Terms and backends are told apart by where they are.
#[derive(Default)]
pub struct Writer {
    /// What is ready.
    pub batch: Batch,
    /// Bytes that its flows carry.
    pub bytes: usize,
    terms: Vec<*const Terms>,
    backends: Vec<*const BackendEntry>,
}

fn place<T: ?Sized>(known: &mut Vec<*const T>, one: &Arc<T>, new: impl FnOnce()) -> u16 {
    let pointer = Arc::as_ptr(one);
    let place = known.iter().position(|known| std::ptr::eq(*known, pointer));
    let place = place.unwrap_or_else(|| {
        new();
        known.push(pointer);
        known.len() - 1
    });
    // A batch has few tunnels, and not more of these.
    place as u16
}

impl Writer {
    /// Add a tunnel that stands. It stays as good as it was.
    pub fn add(&mut self, tunnel: &mut Tunnel, tools: &mut Tools) -> io::Result<()> {
        let Some(entry) = &tunnel.entry else {
            return Err(io::Error::other("a tunnel without a backend"));
        };
        let terms = place(&mut self.terms, &tunnel.terms, || {
            self.batch.terms.push(TermsPassport::of(&tunnel.terms))
        });
        let backend = place(&mut self.backends, entry, || {
            self.batch.backends.push(BackendName::of(entry))
        });
        let passport = Passport {
            terms,
            backend,
            to_backend: tunnel.to_backend.pack(tools)?,
            to_client: tunnel.to_client.pack(tools)?,
            from_client: tunnel.from_client.to_bytes(),
            from_backend: tunnel.from_backend.to_bytes(),
            peer: tunnel.peer,
            active: tunnel.active,
            heard: tunnel.heard,
            hash: tunnel.hash,
            tries: tunnel.tries,
            framed: tunnel.framed,
            pinged: tunnel.pinged,
            guarded: tunnel.guarded,
            held: tunnel.held,
            untrusted: tunnel.untrusted,
            port: tunnel.port.as_ref().map(|held| held.ports().source()),
            story: tunnel.story.as_deref().map(StoryPassport::from),
            recall: tunnel.recall.as_deref().map(RecallPassport::from),
        };
        let recalled = tunnel
            .recall
            .as_deref()
            .map_or(0, |recall| recall.head.len());
        self.bytes += passport.to_backend.len() + passport.to_client.len() + recalled;
        self.batch.tunnels.push(passport);
        Ok(())
    }
}

/// What the passports of a batch name, found among what this process has.
pub struct Found {
    terms: Vec<Arc<Terms>>,
    backends: Vec<Arc<BackendEntry>>,
}

impl Found {
    /// An error if something is unknown that the manifest should have named.
    pub fn of(batch: &Batch, guests: &Guests) -> io::Result<Found> {
        let unknown = || io::Error::other("a tunnel of something that was not announced");
        let terms = batch.terms.iter().map(|terms| guests.terms(terms));
        let backends = batch.backends.iter().map(|name| guests.backend(name));
        Ok(Found {
            terms: terms.collect::<Option<_>>().ok_or_else(unknown)?,
            backends: backends.collect::<Option<_>>().ok_or_else(unknown)?,
        })
    }
}

impl Passport {
    /// A tunnel of it, counted nowhere yet and watched for nothing. None if it names nothing that was found.
    pub fn unpack(
        self,
        client: OwnedFd,
        backend: OwnedFd,
        found: &Found,
        guests: &Guests,
    ) -> Option<Tunnel> {
        let entry = found.backends.get(usize::from(self.backend))?;
        let terms = Arc::clone(found.terms.get(usize::from(self.terms))?);
        // Where this process's plan does not re-attach, nobody is carried over.
        let recall = self.recall.filter(|_| terms.reattach.is_some());
        Some(Tunnel {
            client,
            backend: Some(backend),
            // Given when it gets its slot.
            generation: 0,
            active: self.active,
            to_backend: Flow::unpack(&self.to_backend),
            to_client: Flow::unpack(&self.to_client),
            from_client: Tracker::from_bytes(self.from_client),
            from_backend: Tracker::from_bytes(self.from_backend),
            opening: None,
            closing: None,
            port: (self.port).and_then(|source| guests.hold(&entry.endpoint, source)),
            entry: Some(Arc::clone(entry)),
            terms,
            story: self.story.map(|story| Box::new(story.into())),
            recall: recall.and_then(RecallPassport::unpack),
            peer: self.peer,
            heard: self.heard,
            hash: self.hash,
            tries: self.tries,
            framed: self.framed,
            pinged: self.pinged,
            guarded: self.guarded,
            held: self.held,
            untrusted: self.untrusted,
            counted: false,
            client_interest: Interest::UNWATCHED,
            backend_interest: Interest::UNWATCHED,
        })
    }
}
