//! Replaying tapes: run the guest again or feed its exits to another backend, compare, explain.

pub mod across;
mod error;
pub mod exempt;
pub mod exits;
pub mod explain;
pub mod identical;
pub mod player;
pub mod recording;
pub mod report;
pub mod spec;
pub mod state;
pub mod tapes;
pub mod text;

pub use error::Error;
pub use report::Report;
