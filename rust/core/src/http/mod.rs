//! HTTP/1.1 heads and bodies, read strictly (RFC 9110, 9112, 6455): reject, never repair.
//!
//! Two programs that understand the same bytes differently are how requests are smuggled past a
//! proxy. So whatever is not certain is refused, here, before a byte of it reaches a backend; and
//! what goes on is not the text that came but a new head written from what was understood.
//!
//! The way of a request: [`Scanner`] finds where its head ends while it arrives in pieces,
//! [`parse_request`] reads it, [`write_request`] writes the head for the backend, and a [`Body`]
//! accompanies what follows. Responses go the same way back: [`parse_response`], [`write_response`].

mod answer;
mod authority;
mod body;
mod edit;
mod field;
mod head;
mod request;
mod response;
mod target;
mod text;

pub use answer::{Plain, reason_phrase, write_answer, write_plain};
pub use authority::is_valid as is_authority;
pub use body::{Body, Line, Piece};
pub use edit::{Edits, Forwarded, ResponseEdits, check_edit, write_request, write_response};
pub use head::{Limits, MAX_FIELDS, Refusal, Scanner, Storage, storage};
pub use httparse::Header;
pub use request::{Request, Upgrade, parse_request};
pub use response::{Response, parse_response};

/// How the end of a message's body is known (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// This many bytes.
    Length(u64),
    /// In chunks, each with its size.
    Chunked,
    /// All until the sender ends its stream. Only responses may end so.
    UntilClose,
}
