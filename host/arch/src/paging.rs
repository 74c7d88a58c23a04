//! Paging-structure entries.

use crate::regs::{Cr0, Cr4, Efer};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

/// An entry of 64-bit (or PAE) paging at any level. See: SDM vol. 3A 4.5.4 Linear-Address Translation with 4-Level Paging
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Pte {
    pub p: bool,
    pub w: bool,
    pub u: bool,
    pub pwt: bool,
    pub pcd: bool,
    pub a: bool,
    pub d: bool,
    /// Page size at levels 2 and 3; PAT at level 1.
    pub ps: bool,
    pub g: bool,
    #[bits(3)]
    pub avl: u8,
    /// Address bits 51:12.
    #[bits(40)]
    pub frame: u64,
    #[bits(7)]
    __: u8,
    #[bits(4)]
    pub pkey: u8,
    pub nx: bool,
}

impl Pte {
    /// Which entry of the PAT the bits of a leaf at this level select.
    /// See: SDM vol. 3A 4.9.2 Paging and Memory Typing When the PAT is Supported
    pub const fn pat_index(self, level: u8) -> u8 {
        /// Where a large page has its PAT bit.
        const LARGE: u64 = 1 << 12;
        let pat = if level == 1 { self.ps() } else { self.into_bits() & LARGE != 0 };
        (pat as u8) << 2 | (self.pcd() as u8) << 1 | self.pwt() as u8
    }

    /// The physical address in bits 51:12.
    pub const fn address(self) -> u64 {
        self.frame() << crate::PAGE_SHIFT
    }
}

/// An EPT entry at any level. See: SDM vol. 3C 29.3.2 EPT Translation Mechanism
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct EptEntry {
    pub r: bool,
    pub w: bool,
    pub x: bool,
    #[bits(3)]
    pub memtype: u8,
    pub ipat: bool,
    pub ps: bool,
    pub a: bool,
    pub d: bool,
    pub xu: bool,
    pub avl: bool,
    /// Address bits 51:12.
    #[bits(40)]
    pub frame: u64,
    #[bits(11)]
    __: u16,
    pub suppress_ve: bool,
}

impl EptEntry {
    /// The physical address in bits 51:12.
    pub const fn address(self) -> u64 {
        self.frame() << crate::PAGE_SHIFT
    }
}

/// The EPT pointer. See: SDM vol. 3C 25.6.11 Extended-Page-Table Pointer (EPTP)
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Eptp {
    #[bits(3)]
    pub memtype: u8,
    /// Walk length minus one.
    #[bits(3)]
    pub levels_minus_one: u8,
    pub ad: bool,
    pub sss: bool,
    #[bits(4)]
    __: u8,
    #[bits(40)]
    pub frame: u64,
    #[bits(12)]
    __: u16,
}

/// Paging modes. See: SDM vol. 3A 4.1.1 Four Paging Modes
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingMode {
    /// Linear addresses are physical.
    None,
    /// Entries of 4 bytes.
    Bits32,
    Pae,
    Level4,
    Level5,
}

impl PagingMode {
    /// The mode that these registers select.
    pub const fn of(cr0: Cr0, cr4: Cr4, efer: Efer) -> Self {
        match (cr0.pg(), cr4.pae(), efer.lma(), cr4.la57()) {
            (false, ..) => Self::None,
            (_, false, ..) => Self::Bits32,
            (.., false, _) => Self::Pae,
            (.., true) => Self::Level5,
            _ => Self::Level4,
        }
    }

    /// Levels, of which PAE's third is held in registers. Zero: there are no tables.
    pub const fn levels(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }
}

/// Bits `high` down to `low` of an address, the mask that reserved-bit rules are written with (`rsvd_bits` in KVM).
/// Empty where `high < low`.
pub const fn bits(low: u32, high: u32) -> u64 {
    if high < low { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}
