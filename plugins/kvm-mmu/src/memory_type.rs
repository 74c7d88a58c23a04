//! THE combination of memory types: what an access's type is, given what each table and register says of it.
//!
//! The hosts' own MTRRs say write-back of all memory that slots can have.
//!
//! Manuals: Intel SDM volume 3A, doc 325384-087, 12.11.3, 12.12.3; volume 3C, 29.3.7 EPT and Memory Typing. AMD APM volume 2,
//! 24593 rev. 3.42, 7.8.5 Combined Effect of MTRRs and PAT, 15.25.8 Combining Memory Types, MTRRs.

use crate::mtrr::Mtrrs;
use serde::{Deserialize, Serialize};
use vmtape_arch::memory_type::{MemoryType, Pat};

/// The PAT of a Linux host: WB, WP, UC-, UC, WB, WC, UC-, WT from the last entry down. KVM maps by entry 0.
/// See: Linux arch/x86/mm/pat/memtype.c pat_bp_init()
pub const HOST_PAT: Pat = Pat(0x0407_0506_0007_0106);

/// What silicon runs with that decides how it caches. With nested guests that is not what the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    pub pat: Pat,
    /// CR0.CD.
    pub disabled: bool,
}

impl Caching {
    /// KVM never lets a guest disable the caches (KVM_X86_QUIRK_CD_NW_CLEARED).
    pub const fn of(pat: u64) -> Self {
        Self { pat: Pat(pat), disabled: false }
    }
}

/// What an EPT entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptType {
    pub memory_type: MemoryType,
    pub ignore_pat: bool,
}

impl EptType {
    pub const WRITE_BACK: Self = Self { memory_type: MemoryType::WB, ignore_pat: true };
}

/// What a page of the nested tables says of the memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nested {
    /// EPT: a type in place of the MTRRs' one, and whether the guest's PAT has no say.
    Ept(EptType),
    /// A nested page table: the type that its bits select in the host's PAT.
    Npt(MemoryType),
}

impl Default for Nested {
    fn default() -> Self {
        Self::Npt(MemoryType::WB)
    }
}

/// How KVM chooses the type of EPT entries for memory (`vmx_get_mt_mask`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EptTypes {
    /// Write-back whatever the guest says.
    #[default]
    IgnoreGuest,
    /// Write-back, and the guest's PAT.
    GuestPat,
    /// By the guest's MTRRs, and its PAT; caches that the guest disables stay on (KVM_X86_QUIRK_CD_NW_CLEARED).
    GuestMtrrs,
}

/// What a vCPU's registers say of memory types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTypes {
    pub mtrrs: Mtrrs,
    /// CR0.CD, as the last page fault found it.
    pub cache_disable: bool,
}

impl EptTypes {
    /// The type of an entry for a frame.
    pub fn of(self, gfn: u64, guest: &GuestTypes) -> EptType {
        match self {
            Self::IgnoreGuest => EptType::WRITE_BACK,
            Self::GuestPat => EptType { ignore_pat: false, ..EptType::WRITE_BACK },
            Self::GuestMtrrs if guest.cache_disable => EptType::WRITE_BACK,
            Self::GuestMtrrs => {
                EptType { memory_type: guest.mtrrs.guest_memory_type(gfn), ignore_pat: false }
            }
        }
    }
}

/// The type of an access through both dimensions. `guest` is what the guest's PAT says, write-back where it does not page;
/// `cache_disable` is the CR0.CD that silicon runs with.
pub fn two_dimensional(guest: MemoryType, nested: Nested, cache_disable: bool) -> MemoryType {
    match nested {
        // See: SDM vol. 3C 29.3.7.2 Memory Type Used for Translated Guest-Physical Addresses
        _ if cache_disable => MemoryType::UC,
        Nested::Ept(EptType { memory_type, ignore_pat: true }) => memory_type,
        Nested::Ept(EptType { memory_type, .. }) => with_mtrr(guest, memory_type),
        Nested::Npt(host) => with_mtrr(guest_and_host(guest, host), MemoryType::WB),
    }
}

