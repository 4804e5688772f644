//! The packet room: programs that the kernel runs for every packet, their maps, and what loads them.
//!
//! `balancer.bpf.c` forwards; this crate puts into maps what it decides by, and never sees a packet. It
//! knows nothing of configuration, health or sessions: backends are ids with addresses, tables are rows.

pub mod attach;
pub mod error;
pub mod grace;
pub mod kernel;
pub mod layout;
pub mod loader;
pub mod object;
pub mod path;
pub mod pins;
pub mod services;
pub mod support;
mod sys;
pub mod trusted;
