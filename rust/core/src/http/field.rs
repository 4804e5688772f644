//! Fields: which ones matter, and how strictly their lines are read.

use httparse::Header;

use super::head::{Refusal, bad};
use super::text::{is_token, is_value_byte, list};

/// The most options in all Connection fields of a head. Each field's name is compared with each of
/// them, so that without a bound a head of 16 KiB could cost a million comparisons.
const MAX_OPTIONS: usize = 32;

/// A field that means something to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Connection,
    KeepAlive,
    ProxyConnection,
    Te,
    Trailer,
    Upgrade,
    Http2Settings,
    TransferEncoding,
    ContentLength,
    Host,
    Expect,
    Cookie,
    Authorization,
    WebSocketKey,
    WebSocketVersion,
    WebSocketAccept,
    WebSocketOther,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    ForwardedOther,
    RequestId,
    Resumed,
    Other,
}

const NAMES: [(&[u8], Name); 23] = [
    (b"connection", Name::Connection),
    (b"keep-alive", Name::KeepAlive),
    (b"proxy-connection", Name::ProxyConnection),
    (b"te", Name::Te),
    (b"trailer", Name::Trailer),
    (b"upgrade", Name::Upgrade),
    (b"http2-settings", Name::Http2Settings),
    (b"transfer-encoding", Name::TransferEncoding),
    (b"content-length", Name::ContentLength),
    (b"host", Name::Host),
    (b"expect", Name::Expect),
    (b"cookie", Name::Cookie),
    (b"authorization", Name::Authorization),
    (b"sec-websocket-key", Name::WebSocketKey),
    (b"sec-websocket-version", Name::WebSocketVersion),
    (b"sec-websocket-accept", Name::WebSocketAccept),
    (b"forwarded", Name::Forwarded),
    (b"x-forwarded-for", Name::ForwardedFor),
    (b"x-forwarded-host", Name::ForwardedHost),
    (b"x-forwarded-proto", Name::ForwardedProto),
    (b"x-real-ip", Name::ForwardedOther),
    (b"x-request-id", Name::RequestId),
    (b"pybalancer-resumed", Name::Resumed),
];

const FAMILIES: [(&[u8], Name); 2] = [
    (b"sec-websocket-", Name::WebSocketOther),
    (b"x-forwarded-", Name::ForwardedOther),
];

impl Name {
    /// Which one it is, and whether it is spelled so; else other punctuation stands for its hyphens.
    /// Gateways to CGI and WSGI read `Transfer_Encoding` as `Transfer-Encoding`, and some make an
    /// underscore of all that is no letter or digit.
    pub(super) fn of(name: &str) -> (Name, bool) {
        let bytes = name.as_bytes();
        let found = NAMES
            .iter()
            .find(|(known, _)| bytes.len() == known.len() && alike(bytes, known))
            .or_else(|| FAMILIES.iter().find(|(start, _)| begins(bytes, start)));
        match found {
            Some((known, which)) => {
                let start = bytes.get(..known.len()).unwrap_or(bytes);
                (*which, start.eq_ignore_ascii_case(known))
            }
            None => (Name::Other, true),
        }
    }

    /// It concerns one connection and not the message (RFC 9110 section 7.6.1).
    pub(super) fn is_hop_by_hop(self) -> bool {
        use Name::*;
        matches!(
            self,
            Connection | KeepAlive | ProxyConnection | Te | Trailer | Upgrade | Http2Settings
        )
    }

    /// Who these came from, as far as the peer says.
    pub(super) fn is_forwarding(self) -> bool {
        use Name::*;
        matches!(
            self,
            Forwarded | ForwardedFor | ForwardedHost | ForwardedProto | ForwardedOther | RequestId
        )
    }

    fn is_websocket(self) -> bool {
        use Name::*;
        matches!(
            self,
            WebSocketKey | WebSocketVersion | WebSocketAccept | WebSocketOther
        )
    }

    /// Spelled otherwise it would mislead somebody.
    pub(super) fn must_be_spelled(self) -> bool {
        !self.is_forwarding() && !matches!(self, Name::Resumed | Name::Other)
    }

    /// What a message loses when Connection names it, so that the backend reads another one.
    fn must_not_be_option(self) -> bool {
        use Name::*;
        self.is_websocket()
            || matches!(
                self,
                Host | ContentLength | TransferEncoding | Expect | Cookie | Authorization
            )
    }
}

