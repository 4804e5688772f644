//! Reading requests: who asks for what, where it goes, what it becomes on its way there.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pybalancer_core::cookie;
use pybalancer_core::directory::Action;
use pybalancer_core::http::{
    self, Body, Edits, Forwarded, Framing, Refusal, Request, Scanner, Upgrade,
};
use pybalancer_core::reattach;
use pybalancer_core::record::Reason;
use pybalancer_core::route::{Facts, Key, key_hash};
use pybalancer_core::time::Tick;
use pybalancer_core::web::{Route, Web, strip};
use pybalancer_core::ws::accept_key;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Worker;
use super::ending::How;
use crate::asking::{self, Asking};
use crate::deployment::{DeployedPool, Deployment, Front};
use crate::exchange::{Exchange, Inflight, Sticky};
use crate::log::RequestLine;
use crate::poller::{Interest, Side};
use crate::relay::body::assemble;
use crate::stats::field;
use crate::tunnel::{Opening, Phase};

/// A request that may go on, and where to.
struct Decided {
    inflight: Box<Inflight>,
    pool: Arc<DeployedPool>,
    hash: u64,
    /// Bytes of its head.
    consumed: usize,
    handshake: bool,
    /// It goes to no backend: this is what it asks of us.
    asking: Option<Asking>,
}

/// What cannot go on, and what the client is told.
struct Denied {
    refusal: Refusal,
    reason: Reason,
    /// Whether it was a HEAD request, which gets no body.
    to_head: bool,
    /// For the log, if it was understood.
    line: Option<Box<RequestLine>>,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Denied {
        Denied {
            refusal,
            reason: Reason::BadRequest,
            to_head: false,
            line: None,
        }
    }
}

/// What is known of the client besides what it sends.
struct Asker {
    address: Option<SocketAddr>,
    /// Whether what it says of others is believed.
    trusted: bool,
    entropy: [u64; 2],
    logging: bool,
    now: Tick,
}

impl Worker {
    /// The connection is this far: its next request may come.
    pub(super) fn await_request(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        // Without its listener it may finish what it has begun.
        let goes_on = self.accepting
            && renew(self.deployment.as_deref(), opening)
            && !opening.front.listener.draining;
        let (Some(web), Some(exchange)) = (&opening.front.listener.web, &mut opening.exchange)
        else {
            return;
        };
        opening.phase = Phase::Request;
        opening.hash = None;
        opening.preferred = None;
        opening.tried = Vec::new();
        opening.short_of_ports = false;
        (opening.busy, opening.busy_tries) = (None, 0);
        tunnel.tries = 0;
        exchange.scanner = Scanner::default();
        let between = exchange.served > 0 && exchange.ahead.is_empty();
        let timeout = if between {
            web.keepalive_timeout
        } else {
            web.request_timeout
        };
        if between {
            // A million connections may wait here.
            exchange.ahead = Vec::new();
        }
        if between && (exchange.ended || !goes_on) {
            return self.end(slot, Reason::Finished, How::Clean);
        }
        if timeout.is_zero() {
            self.wheel.cancel(slot);
        } else {
            self.wheel.set(slot, self.now + timeout);
        }
        let has_some = !between && exchange.served > 0;
        if self.watch(slot, Side::Client, Interest::READ) && has_some {
            self.take_request(slot);
        }
    }

