//! A guest's MTRRs, as KVM looked at them up to 6.10 where a device's DMA does not snoop: the memory type of EPT entries.
//!
//! See: KVM arch/x86/kvm/mtrr.c kvm_mtrr_get_guest_memory_type(), kvm_mtrr_check_gfn_range_consistency(), as of 6.1

use crate::large::{frames_shift, round_gfn};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, memory_type::MemoryType, paging::bits};

/// IA32_MTRR_DEF_TYPE. See: SDM vol. 3A 12.11.2.1 IA32_MTRR_DEF_TYPE MSR
#[bitfield(u64)]
struct DefType {
    memory_type: u8,
    #[bits(2)]
    __: u8,
    fixed_enable: bool,
    enable: bool,
    #[bits(52)]
    __: u64,
}

/// KVM_NR_VAR_MTRR.
pub const VARIABLE: usize = 8;
/// Registers for the first megabyte, eight types each: of 64 KiB, 16 KiB (two registers) and 4 KiB (eight).
pub const FIXED: usize = 11;

/// A vCPU's MTRRs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtrrs {
    /// CPUID has them: firmware enables them some day.
    pub present: bool,
    pub def_type: u64,
    pub fixed: [u64; FIXED],
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
    pub variable: [(u64, u64); VARIABLE],
    /// The guest's MAXPHYADDR.
    pub maxphyaddr: u8,
}

impl Mtrrs {
    /// `kvm_mtrr_get_guest_memory_type`.
    pub fn guest_memory_type(&self, gfn: u64) -> MemoryType {
        let def = DefType::from_bits(self.def_type);
        let gpa = gfn << PAGE_SHIFT;
        match () {
            () if !def.enable() && self.present => MemoryType::UC,
            () if !def.enable() => MemoryType::WB,
            () if def.fixed_enable() && gpa < 0x10_0000 => self.fixed_type(gpa),
            () => self.variable_type(gpa).unwrap_or(MemoryType::of_encoding(def.memory_type())),
        }
    }

    /// Whether all frames of a large page have one type. KVM refuses overlapping ranges even where their types come to one.
    pub fn is_uniform(&self, gfn: u64, level: u8) -> bool {
        let first = round_gfn(gfn, level);
        let memory_type = self.guest_memory_type(first);
        (first..first + (1 << frames_shift(level))).all(|gfn| self.guest_memory_type(gfn) == memory_type)
    }

    fn fixed_type(&self, gpa: u64) -> MemoryType {
        let (register, byte) = match gpa {
            0..0x8_0000 => (0, gpa >> 16),
            0x8_0000..0xc_0000 => (1 + ((gpa - 0x8_0000) >> 17), gpa >> 14 & 7),
            _ => (3 + ((gpa - 0xc_0000) >> 15), gpa >> 12 & 7),
        };
        MemoryType::of_encoding((self.fixed[register as usize] >> (8 * byte)) as u8)
    }

    /// Highest base first, as KVM's list is sorted. Of overlapping types the undefined ones become write-back, among them UC
    /// below another one.
    fn variable_type(&self, gpa: u64) -> Option<MemoryType> {
        const VALID: u64 = 1 << 11;
        let beyond = bits(u32::from(self.maxphyaddr), 63);
        let mut ranges: Vec<_> = self.variable.iter().filter(|(_, mask)| mask & VALID != 0).collect();
        ranges.sort_by_key(|(base, _)| std::cmp::Reverse(*base));
        let mut found = None;
        for (base, mask) in ranges {
            let (start, mask) = (base & !(PAGE_SIZE - 1), (mask | beyond) & !(PAGE_SIZE - 1));
            if gpa < start || gpa > start | !mask {
                continue;
            }
            let next = MemoryType::of_encoding(*base as u8);
            found = match (found, next) {
                (None, next) => Some(next),
                (Some(same), next) if same == next => continue,
                (_, MemoryType::UC) => return Some(MemoryType::UC),
                (Some(MemoryType::WT), MemoryType::WB) | (Some(MemoryType::WB), MemoryType::WT) => {
                    Some(MemoryType::WT)
                }
                _ => return Some(MemoryType::WB),
            };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use MemoryType as T;

    /// Enabled, write-back by default.
    const ON: Mtrrs = Mtrrs {
        present: true,
        def_type: 1 << 11 | 6,
        fixed: [0; FIXED],
        variable: [(0, 0); VARIABLE],
        maxphyaddr: 36,
    };
    /// A mask for 2 MiB.
    const MASK_2M: u64 = 0xf_ffe0_0000 | 1 << 11;

    #[test]
    fn off_and_default() {
        assert_eq!(Mtrrs { def_type: 0, ..ON }.guest_memory_type(5), T::UC);
        assert_eq!(Mtrrs { def_type: 0, present: false, ..ON }.guest_memory_type(5), T::WB);
        assert_eq!(ON.guest_memory_type(5), T::WB);
    }

    #[test]
    fn fixed_ranges() {
        let mut mtrrs = Mtrrs { def_type: 3 << 10 | 6, ..ON };
        mtrrs.fixed = [0x0606_0606_0606_0604, 0, 0x0100_0000_0000_0000, 0, 0, 0, 0, 0, 0, 0, 5 << 56];
        for (gpa, wanted) in [
            (0, T::WT),
            (0x1_0000, T::WB),
            (0x8_0000, T::UC),
            (0xb_c000, T::WC),
            (0xf_f000, T::WP),
            (0x10_0000, T::WB),
        ] {
            assert_eq!(mtrrs.guest_memory_type(gpa >> 12), wanted, "{gpa:#x}");
        }
    }

    #[test]
    fn variable_ranges() {
        for (ranges, wanted) in [
            (vec![(0x20_0000, MASK_2M)], T::UC),
            (vec![(0x20_0001, MASK_2M)], T::WC),
            (vec![(0x20_0000, MASK_2M & !(1 << 11))], T::WB),
            (vec![(0x20_0006, MASK_2M), (0x20_0004, MASK_2M)], T::WT),
            // The list is sorted by base and type: the one with the higher number comes first.
            (vec![(0x20_0000, MASK_2M), (0x20_0006, MASK_2M)], T::UC),
            (vec![(0x20_0001, MASK_2M), (0x20_0006, MASK_2M)], T::WB),
        ] {
            let mut mtrrs = ON;
            mtrrs.variable[..ranges.len()].copy_from_slice(&ranges);
            assert_eq!(mtrrs.guest_memory_type(0x200), wanted, "{ranges:x?}");
            assert_eq!(mtrrs.guest_memory_type(0x400), T::WB, "{ranges:x?}");
        }
    }

    #[test]
    fn large_pages() {
        let mut mtrrs = ON;
        mtrrs.variable[0] = (0x20_0000, MASK_2M);
        assert!(mtrrs.is_uniform(0x200, 2) && !mtrrs.is_uniform(0x200, 3));
    }
}
