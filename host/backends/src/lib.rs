//! Finds backend plugins and loads them. The only user of libloading, and a plugin once loaded is never unloaded.
//!
//! [`Search`] knows where plugins lie, and which the program has itself; [`LoadedPlugin`] is one with what it says of itself,
//! and makes VMs: what comes out is a `vmtape_abi::Backend`, in which nothing tells whether Rust or C is behind it.

mod child;
mod embedded;
mod isolated;
mod load;
mod search;

pub use child::serve_if_child;
pub use embedded::Embedded;
pub use isolated::Isolation;
pub use load::{Error, LoadedPlugin, Origin};
pub use search::Search;
