//! How memory is cached: the types of MTRRs, PAT and EPT.
//!
//! Manuals: Intel SDM volume 3A, doc 325384-087, 12.3 Methods of Caching Available, 12.12 Page Attribute Table (PAT); AMD APM
//! volume 2, 24593 rev. 3.42, 7.8 Page-Attribute Table Mechanism.

use crate::open_enum;

open_enum! {
    /// A memory type: the manual's encoding plus one, so that zero says that nobody told it.
    pub struct MemoryType(u8) {
        UNTOLD = 0 => "untold",
        UC = 1 => "UC",
        WC = 2 => "WC",
        WT = 5 => "WT",
        WP = 6 => "WP",
        WB = 7 => "WB",
        /// Only in the PAT: uncacheable, but an MTRR may make it write combining.
        UC_MINUS = 8 => "UC-",
    }
}

impl MemoryType {
    /// Those that MTRRs, PAT and EPT hold, by their encoding. A reserved encoding is a type without a name.
    pub const fn of_encoding(encoding: u8) -> Self {
        Self(encoding.wrapping_add(1))
    }

    /// The manual's encoding.
    pub const fn encoding(self) -> u8 {
        self.0.wrapping_sub(1)
    }
}

/// IA32_PAT: eight types, which the PAT, PCD and PWT bits of a paging entry select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pat(pub u64);

impl Pat {
    /// Entry 4 * PAT + 2 * PCD + PWT. See: SDM vol. 3A Table 12-11
    pub const fn entry(self, index: u8) -> MemoryType {
        MemoryType::of_encoding((self.0 >> (8 * (index & 7) as u32)) as u8 & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msr::PAT_POWER_ON;

    /// SDM vol. 3A Table 12-12. Memory Type Setting of PAT Entries Following a Power-up or Reset
    #[test]
    fn after_reset() {
        use MemoryType as T;
        let entries = [T::WB, T::WT, T::UC_MINUS, T::UC, T::WB, T::WT, T::UC_MINUS, T::UC];
        for (index, wanted) in (0..).zip(entries) {
            assert_eq!(Pat(PAT_POWER_ON).entry(index), wanted, "PA{index}");
        }
        assert!(T::NAMED.iter().all(|(t, _)| T::of_encoding(t.encoding()) == *t));
    }
}
