//! What came of the runs of an exhaustive plan.

use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use vmtape_faults::Verdict;

/// One member.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Member {
    pub n: u64,
    pub verdict: Verdict,
    pub as_expected: bool,
    pub signature: String,
    pub why: String,
}

/// All of them.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Members {
    pub members: Vec<Member>,
    pub verdicts: BTreeMap<Verdict, u64>,
}
