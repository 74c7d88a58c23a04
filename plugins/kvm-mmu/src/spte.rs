//! Entries that KVM writes (SPTEs) in the two formats of silicon, with KVM's own bits in what silicon ignores.
//!
//! See: KVM arch/x86/kvm/mmu/spte.h and spte.c, as of 6.12

use crate::{memory_type::EptType, walk::Acc};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_arch::paging::bits;

/// SHADOW_NONPRESENT_VALUE: suppress-#VE, which is ignored in the other format.
pub const NONPRESENT: u64 = 1 << 63;
/// VMX_EPT_MISCONFIG_WX_VALUE: writable and executable but not readable.
const MISCONFIG_WX: u64 = 0b110;
/// SPTE_TDP_AD_DISABLED.
const AD_DISABLED: u64 = 1 << 52;

/// An entry of the x86 format: shadow paging and NPT.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct X86 {
    p: bool,
    w: bool,
    u: bool,
    #[bits(2)]
    __: u8,
    a: bool,
    d: bool,
    ps: bool,
    __: bool,
    host_writable: bool,
    mmu_writable: bool,
    mmu_present: bool,
    #[bits(40)]
    frame: u64,
    #[bits(11)]
    __: u16,
    nx: bool,
}

/// An entry of the EPT format.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct Ept {
    r: bool,
    w: bool,
    x: bool,
    #[bits(3)]
    memtype: u8,
    ipat: bool,
    ps: bool,
    a: bool,
    d: bool,
    __: bool,
    mmu_present: bool,
    #[bits(40)]
    frame: u64,
    #[bits(5)]
    __: u8,
    host_writable: bool,
    mmu_writable: bool,
    #[bits(4)]
    __: u8,
    suppress_ve: bool,
}

/// An MMIO entry in either format: what faults in a recognizable way, and the memslot generation.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct Mmio {
    #[bits(3)]
    low: u8,
    /// Generation bits 7:0.
    gen_low: u8,
    __: bool,
    #[bits(39)]
    frame: u64,
    bit51: bool,
    /// Generation bits 18:8.
    #[bits(11)]
    gen_high: u16,
    __: bool,
}

/// MMIO_SPTE_GEN_MASK.
pub const MMIO_GENERATION_MASK: u64 = bits(0, 18);

/// Which format, and what of it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// EPT. `ad`: accessed and dirty bits are enabled in the EPT pointer.
    Ept { ad: bool },
    /// Ordinary entries: NPT and shadow paging. `width`: the host's MAXPHYADDR, less what memory encryption takes of it.
    X86 { width: u8 },
}

/// What a leaf is made from.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    pub pfn: u64,
    pub level: u8,
    pub acc: Acc,
    /// The host lets the guest write.
    pub host_writable: bool,
    pub accessed: bool,
    pub dirty: bool,
    /// In EPT.
    pub ept_type: EptType,
}

impl Format {
    /// `kvm_ad_enabled()`.
    pub fn has_ad(self) -> bool {
        !matches!(self, Self::Ept { ad: false })
    }

    /// `make_nonleaf_spte`.
    pub fn nonleaf(self, table: u64) -> u64 {
        let frame = table >> 12;
        match self {
            Self::Ept { ad } => {
                let entry = Ept::new().with_r(true).with_w(true).with_x(true).with_frame(frame);
                let entry = entry.with_a(ad).with_mmu_present(true).with_suppress_ve(true).into_bits();
                if ad { entry } else { entry | AD_DISABLED }
            }
            Self::X86 { .. } => {
                let entry = X86::new().with_p(true).with_w(true).with_u(true).with_a(true);
                entry.with_mmu_present(true).with_frame(frame).into_bits()
            }
        }
    }

    /// The leaf that `make_spte` builds once write protection is decided: `leaf.acc` holds what remains.
    pub fn leaf(self, leaf: &Leaf) -> u64 {
        let Leaf { pfn, level, acc, host_writable, .. } = *leaf;
        let write = acc.write() && host_writable;
        match self {
            Self::Ept { ad } => {
                let entry = Ept::new()
                    .with_r(acc.user())
                    .with_w(write)
                    .with_x(acc.exec())
                    .with_memtype(leaf.ept_type.memory_type.encoding())
                    .with_ipat(leaf.ept_type.ignore_pat)
                    .with_ps(level > 1)
                    .with_a(ad && leaf.accessed)
                    .with_d(ad && leaf.dirty && write)
                    .with_mmu_present(true)
                    .with_frame(pfn)
                    .with_host_writable(host_writable)
                    .with_mmu_writable(write)
                    .with_suppress_ve(true)
                    .into_bits();
                if ad { entry } else { entry | AD_DISABLED }
            }
            Self::X86 { .. } => X86::new()
                .with_p(true)
                .with_w(write)
                .with_u(acc.user())
                .with_a(leaf.accessed)
                .with_d(leaf.dirty && write)
                .with_ps(level > 1)
                .with_host_writable(host_writable)
                .with_mmu_writable(write)
                .with_mmu_present(true)
                .with_frame(pfn)
                .with_nx(!acc.exec())
                .into_bits(),
        }
    }

