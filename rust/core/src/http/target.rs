//! What a request asks for (RFC 9112 section 3.2).

use super::authority;
use super::head::{Refusal, bad};

/// A target as it goes on: in origin-form, or the asterisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'b> {
    pub whole: &'b str,
    pub path: &'b str,
    pub query: Option<&'b str>,
}

/// Read it. `host` is the Host field.
pub(super) fn parse<'b>(method: &str, target: &'b str, host: &str) -> Result<Target<'b>, Refusal> {
    if !target.bytes().all(is_target_byte) {
        return bad("a character in the target that must be encoded");
    }
    if target == "*" {
        return if method == "OPTIONS" {
            Ok(whole("*"))
        } else {
            bad("an asterisk as target is for OPTIONS only")
        };
    }
    if target.starts_with('/') {
        return origin(target);
    }
    let Some(rest) = after_scheme(target) else {
        return bad("the target is no path");
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    if !authority::is_valid(name.as_bytes()) || !name.eq_ignore_ascii_case(host) {
        // RFC 9112 section 3.2.2 lets the target override Host. But a backend, or something in
        // between, may look at the other one.
        return bad("the target's host is not the Host field's");
    }
    match rest {
        // "The last proxy on the request chain MUST send "*"" (RFC 9112 section 3.2.4)
        "" if method == "OPTIONS" => Ok(whole("*")),
        "" => Ok(whole("/")),
        // The grammar lets the path be empty before a query; nothing that sends absolute-form does so.
        _ if rest.starts_with('?') => bad("a target with a query but no path"),
        _ => origin(rest),
    }
}

fn whole(target: &str) -> Target<'_> {
    Target {
        whole: target,
        path: target,
        query: None,
    }
}

fn origin(target: &str) -> Result<Target<'_>, Refusal> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if path.contains('\\') {
        // Some read it as a slash.
        return bad("a backslash in the path");
    }
    Ok(Target {
        whole: target,
        path,
        query,
    })
}

/// What follows `http://` and its like, in any case.
fn after_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    ["http", "https", "ws", "wss"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(scheme))
        .then_some(rest)
}

/// Visible ASCII, but for what ends a target ("#") and what no URI holds and some would cut at. The
/// others that RFC 3986 wants encoded (`{`, `}`, `|`, `^`, `` ` ``) are sent as they are by browsers.
fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_56_forms_of_targets() {
        for (method, target, expected) in [
            ("GET", "/", Ok(("/", "/", None))),
            ("GET", "/a?b?c", Ok(("/a?b?c", "/a", Some("b?c")))),
            ("GET", "http://a", Ok(("/", "/", None))),
            ("GET", "WSS://A/b", Ok(("/b", "/b", None))),
            ("OPTIONS", "*", Ok(("*", "*", None))),
            ("OPTIONS", "http://a", Ok(("*", "*", None))),
            ("OPTIONS", "http://a/", Ok(("/", "/", None))),
            ("GET", "*", Err(())),
            ("GET", "", Err(())),
            ("GET", "http://b/", Err(())),
            ("GET", "http://a?b", Err(())),
            ("GET", "a://a/", Err(())),
            ("GET", "/a\\b", Err(())),
        ] {
            let parsed = parse(method, target, "a")
                .map(|target| (target.whole, target.path, target.query))
                .map_err(drop);
            assert_eq!(parsed, expected, "{method} {target}");
        }
    }

    #[test]
    fn test_58_bytes_of_targets() {
        for byte in 0..=127_u8 {
            let bytes = [b'/', b'?', byte];
            let target = core::str::from_utf8(&bytes).unwrap();
            let expected = byte.is_ascii_graphic() && !b"#\"<>".contains(&byte);
            assert_eq!(parse("GET", target, "a").is_ok(), expected, "{byte:#x}");
        }
    }
}
