//! What is found.

use crate::check::finding::Finding;
use serde::Serialize;

/// A finding, where it was made first, and how often.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    pub finding: Finding,
    pub times: u64,
    /// Of the first exit that shows it.
    #[serde(skip)]
    pub vcpu: u32,
    #[serde(skip)]
    pub rip: u64,
    #[serde(skip)]
    pub time: u64,
}