    /// Whether MMIO can be mapped by an entry that faults: EPT always can, the other format needs a reserved bit.
    pub fn caches_mmio(self) -> bool {
        !matches!(self, Self::X86 { width: 52.. })
    }

    /// `make_mmio_spte`.
    pub fn mmio(self, gfn: u64, acc: Acc, generation: u64) -> u64 {
        let entry = Mmio::new()
            .with_frame(gfn & bits(0, 38))
            .with_gen_low(generation as u8)
            .with_gen_high((generation >> 8) as u16 & 0x7ff);
        match self {
            Self::Ept { .. } => entry.with_bit51(gfn >> 39 & 1 != 0).into_bits() | MISCONFIG_WX,
            // Present with bit 51, and the rights that the guest's own entry gives. See: spte.c kvm_mmu_reset_all_pte_masks()
            Self::X86 { .. } => {
                let low = 1 | u8::from(acc.write()) << 1 | u8::from(acc.user()) << 2;
                entry.with_bit51(true).with_low(low).into_bits()
            }
        }
    }

    /// `is_mmio_spte`.
    pub fn is_mmio(self, spte: u64) -> bool {
        match self {
            Self::Ept { .. } => spte & (bits(63, 63) | bits(0, 2)) == MISCONFIG_WX,
            Self::X86 { .. } => self.caches_mmio() && spte & (bits(51, 51) | 1) == bits(51, 51) | 1,
        }
    }

    /// gfn, low bits (`get_mmio_spte_access`) and generation of an MMIO entry.
    pub fn mmio_parts(self, spte: u64) -> (u64, Acc, u64) {
        let entry = Mmio::from_bits(spte);
        let generation = u64::from(entry.gen_low()) | u64::from(entry.gen_high()) << 8;
        let bit51 = matches!(self, Self::Ept { .. }) && entry.bit51();
        (entry.frame() | u64::from(bit51) << 39, Acc::from_bits(entry.low()), generation)
    }

    /// `shadow_mmio_access_mask`: of the rights of an MMIO page, those that KVM keeps.
    pub fn mmio_rights(self, acc: Acc) -> Acc {
        match self {
            Self::Ept { .. } => Acc::new(),
            Self::X86 { .. } => acc.with_exec(false),
        }
    }

    /// `is_shadow_present_pte`.
    pub fn is_present(self, spte: u64) -> bool {
        X86::from_bits(spte).mmu_present() && !self.is_mmio(spte)
    }

    /// `is_large_pte`.
    pub fn is_large(self, spte: u64) -> bool {
        X86::from_bits(spte).ps()
    }

    /// `is_last_spte`.
    pub fn is_last(self, spte: u64, level: u8) -> bool {
        level == 1 || self.is_large(spte)
    }

    /// Address bits of a present entry.
    pub fn address(self, spte: u64) -> u64 {
        X86::from_bits(spte).frame() << 12
    }

    /// `is_writable_pte`: bit 1 in both formats.
    pub fn is_writable(self, spte: u64) -> bool {
        X86::from_bits(spte).w()
    }

    /// `is_mmu_writable_spte`.
    pub fn is_mmu_writable(self, spte: u64) -> bool {
        match self {
            Self::Ept { .. } => Ept::from_bits(spte).mmu_writable(),
            Self::X86 { .. } => X86::from_bits(spte).mmu_writable(),
        }
    }

    /// `is_access_allowed`.
    pub fn allows(self, spte: u64, fetch: bool, write: bool) -> bool {
        match self {
            _ if write => self.is_writable(spte),
            Self::Ept { .. } if fetch => Ept::from_bits(spte).x(),
            Self::Ept { .. } => Ept::from_bits(spte).r(),
            Self::X86 { .. } if fetch => !X86::from_bits(spte).nx(),
            Self::X86 { .. } => X86::from_bits(spte).p(),
        }
    }

