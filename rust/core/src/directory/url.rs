//! Where clients reach a backend without us.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use crate::http::is_authority;

/// Scheme, host and port of a backend as clients know it. All of it comes from the configuration: what a
/// client asks for can only become path and query behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    secure: bool,
    authority: Box<str>,
}

impl PublicUrl {
    /// `wss://www34.example.com`, `ws://`, `https://` or `http://`, with a port or not, without a path.
    pub fn parse(text: &str) -> Result<PublicUrl, String> {
        let bad = || {
            format!(
                "{text:?} is not a URL such as \"wss://www34.example.com\", without path and slash"
            )
        };
        let (scheme, authority) = text.split_once("://").ok_or_else(bad)?;
        let secure = match scheme {
            "wss" | "https" => true,
            "ws" | "http" => false,
            _ => return Err(bad()),
        };
        if !is_authority(authority.as_bytes()) {
            return Err(bad());
        }
        Ok(PublicUrl {
            secure,
            authority: authority.into(),
        })
    }

    /// Its scheme and what follows, up to the path: for WebSockets, or for pages.
    pub fn origin(&self, page: bool) -> String {
        let scheme = match (page, self.secure) {
            (false, true) => "wss",
            (false, false) => "ws",
            (true, true) => "https",
            (true, false) => "http",
        };
        format!("{scheme}://{}", self.authority)
    }
}

/// Path and query of a request at the backend that its client is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Begins with a slash.
    pub path: &'a str,
    /// What follows its `?`.
    pub query: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Of a request for `asked`, or where the configuration says so, of one for `path` with the query of
    /// that. None for what has no path, such as `*`.
    pub fn new(asked: &'a str, path: Option<&'a str>) -> Option<Place<'a>> {
        let (own, query) = match asked.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (asked, None),
        };
        let path = path.unwrap_or(own);
        path.starts_with('/').then_some(Place { path, query })
    }

    /// The whole URL. With a ticket its query has that, and none that the client has brought.
    pub fn at(&self, origin: &str, ticket: Option<&str>) -> String {
        let mut url = String::with_capacity(origin.len() + self.path.len() + 128);
        url.push_str(origin);
        url.push_str(self.path);
        let Some(ticket) = ticket else {
            if let Some(query) = self.query {
                url.push('?');
                url.push_str(query);
            }
            return url;
        };
        url.push('?');
        for part in self.query.unwrap_or_default().split('&') {
            // However its name is spelled: a verifier may look at the first one only.
            let name = part.split('=').next().unwrap_or_default();
            if !part.is_empty() && !spells(name.as_bytes(), b"ticket") {
                url.push_str(part);
                url.push('&');
            }
        }
        url.push_str("ticket=");
        url.push_str(ticket);
        url
    }
}

/// Whether `text`, percent-decoded, is `word`.
fn spells(mut text: &[u8], word: &[u8]) -> bool {
    for expected in word {
        let (byte, rest) = match text {
            [b'%', high, low, rest @ ..] => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                match digit(*high).zip(digit(*low)) {
                    Some((high, low)) => ((high << 4 | low) as u8, rest),
                    None => return false,
                }
            }
            [byte, rest @ ..] => (*byte, rest),
            [] => return false,
        };
        if byte != *expected {
            return false;
        }
        text = rest;
    }
    text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_scheme_and_authority() {
        for (text, socket, page) in [
            ("wss://a.example", "wss://a.example", "https://a.example"),
            ("ws://a:81", "ws://a:81", "http://a:81"),
            ("https://[::1]:1", "wss://[::1]:1", "https://[::1]:1"),
            ("http://a", "ws://a", "http://a"),
        ] {
            let url = PublicUrl::parse(text).unwrap();
            assert_eq!((&*url.origin(false), &*url.origin(true)), (socket, page));
        }
        for text in [
            "",
            "a",
            "//a",
            "wss:a",
            "wss://",
            "wss://a/",
            "wss://a?b",
            "wss://a#b",
            "wss://u@a",
            "WSS://a",
            "ftp://a",
            "wss://a b",
            "wss://a\r\nX: y",
            "wss://a\"",
            "wss://a:99999",
            "wss://a\\b",
        ] {
            assert!(PublicUrl::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn nothing_that_is_asked_for_leaves_the_path() {
        let url = PublicUrl::parse("wss://node.example")
            .unwrap()
            .origin(false);
        for asked in [
            "//evil.example",
            "/@evil.example",
            "/..//evil",
            "/:80",
            "/?//evil",
            "/%0d%0a",
        ] {
            let place = Place::new(asked, None).unwrap();
            assert_eq!(place.at(&url, None), format!("wss://node.example{asked}"));
        }
        for asked in ["*", "", "evil.example", "?x", "http://evil", "@evil"] {
            assert_eq!(Place::new(asked, None), None, "{asked}");
        }
        let fixed = Place::new("/connect?room=7", Some("/chat")).unwrap();
        assert_eq!(fixed.at(&url, None), "wss://node.example/chat?room=7");
    }

    #[test]
    fn a_client_brings_no_ticket_of_its_own() {
        for (asked, expected) in [
            ("/", "/?ticket=T"),
            ("/?", "/?ticket=T"),
            ("/?a=1&b", "/?a=1&b&ticket=T"),
            ("/?ticket=x&a&ticket", "/?a&ticket=T"),
            (
                "/?%74ick%65t=x&tickets=1&Ticket=2&ticke=3",
                "/?tickets=1&Ticket=2&ticke=3&ticket=T",
            ),
            ("/?%7=1&%zzicket=2&&", "/?%7=1&%zzicket=2&ticket=T"),
        ] {
            assert_eq!(Place::new(asked, None).unwrap().at("", Some("T")), expected);
        }
    }
}
