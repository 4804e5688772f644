//! Requests that are answered here: which backend is mine, and the script that asks it.

use pybalancer_core::directory::{Action, Place};
use pybalancer_core::http::Request;
use pybalancer_core::route::Facts;
use pybalancer_core::web::{Route, SCRIPT_PATH, Web};

/// The most that a preflight may ask for in one field.
const MOST_WISHES: usize = 1024;

/// What such a request asks for.
#[derive(Debug)]
pub enum Asking {
    /// The script.
    Script {
        /// By what it asks.
        method: Method,
        /// The client has it already.
        known: bool,
    },
    /// Where to connect to.
    Place(Asked),
}

/// What matters of a method here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: asks, and goes nowhere.
    Head,
    /// OPTIONS: a browser asks whether it may ask (Fetch, section 3.2.2: CORS-preflight).
    Options,
    /// Any other.
    Other,
}

/// A client wants to know where to go.
#[derive(Debug)]
pub struct Asked {
    /// By what it asks.
    pub method: Method,
    /// Told, or sent at once. A handshake can only be sent.
    pub action: Action,
    /// It opens a WebSocket, or is a page or anything else.
    pub handshake: bool,
    /// The path at the backend.
    pub path: Box<str>,
    /// Its query.
    pub query: Option<Box<str>>,
    /// The page that asks, if it may.
    pub origin: Option<Box<str>>,
    /// Whether answers differ by the page that asks.
    pub varies: bool,
    /// The fields that a page wants to send.
    pub wishes: Option<Box<str>>,
}

impl Asked {
    /// Where to, as it goes on there.
    pub fn place(&self) -> Place<'_> {
        Place {
            path: &self.path,
            query: self.query.as_deref(),
        }
    }
}

impl Asked {
    /// What routes and keys would know of the request that will be made at the backend.
    pub fn facts<'a>(&'a self, here: &Facts<'a>) -> Facts<'a> {
        Facts {
            path: &self.path,
            query: self.query.as_deref(),
            ..*here
        }
    }
}

impl Method {
    fn of(request: &Request<'_, '_>) -> Method {
        match request.method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        }
    }
}

/// Whether it asks for the script.
pub fn script(web: &Web, request: &Request<'_, '_>) -> Option<Asking> {
    let script = web
        .script
        .as_ref()
        .filter(|_| request.path == SCRIPT_PATH)?;
    let known = (request.field("if-none-match")).is_some_and(|tags| names(tags, &script.etag));
    let method = Method::of(request);
    Some(Asking::Script { method, known })
}

/// Whether it asks for a place, and for which. `target` is the request's, without what the route takes off.
pub fn place(
    route: &Route,
    request: &Request<'_, '_>,
    target: &str,
    handshake: bool,
) -> Option<Asked> {
    let direct = route.direct.as_ref()?;
    // `OPTIONS *` has no path, and goes nowhere either.
    let whole = Place {
        path: "/",
        query: None,
    };
    let place = Place::new(target, direct.path.as_deref()).unwrap_or(whole);
    let text = |name| {
        request
            .field(name)
            .and_then(|value| str::from_utf8(value).ok())
    };
    // Redirects are for all; only to pages that are listed is their answer theirs to read.
    let origin = text("origin").filter(|_| !route.origins.is_empty() && listed(route, request));
    let wishes = text("access-control-request-headers").filter(|wishes| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_, ".contains(&byte);
        wishes.len() <= MOST_WISHES && wishes.bytes().all(plain)
    });
    Some(Asked {
        method: Method::of(request),
        action: if handshake {
            Action::Redirect
        } else {
            direct.action
        },
        handshake,
        path: place.path.into(),
        query: place.query.map(Box::from),
        origin: origin.map(Box::from),
        varies: !route.origins.is_empty(),
        wishes: wishes.map(Box::from),
    })
}

/// Whether each Origin that it names, if any, is one of the route's. Who is no browser sends none, and is no
/// danger: what a list is against is a foreign page using a browser's cookies.
pub fn listed(route: &Route, request: &Request<'_, '_>) -> bool {
    let mut fields = request.fields.iter();
    fields.all(|field| {
        let mut origins = route.origins.iter();
        !field.name.eq_ignore_ascii_case("origin")
            || origins.any(|origin| origin.as_bytes().eq_ignore_ascii_case(field.value))
    })
}

/// Whether an If-None-Match holds this tag (RFC 9110 section 13.1.2, compared weakly).
fn names(tags: &[u8], etag: &str) -> bool {
    let tags = tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.map(|tag| tag.strip_prefix(b"W/").unwrap_or(tag))
        .any(|tag| tag == b"*" || tag == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn tags_are_compared_weakly() {
        for (tags, known) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", W/\"a\" ,\"c\"", true),
            ("*", true),
            ("a", false),
            ("\"A\"", false),
            ("", false),
        ] {
            assert_eq!(names(tags.as_bytes(), "\"a\""), known, "{tags}");
        }
    }
}
