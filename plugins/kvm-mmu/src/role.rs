//! The role of a shadow page: what must be equal for two vCPUs to share it.
//!
//! See: KVM arch/x86/include/asm/kvm_host.h union kvm_mmu_page_role, as of 6.12

use crate::{
    config::GuestWidth,
    walk::{Acc, Mode},
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_arch::vcpu::VcpuState;

pub use vmtape_arch::note::PageRole;

impl From<PageRole> for Acc {
    /// `role.access` as rights.
    fn from(role: PageRole) -> Self {
        Self::from_bits(role.access())
    }
}

/// What a guest's CPUID decides about its page tables, as the page role would hold it if KVM shared no page between vCPUs that
/// read its entries differently. KVM declined: "double the memory requirements for gfn_track".
/// See: KVM mmu/mmu.c kvm_mmu_after_set_cpuid(), commit 63f5a1909f9e
#[bitfield(u16)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidRole {
    pub maxphyaddr: u8,
    pub gbpages: bool,
    /// AMD's rules about reserved bits.
    pub amd: bool,
    #[bits(6)]
    __: u8,
}

impl CpuidRole {
    /// The part of the role that this CPUID asks for.
    pub fn of(width: &GuestWidth) -> Self {
        Self::new().with_maxphyaddr(width.maxphyaddr).with_gbpages(width.gbpages).with_amd(width.amd)
    }
}

/// `union kvm_cpu_role`: the page role of the guest's own paging, and what else decides a walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRole {
    pub base: PageRole,
    pub smep: bool,
    pub smap: bool,
    pub pse: bool,
    pub pke: bool,
    pub la57: bool,
    pub lma: bool,
}

impl CpuRole {
    /// `kvm_calc_cpu_role`.
    pub fn of(state: &VcpuState) -> Self {
        let (cr0, cr4, efer) = (state.cr0(), state.cr4(), state.efer());
        let base = PageRole::new().with_access(Acc::ALL.into_bits());
        if !cr0.pg() {
            return Self { base: base.with_direct(true), ..Default::default() };
        }
        Self {
            base: base
                .with_level(state.paging_mode().levels())
                .with_efer_nx(efer.nxe())
                .with_cr0_wp(cr0.wp())
                .with_smep_andnot_wp(cr4.smep() && !cr0.wp())
                .with_smap_andnot_wp(cr4.smap() && !cr0.wp())
                .with_has_4_byte_gpte(!cr4.pae()),
            smep: cr4.smep(),
            smap: cr4.smap(),
            pse: cr4.pse(),
            pke: efer.lma() && cr4.pke(),
            la57: efer.lma() && cr4.la57(),
            lma: efer.lma(),
        }
    }

    /// The guest's paging mode.
    pub fn mode(self) -> Mode {
        match self.base.level() {
            0 => Mode::None,
            2 => Mode::Bits32 { pse: self.pse },
            3 => Mode::Pae,
            4 => Mode::Level4,
            _ => Mode::Level5,
        }
    }

    /// The role of the root that shadows this paging mode (`kvm_init_shadow_mmu`): never fewer levels than PAE, and
    /// always with NX, which KVM needs for CR0.WP=0 under SMEP.
    pub fn shadow_root(self) -> PageRole {
        self.base.with_level(self.base.level().max(Mode::Pae.levels())).with_efer_nx(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_with_cpuid_differs_with_each_of_the_three() {
        let one = GuestWidth { maxphyaddr: 46, gbpages: true, amd: false };
        let others = [
            GuestWidth { maxphyaddr: 36, ..one },
            GuestWidth { gbpages: false, ..one },
            GuestWidth { amd: true, ..one },
        ];
        assert!(others.iter().all(|other| CpuidRole::of(other) != CpuidRole::of(&one)));
    }
}
