//! The vCPU's cache of its last MMIO access.

use serde::{Deserialize, Serialize};

/// The last MMIO access of a vCPU (`vcpu_cache_mmio_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioCache {
    pub(crate) gva: u64,
    pub(crate) gfn: u64,
    pub(crate) acc: u8,
    pub(crate) generation: u64,
}
