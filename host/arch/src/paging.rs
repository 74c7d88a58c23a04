//! Paging-structure entries.

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

/// Bits `high` down to `low` of an address, the mask that reserved-bit rules are written with (`rsvd_bits` in KVM).
/// Empty where `high < low`.
pub const fn bits(low: u32, high: u32) -> u64 {
    if high < low { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}
