//! Patterns of paths and hosts.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::facts::hex_pair;

/// A pattern of paths: `/rooms/{id}/*`.
///
/// Literal segments; `{name}`, one segment that is not empty; `*`, one segment, or at the end all that
/// follows, also nothing: `/rooms/*` matches `/rooms`, `/rooms/` and `/rooms/7/x`.
///
/// The path is taken as sent. Two spellings are one where RFC 3986 section 6.2.2 says so: `%61` is `a`,
/// `%2f` is `%2F` (but not `/`). Repeated slashes are not merged: there are empty segments between them.
/// A path with dot segments (`/./`, `/../`) matches nothing but the catch-all `/*`, in every spelling
/// that some server takes for one (`%2e`, `..;x`, `..%2f`, `..\`): what it comes to is for the backend to
/// say, and a rule must not be entered by a path that leaves it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    segments: Box<[Segment]>,
    /// Ends in `*`.
    open_ended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// In normal form, see [`Normal`].
    Literal(Box<[u8]>),
    Any,
    NotEmpty,
}

impl Pattern {
    /// From its text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!("{text:?}: a path begins with a slash"));
        };
        let (path, open_ended) = match path.strip_suffix('*') {
            Some("") => (None, true),
            Some(path) if path.ends_with('/') => (path.strip_suffix('/'), true),
            _ => (Some(path), false),
        };
        let mut names: Vec<&str> = Vec::new();
        let mut segments = Vec::new();
        for segment in path.iter().flat_map(|path| path.split('/')) {
            segments
                .push(parse_segment(segment, &mut names).map_err(|e| format!("{text:?}: {e}"))?);
        }
        Ok(Pattern {
            segments: segments.into(),
            open_ended,
        })
    }

    /// Whether it matches `path`, as sent and without the query.
    pub fn matches(&self, path: &str) -> bool {
        if self.open_ended && self.segments.is_empty() {
            return true;
        }
        let Some(path) = path.strip_prefix('/') else {
            return false;
        };
        let mut parts = path.as_bytes().split(|byte| *byte == b'/');
        let fits = |segment: &Segment| {
            parts.next().is_some_and(|part| match segment {
                Segment::Literal(literal) => Normal::new(part).eq(literal.iter().copied()),
                Segment::Any => true,
                Segment::NotEmpty => !part.is_empty(),
            })
        };
        self.segments.iter().all(fits)
            && (self.open_ended || parts.next().is_none())
            && !has_dot_segments(path.as_bytes())
    }
}

fn parse_segment<'t>(text: &'t str, names: &mut Vec<&'t str>) -> Result<Segment, String> {
    if text == "*" {
        return Ok(Segment::Any);
    }
    if let Some(name) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        if !name.bytes().next().is_some_and(letter)
            || !name
                .bytes()
                .all(|byte| letter(byte) || byte.is_ascii_digit())
        {
            return Err(format!("{{{name}}}: a name is of letters, digits and _"));
        }
        if names.contains(&name) {
            return Err(format!("{{{name}}} stands twice"));
        }
        names.push(name);
        return Ok(Segment::NotEmpty);
    }
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = match byte {
            b'%' => {
                hex_pair(after)
                    .ok_or("after % come two hexadecimal digits")?
                    .1
            }
            b'{' | b'}' | b'*' => return Err("* and {name} stand for whole segments".into()),
            b'?' | b'#' => return Err("a path has no query and no fragment".into()),
            0x21..=0x7e if !b"\"<>\\".contains(byte) => after,
            _ => return Err("other characters than visible ASCII are written %XX".into()),
        };
    }
    if has_dot_segments(text.as_bytes()) {
        return Err("a pattern with dot segments would match nothing".into());
    }
    Ok(Segment::Literal(Normal::new(text.as_bytes()).collect()))
}

