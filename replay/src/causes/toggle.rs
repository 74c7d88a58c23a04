//! One thing changed in one of two machines.

use super::cause::{Cause, Kind};
use crate::sides::Sides;
use vmtape_machine::MachineSpec;

/// Which of the two machines is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Expected,
    Actual,
}

/// What a trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The difference is still there, or another one of its kind.
    Still,
    /// This difference is gone; others are left.
    Gone,
    /// Both machines are equal after the instruction.
    Equal,
}

impl Finding {
    /// What a trial found that leaves this difference instead of that one. Both are in the words of signatures.
    pub fn of(left: &str, was: &str) -> Self {
        let kind = |what: &str| what.split(':').next().map(str::to_owned);
        if kind(left) == kind(was) { Self::Still } else { Self::Gone }
    }
}

/// One thing changed.
#[derive(Clone, Debug)]
pub struct Toggle {
    pub side: Side,
    pub kind: Kind,
    /// As options spell it.
    pub name: String,
    /// What it says of itself.
    pub text: String,
    pub source: String,
    /// `name=value`, for people.
    pub change: String,
    pub machine: MachineSpec,
}

impl Toggle {
    pub(super) fn cause(&self, sides: &Sides, finding: Finding) -> Cause {
        let gone = match finding {
            Finding::Equal => "both sides are equal here",
            Finding::Gone | Finding::Still => "this difference is gone, others are left",
        };
        Cause {
            kind: self.kind,
            name: self.name.clone(),
            sentence: self.text.clone(),
            source: self.source.clone(),
            confirmed: Some(format!("{}: {gone}", self.with(sides))),
        }
    }

    /// The changed machine, for people.
    pub fn with(&self, sides: &Sides) -> String {
        let [expected, actual] = sides.names();
        let side = if self.side == Side::Expected { expected } else { actual };
        format!("{side} with {}", self.change)
    }
}
