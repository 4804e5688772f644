//! The record that a connection leaves when it ends.

use std::net::SocketAddr;
use std::sync::Arc;

use pybalancer_core::record::{Asked, Reason, Record};

use crate::registry::{BackendEntry, ListenerEntry};

/// One connection, as it was. Owns what it names, since it outlives the tunnel.
#[derive(Debug)]
pub struct Line {
    /// When it ended, in nanoseconds of Unix time.
    pub unix_ns: u64,
    /// Where it came in.
    pub listener: Arc<ListenerEntry>,
    /// Who it was; None on a Unix socket.
    pub client: Option<SocketAddr>,
    /// The proxy that announced this client.
    pub proxied_by: Option<SocketAddr>,
    /// The pool it was for.
    pub pool: Arc<str>,
    /// Who took it, if anybody did.
    pub backend: Option<Arc<BackendEntry>>,
    /// How long the last connect took, if one succeeded.
    pub connect_ns: Option<u64>,
    /// From accept to end.
    pub duration_ns: u64,
    /// Bytes that the backend's socket took.
    pub to_backend: u64,
    /// Bytes that the client's socket took.
    pub to_client: u64,
    /// Backends asked.
    pub tries: u8,
    /// Why it ended.
    pub reason: Reason,
    /// What it asked for, in mode "websocket".
    pub request: Option<Box<RequestLine>>,
}

/// A request or handshake, for the log.
#[derive(Debug)]
pub struct RequestLine {
    /// GET and the like.
    pub method: Box<str>,
    /// The Host field.
    pub host: Box<str>,
    /// As the client sent it.
    pub target: Box<str>,
    /// The route that matched.
    pub route: Arc<str>,
    /// Its id, as the backend knows it too.
    pub id: Box<str>,
    /// Of the response; 0 if there was none.
    pub status: u16,
    /// WebSocket messages of the client and of the backend.
    pub messages: (u32, u32),
    /// The codes of their Close frames.
    pub close: (Option<u16>, Option<u16>),
    /// How often it went on at another backend.
    pub moved: u32,
}

impl Line {
    /// As text, a line of its own.
    pub fn write(&self, json: bool, out: &mut Vec<u8>) {
        let address = self
            .backend
            .as_ref()
            .map(|backend| backend.endpoint.to_string());
        let record = Record {
            unix_ns: self.unix_ns,
            listener: &self.listener.name,
            client: self.client,
            proxied_by: self.proxied_by,
            pool: &self.pool,
            backend: self.backend.as_ref().map(|backend| &*backend.name),
            address: address.as_deref(),
            connect_ns: self.connect_ns,
            duration_ns: self.duration_ns,
            to_backend: self.to_backend,
            to_client: self.to_client,
            tries: self.tries,
            reason: self.reason,
            request: self.request.as_ref().map(|request| Asked {
                method: &request.method,
                host: &request.host,
                target: &request.target,
                route: &request.route,
                id: &request.id,
                status: request.status,
                messages: request.messages,
                close: request.close,
                moved: request.moved,
            }),
        };
        if json {
            record.write_json(out)
        } else {
            record.write_human(out)
        }
    }
}