    /// The client of a request that is not complete has sent something.
    pub(super) fn read_request(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let (Some(web), Some(exchange)) = (&opening.front.listener.web, &mut opening.exchange)
        else {
            return;
        };
        // One byte more than is allowed shows that there is too much.
        let room = (web.limits.head + 1).saturating_sub(exchange.ahead.len());
        let window = self.tools.scratch.get_mut(..room.clamp(1, 16 * 1024));
        let window = window.unwrap_or_default();
        let first = exchange.ahead.is_empty();
        match rustix::net::recv(&tunnel.client, &mut *window, RecvFlags::empty()) {
            Ok((_, 0)) => {
                let clean = first && exchange.served > 0;
                let reason = if clean {
                    Reason::Finished
                } else {
                    Reason::ClientGone
                };
                return self.end(slot, reason, How::Clean);
            }
            Ok((_, got)) => exchange
                .ahead
                .extend_from_slice(window.get(..got).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.end(slot, Reason::ClientGone, How::Abort),
        }
        if first && exchange.served > 0 && !web.request_timeout.is_zero() {
            // From the first byte on, the head has its own deadline.
            self.wheel.set(slot, self.now + web.request_timeout);
        }
        self.take_request(slot);
    }

    /// Look whether a whole head is there; if so, send the request on its way.
    fn take_request(&mut self, slot: u32) {
        let entropy = [self.entropy(), self.entropy()];
        let logging = self.shared.outbox.logging();
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let address = tunnel.peer.address();
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        // It may have waited for long: a reload since then counts.
        renew(self.deployment.as_deref(), opening);
        let front = Arc::clone(&opening.front);
        let (Some(web), Some(exchange)) = (&front.listener.web, &mut opening.exchange) else {
            return;
        };
        let length = match exchange.scanner.scan(&exchange.ahead, &web.limits) {
            Ok(Some(length)) => length,
            Ok(None) => return,
            Err(refusal) => return self.deny(slot, refusal.into()),
        };
        let asker = Asker {
            address,
            // Of a client that a proxy announced (PROXY protocol) it is the client's own word.
            trusted: address.is_none_or(|address| front.trusts(address.ip())),
            entropy,
            logging,
            now,
        };
        match decide(&front, web, exchange, length, &asker) {
            Ok(decided) => self.take_decided(slot, decided),
            Err(denied) => self.deny(slot, denied),
        }
    }

    fn take_decided(&mut self, slot: u32, decided: Decided) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let Some(exchange) = &mut opening.exchange else {
            return;
        };
        exchange.ahead.drain(..decided.consumed);
        let mut inflight = decided.inflight;
        inflight.before = (tunnel.to_backend.bytes, tunnel.to_client.bytes);
        let sticky = inflight.sticky.as_ref();
        opening.preferred = sticky.and_then(|sticky| sticky.named.clone());
        exchange.inflight = Some(inflight);
        opening.hash = Some(decided.hash);
        let same_pool = Arc::ptr_eq(&opening.pool, &decided.pool)
            || opening.pool.planned.pool.name == decided.pool.planned.pool.name;
        opening.pool = decided.pool;
        let listener = tunnel.terms.listener.index();
        let counter = if decided.handshake {
            field!(ListenerSlot, handshakes)
        } else {
            field!(ListenerSlot, requests)
        };
        self.counters.listener(listener, counter, 1);
        if let Some(asking) = decided.asking {
            return self.answer_asking(slot, asking);
        }
        if decided.handshake {
            // A connection that has carried requests carries no tunnel.
            self.drop_backend(slot);
            let draining = (self.tunnels.get(slot as usize))
                .and_then(|tunnel| tunnel.opening.as_ref())
                .is_some_and(|opening| opening.front.listener.draining);
            if draining {
                return self.turn_away(slot, "draining", Reason::Draining);
            }
            return self.pace_handshake(slot);
        }
        self.send_request(slot, same_pool);
    }

    /// Send a request to a backend: over the connection that is there, if that is where it belongs.
    pub(super) fn send_request(&mut self, slot: u32, same_pool: bool) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        // It may have been closed, or the backend may have said more than it was asked for.
        let quiet = tunnel.backend.as_ref().is_some_and(is_quiet);
        let keeps = quiet && same_pool && self.still_belongs(slot);
        if keeps {
            if let Some(inflight) = self.inflight(slot) {
                inflight.reused = true;
            }
            return self.begin_exchange(slot);
        }
        self.drop_backend(slot);
        self.dial(slot);
    }

    /// The backend has ended a connection that had nothing to do, or spoke out of turn; unless this was
    /// reported before its answer was read.
    pub(super) fn heard_unasked(&mut self, slot: u32) {
        let tunnel = self.tunnels.get(slot as usize);
        let backend = tunnel.and_then(|tunnel| tunnel.backend.as_ref());
        if backend.is_some_and(|backend| !is_quiet(backend)) {
            self.drop_backend(slot);
        }
    }

    /// A request's head took too long, or the next request did not come.
    pub(super) fn request_late(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let exchange = (tunnel.opening.as_ref()).and_then(|opening| opening.exchange.as_ref());
        let Some(exchange) = exchange else { return };
        if exchange.served > 0 && exchange.ahead.is_empty() {
            return self.end(slot, Reason::Finished, How::Clean);
        }
        let why = "the request did not come in time";
        self.answer(slot, 408, why, None, Reason::RequestTimeout, false);
    }

    /// Tell the client that this cannot go on.
    fn deny(&mut self, slot: u32, denied: Denied) {
        if let Some(line) = denied.line
            && let Some(exchange) = (self.tunnels.get_mut(slot as usize))
                .and_then(|tunnel| tunnel.opening.as_mut())
                .and_then(|opening| opening.exchange.as_mut())
        {
            exchange.denied = Some(line);
        }
        let Refusal { status, why } = denied.refusal;
        self.answer(slot, status, why, None, denied.reason, denied.to_head);
    }

    pub(super) fn inflight(&mut self, slot: u32) -> Option<&mut Inflight> {
        let tunnel = self.tunnels.get_mut(slot as usize)?;
        let exchange = tunnel.opening.as_mut()?.exchange.as_mut()?;
        exchange.inflight.as_deref_mut()
    }
}

