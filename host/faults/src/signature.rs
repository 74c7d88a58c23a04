//! What makes two faulty runs the same finding.

use crate::verdict::Verdict;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A finding's name: the verdict (with its phase), what differs first, the fault points that mattered, and the backend. No address,
/// no count and no moment is part of it. As text: `VERDICT/WHAT/POINT+POINT/BACKEND`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature {
    pub verdict: Verdict,
    /// As a divergence's signature has it, without its place; empty where nothing differs.
    pub what: String,
    /// By name, each once, in order.
    pub points: Vec<String>,
    pub backend: String,
}

impl Signature {
    pub fn new(
        verdict: Verdict,
        what: &str,
        points: impl IntoIterator<Item = String>,
        backend: &str,
    ) -> Self {
        let mut points: Vec<String> = points.into_iter().collect();
        points.sort_unstable();
        points.dedup();
        Self { verdict, what: what.to_owned(), points, backend: backend.to_owned() }
    }

    /// Whether two runs show the same, whichever faults it took.
    pub fn shows_same(&self, other: &Self) -> bool {
        (self.verdict, &self.what, &self.backend) == (other.verdict, &other.what, &other.backend)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.verdict, self.what, self.points.join("+"), self.backend)
    }
}