/// The type by PAT and MTRRs. The hosts' MTRRs say WB, for which both vendors' tables agree.
/// See: SDM vol. 3A Table 12-7. Effective Page-Level Memory Types for Pentium III and More Recent Processor Families; APM vol. 2
/// Table 7-12
pub fn with_mtrr(pat: MemoryType, mtrr: MemoryType) -> MemoryType {
    use MemoryType as T;
    match (pat, mtrr) {
        (T::WC, _) | (T::UC_MINUS, T::WC | T::WP) | (T::WB, T::WC) => T::WC,
        (T::WB, mtrr) => mtrr,
        (T::WT, T::WT | T::WP | T::WB) => T::WT,
        (T::WP, T::WT | T::WP | T::WB) => T::WP,
        _ => T::UC,
    }
}

/// The type by the PATs of guest and host. See: APM vol. 2 Table 15-19. Combining Guest and Host PAT Types
pub fn guest_and_host(guest: MemoryType, host: MemoryType) -> MemoryType {
    use MemoryType as T;
    match (guest, host) {
        (T::WC, _) | (T::UC_MINUS, T::WC) => T::WC,
        (T::UC_MINUS, T::UC_MINUS) => T::UC_MINUS,
        (T::WB, host) => host,
        (T::WP, T::WP | T::WB) => T::WP,
        (T::WT, T::WT | T::WB) => T::WT,
        _ => T::UC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use MemoryType as T;

    const PAT: [T; 6] = [T::UC, T::UC_MINUS, T::WC, T::WP, T::WT, T::WB];

    /// A table of a manual: one line per first operand, one word per second.
    fn check(rows: &str, second: &[T], combine: fn(T, T) -> T) {
        let mut checked = 0;
        for line in rows.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (first, words) = line.split_once(':').unwrap();
            let first = T::from_name(first).unwrap();
            let words: Vec<_> = words.split_whitespace().collect();
            assert_eq!(words.len(), second.len(), "{line}");
            for (second, wanted) in second.iter().zip(words) {
                assert_eq!(combine(first, *second), T::from_name(wanted).unwrap(), "{first} and {second}");
                checked += 1;
            }
        }
        assert_eq!(checked, PAT.len() * second.len());
    }

    /// SDM Table 12-7, the rows by PAT, the columns by MTRR.
    #[test]
    fn table_12_7() {
        let rows = "
            UC:  UC UC UC UC UC
            UC-: UC WC UC WC UC
            WC:  WC WC WC WC WC
            WT:  UC UC WT WT WT
            WP:  UC UC WP WP WP
            WB:  UC WC WT WP WB";
        check(rows, &[T::UC, T::WC, T::WT, T::WP, T::WB], with_mtrr);
    }

    /// APM Table 15-19, the rows by guest, the columns by host.
    #[test]
    fn table_15_19() {
        let rows = "
            UC:  UC UC  UC UC UC UC
            UC-: UC UC- WC UC UC UC
            WC:  WC WC  WC WC WC WC
            WP:  UC UC  UC WP UC WP
            WT:  UC UC  UC UC WT WT
            WB:  UC UC- WC WP WT WB";
        check(rows, &PAT, guest_and_host);
    }

    #[test]
    fn both_dimensions() {
        let ept = |memory_type, ignore_pat| Nested::Ept(EptType { memory_type, ignore_pat });
        for (guest, nested, cache_disable, wanted) in [
            (T::UC, ept(T::WB, true), false, T::WB),
            (T::UC, ept(T::WB, false), false, T::UC),
            (T::WC, ept(T::UC, false), false, T::WC),
            (T::WB, ept(T::UC, true), false, T::UC),
            (T::UC_MINUS, ept(T::WB, false), false, T::UC),
            (T::WB, ept(T::WB, true), true, T::UC),
            (T::UC_MINUS, Nested::Npt(T::UC_MINUS), false, T::UC),
            (T::WT, Nested::Npt(T::WB), false, T::WT),
            (T::WB, Nested::Npt(T::WC), false, T::WC),
        ] {
            assert_eq!(two_dimensional(guest, nested, cache_disable), wanted, "{guest} {nested:?}");
        }
        assert_eq!(HOST_PAT.entry(0), T::WB);
    }
}