/// Let the newest plan decide on what comes next; false if it has no such listener any more.
fn renew(deployment: Option<&Deployment>, opening: &mut Opening) -> bool {
    let newest = deployment.and_then(|deployment| {
        let mut fronts = deployment.fronts.iter();
        fronts.find(|front| Arc::ptr_eq(&front.entry, &opening.front.entry))
    });
    match newest {
        Some(front) if front.listener.web.is_some() => {
            opening.front = Arc::clone(front);
            true
        }
        _ => false,
    }
}

/// Read a whole head and decide where the request goes.
fn decide(
    front: &Front,
    web: &Web,
    exchange: &Exchange,
    length: usize,
    asker: &Asker,
) -> Result<Decided, Denied> {
    let (head, behind) = exchange
        .ahead
        .split_at_checked(length)
        .unwrap_or((&exchange.ahead, &[]));
    let mut storage = http::storage();
    let request = http::parse_request(head, &mut storage, &web.limits)?;
    let to_head = request.method == "HEAD";
    let id = request_id(&request, asker);
    let line = |route: &Arc<str>| {
        asker.logging.then(|| {
            Box::new(RequestLine {
                method: request.method.into(),
                host: request.host.into(),
                target: request.target.into(),
                route: Arc::clone(route),
                id: id.as_str().into(),
                status: 0,
                messages: (0, 0),
                close: (None, None),
                moved: 0,
            })
        })
    };
    let denied = |status, why, reason, route: &Arc<str>| Denied {
        refusal: Refusal { status, why },
        reason,
        to_head,
        line: line(route),
    };
    let facts = Facts {
        path: request.path,
        host: request.host,
        query: request.query,
        fields: request.fields,
    };
    // What has come of the body already must be one, before anybody hears of this request.
    let body = Body::new(request.body);
    if request.body == Framing::Chunked {
        assemble(&mut body.clone(), behind, &mut Vec::new())?;
    }
    if let Some(asking) = asking::script(web, &request) {
        return Ok(Decided {
            inflight: begun(&request, body, 0, line(&"client.js".into()), asker.now),
            pool: Arc::clone(&front.pool),
            hash: 0,
            consumed: length,
            handshake: false,
            asking: Some(asking),
        });
    }
    let found = (web.routes.iter().zip(&front.routes).enumerate())
        .find(|(_, (route, _))| route.matching.matches(&facts));
    let Some((index, (route, branch))) = found else {
        let why = "no route leads from here";
        return Err(denied(404, why, Reason::NotRouted, &"".into()));
    };
    let accept = match request.upgrade {
        Upgrade::WebSocket { key } => Some(accept_key(key)),
        Upgrade::No => None,
    };
    let told = (route.direct.as_ref()).is_some_and(|direct| direct.action == Action::Directory);
    if (accept.is_some() || told) && !origin_allowed(route, &request) {
        let why = match told {
            true => "this origin may not ask here",
            false => "this origin may not open WebSockets here",
        };
        return Err(denied(403, why, Reason::OriginRefused, &route.name));
    }
    let pool = &branch.pool;
    let key = route.key.as_ref().unwrap_or(&pool.planned.pool.key);
    let random = asker.entropy[0];
    let stripped = route.strip_prefix.as_deref().and_then(|prefix| {
        let rest = strip(request.target, prefix)?;
        let slash = if rest.starts_with('/') { "" } else { "/" };
        Some(format!("{slash}{rest}"))
    });
    let target = stripped.as_deref().unwrap_or(request.target);
    let asked = asking::place(route, &request, target, accept.is_some());
    // Who is sent elsewhere has the key of the request that will be made there.
    let facts = asked.as_ref().map_or(facts, |asked| asked.facts(&facts));
    let hash = key_hash(key, &front.hasher, asker.address, Some(&facts), random);
    let sticky = sticky(front, pool, key, &facts);
    let line = line(&route.name);
    let mut inflight = begun(&request, body, index, line, asker.now);
    inflight.sticky = sticky;
    inflight.keep_alive &= accept.is_none();
    let decided = |inflight: Box<Inflight>, asking| Decided {
        inflight,
        pool: Arc::clone(pool),
        hash,
        consumed: length,
        handshake: accept.is_some(),
        asking,
    };
    if let Some(asked) = asked {
        return Ok(decided(inflight, Some(Asking::Place(asked))));
    }
    let mut out = Vec::with_capacity(length + 256);
    let edits = Edits {
        target: stripped.as_deref(),
        set: &route.request.set,
        remove: &route.request.remove,
        forwarded: Forwarded {
            client: asker.address.map(|address| address.ip()),
            proto: "http",
            trusted: asker.trusted,
        },
        request_id: &id,
    };
    http::write_request(&request, &edits, &mut out);
    let resumes = accept.is_some() && route.rules.reattach.is_some();
    if resumes {
        out = reattach::without_takeover(&out);
    }
    let safe = matches!(request.method, "GET" | "HEAD" | "OPTIONS");
    inflight.head = out;
    inflight.repeatable = safe && request.body == Framing::None && accept.is_none();
    inflight.accept = accept;
    inflight.resumable = resumes.then(|| id.as_str().into());
    Ok(decided(inflight, None))
}

