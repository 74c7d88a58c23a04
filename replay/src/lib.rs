//! Replaying tapes: run the guest again or feed its exits to another backend, compare, explain.

pub mod exempt;
pub mod explain;
pub mod recording;
pub mod report;
pub mod text;

pub use report::Report;
