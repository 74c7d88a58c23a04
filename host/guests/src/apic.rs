//! Registers of the local APIC, where it is after reset. See: SDM vol. 3A Table 11-1. Local APIC Register Address Map

pub const BASE: u32 = 0xfee0_0000;
pub const ID: u32 = BASE + 0x20;
pub const VERSION: u32 = BASE + 0x30;
pub const TPR: u32 = BASE + 0x80;
pub const EOI: u32 = BASE + 0xb0;
pub const SPURIOUS: u32 = BASE + 0xf0;
/// The first of eight, 16 bytes apart.
pub const IRR: u32 = BASE + 0x200;
pub const ICR_LOW: u32 = BASE + 0x300;
pub const ICR_HIGH: u32 = BASE + 0x310;
pub const LVT_TIMER: u32 = BASE + 0x320;
pub const TIMER_INITIAL: u32 = BASE + 0x380;
pub const TIMER_DIVIDE: u32 = BASE + 0x3e0;
