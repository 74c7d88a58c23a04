//! Finds backend plugins and loads them. The only user of libloading, and a plugin once loaded is never unloaded.

mod load;
mod search;

pub use load::{Error, LoadedPlugin};
pub use search::Search;
