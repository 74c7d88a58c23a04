//! The smallest cause of a divergence: a search along one axis (exits, KVM, a width, CPUID, builds of a backend) whose
//! every trial is a comparison with the tape.
//!
//! What is looked for is one divergence, by its signature: a trial that shows another one first is skipped, so that the
//! search never drifts.

pub mod cpuid;
pub mod exits;
pub mod faults;
pub mod kvm;
pub mod late;
pub mod plugin;
pub mod search;
pub mod tapes;
mod trial;
pub mod width;

pub use trial::{Bench, Criterion, Mode, Pair, Show, Step, Trial};

use crate::{
    report::{Divergence, Verdict},
    signature::Signature,
};
use schemars::JsonSchema;
use serde::Serialize;

/// What a bisection found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Finding {
    pub axis: &'static str,
    pub verdict: Verdict,
    /// The result on one line.
    pub line: String,
    pub signature: Option<Signature>,
    /// More about the result, in sentences.
    pub notes: Vec<String>,
    /// Everything that was tried, in order.
    pub trials: Vec<Trial>,
    /// The divergence at the first bad candidate.
    pub divergence: Option<Divergence>,
    /// The command that shows the first bad candidate.
    pub reproduce: String,
}

impl Finding {
    /// A search that had nothing to look for.
    pub fn same(axis: &'static str, line: impl Into<String>) -> Self {
        Self {
            axis,
            verdict: Verdict::Same,
            line: line.into(),
            signature: None,
            notes: Vec::new(),
            trials: Vec::new(),
            divergence: None,
            reproduce: String::new(),
        }
    }
}
