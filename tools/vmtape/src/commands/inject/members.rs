//! What came of the runs of an exhaustive plan.

use serde::Serialize;
use std::collections::BTreeMap;
use vmtape_faults::Verdict;

/// One member.
#[derive(Debug, Serialize)]
pub struct Member {
    pub n: u64,
    pub verdict: Verdict,
    pub as_expected: bool,
    pub signature: String,
    pub why: String,
}

/// All of them.
#[derive(Debug, Default, Serialize)]
pub struct Members {
    pub members: Vec<Member>,
    pub verdicts: BTreeMap<Verdict, u64>,
}
