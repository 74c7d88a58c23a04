//! The tape, from both ends: what a run tells of itself, and what a reader who was told that knows.

mod changes;
mod faults;
mod feeding;
pub(crate) mod fpu;
mod knowledge;
mod recorder;
pub(crate) mod registers;

pub(crate) use changes::Emulation;
pub(crate) use feeding::Feeding;
pub use recorder::Recorder;
pub(crate) use recorder::{Standing, Tape};
