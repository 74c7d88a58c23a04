//! Faults: [`Plan`] says what goes wrong when, as data; [`Engine`] is a plan at work, the `Faults` that a machine asks; [`Verdict`]
//! is what came of it.
//!
//! A plan knows fault points by name only ([`Point`]): those of a backend's table, the host's own, and those of a migration. What an
//! engine decides is on the tape, so that a replay needs neither plan nor seed.

pub mod campaign;
mod coin;
mod compile;
mod engine;
pub mod plan;
mod points;
mod shrink;
mod signature;
mod verdict;

pub use coin::Coin;
pub use engine::{Engine, Firing, Log};
pub use plan::{Plan, PlanError, Rule, Source, What, When};
pub use points::Point;
pub use shrink::{Candidate, Shrunk, rule_of, shrink};
pub use signature::Signature;
pub use verdict::{Expected, NoVerdict, Verdict};
