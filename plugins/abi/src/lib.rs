//! The contract between the host and a backend plugin.
//!
//! [`contract`] says it in Rust: the trait a backend implements and the services it may call. The C form of the same
//! contract, which is what actually crosses the shared-library boundary, stands beside it; `plugins/README.md`
//! describes it.

pub mod contract;

pub use contract::*;