fn alike(name: &[u8], known: &[u8]) -> bool {
    name.iter().zip(known).all(|(byte, known)| {
        byte.to_ascii_lowercase() == *known || *known == b'-' && !byte.is_ascii_alphanumeric()
    })
}

fn begins(name: &[u8], start: &[u8]) -> bool {
    name.get(..start.len())
        .is_some_and(|name| alike(name, start))
}

/// Read field lines up to and with the empty line, which must be the last of `lines`.
pub(super) fn parse<'h, 'b>(
    lines: &'b [u8],
    storage: &'h mut [Header<'b>],
) -> Result<&'h [Header<'b>], Refusal> {
    // httparse takes a bare LF as a line's end; CR it takes nowhere else than before LF.
    let bare = lines
        .windows(2)
        .fold(lines.first() == Some(&b'\n'), |bare, pair| {
            bare | (pair.first() != Some(&b'\r')) & (pair.last() == Some(&b'\n'))
        });
    if bare {
        return bad("a line that ends in a bare LF");
    }
    match httparse::parse_headers(lines, storage) {
        Ok(httparse::Status::Complete((length, fields))) if length == lines.len() => Ok(fields),
        Ok(httparse::Status::Complete(_)) => bad("an empty line within the head"),
        Ok(httparse::Status::Partial) => bad("the head is not complete"),
        Err(httparse::Error::TooManyHeaders) => Err(Refusal::new(431, "too many fields")),
        Err(httparse::Error::HeaderValue) => bad("a character that no field value may hold"),
        Err(_) => bad("a line that is no field"),
    }
}

/// What the fields of a head say about framing and the connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Summary<'b> {
    pub content_length: Option<u64>,
    pub chunked: bool,
    /// Connection: close.
    pub close: bool,
    /// Connection: keep-alive.
    pub keep_alive: bool,
    /// Connection: upgrade, and the one Upgrade field is exactly `websocket`.
    pub websocket: bool,
    pub host: One<'b>,
    pub expect: One<'b>,
    pub key: One<'b>,
    pub version: One<'b>,
    pub accept: One<'b>,
}

/// A field that should be there once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum One<'b> {
    #[default]
    Absent,
    Value(&'b [u8]),
    Twice,
}

impl<'b> One<'b> {
    fn meet(&mut self, value: &'b [u8]) {
        *self = match self {
            One::Absent => One::Value(value),
            _ => One::Twice,
        };
    }
}

/// Look at every field once.
pub(super) fn summarize<'b>(fields: &[Header<'b>]) -> Result<Summary<'b>, Refusal> {
    let mut summary = Summary::default();
    let (mut length, mut coding, mut upgrade) = (One::Absent, One::Absent, One::Absent);
    let (mut options, mut upgrades) = (0, false);
    for field in fields {
        let (name, spelled) = Name::of(field.name);
        if !spelled && name.must_be_spelled() {
            return bad("a field whose name can be taken for another one");
        }
        match name {
            Name::ContentLength => length.meet(field.value),
            Name::TransferEncoding => coding.meet(field.value),
            Name::Upgrade => upgrade.meet(field.value),
            Name::Host => summary.host.meet(field.value),
            Name::Expect => summary.expect.meet(field.value),
            Name::WebSocketKey => summary.key.meet(field.value),
            Name::WebSocketVersion => summary.version.meet(field.value),
            Name::WebSocketAccept => summary.accept.meet(field.value),
            Name::Connection => {
                for option in list(field.value) {
                    options += 1;
                    check_option(option, options)?;
                    summary.close |= option.eq_ignore_ascii_case(b"close");
                    summary.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    upgrades |= option.eq_ignore_ascii_case(b"upgrade");
                }
            }
            _ => {}
        }
    }
    summary.websocket = upgrades
        && matches!(upgrade, One::Value(token) if token.eq_ignore_ascii_case(b"websocket"));
    summary.content_length = match length {
        One::Absent => None,
        One::Value(text) => match super::text::number(text) {
            Some(number) => Some(number),
            None => return bad("Content-Length is no number"),
        },
        // RFC 9110 section 8.6 lets equal ones be made one. There is no good reason to send two.
        One::Twice => return bad("more than one Content-Length"),
    };
    summary.chunked = match coding {
        One::Absent => false,
        One::Value(coding) if coding.eq_ignore_ascii_case(b"chunked") => true,
        // RFC 9112 section 6.1 allows further codings before it, which nobody sends or reads.
        One::Value(_) => return bad("a Transfer-Encoding other than chunked"),
        One::Twice => return bad("more than one Transfer-Encoding"),
    };
    if summary.chunked && summary.content_length.is_some() {
        // RFC 9112 section 6.3 lets a server "reject such a message": "it ought to be handled as an
        // error" in any case.
        return bad("Content-Length together with Transfer-Encoding");
    }
    Ok(summary)
}

