//! Finds backend plugins and loads them. The only user of libloading, and a plugin once loaded is never unloaded.
//!
//! [`Search`] knows where plugins lie, [`LoadedPlugin`] is one with what it says of itself, and makes VMs: what comes out is a
//! `vmtape_abi::Backend`, in which nothing tells whether Rust or C is behind it.

mod load;
mod search;

pub use load::{Error, LoadedPlugin};
pub use search::Search;
