//! The tables of a VM.

use serde::{Deserialize, Serialize};

/// The roots by their number of levels: vCPUs whose widths call for different depths do not share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tdp {
    pub(super) roots: Vec<(u8, u64)>,
}
