//! WebSocket (RFC 6455), as far as something between the two ends must know it.
//!
//! Frames are relayed, never altered: what is here proves a handshake, follows frame boundaries, and
//! makes the few frames that a balancer sends in its own name.

pub mod close;
mod frame;
mod handshake;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod track;

pub use frame::{Frame, close_frame, ping_frame, pong_frame};
pub use handshake::accept_key;
pub use track::{MAX_HEADER, Rules, Tracker, Violation, ViolationKind};
