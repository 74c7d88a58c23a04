//! What the VMX capability MSRs say of EPT, and the EPT pointer.

use bitfield_struct::bitfield;
use vmtape_arch::{PAGE_SHIFT, host::Silicon};
use vmtape_kvm_mmu::{mmu::Config, spte::Format};

/// IA32_VMX_EPT_VPID_CAP. See: SDM vol. 3D A.10 VPID and EPT Capabilities
#[bitfield(u64)]
pub struct EptVpidCap {
    pub execute_only: bool,
    #[bits(5)]
    __: u8,
    pub walk_length_4: bool,
    pub walk_length_5: bool,
    pub uncacheable: bool,
    #[bits(5)]
    __: u8,
    pub write_back: bool,
    __: bool,
    pub pages_2m: bool,
    pub pages_1g: bool,
    #[bits(2)]
    __: u8,
    pub invept: bool,
    pub accessed_dirty: bool,
    pub advanced_exit_information: bool,
    #[bits(2)]
    __: u8,
    pub invept_single: bool,
    pub invept_all: bool,
    #[bits(5)]
    __: u8,
    pub invvpid: bool,
    #[bits(7)]
    __: u8,
    pub invvpid_address: bool,
    pub invvpid_single: bool,
    pub invvpid_all: bool,
    pub invvpid_single_but_global: bool,
    #[bits(20)]
    __: u32,
}

/// The MSR of this silicon; what `Silicon` does not vary is there.
pub fn ept_vpid_cap(silicon: &Silicon) -> EptVpidCap {
    EptVpidCap::new()
        .with_execute_only(true)
        .with_walk_length_4(true)
        .with_walk_length_5(silicon.ept_levels >= 5)
        .with_uncacheable(true)
        .with_write_back(true)
        .with_pages_2m(true)
        .with_pages_1g(silicon.gbpages.is_set())
        .with_invept(true)
        .with_accessed_dirty(silicon.ept_ad.is_set())
        .with_advanced_exit_information(silicon.ept_advanced.is_set())
        .with_invept_single(true)
        .with_invept_all(true)
        .with_invvpid(true)
        .with_invvpid_address(true)
        .with_invvpid_single(true)
        .with_invvpid_all(true)
        .with_invvpid_single_but_global(true)
}

/// The EPT pointer. See: SDM vol. 3C Extended-Page-Table Pointer (EPTP)
#[bitfield(u64)]
pub struct Eptp {
    #[bits(3)]
    pub memory_type: u8,
    /// Levels less one.
    #[bits(3)]
    pub walk_length: u8,
    pub accessed_dirty: bool,
    #[bits(5)]
    __: u8,
    #[bits(52)]
    pub frame: u64,
}

impl Eptp {
    /// Whether VM entry takes it: write-back or uncacheable, levels that there are, no bit beyond the width.
    /// See: SDM vol. 3C 27.2.1.1 VM-Execution Control Fields
    pub fn is_legal(self, silicon: &Silicon) -> bool {
        let frames = 1u64 << (silicon.phys_bits - PAGE_SHIFT as u8);
        matches!(self.memory_type(), 0 | Self::WRITE_BACK)
            && (self.walk_length() == 3 || self.walk_length() == 4 && silicon.ept_levels >= 5)
            && (!self.accessed_dirty() || silicon.ept_ad.is_set())
            && self.into_bits() & Self::RESERVED == 0
            && self.frame() < frames
    }

    /// Bits 11:7.
    const RESERVED: u64 = 0xf80;
    /// VMX_EPTP_MT_WB.
    const WRITE_BACK: u8 = 6;

    /// `construct_eptp`.
    pub fn of(root: u64, levels: u8, config: &Config) -> Self {
        Self::new()
            .with_memory_type(Self::WRITE_BACK)
            .with_walk_length(levels - 1)
            .with_accessed_dirty(config.format == Format::Ept { ad: true })
            .with_frame(root >> PAGE_SHIFT)
    }
}
