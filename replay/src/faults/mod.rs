//! Faults: a run with them beside its twin without them, and what came of it.

mod bed;
mod judge;
mod quick;
mod runner;
mod told;
mod twin;

pub use bed::{Bed, Run, points};
pub use judge::{Judgement, Runs};
pub use quick::{Outcome, Quick};
pub use told::{Told, fired};
pub use twin::record;
