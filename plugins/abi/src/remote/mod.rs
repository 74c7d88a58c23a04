//! A backend in a process of its own: the contract's calls as messages on a socket.
//!
//! The process of the backend calls it through its table, as a host does; so nothing about a library changes. What crosses
//! between the processes is this crate's own on both sides, the same program, and has neither versions nor sizes.
//!
//! Calls nest as they do in one process. Whoever waits for an answer serves the calls that come meanwhile: the host's process
//! those of its services, the backend's those of the MMU that it lent. Calls without an answer (notes, logs, flushes) are sent
//! with the next message.

mod calls;
mod link;
mod message;
mod sent;

pub use calls::{CreateFn, RemoteBackend, RemotePlugin, serve};
pub use link::Link;
