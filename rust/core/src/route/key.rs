//! What of a client or its request is hashed to pick a backend.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::SocketAddr;

use super::Facts;
use super::pattern::host_name;
use crate::flow::FlowHasher;

/// What makes the key of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Address and port: connections of one client spread.
    Source,
    /// Address alone: connections of one client stay together.
    SourceIp,
    /// The path as sent, without the query: who is in one room meets on one backend.
    Path,
    /// The name in the Host field: in lower case, without port.
    Host,
    /// A header field: the first of this name, in any case.
    Header(Box<str>),
    /// A cookie of the application's: the first of this name.
    Cookie(Box<str>),
    /// A query parameter, decoded: the first of this name.
    Query(Box<str>),
    /// The cookie that the balancer sets (see [`crate::cookie`]). A client without one is new, and
    /// goes where its source sends it.
    Sticky,
}

impl Key {
    /// As the configuration spells it: `source`, `source-ip`, `path`, `host`, `header:X`, `cookie:X`,
    /// `query:X`, `sticky`.
    pub fn parse(text: &str) -> Result<Key, String> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let name = |name: &str| -> Result<Box<str>, String> {
            if !name.is_empty() && name.bytes().all(token) {
                Ok(name.into())
            } else {
                Err(format!("{text:?}: after the colon comes a name"))
            }
        };
        Ok(match text.split_once(':') {
            None if text == "source" => Key::Source,
            None if text == "source-ip" => Key::SourceIp,
            None if text == "path" => Key::Path,
            None if text == "host" => Key::Host,
            None if text == "sticky" => Key::Sticky,
            Some(("header", header)) => Key::Header(name(header)?),
            Some(("cookie", cookie)) => Key::Cookie(name(cookie)?),
            // Parameters may be called anything.
            Some(("query", parameter)) if !parameter.is_empty() => Key::Query(parameter.into()),
            _ => {
                return Err(format!(
                    "{text:?} is none of source, source-ip, path, host, header:NAME, cookie:NAME, \
                     query:NAME, sticky"
                ));
            }
        })
    }

    /// Whether a request is needed to know it, so that a tcp listener cannot.
    pub fn reads_request(&self) -> bool {
        !matches!(self, Key::Source | Key::SourceIp)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Source => f.write_str("source"),
            Key::SourceIp => f.write_str("source-ip"),
            Key::Path => f.write_str("path"),
            Key::Host => f.write_str("host"),
            Key::Header(name) => write!(f, "header:{name}"),
            Key::Cookie(name) => write!(f, "cookie:{name}"),
            Key::Query(name) => write!(f, "query:{name}"),
            Key::Sticky => f.write_str("sticky"),
        }
    }
}

/// The hash of a client's key.
///
/// A field, cookie or parameter that the request does not have leaves the source, address and port:
/// such clients spread. A client without address (on a Unix socket) hashes to `random`.
pub fn key_hash(
    key: &Key,
    hasher: &FlowHasher,
    source: Option<SocketAddr>,
    facts: Option<&Facts<'_>>,
    random: u64,
) -> u64 {
    let announced = match (key, facts) {
        (Key::Source | Key::SourceIp | Key::Sticky, _) | (_, None) => None,
        (Key::Path, Some(facts)) => Some(hasher.bytes(facts.path.as_bytes())),
        (Key::Host, Some(facts)) => {
            let name = host_name(facts.host);
            Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                hasher.bytes(name.to_ascii_lowercase().as_bytes())
            } else {
                hasher.bytes(name.as_bytes())
            })
        }
        (Key::Header(name), Some(facts)) => facts.field(name).map(|value| hasher.bytes(value)),
        (Key::Cookie(name), Some(facts)) => facts.cookie(name).map(|value| hasher.bytes(value)),
        (Key::Query(name), Some(facts)) => {
            facts.query_value(name).map(|value| hasher.bytes(&value))
        }
    };
    announced.unwrap_or_else(|| match (key, source) {
        (Key::SourceIp, Some(source)) => hasher.source_ip(source.ip()),
        (_, Some(source)) => hasher.source(source),
        (_, None) => random,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, field};
    use super::*;
    use crate::flow::Secret;
    use std::string::ToString;

    #[test]
    fn keys_hash_what_they_name() {
        let hasher = FlowHasher::new(&Secret::from_bytes([7; 16]));
        let source: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let fields = [field("X-User", "5"), field("Cookie", "id=abc")];
        let request = facts("/rooms/7?room=a%62c", "Example.COM:80", &fields);
        for (key, announced) in [
            ("source", None),
            ("source-ip", None),
            ("sticky", None),
            ("path", Some("/rooms/7")),
            ("host", Some("example.com")),
            ("header:x-user", Some("5")),
            ("header:x-other", None),
            ("cookie:id", Some("abc")),
            ("cookie:ID", None),
            ("query:room", Some("abc")),
            ("query:user", None),
        ] {
            let parsed = Key::parse(key).unwrap();
            assert_eq!(parsed.to_string(), key);
            assert_eq!(parsed.reads_request(), !key.starts_with("source"));
            let hash = |source, facts| key_hash(&parsed, &hasher, source, facts, 99);
            let by_source = if key == "source-ip" {
                hasher.source_ip(source.ip())
            } else {
                hasher.source(source)
            };
            let expected = announced.map(|value| hasher.bytes(value.as_bytes()));
            assert_eq!(
                hash(Some(source), Some(&request)),
                expected.unwrap_or(by_source),
                "{key}"
            );
            assert_eq!(hash(None, Some(&request)), expected.unwrap_or(99), "{key}");
            assert_eq!(hash(Some(source), None), by_source, "{key}");
            assert_eq!(hash(None, None), 99, "{key}");
        }
        for text in [
            "",
            "Source",
            "header",
            "header:",
            "header:a b",
            "cookie:a=b",
            "cookie:",
            "query:",
            "source:1",
            "path:x",
        ] {
            let error = Key::parse(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
