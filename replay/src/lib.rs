//! Replaying tapes: run the guest again or feed its exits to another backend, compare, explain.

pub mod across;
pub mod bisect;
pub mod causes;
pub mod check;
mod error;
pub mod exempt;
pub mod exits;
pub mod explain;
pub mod identical;
pub mod player;
pub mod recording;
pub mod report;
pub mod signature;
pub mod spec;
pub mod state;
pub mod tapes;
pub mod text;
pub mod witness;

pub use causes::Cause;
pub use error::Error;
pub use report::Report;
pub use signature::Signature;
