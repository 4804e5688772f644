//! What a listener of mode "websocket" does with requests: bounds, routes, pace.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::directory::Direct;
use crate::http::Limits;
use crate::rate::Gcra;
use crate::reattach;
use crate::route::{Key, Match, same_path};

/// Header fields that a route changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldEdits {
    /// Set, in place of whatever has that name.
    pub set: Vec<(Box<str>, Box<str>)>,
    /// Removed.
    pub remove: Vec<Box<str>>,
}

/// What an established WebSocket has to keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelRules {
    /// Bytes of a message at most, over all its fragments; 0 for no limit.
    pub max_message: u32,
    /// Quiet time of a client after which it is pinged; zero for never.
    pub ping: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// How long a peer may take to answer a Close.
    pub close_timeout: Duration,
    /// Whether and how its client is kept when its backend goes away.
    pub reattach: Option<reattach::Rules>,
}

/// Requests that match go to a pool.
#[derive(Clone, Debug)]
pub struct Route {
    /// For logs and `explain`.
    pub name: Arc<str>,
    /// What matches.
    pub matching: Match,
    /// Index into [`Plan::pools`](crate::plan::Plan::pools).
    pub pool: usize,
    /// What is hashed, where it is not the pool's own key.
    pub key: Option<Key>,
    /// Taken off the beginning of the path.
    pub strip_prefix: Option<Box<str>>,
    /// Origins whose handshakes are let through; empty for all (RFC 6455, section 10.2).
    pub origins: Vec<Box<str>>,
    /// Changes to requests.
    pub request: FieldEdits,
    /// Changes to responses.
    pub response: FieldEdits,
    /// For its WebSockets.
    pub rules: TunnelRules,
    /// Clients are sent to its backends instead of being relayed.
    pub direct: Option<Direct>,
}

/// Where [`Script`] is.
pub const SCRIPT_PATH: &str = "/.pybalancer/client.js";

/// The browser's part: a module that pages load from where they ask for their backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its text.
    pub body: Box<[u8]>,
    /// In quotes, as it is sent (RFC 9110 section 8.8.3).
    pub etag: Box<str>,
}

/// Mode "websocket" of a listener.
#[derive(Clone, Debug)]
pub struct Web {
    /// Bounds of heads.
    pub limits: Limits,
    /// For a whole request head, from the connection or its first byte on.
    pub request_timeout: Duration,
    /// How long a connection may stay open between requests.
    pub keepalive_timeout: Duration,
    /// Handshakes let through, if that is limited.
    pub handshakes: Option<Gcra>,
    /// How many of them may wait.
    pub handshake_queue: u32,
    /// How long one may wait.
    pub handshake_wait: Duration,
    /// First match wins.
    pub routes: Vec<Route>,
    /// Served at [`SCRIPT_PATH`], whatever the routes say.
    pub script: Option<Arc<Script>>,
}

/// `prefix` is taken off the beginning of `target`, at a segment's end and in whatever spelling paths are
/// matched in; the rest is empty, or begins with a slash or the query. None if it does not begin so.
pub fn strip<'a>(target: &'a str, prefix: &str) -> Option<&'a str> {
    let prefix = prefix.trim_end_matches('/');
    let segments = prefix.matches('/').count();
    let path = target.find('?').unwrap_or(target.len());
    let mut slashes = target.get(..path)?.match_indices('/');
    let end = slashes.nth(segments).map_or(path, |(place, _)| place);
    let (begins, rest) = target.split_at_checked(end)?;
    same_path(begins, prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::strip;

    #[test]
    fn a_prefix_ends_with_a_segment() {
        assert_eq!(strip("/api/v1?x=/api", "/api"), Some("/v1?x=/api"));
        assert_eq!(strip("/api?x", "/api/"), Some("?x"));
        assert_eq!(strip("/api", "/api"), Some(""));
        assert_eq!(strip("/apis", "/api"), None);
        assert_eq!(strip("/x/api", "/api"), None);
        assert_eq!(strip("/a/b/c", "/a/b"), Some("/c"));
        assert_eq!(strip("/a//b", "/a/b"), None);
        assert_eq!(strip("/x", "/"), Some("/x"));
        assert_eq!(strip("*", "/"), None);
    }

    #[test]
    fn a_prefix_is_known_in_every_spelling_that_its_route_matches() {
        assert_eq!(strip("/%61pi/%61", "/api"), Some("/%61"));
        assert_eq!(strip("/a%2fb/c", "/a%2Fb"), Some("/c"));
        assert_eq!(strip("/a%2fb", "/a/b"), None);
    }
}
