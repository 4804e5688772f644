//! Clients that are sent straight to their backend: by the directory's answer, or by a redirect.
//!
//! No backend is asked for this. The answer comes from the plan at once, and the connection may go on with
//! its next request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pybalancer_core::cookie;
use pybalancer_core::directory::{self, Action, Nodes, Put, Sent};
use pybalancer_core::http::{self, Plain};
use pybalancer_core::pool::{Draw, Policy};
use pybalancer_core::record::Reason;
use pybalancer_core::web::Web;

use super::Worker;
use super::ending::{How, unix_ns};
use super::pacing::FULL;
use crate::asking::{Asked, Asking, Method};
use crate::deployment::{DeployedPool, Front};
use crate::registry::BackendEntry;
use crate::relay;
use crate::stats::field;

/// Milliseconds after which those for whom nobody is there are told to come again, and by how much that
/// varies.
const ABSENT: (u64, u64) = (1000, 4000);
const METHODS: &str = "GET, HEAD, OPTIONS";
const NO_STORE: (&str, &str) = ("Cache-Control", "no-store");

/// An answer of ours in the making.
struct Reply<'a> {
    status: u16,
    fields: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
    reason: Reason,
}

impl<'a> Reply<'a> {
    fn new(status: u16) -> Reply<'a> {
        Reply {
            status,
            fields: Vec::with_capacity(12),
            body: b"",
            reason: Reason::Finished,
        }
    }
}

impl Worker {
    /// Answer a request that goes to no backend.
    pub(super) fn answer_asking(&mut self, slot: u32, asking: Asking) {
        self.drop_backend(slot);
        let opening = (self.tunnels.get(slot as usize)).and_then(|tunnel| tunnel.opening.as_ref());
        let Some(opening) = opening else { return };
        let (front, pool) = (Arc::clone(&opening.front), Arc::clone(&opening.pool));
        let route = self.inflight(slot).map(|inflight| inflight.route);
        let Some(web) = &front.listener.web else {
            return;
        };
        match asking {
            Asking::Script { method, known } => self.answer_script(slot, web, method, known),
            Asking::Place(asked) => {
                let direct = route.and_then(|index| web.routes.get(index)?.direct.as_ref());
                let Some(direct) = direct else { return };
                let nodes = Arc::clone(&direct.nodes);
                match (asked.action, asked.method) {
                    (_, Method::Options) => self.answer_preflight(slot, &asked),
                    (Action::Directory, Method::Other) => self.answer_method(slot, &asked),
                    _ => self.answer_place(slot, &front, &pool, &nodes, &asked),
                }
            }
        }
    }

    fn answer_script(&mut self, slot: u32, web: &Web, method: Method, known: bool) {
        let Some(script) = &web.script else { return };
        let mut reply = Reply::new(match (method, known) {
            (Method::Get | Method::Head, false) => 200,
            (Method::Get | Method::Head, true) => 304,
            _ => 405,
        });
        if reply.status == 405 {
            reply.fields.extend([("Allow", "GET, HEAD"), NO_STORE]);
        } else {
            // It is the same for all, and modules are fetched with CORS (HTML, section 8.1.3.8).
            reply.fields.extend([
                ("Content-Type", "text/javascript; charset=utf-8"),
                ("Cache-Control", "public, max-age=3600"),
                ("ETag", &script.etag),
                ("Access-Control-Allow-Origin", "*"),
                ("Cross-Origin-Resource-Policy", "cross-origin"),
                ("X-Content-Type-Options", "nosniff"),
            ]);
            reply.body = &script.body;
        }
        self.reply(slot, &reply);
    }

    fn answer_preflight(&mut self, slot: u32, asked: &Asked) {
        let mut reply = Reply::new(204);
        reply.fields.extend([("Allow", METHODS), NO_STORE]);
        if asked.origin.is_some() {
            reply
                .fields
                .push(("Access-Control-Allow-Methods", "GET, HEAD"));
            reply.fields.push(("Access-Control-Max-Age", "600"));
            if let Some(wishes) = &asked.wishes {
                reply.fields.push(("Access-Control-Allow-Headers", wishes));
            }
        }
        cross(asked, &mut reply);
        self.reply(slot, &reply);
    }

    fn answer_method(&mut self, slot: u32, asked: &Asked) {
        let mut reply = Reply::new(405);
        reply.fields.extend([("Allow", METHODS), NO_STORE]);
        cross(asked, &mut reply);
        self.reply(slot, &reply);
    }

