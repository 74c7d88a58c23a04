//! What the silicon itself can do, as far as the checks of control registers, MSRs and addresses depend on it.

use crate::silicon::Rules;
use vmtape_arch::{
    cpuid::{self, CpuidEntry},
    host::Vendor,
    regs::{Cr4, Efer},
};

/// The silicon's features. They bound what a guest may set where nothing is intercepted; what a guest is told
/// (its CPUID) is the backend's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    pub vendor: Vendor,
    /// MAXPHYADDR.
    pub phys_bits: u8,
    /// 57-bit linear addresses.
    pub la57: bool,
    /// Bits of CR4 that may be set.
    pub cr4: Cr4,
    /// Bits of EFER that may be set.
    pub efer: Efer,
    /// Bits of XCR0 that may be set.
    pub xcr0: u64,
    /// IA32_SPEC_CTRL exists.
    pub spec_ctrl: bool,
    /// IA32_PRED_CMD exists, which can only be written.
    pub pred_cmd: bool,
    /// Read-modify-write operands fault as reads first; see `Silicon::rmw_reads_first`.
    pub rmw_reads_first: bool,
    /// Where the vendors differ.
    pub rules: Rules,
}

impl Default for Model {
    /// A processor of Intel's that has everything the interpreter implements.
    fn default() -> Self {
        let cr4 = Cr4::new()
            .with_vme(true)
            .with_pvi(true)
            .with_tsd(true)
            .with_de(true)
            .with_pse(true)
            .with_pae(true)
            .with_mce(true)
            .with_pge(true)
            .with_pce(true)
            .with_osfxsr(true)
            .with_osxmmexcpt(true)
            .with_umip(true)
            .with_la57(true)
            .with_fsgsbase(true)
            .with_pcide(true)
            .with_osxsave(true)
            .with_smep(true)
            .with_smap(true)
            .with_pke(true);
        Self {
            vendor: Vendor::INTEL,
            phys_bits: 52,
            la57: true,
            cr4,
            efer: Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true),
            xcr0: 0x207,
            spec_ctrl: true,
            pred_cmd: true,
            rmw_reads_first: false,
            rules: Rules::INTEL,
        }
    }
}

impl Model {
    /// The features that a CPUID table describes.
    pub fn from_cpuid(entries: &[CpuidEntry]) -> Self {
        let leaf = |function, index| cpuid::find(entries, function, index).copied().unwrap_or_default();
        let bit = |word: u32, bit: u32| word >> bit & 1 != 0;
        let (l1, l7, ext) = (leaf(1, 0), leaf(7, 0), leaf(0x8000_0001, 0));
        let amd = leaf(0, 0).ebx == u32::from_le_bytes(*b"Auth");
        let vendor = if amd { Vendor::AMD } else { Vendor::INTEL };
        let la57 = bit(l7.ecx, 16);
        let cr4 = Cr4::new()
            .with_vme(bit(l1.edx, 1))
            .with_pvi(bit(l1.edx, 1))
            .with_tsd(bit(l1.edx, 4))
            .with_de(bit(l1.edx, 2))
            .with_pse(bit(l1.edx, 3))
            .with_pae(bit(l1.edx, 6))
            .with_mce(bit(l1.edx, 7))
            .with_pge(bit(l1.edx, 13))
            .with_pce(true)
            .with_osfxsr(bit(l1.edx, 24))
            .with_osxmmexcpt(bit(l1.edx, 25))
            .with_umip(bit(l7.ecx, 2))
            .with_la57(la57)
            .with_vmxe(bit(l1.ecx, 5))
            .with_smxe(bit(l1.ecx, 6))
            .with_fsgsbase(bit(l7.ebx, 0))
            .with_pcide(bit(l1.ecx, 17))
            .with_osxsave(bit(l1.ecx, 26))
            .with_smep(bit(l7.ebx, 7))
            .with_smap(bit(l7.ebx, 20))
            .with_pke(bit(l7.ecx, 3))
            .with_cet(bit(l7.ecx, 7) || bit(l7.edx, 20))
            .with_pks(bit(l7.ecx, 31));
        let lm = bit(ext.edx, 29);
        let efer = Efer::new()
            .with_sce(bit(ext.edx, 11) || lm)
            .with_lme(lm)
            .with_lma(lm)
            .with_nxe(bit(ext.edx, 20))
            .with_svme(bit(ext.ecx, 2))
            .with_ffxsr(bit(ext.edx, 25));
        let xsave = leaf(0xd, 0);
        Self {
            vendor,
            phys_bits: cpuid::maxphyaddr(entries),
            la57,
            cr4,
            efer,
            xcr0: xsave.eax as u64 | (xsave.edx as u64) << 32 | 1,
            spec_ctrl: bit(l7.edx, 26) || bit(leaf(0x8000_0008, 0).ebx, 14),
            pred_cmd: bit(l7.edx, 26) || bit(leaf(0x8000_0008, 0).ebx, 12),
            rmw_reads_first: false,
            rules: Rules::of(vendor),
        }
    }

    /// The default of a vendor.
    pub fn of(vendor: Vendor) -> Self {
        Self { vendor, rules: Rules::of(vendor), ..Self::default() }
    }

    /// Whether a linear address may be kept in a register: bases, MSRs and invalidations take every address that the
    /// processor's widest paging mode would, whatever CR4.LA57.
    /// See: KVM arch/x86/kvm/x86.h max_host_virt_addr_bits()
    pub const fn canonical(&self, gva: u64) -> bool {
        is_canonical(gva, if self.la57 { 57 } else { 48 })
    }
}

/// Whether the bits of an address above its width repeat its highest bit.
/// See: SDM vol. 1 3.3.7.1 Canonical Addressing
pub const fn is_canonical(gva: u64, width: u32) -> bool {
    let shift = 64 - width;
    ((gva << shift) as i64 >> shift) as u64 == gva
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses() {
        assert!(is_canonical(0x7fff_ffff_ffff, 48));
        assert!(!is_canonical(0x8000_0000_0000, 48));
        assert!(is_canonical(0xffff_8000_0000_0000, 48));
        assert!(is_canonical(0x8000_0000_0000, 57));
        assert!(!is_canonical(0x0100_0000_0000_0000, 57));
    }
}
