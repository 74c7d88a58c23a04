//! The local APIC's registers: where they are and what their bits mean.

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

pub const DEFAULT_BASE: u64 = 0xfee0_0000;
pub const SIZE: u64 = 0x1000;

/// Register offsets in the xAPIC page; an x2APIC MSR is 0x800 + offset / 16.
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const ARBITRATION: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFORMANCE: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

pub const LVTS: std::ops::RangeInclusive<u32> = reg::LVT_TIMER..=reg::LVT_ERROR;
/// Version 0x14 with six LVT entries.
pub const VERSION: u32 = 0x5_0014;

/// IA32_APIC_BASE. See: SDM vol. 3A 12.4.4 Local APIC Status and Location
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicBase {
    __: u8,
    pub bsp: bool,
    __: bool,
    pub x2apic: bool,
    pub enabled: bool,
    #[bits(52)]
    pub frame: u64,
}

/// A local vector table entry. See: SDM vol. 3A Figure 12-8. Local Vector Table (LVT)
#[bitfield(u32)]
pub struct Lvt {
    pub vector: u8,
    #[bits(3)]
    pub mode: u8,
    __: bool,
    pub send_pending: bool,
    pub active_low: bool,
    pub remote_irr: bool,
    pub level: bool,
    pub masked: bool,
    #[bits(2)]
    pub timer_mode: u8,
    #[bits(13)]
    __: u16,
}

/// Bits that a WRMSR of the x2APIC ICR must leave clear. See: KVM lapic.c X2APIC_ICR_RESERVED_BITS
pub const X2APIC_ICR_RESERVED: u64 = 0xfff3_2000;
pub const SPURIOUS_ENABLE: u32 = 0x100;
pub const SPURIOUS_MASK: u32 = 0x3ff;
pub const DFR_FLAT: u32 = u32::MAX;
