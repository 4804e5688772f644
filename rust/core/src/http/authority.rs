//! Whom a request is for: `uri-host [ ":" port ]` (RFC 9110 section 7.2).

use core::net::Ipv6Addr;

/// Whether it is one that nobody can misread.
///
/// RFC 3986 also allows sub-delims and percent-encoding in a name, an empty port, and addresses of
/// future versions. No name that resolves needs them; and a comma makes one host out of two.
pub fn is_valid(authority: &[u8]) -> bool {
    let (host_is_valid, rest) = match authority {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else {
                return false;
            };
            let (address, rest) = rest.split_at(end);
            (is_ipv6(address), rest.get(1..).unwrap_or(&[]))
        }
        _ => {
            let end = authority.iter().position(|byte| *byte == b':');
            let (name, rest) = authority.split_at(end.unwrap_or(authority.len()));
            (is_name(name), rest)
        }
    };
    host_is_valid && (rest.is_empty() || matches!(rest, [b':', port @ ..] if is_port(port)))
}

/// `unreserved` only, which holds names and IPv4 addresses.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

fn is_ipv6(address: &[u8]) -> bool {
    core::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// 1 to 65535.
fn is_port(port: &[u8]) -> bool {
    super::text::number(port).is_some_and(|port| (1..=65535).contains(&port))
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn test_55_authorities_that_nobody_can_misread() {
        for good in ["a", "a.b:1", "127.0.0.1:65535", "[::]", "[::1]:80", "xn--a"] {
            assert!(is_valid(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":", "a:", ":1", "a:0", "a:65536", "a:99999", "a:01", "a:b", "a@b", "a/b", "a,b",
            "a b", "a%41", "[", "]", "[]", "[::1", "[::1]1", "[::1]:", "[::1]:0", "::1", "[[::1]]",
            "\u{e9}", "a\0",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
    }
}
