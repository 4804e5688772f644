//! Requests and responses on a client's connection in mode "websocket", until it is a tunnel.
//!
//! ```text
//!            head            connected          101, checked
//! Request ─────────▶ Dialing ─────────▶ Exchange ─────────▶ tunnel
//!    ▲                  │                  │
//!    │   response whole, both stay         │ anything of ours: a refusal, 502, 504
//!    └─────────────────────────────────────┤
//!                                          ▼
//!                                      Lingering ─▶ closed
//! ```
//!
//! A backend connection belongs to one client connection. It may carry that client's next request; it
//! never carries anybody else's, so whatever one client and a backend disagree about stays between them.

use std::sync::Arc;

use pybalancer_core::http::{Body, Scanner};
use pybalancer_core::reattach::Agreed;
use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;

use crate::log::RequestLine;
use crate::registry::BackendEntry;

/// A client's connection, as far as it is HTTP.
#[derive(Default)]
pub struct Exchange {
    /// What the client sent and nobody has used yet: a head in the making, a body, the next request.
    pub ahead: Vec<u8>,
    /// How far `ahead` was searched for the end of a head.
    pub scanner: Scanner,
    /// The request under way.
    pub inflight: Option<Box<Inflight>>,
    /// Requests answered.
    pub served: u32,
    /// The client has ended its sending.
    pub ended: bool,
    /// A request that was denied, for the log.
    pub denied: Option<Box<RequestLine>>,
    /// The backend that its last answer, one of ours, is about.
    pub blamed: Option<Arc<BackendEntry>>,
    /// Why it will be closed, and how many bytes may still be read from it before.
    pub lingering: Option<(Reason, usize)>,
}

impl Exchange {
    /// Whether the client's bytes are wanted while its request is being answered: enough to know the
    /// next head, and whether it is still there.
    pub fn reads_ahead(&self, limit: usize) -> bool {
        !self.ended && self.ahead.len() < limit
    }
}

/// A request between its head and the end of its response.
pub struct Inflight {
    /// Index of its route.
    pub route: usize,
    /// Its head as it goes to a backend; kept, since it may have to go to a second one.
    pub head: Vec<u8>,
    /// Its body, on the way there.
    pub body: Body,
    /// What the backend sent and nobody has used yet.
    pub answer: Vec<u8>,
    /// How far `answer` was searched for the end of a head.
    pub scanner: Scanner,
    /// There is something in `answer` that came behind an interim response.
    pub behind: bool,
    /// The response's body; None until its head has come.
    pub response: Option<Body>,
    /// The response ends with its connection.
    pub until_close: bool,
    /// Of a handshake: the `Sec-WebSocket-Accept` that it has to be answered with.
    pub accept: Option<[u8; 28]>,
    /// It is HEAD: no body follows, whatever the response's head says.
    pub to_head: bool,
    /// HTTP/1.minor of the client.
    pub minor: u8,
    /// The client may send another request on this connection.
    pub keep_alive: bool,
    /// So may we on the backend's.
    pub backend_stays: bool,
    /// The body waits for a 100 that has not come. A backend that answers without it may take the body
    /// for its next request (RFC 9110, section 10.1.1).
    pub unasked: bool,
    /// It may be sent again if a backend connection that was open before turns out to be dead:
    /// nothing of its body is gone, and doing it twice is doing it once (RFC 9110, section 9.2.2).
    pub repeatable: bool,
    /// It went out on a connection that had served before.
    pub reused: bool,
    /// Its backend takes nothing more; an answer may still be on its way.
    pub broken: bool,
    /// The cookie that binds the client to its backend: its name, and what the client brought.
    pub sticky: Option<Sticky>,
    /// Its id, if its tunnel shall go on elsewhere when its backend goes away.
    pub resumable: Option<Box<str>>,
    /// What its answer has agreed to, if that allows for it.
    pub agreed: Option<Agreed>,
    /// For the log.
    pub line: Option<Box<RequestLine>>,
    /// When its head had come.
    pub began: Tick,
    /// When something of it last moved towards the backend; then towards the client.
    pub moved: Tick,
    /// Bytes of the connection before it, to the backend and to the client.
    pub before: (u64, u64),
}

/// A client that is bound to a backend by a cookie.
#[derive(Debug)]
pub struct Sticky {
    /// The cookie's name.
    pub cookie: Box<str>,
    /// The backend that it names already.
    pub named: Option<Arc<str>>,
}
