//! The workers of pybalancer: epoll, accept, dial, relay by copy and splice.
//!
//! [`Engine`] starts the workers and hands them plans; each [`worker`] is a thread with an epoll
//! instance, a descriptor table and tunnels of its own. Python appears nowhere here.

pub mod asking;
pub mod clock;
pub mod deployment;
pub mod drains;
pub mod engine;
pub mod exchange;
pub mod handover;
pub mod log;
pub mod mailbox;
pub mod outbox;
pub mod pipes;
pub mod poller;
pub mod ports;
pub mod progress;
pub mod recall;
pub mod registry;
pub mod relay;
pub mod socket;
pub mod stats;
pub mod sys;
pub mod tunnel;
pub mod worker;

pub use engine::{ApplyError, Engine};
