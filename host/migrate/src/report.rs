//! What became of a migration.

use crate::{handover, policy::Finding};
use schemars::JsonSchema;
use serde::Serialize;

/// A round of pre-copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Round {
    pub pages: u64,
    /// Of them, zero.
    pub zero: u64,
    pub bytes: u64,
    /// Virtual time that sending them took.
    pub ns: u64,
    /// Pages that the guest has written meanwhile.
    pub dirty: u64,
    /// Percent by which the guest was slowed down.
    pub throttle: u64,
}

/// What a source tells.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Sent {
    pub log: Option<String>,
    pub rounds: Vec<Round>,
    /// What was sent while the guest stood still.
    pub stopped: Round,
    pub bytes: u64,
    /// Where the guest stood still.
    pub instructions: u64,
    pub exits: u64,
}

/// What a destination tells.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Loaded {
    pub findings: Vec<Finding>,
    pub pages: u64,
    /// What was not taken: optional parts that are unknown here, MSRs that are not there.
    pub dropped: Vec<String>,
    /// Pages that the guest has waited for.
    pub waited: u64,
}

/// What became of both sides.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Outcome {
    pub handover: &'static str,
    pub epoch: u64,
    /// What became of both sides.
    #[serde(rename = "source_became")]
    pub source: handover::State,
    #[serde(rename = "destination_became")]
    pub destination: handover::State,
    /// How many run the guest.
    pub runners: usize,
    /// It has run on both at once.
    pub two_running: bool,
    /// Why the guest has not moved, in words.
    pub failure: Option<String>,
    pub sent: Sent,
    pub loaded: Loaded,
    pub journal: Vec<handover::Entry>,
    pub witness: Vec<handover::Event>,
    pub faults: Vec<vmtape_traces::event::Fault>,
}

impl Outcome {
    /// Whether the guest runs on the destination, and nowhere else.
    pub fn has_moved(&self) -> bool {
        self.destination == handover::State::Running && self.source != handover::State::Running
    }
}
