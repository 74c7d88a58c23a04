//! CPUID as a table of leaves.

use crate::layout;
use serde::{Deserialize, Serialize};

/// `flags` bit: the leaf is selected by ECX too.
pub const CPUID_FLAG_SIGNIFICANT_INDEX: u32 = 1;

/// One entry with the fields of `struct kvm_cpuid_entry2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub pad: u32,
}

layout!(CpuidEntry: 32, flags: 8, eax: 12, edx: 24);

/// The entry for a function and index, as KVM's `cpuid_entry2_find` looks it up.
pub fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<&CpuidEntry> {
    entries
        .iter()
        .find(|e| e.function == function && (e.flags & CPUID_FLAG_SIGNIFICANT_INDEX == 0 || e.index == index))
}

/// MAXPHYADDR of a table: leaf 0x8000_0008 `EAX[7:0]`, or 36 where the leaf is absent.
/// See: KVM arch/x86/kvm/cpuid.c cpuid_query_maxphyaddr()
pub fn maxphyaddr(entries: &[CpuidEntry]) -> u8 {
    match find(entries, 0x8000_0000, 0) {
        Some(max) if max.eax >= 0x8000_0008 => find(entries, 0x8000_0008, 0).map_or(36, |e| e.eax as u8),
        _ => 36,
    }
}