fn check_option(option: &[u8], count: usize) -> Result<(), Refusal> {
    if count > MAX_OPTIONS {
        return bad("too many options in Connection");
    }
    let Some(text) = core::str::from_utf8(option)
        .ok()
        .filter(|_| is_token(option))
    else {
        return bad("an option in Connection that is no token");
    };
    if Name::of(text).0.must_not_be_option() {
        // "A sender MUST NOT send a connection option corresponding to a field that is intended for
        // all recipients of the content" (RFC 9110 section 7.6.1)
        return bad("Connection names a field that is not the connection's");
    }
    Ok(())
}

/// The fields that Connection names, which must not go on.
#[derive(Clone, Copy)]
pub(super) struct Named<'f, 'b> {
    fields: &'f [Header<'b>],
    any: bool,
}

impl<'f, 'b> Named<'f, 'b> {
    pub(super) fn new(fields: &'f [Header<'b>]) -> Named<'f, 'b> {
        let all = Named { fields, any: true };
        // Nearly always there are only `close`, `keep-alive`, `upgrade`, and nothing to look for.
        let any = all.options().any(|option| {
            !option.eq_ignore_ascii_case(b"close")
                && core::str::from_utf8(option).is_ok_and(|name| !Name::of(name).0.is_hop_by_hop())
        });
        Named { fields, any }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.any
            && self
                .options()
                .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    }

    fn options(&self) -> impl Iterator<Item = &'b [u8]> + use<'f, 'b> {
        values(self.fields, "connection").flat_map(list)
    }
}

/// A field's value as text that may stand in a head.
pub(super) fn is_value(value: &str) -> bool {
    value.bytes().all(is_value_byte)
}

/// Fields of a name, in order.
pub(super) fn values<'f, 'b>(
    fields: &'f [Header<'b>],
    name: &'f str,
) -> impl Iterator<Item = &'b [u8]> + use<'f, 'b> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_with_other_punctuation() {
        for (text, expected) in [
            ("CONNECTION", (Name::Connection, true)),
            ("Transfer-Encoding", (Name::TransferEncoding, true)),
            ("Transfer_Encoding", (Name::TransferEncoding, false)),
            ("content.length", (Name::ContentLength, false)),
            ("Sec-WebSocket-Key", (Name::WebSocketKey, true)),
            ("Sec_WebSocket-Extensions", (Name::WebSocketOther, false)),
            ("x-forwarded-anything_else", (Name::ForwardedOther, true)),
            ("X_Forwarded-For", (Name::ForwardedFor, false)),
            ("X-Forwarded", (Name::Other, true)),
            ("TransferEncoding", (Name::Other, true)),
            ("TransferXEncoding", (Name::Other, true)),
            ("Hos", (Name::Other, true)),
        ] {
            assert_eq!(Name::of(text), expected, "{text}");
        }
        for (known, name) in NAMES {
            let text = core::str::from_utf8(known).unwrap();
            assert_eq!(Name::of(text), (name, true));
        }
    }

    #[test]
    fn test_38_httparse_takes_a_bare_lf_and_we_do_not() {
        let mut storage = super::super::head::storage();
        for lines in [
            "A: b\r\n\n",
            "A: b\n\r\n",
            "\n",
            "\r\nA: b\r\n\r\n",
            "A: b\r\n",
            "",
        ] {
            assert!(parse(lines.as_bytes(), &mut storage).is_err(), "{lines:?}");
        }
        assert_eq!(parse(b"\r\n", &mut storage).map(<[_]>::len), Ok(0));
        assert_eq!(
            parse(b"A: b\r\nC:\r\n\r\n", &mut storage).map(<[_]>::len),
            Ok(2)
        );
    }

    #[test]
    fn what_connection_names() {
        let mut storage = super::super::head::storage();
        let fields = parse(
            b"Connection: close, X-A\r\nconnection: x-b\r\n\r\n",
            &mut storage,
        )
        .unwrap();
        let named = Named::new(fields);
        assert!(named.has("x-a") && named.has("X-B") && !named.has("X"));
    }
}
