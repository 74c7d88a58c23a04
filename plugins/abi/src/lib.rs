//! The contract between the host and a backend plugin.
//!
//! [`contract`] says it in Rust: the trait a backend implements and the services it may call. [`table`] is the C form of
//! the same contract, which is what actually crosses the shared-library boundary; [`export_backend!`] writes a plugin's
//! side of it, and [`import::Backends`] is the host's. `plugins/README.md` describes it.

#![recursion_limit = "512"]

#[macro_use]
mod calls;
#[macro_use]
pub mod contract;
mod cross;
pub mod export;
mod fit;
pub mod handshake;
pub mod import;
mod lend;
pub mod observer;
mod plugin;
mod proxy;
mod raw;
pub mod remote;
mod sinks;
mod sizes;
pub mod table;

pub use contract::*;
pub use observer::{BackendObserver, HostObserver};
pub use plugin::*;
