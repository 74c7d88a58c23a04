//! Who runs the guest: the last messages of a migration, and what each side makes of their loss.
//!
//! Each side writes down what it becomes before it acts.

mod design;
mod journal;
mod witness;

pub use design::{Handover, Rules};
pub use journal::{Entry, FileJournal, Journal};
pub use witness::{Event, Witness};

use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    Source,
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// What a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A destination that has nothing.
    Empty,
    /// It runs the guest.
    Running,
    /// The source has stopped the guest, and may run it again.
    Frozen,
    /// The source has said GO, and runs the guest no more until it hears otherwise.
    Handed,
    /// The destination has the whole guest, and has not run it.
    Loaded,
    /// It has said so, and waits to be told to run it.
    Armed,
    /// The guest is the other side's.
    Gone,
    /// The guest is here, stopped, and nobody knows whether it runs elsewhere.
    Parked,
    /// The copy was thrown away.
    Destroyed,
    /// The process is dead.
    Dead,
    /// The guest had ended by itself.
    Ended,
    /// The other process has not said what it became.
    Unheard,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Handed => "handed",
            Self::Loaded => "loaded",
            Self::Armed => "armed",
            Self::Gone => "gone",
            Self::Parked => "parked",
            Self::Destroyed => "destroyed",
            Self::Dead => "dead",
            Self::Ended => "ended",
            Self::Unheard => "unheard",
        })
    }
}

vmtape_arch::open_enum! {
    /// Moments at which a process may be killed. GO that is written in part is a matter of the link.
    pub struct Moment(u64) {
        /// The destination has not said READY.
        BEFORE_READY = 1 => "before READY",
        /// READY has arrived, and nothing of GO is written.
        BEFORE_GO = 2 => "between READY and GO",
        /// Some bytes of GO are written.
        WITHIN_GO = 3 => "GO partly written",
        /// GO has arrived, and DONE is not sent.
        AFTER_GO = 4 => "GO delivered",
        /// The destination runs the guest, and DONE does not arrive.
        AFTER_DONE = 5 => "DONE lost",
    }
}