/// Whether a backend might resolve parts of `path` as `.` or `..`.
fn has_dot_segments(path: &[u8]) -> bool {
    let mut path = path;
    let mut dots = 0;
    // Whether all of the segment so far is dots, and whether its parameters (after `;`) have begun.
    let (mut only_dots, mut parameters) = (true, false);
    loop {
        let Some((byte, rest)) = path.split_first() else {
            return only_dots && (1..=2).contains(&dots);
        };
        let escaped = if *byte == b'%' { hex_pair(rest) } else { None };
        let (byte, rest) = escaped.unwrap_or((*byte, rest));
        path = rest;
        match byte {
            b'/' | b'\\' => {
                if only_dots && (1..=2).contains(&dots) {
                    return true;
                }
                (dots, only_dots, parameters) = (0, true, false);
            }
            _ if parameters => {}
            b';' => parameters = true,
            b'.' => dots += 1,
            _ => only_dots = false,
        }
    }
}

/// Whether two spellings are of one path.
pub(crate) fn same_path(one: &str, other: &str) -> bool {
    Normal::new(one.as_bytes()).eq(Normal::new(other.as_bytes()))
}

/// The bytes of a segment in the normal form of RFC 3986 section 6.2.2: unreserved characters plain, the
/// digits of other escapes in upper case.
struct Normal<'a> {
    rest: &'a [u8],
    /// So many of the next bytes are digits of an escape.
    digits: u8,
}

impl Normal<'_> {
    fn new(segment: &[u8]) -> Normal<'_> {
        Normal {
            rest: segment,
            digits: 0,
        }
    }
}

impl Iterator for Normal<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        if self.digits > 0 {
            self.digits -= 1;
            return Some(byte.to_ascii_uppercase());
        }
        if *byte == b'%'
            && let Some((value, after)) = hex_pair(rest)
        {
            if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
                self.rest = after;
                return Some(value);
            }
            self.digits = 2;
        }
        Some(*byte)
    }
}

/// A pattern of hosts: `example.com`, or `*.example.com` for one or more labels before it.
///
/// Case does not matter, nor a final dot; the port matters only if the pattern has one, and then it must
/// be sent. IPv6 addresses stand in brackets, in their canonical spelling (RFC 5952).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// In lower case; with a wildcard what must follow it, from the dot on.
    name: Box<str>,
    wildcard: bool,
    port: Option<u16>,
}

impl HostPattern {
    /// From its text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<HostPattern, String> {
        let (name, port) = split_port(text);
        let port = match port.map(|port| (port, port.parse::<u16>())) {
            None => None,
            Some((digits, Ok(port))) if port > 0 && !digits.starts_with(['+', '0']) => Some(port),
            Some((digits, _)) => return Err(format!("{text:?}: {digits:?} is not a port")),
        };
        let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
        if let Some(address) = address {
            let address: Ipv6Addr = address
                .parse()
                .map_err(|_| format!("{text:?}: not an IPv6 address in brackets"))?;
            return Ok(HostPattern {
                name: format!("[{address}]").into(),
                wildcard: false,
                port,
            });
        }
        let (wildcard, labels) = match name.strip_prefix("*.") {
            Some(labels) => (true, labels),
            None => (false, name),
        };
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(letter);
        if !name.is_ascii() {
            return Err(format!(
                "{text:?}: write the name in ASCII, as browsers send it (xn--...)"
            ));
        }
        if name.len() > 253 || !labels.split('.').all(label) {
            return Err(format!("{text:?} is neither a host name nor *. and one"));
        }
        let name = if wildcard {
            name.strip_prefix('*').unwrap_or(name)
        } else {
            name
        };
        Ok(HostPattern {
            name: name.to_ascii_lowercase().into(),
            wildcard,
            port,
        })
    }

    /// Whether it matches a Host field.
    pub fn matches(&self, host: &str) -> bool {
        let (_, port) = split_port(host);
        let name = host_name(host).as_bytes();
        let before = name.len().checked_sub(self.name.len());
        self.port
            .is_none_or(|own| port.and_then(|port| port.parse().ok()) == Some(own))
            && before.is_some_and(|before| (before > 0) == self.wildcard)
            && before
                .and_then(|before| name.get(before..))
                .is_some_and(|end| end.eq_ignore_ascii_case(self.name.as_bytes()))
    }
}

/// A Host field without its port and final dot.
pub(super) fn host_name(host: &str) -> &str {
    let (name, _) = split_port(host);
    name.strip_suffix('.').unwrap_or(name)
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        // A colon within brackets is part of the address.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}
