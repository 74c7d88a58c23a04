//! A host described as data: what its silicon can do.

use crate::{flag::Flag, layout, open_enum};
use serde::{Deserialize, Serialize};

open_enum! {
    /// CPU vendor.
    pub struct Vendor(u8) {
        INTEL = 1 => "intel",
        AMD = 2 => "amd",
    }
}

/// The silicon of a host. A backend refuses a host that it does not fit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silicon {
    pub vendor: Vendor,
    /// MAXPHYADDR, 32 to 52.
    pub phys_bits: u8,
    /// Paging levels of the host kernel (4 or 5); on AMD also those of the nested page table.
    pub host_levels: u8,
    /// Levels that EPT offers (4 or 5).
    pub ept_levels: u8,
    /// 1 GiB pages in EPT/NPT and in the host's CPUID.
    pub gbpages: Flag,
    /// EPT accessed and dirty bits.
    pub ept_ad: Flag,
    /// Advanced exit information for EPT violations (qualification bits 9-11).
    pub ept_advanced: Flag,
    /// APIC-register virtualization and virtual-interrupt delivery.
    pub apicv: Flag,
    /// SVM: next-RIP save.
    pub nrips: Flag,
    /// SVM: decode assists.
    pub decode_assists: Flag,
    /// log2 of the largest page with which the host backs guest memory: 12, 21 or 30.
    pub backing_shift: u8,
    /// Instructions that read, modify and write fault as a read first. Real silicon checks for the write at once; a
    /// software CPU under a recording may not.
    pub rmw_reads_first: Flag,
    /// Physical address bits that the host's memory encryption takes away from its kernel (SME, TME: key identifiers).
    /// See: KVM arch/x86/kvm/mmu/mmu.c kvm_get_shadow_phys_bits(); APM vol. 3 E.4.17 Function 8000_001Fh
    pub encryption_bits: u8,
    /// SVM: virtual GIF.
    pub vgif: Flag,
    /// SVM: virtual VMLOAD and VMSAVE.
    pub vls: Flag,
    /// SVM: virtual NMI.
    pub vnmi: Flag,
}

layout!(Silicon: 16, gbpages: 4, backing_shift: 10, encryption_bits: 12);
