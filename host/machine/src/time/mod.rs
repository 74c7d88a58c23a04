//! What time it is, and what comes from outside at which time.

mod clock;
mod fault_names;
mod faults;
mod inputs;
mod milestones;

pub(crate) use clock::MOST_NS;
pub use clock::{Clock, NS_PER_SECOND, NS_PER_TICK};
pub(crate) use fault_names::FaultNumbers;
pub(crate) use faults::Counts;
pub use faults::{Asked, Decision, Exited, Faults, HostPoint, Phase, Scripted};
pub(crate) use inputs::InputStream;
pub use inputs::{Inputs, Live, Recorded, Taken};
pub use milestones::Milestones;
