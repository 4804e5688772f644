//! What client and backend have agreed on, and whether another backend agrees.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::http::{Header, Response};

pub(super) const DEFLATE: &[u8] = b"permessage-deflate";
/// The parameters of permessage-deflate with which each message stands alone (RFC 7692, section 7.1.1).
pub(super) const NO_TAKEOVER: [&[u8]; 2] =
    [b"server_no_context_takeover", b"client_no_context_takeover"];

/// What the first 101 said. The client has read it and goes by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// `Sec-WebSocket-Accept`; the same, since the same key is sent again.
    pub accept: [u8; 28],
    /// `Sec-WebSocket-Protocol`.
    pub protocol: Option<Box<[u8]>>,
    /// `Sec-WebSocket-Extensions`, in one spelling.
    pub extensions: Box<[u8]>,
}

/// What a repeated handshake was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The same as the first time.
    Agreed,
    /// Not this backend, or not now.
    Again(&'static str),
    /// No other will say anything else.
    Never(&'static str),
}

impl Agreed {
    /// From the first 101, which was checked; why this tunnel cannot go on elsewhere.
    pub fn of(response: &Response<'_, '_>, accept: [u8; 28]) -> Result<Agreed, &'static str> {
        let agreed = Agreed {
            accept,
            protocol: protocol(response.fields)?,
            extensions: normal(response.fields),
        };
        let alone = split(&agreed.extensions, b',').all(stands_alone);
        (alone.then_some(agreed)).ok_or("its extensions refer to what was said before")
    }

    /// Whether `response` opens the same WebSocket once more.
    pub fn judge(&self, response: &Response<'_, '_>) -> Answer {
        match response.status {
            101 if response.upgrades_to_websocket && response.accept == Some(&self.accept) => {
                if protocol(response.fields).as_ref() != Ok(&self.protocol) {
                    Answer::Never("it agreed to another subprotocol")
                } else if normal(response.fields) != self.extensions {
                    Answer::Never("it agreed to other extensions")
                } else {
                    Answer::Agreed
                }
            }
            101 => Answer::Again("it switched protocols, but not as it was asked to"),
            // Too late, too early, too many: not the last word.
            408 | 425 | 429 => Answer::Again("it has no room now"),
            400..=499 => Answer::Never("it does not take this client"),
            _ => Answer::Again("it did not open a WebSocket"),
        }
    }
}

/// Whether messages under this extension can be read without those before them.
fn stands_alone(element: &[u8]) -> bool {
    let has = |wanted: &[u8]| split(element, b';').skip(1).any(|one| one == wanted);
    name(element) == DEFLATE && NO_TAKEOVER.into_iter().all(has)
}

/// The one subprotocol, if there is one.
fn protocol(fields: &[Header<'_>]) -> Result<Option<Box<[u8]>>, &'static str> {
    let mut said = values(fields, "sec-websocket-protocol");
    match (said.next(), said.next()) {
        (first, None) => Ok(first.map(Box::from)),
        _ => Err("more than one subprotocol"),
    }
}

/// The extensions in one spelling: names in lower case, parameters in order, values without quotes.
fn normal(fields: &[Header<'_>]) -> Box<[u8]> {
    let mut out = Vec::new();
    for element in values(fields, "sec-websocket-extensions").flat_map(|value| split(value, b',')) {
        if !out.is_empty() {
            out.push(b',');
        }
        out.extend(name(element).to_ascii_lowercase());
        let mut parameters: Vec<Vec<u8>> = split(element, b';').skip(1).map(parameter).collect();
        parameters.sort();
        for parameter in parameters {
            out.push(b';');
            out.extend(parameter);
        }
    }
    out.into()
}

fn parameter(text: &[u8]) -> Vec<u8> {
    let equals = text.iter().position(|byte| *byte == b'=');
    let (name, value) = match equals.and_then(|at| text.split_at_checked(at)) {
        Some((name, value)) => (name.trim_ascii(), value.get(1..).unwrap_or_default()),
        None => return text.to_ascii_lowercase(),
    };
    let value = value.trim_ascii();
    let bare = (value.strip_prefix(b"\"")).and_then(|value| value.strip_suffix(b"\""));
    [&name.to_ascii_lowercase(), &b"="[..], bare.unwrap_or(value)].concat()
}

/// What stands before an element's parameters.
pub(super) fn name(element: &[u8]) -> &[u8] {
    split(element, b';').next().unwrap_or_default()
}

/// The parts of a list that are not empty. Within quotes a separator is none.
pub(super) fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |byte| {
        let plain = !core::mem::take(&mut escaped);
        match byte {
            b'"' if plain => quoted = !quoted,
            b'\\' if plain && quoted => escaped = true,
            _ => {}
        }
        !quoted && *byte == separator
    })
    .map(<[u8]>::trim_ascii)
    .filter(|part| !part.is_empty())
}

fn values<'f, 'b>(fields: &'f [Header<'b>], name: &'f str) -> impl Iterator<Item = &'b [u8]> {
    let named = move |field: &&Header<'b>| field.name.eq_ignore_ascii_case(name);
    fields.iter().filter(named).map(|field| field.value)
}