    /// Tell a client where its backend is, or send it there.
    fn answer_place(
        &mut self,
        slot: u32,
        front: &Arc<Front>,
        pool: &Arc<DeployedPool>,
        nodes: &Nodes,
        asked: &Asked,
    ) {
        let page = asked.action == Action::Redirect && !asked.handshake;
        if front.listener.draining {
            let after = self.after_a_while();
            return self.put_off(slot, nodes, asked, "draining", after, Reason::Draining);
        }
        // A page is not what comes in storms, and HEAD goes nowhere.
        if !page
            && asked.method != Method::Head
            && let Some(after) = self.turn_of(front, nodes)
        {
            return self.put_off(slot, nodes, asked, FULL, after, Reason::HandshakeLimited);
        }
        let most = match asked.action {
            Action::Directory => 1 + usize::from(nodes.alternatives),
            Action::Redirect => 1,
        };
        let chosen = self.choose(slot, pool, nodes, most);
        let mut chosen = chosen.into_iter().filter_map(|index| {
            let entry = Arc::clone(pool.backends.get(usize::from(index))?);
            let url = nodes.urls.get(usize::from(index))?.as_ref()?;
            Some((entry, url.origin(page)))
        });
        let Some((entry, origin)) = chosen.next() else {
            let after = self.after_a_while();
            return self.put_off(
                slot,
                nodes,
                asked,
                "no backend is up",
                after,
                Reason::NoBackend,
            );
        };
        let others: Vec<_> = chosen.collect();
        let url = self.url_of(slot, nodes, asked, &entry, &origin);
        let binding = self.binding(slot, front, &entry);
        let (mut body, mut reply) = (Vec::new(), Reply::new(200));
        reply.fields.push(NO_STORE);
        match asked.action {
            Action::Redirect => {
                reply.status = 307;
                reply
                    .fields
                    .push(("Content-Type", "text/plain; charset=utf-8"));
                reply.fields.push(("Location", &url));
                body.extend_from_slice(b"your server is elsewhere\n");
            }
            Action::Directory => {
                let others = others.iter();
                let alternatives: Vec<String> = others
                    .map(|(entry, origin)| self.url_of(slot, nodes, asked, entry, origin))
                    .collect();
                let fallback = fallback(nodes, asked);
                let sent = Sent {
                    url: &url,
                    backend: &entry.name,
                    expires_in: nodes.expires_in,
                    alternatives: &alternatives,
                    retry: nodes.retry,
                    fallback: fallback.as_deref(),
                };
                directory::write_sent(&sent, &mut body);
                reply.fields.push(("Content-Type", "application/json"));
                reply.fields.push(("X-Content-Type-Options", "nosniff"));
            }
        }
        if let Some(binding) = &binding {
            reply.fields.push(("Set-Cookie", binding));
        }
        reply.body = &body;
        cross(asked, &mut reply);
        if asked.method != Method::Head {
            entry.hand(self.now, pool.span);
            let counter = match asked.action {
                Action::Directory => field!(ListenerSlot, directed),
                Action::Redirect => field!(ListenerSlot, redirected),
            };
            self.counters.listener(front.entry.index(), counter, 1);
            let sent = field!(BackendSlot, sent);
            self.counters.backend(entry.index(), sent, 1);
        }
        self.blame(slot, entry);
        self.reply(slot, &reply);
    }

    /// How long a client has to wait for its turn, if it has to.
    fn turn_of(&mut self, front: &Front, nodes: &Nodes) -> Option<Duration> {
        let rate = front.listener.web.as_ref()?.handshakes.as_ref()?;
        let waits = (self.listening.get(&front.socket)).is_some_and(|l| !l.handshakes.is_empty());
        // Handshakes that are held were here before.
        if !waits && front.entry.admit_handshake(rate, self.now).is_ok() {
            return None;
        }
        let random = self.entropy();
        Some(front.entry.turn(rate, self.now, nodes.retry.max, random))
    }

    fn after_a_while(&mut self) -> Duration {
        let (least, spread) = ABSENT;
        Duration::from_millis(least + (self.entropy() >> 20) % spread)
    }

    /// Tell a client to come again.
    fn put_off(
        &mut self,
        slot: u32,
        nodes: &Nodes,
        asked: &Asked,
        error: &str,
        after: Duration,
        reason: Reason,
    ) {
        let mut body = Vec::new();
        let fallback = fallback(nodes, asked);
        let put = Put {
            error,
            after,
            retry: nodes.retry,
            fallback: fallback.as_deref(),
        };
        directory::write_put(&put, &mut body);
        // Whole seconds, and rather one more than one too few.
        let seconds = after.as_millis().div_ceil(1000).max(1).to_string();
        let mut reply = Reply::new(503);
        reply.fields.extend([
            NO_STORE,
            ("Content-Type", "application/json"),
            ("Retry-After", &seconds),
        ]);
        reply.body = &body;
        reply.reason = reason;
        cross(asked, &mut reply);
        if let Some(tunnel) = self.tunnels.get(slot as usize) {
            let listener = tunnel.terms.listener.index();
            self.counters
                .listener(listener, field!(ListenerSlot, put_off), 1);
        }
        self.reply(slot, &reply);
    }