    /// The entry without write access; `keep` leaves it writable again without KVM's lock (dirty logging).
    pub fn write_protected(self, spte: u64, keep: bool) -> u64 {
        match self {
            Self::Ept { .. } => {
                let entry = Ept::from_bits(spte).with_w(false);
                entry.with_mmu_writable(entry.mmu_writable() && keep).into_bits()
            }
            Self::X86 { .. } => {
                let entry = X86::from_bits(spte).with_w(false);
                entry.with_mmu_writable(entry.mmu_writable() && keep).into_bits()
            }
        }
    }

    /// The entry with its dirty bit.
    pub fn with_dirty(self, spte: u64) -> u64 {
        match self {
            Self::Ept { ad } => Ept::from_bits(spte).with_d(ad).into_bits(),
            Self::X86 { .. } => X86::from_bits(spte).with_d(true).into_bits(),
        }
    }

    /// The entry without its dirty bit.
    pub fn without_dirty(self, spte: u64) -> u64 {
        match self {
            Self::Ept { .. } => Ept::from_bits(spte).with_d(false).into_bits(),
            Self::X86 { .. } => X86::from_bits(spte).with_d(false).into_bits(),
        }
    }

    /// `make_huge_page_split_spte`: the part of a large entry at `level` below it.
    pub fn huge_split(self, spte: u64, index: u64, level: u8) -> u64 {
        let entry = X86::from_bits(spte);
        let frame = entry.frame() + (index << crate::large::frames_shift(level));
        entry.with_frame(frame).with_ps(level > 1).into_bits()
    }

    /// `make_huge_spte`: the large entry at `level` that holds what a smaller one maps.
    pub fn huge_of(self, spte: u64, level: u8) -> u64 {
        let entry = X86::from_bits(spte);
        entry.with_frame(crate::large::round_gfn(entry.frame(), level)).with_ps(true).into_bits()
    }

    /// The entry with write access given back.
    pub fn made_writable(self, spte: u64) -> u64 {
        X86::from_bits(spte).with_w(true).into_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_48: Format = Format::X86 { width: 48 };
    const EPT: Format = Format::Ept { ad: true };

    fn leaf(pfn: u64, level: u8) -> Leaf {
        Leaf {
            pfn,
            level,
            acc: Acc::ALL,
            host_writable: true,
            accessed: true,
            dirty: true,
            ept_type: EptType::WRITE_BACK,
        }
    }

    #[test]
    fn entries_are_those_that_the_real_kvm_wrote() {
        // kvm_amd
        assert_eq!(X86_48.leaf(&leaf(0x10_9200, 2)), 0x1_0920_0ee7);
        assert_eq!(X86_48.leaf(&Leaf { accessed: false, ..leaf(0x10_9208, 1) }), 0x1_0920_8e47);
        let protected = Acc::ALL.with_write(false);
        assert_eq!(
            X86_48.leaf(&Leaf { accessed: false, acc: protected, ..leaf(0x10_920b, 1) }),
            0x1_0920_ba05
        );
        assert_eq!(X86_48.nonleaf(0x1_0458_4000), 0x1_0458_4827);
        assert_eq!(X86_48.mmio(0xfee00, Acc::ALL, 0x54), 0x8_0000_fee0_02a7);
        // kvm_intel
        assert_eq!(EPT.nonleaf(0x79e_7000), 0x8000_0000_079e_7907);
        assert_eq!(EPT.leaf(&leaf(0x7c00, 2)), 0x8600_0000_07c0_0bf7);
        assert_eq!(EPT.leaf(&leaf(0x2bb6, 1)), 0x8600_0000_02bb_6b77);
    }

    #[test]
    fn mmio_entries_come_apart_again() {
        for format in [X86_48, EPT] {
            let spte = format.mmio(0xfee00, Acc::ALL.with_exec(false), 0x3_5a54);
            assert!(format.is_mmio(spte) && !format.is_present(spte));
            let (gfn, _, generation) = format.mmio_parts(spte);
            assert_eq!((gfn, generation), (0xfee00, 0x3_5a54));
        }
        // The other format has no bit 51 left for the frame.
        assert_eq!(EPT.mmio_parts(EPT.mmio(0x80_0000_0000, Acc::ALL, 1)).0, 0x80_0000_0000);
        assert!(!Format::X86 { width: 52 }.caches_mmio());
        assert!(!EPT.is_mmio(NONPRESENT) && !X86_48.is_mmio(NONPRESENT));
        assert!(!EPT.is_present(NONPRESENT));
    }
}
