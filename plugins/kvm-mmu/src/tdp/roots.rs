//! The tables of a VM.

use crate::role::PageRole;
use serde::{Deserialize, Serialize};

/// The roots by their role: vCPUs whose widths call for different depths do not share, nor do L1 and L2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tdp {
    pub(super) roots: Vec<(PageRole, u64)>,
}

impl Tdp {
    /// The role of a root, if it is one.
    pub(crate) fn role_of(&self, hpa: u64) -> Option<PageRole> {
        self.roots.iter().find(|(_, root)| *root == hpa).map(|(role, _)| *role)
    }
}