    fn choose(&mut self, slot: u32, pool: &DeployedPool, nodes: &Nodes, most: usize) -> Vec<u16> {
        let (entropy, now) = (self.entropy(), self.now);
        let opening = (self.tunnels.get(slot as usize)).and_then(|tunnel| tunnel.opening.as_ref());
        let Some(opening) = opening else {
            return Vec::new();
        };
        let planned = &pool.planned.pool;
        let draw = Draw {
            hash: opening.hash.unwrap_or(entropy),
            entropy: match planned.policy {
                Policy::RoundRobin => pool.next_turn(true),
                _ => entropy,
            },
        };
        let named = opening.preferred.as_deref();
        let load = |index: usize| pool.load_at(index, now);
        directory::choose(planned, nodes, draw, load, named, most)
    }

    fn url_of(
        &mut self,
        slot: u32,
        nodes: &Nodes,
        asked: &Asked,
        entry: &BackendEntry,
        origin: &str,
    ) -> String {
        let ticket = nodes.tickets.as_ref().map(|key| {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&self.entropy().to_be_bytes());
            nonce[8..].copy_from_slice(&self.entropy().to_be_bytes());
            let expiry = Duration::from_nanos(unix_ns()) + nodes.expires_in;
            let client = self.tunnels.get(slot as usize);
            let address: Option<IpAddr> = (client.and_then(|tunnel| tunnel.peer.address()))
                .map(|address| address.ip())
                .filter(|_| nodes.bound);
            key.sign(&entry.pool, &entry.name, address, expiry.as_secs(), nonce)
        });
        asked.place().at(origin, ticket.as_deref())
    }

    /// The cookie that binds a client to where it is sent, if it has none.
    fn binding(&mut self, slot: u32, front: &Front, entry: &BackendEntry) -> Option<String> {
        let sticky = self.inflight(slot)?.sticky.as_ref()?;
        if sticky
            .named
            .as_ref()
            .is_some_and(|named| *named == entry.name)
        {
            return None;
        }
        let value = cookie::sticky_value(&front.secret, &entry.pool, &entry.name);
        let value = str::from_utf8(&value).unwrap_or_default();
        let name = &sticky.cookie;
        Some(format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax"))
    }

    /// For the record.
    fn blame(&mut self, slot: u32, entry: Arc<BackendEntry>) {
        let opening = (self.tunnels.get_mut(slot as usize)).and_then(|t| t.opening.as_mut());
        if let Some(exchange) = opening.and_then(|opening| opening.exchange.as_mut()) {
            exchange.blamed = Some(entry);
        }
    }

    /// Send an answer, and go on with the connection or end it.
    fn reply(&mut self, slot: u32, reply: &Reply<'_>) {
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let Some(exchange) = &mut opening.exchange else {
            return;
        };
        let Some(inflight) = &mut exchange.inflight else {
            return;
        };
        // A body would be read as the next request. And requests that are sent ahead get no turn of
        // their own here: each of them would be answered from within the answer to the one before it.
        let goes_on = inflight.keep_alive
            && inflight.body.is_complete()
            && exchange.ahead.is_empty()
            && !exchange.ended
            && reply.status != 405;
        let plain = Plain {
            status: reply.status,
            fields: &reply.fields,
            body: reply.body,
            head_only: inflight.to_head,
            close: !goes_on,
            minor: inflight.minor,
        };
        if let Some(line) = &mut inflight.line {
            line.status = reply.status;
        }
        let mut out = Vec::with_capacity(512 + reply.body.len());
        http::write_plain(&plain, &mut out);
        let sent = relay::inject(&mut tunnel.to_client, &out, &tunnel.client);
        let owed = tunnel.to_client.blocked();
        let listener = tunnel.terms.listener.index();
        if reply.status == 405 {
            self.counters
                .listener(listener, field!(ListenerSlot, refused_request), 1);
        }
        self.count_refusal(listener, reply.reason);
        if sent.is_err() {
            return self.end(slot, Reason::ClientReset, How::Abort);
        }
        self.log_request(slot, reply.reason);
        let exchange = (self.tunnels.get_mut(slot as usize))
            .and_then(|tunnel| tunnel.opening.as_mut()?.exchange.as_mut());
        if let Some(exchange) = exchange {
            exchange.served = exchange.served.saturating_add(1);
            exchange.inflight = None;
            exchange.blamed = None;
        }
        if goes_on && !owed {
            self.await_request(slot);
        } else {
            // Who does not take an answer as short as this is not waited for with another.
            self.linger(slot, Reason::Finished);
        }
    }
}

/// What lets a page of another origin read the answer (Fetch, section 3.2.3). Only those that are listed
/// get here with an origin; to let any page read it would tell the whole web where a visitor's backend is.
fn cross<'a>(asked: &'a Asked, reply: &mut Reply<'a>) {
    if asked.varies {
        reply.fields.push(("Vary", "Origin"));
    }
    if let Some(origin) = &asked.origin {
        reply.fields.extend([
            ("Access-Control-Allow-Origin", &**origin),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Expose-Headers", "Retry-After"),
        ]);
    }
}

/// The way through the balancer, to where it would have connected.
fn fallback(nodes: &Nodes, asked: &Asked) -> Option<String> {
    let url = nodes.fallback.as_ref()?;
    Some(asked.place().at(&url.origin(false), None))
}