/// A request that was understood, before it is known what becomes of it.
fn begun(
    request: &Request<'_, '_>,
    body: Body,
    route: usize,
    line: Option<Box<RequestLine>>,
    now: Tick,
) -> Box<Inflight> {
    Box::new(Inflight {
        route,
        head: Vec::new(),
        repeatable: false,
        body,
        answer: Vec::new(),
        scanner: Scanner::default(),
        behind: false,
        response: None,
        until_close: false,
        accept: None,
        to_head: request.method == "HEAD",
        minor: request.minor,
        keep_alive: request.keep_alive,
        backend_stays: false,
        unasked: request.expects_continue,
        reused: false,
        broken: false,
        sticky: None,
        resumable: None,
        agreed: None,
        line,
        began: now,
        moved: now,
        before: (0, 0),
    })
}

/// Whether a handshake, or a question to a directory, may come from this page.
fn origin_allowed(route: &Route, request: &Request<'_, '_>) -> bool {
    route.origins.is_empty() || asking::listed(route, request)
}

/// Whether a connection is open and nothing has come on it.
fn is_quiet(socket: &OwnedFd) -> bool {
    let peeked = rustix::net::recv(socket, &mut [0; 1], RecvFlags::PEEK);
    matches!(peeked, Err(Errno::AGAIN))
}

fn sticky(front: &Front, pool: &DeployedPool, key: &Key, facts: &Facts<'_>) -> Option<Sticky> {
    if *key != Key::Sticky {
        return None;
    }
    let planned = &pool.planned.pool;
    // One name per pool: two pools behind one host name must not overwrite each other's.
    let mark = front.hasher.bytes(planned.name.as_bytes()) >> 32;
    let name = format!("pybalancer-{mark:08x}");
    let named = facts.cookie(&name).and_then(|value| {
        let names = planned.backends.iter().map(|backend| &*backend.name);
        let index = cookie::sticky_backend(&front.secret, &planned.name, value, names)?;
        Some(Arc::clone(&planned.backends.get(index)?.name))
    });
    Some(Sticky {
        cookie: name.into(),
        named,
    })
}

/// The id under which everybody on the way knows the request: a trusted peer's, or 128 random bits.
fn request_id(request: &Request<'_, '_>, asker: &Asker) -> String {
    let mut fields = request.fields.iter();
    let mut said = || fields.find(|field| field.name.eq_ignore_ascii_case("x-request-id"));
    let theirs = match (said(), said()) {
        (Some(field), None) if asker.trusted => Some(field.value),
        _ => None,
    };
    let usable =
        theirs.filter(|id| (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic));
    match usable.and_then(|id| str::from_utf8(id).ok()) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}{:016x}", asker.entropy[0], asker.entropy[1]),
    }
}
