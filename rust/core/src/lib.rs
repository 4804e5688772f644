//! The decisions of pybalancer: bytes and time come in, decisions go out.
//!
//! Nothing in this crate knows a socket, a clock, a thread or a source of randomness, so every
//! decision can be replayed from its inputs.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod cookie;
pub mod directory;
pub mod drain;
pub mod endpoint;
pub mod flow;
pub mod http;
pub mod maglev;
pub mod plan;
pub mod pool;
pub mod proxy;
pub mod rate;
pub mod reach;
pub mod reattach;
pub mod record;
pub mod relay;
pub mod route;
pub mod rows;
pub mod shed;
pub mod time;
pub mod timers;
pub mod web;
pub mod ws;
