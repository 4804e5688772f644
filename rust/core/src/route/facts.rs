//! What routes and keys know of a request.

use alloc::borrow::Cow;
use alloc::vec::Vec;

/// The parts of a request head that decide where it goes, borrowed from it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// As sent, without the query. `*` for `OPTIONS *`.
    pub path: &'a str,
    /// The Host field as sent, with its port.
    pub host: &'a str,
    /// What follows the first `?` of the target.
    pub query: Option<&'a str>,
    /// All fields in their order.
    pub fields: &'a [httparse::Header<'a>],
}

impl<'a> Facts<'a> {
    /// The first field of this name, in any case.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields_named(name).next()
    }

    /// The first cookie of this name, as sent: quotes and escapes are the application's.
    ///
    /// Read as servers read it (RFC 6265 section 5.4 tells what clients send): pairs between
    /// semicolons, blanks around them dropped, those without `=` passed over.
    pub fn cookie(&self, name: &str) -> Option<&'a [u8]> {
        self.fields_named("cookie")
            .flat_map(|line| line.split(|byte| *byte == b';'))
            .filter_map(|pair| split_once(trim(pair), b'='))
            .find_map(|(key, value)| (key == name.as_bytes()).then_some(value))
    }

    /// The value of the first query parameter of this name, both decoded: `%xx` is a byte, `+` a
    /// space; a `%` before anything else stands for itself. A parameter without `=` has the value "".
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        self.query?
            .as_bytes()
            .split(|byte| *byte == b'&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| split_once(pair, b'=').unwrap_or((pair, b"")))
            .find_map(|(key, value)| {
                let found = Decoded(key).eq(name.bytes());
                found.then(|| {
                    if value.iter().any(|byte| matches!(byte, b'%' | b'+')) {
                        Cow::Owned(Decoded(value).collect::<Vec<u8>>())
                    } else {
                        Cow::Borrowed(value)
                    }
                })
            })
    }

    fn fields_named(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    let (before, after) = bytes.split_at_checked(at)?;
    Some((before, after.split_first()?.1))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The bytes that a piece of a query stands for.
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        match byte {
            b'+' => Some(b' '),
            b'%' => {
                let Some((value, rest)) = hex_pair(rest) else {
                    return Some(b'%');
                };
                self.0 = rest;
                Some(value)
            }
            byte => Some(*byte),
        }
    }
}

/// The byte that two hexadecimal digits at the start spell, and what follows them.
pub(super) fn hex_pair(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let ([high, low], rest) = bytes.split_first_chunk()?;
    Some((digit(*high)? << 4 | digit(*low)?, rest))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, field};
    use super::*;

    #[test]
    fn cookies_are_read_as_servers_read_them() {
        let fields = [
            field("COOKIE", " a=1; b = 2;\tc=3 ;d;;=x; a=9; e=\"q\"; f==;A=7"),
            field("X-Cookie", "z=1"),
            field("Cookie", "g=8;b=0"),
        ];
        let facts = facts("/", "h", &fields);
        for (name, value) in [
            ("a", Some("1")),
            ("A", Some("7")),
            ("c", Some("3")),
            ("d", None),
            ("e", Some("\"q\"")),
            ("f", Some("=")),
            ("g", Some("8")),
            ("b", Some("0")),
            ("b ", Some(" 2")),
            ("z", None),
            ("", Some("x")),
            ("=", None),
        ] {
            assert_eq!(facts.cookie(name), value.map(str::as_bytes), "{name:?}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let fields = [];
        let facts = facts(
            "/?a=1&b=x+y%20z&&c&d=%zz%4&a=2&%65=f%3D&=empty&b%20c=%C3%bc&g=?h=1",
            "h",
            &fields,
        );
        for (name, value) in [
            ("a", Some(&b"1"[..])),
            ("b", Some(b"x y z")),
            ("c", Some(b"")),
            ("d", Some(b"%zz%4")),
            ("e", Some(b"f=")),
            ("", Some(b"empty")),
            ("b c", Some(b"\xc3\xbc")),
            ("g", Some(b"?h=1")),
            ("h", None),
            ("%65", None),
        ] {
            assert_eq!(facts.query_value(name).as_deref(), value, "{name:?}");
        }
        assert_eq!(
            Facts {
                query: None,
                ..facts
            }
            .query_value("a"),
            None
        );
    }
}
