//! Places in memory, above those of `paging`.

pub const VMCB: u64 = 0x280_0000;
pub const HOST_SAVE: u64 = 0x280_1000;
pub const MSRPM: u64 = 0x280_2000;
pub const IOPM: u64 = 0x280_4000;
pub const NPML4: u64 = 0x280_8000;
pub const NPDPT: u64 = 0x280_9000;
/// Four of them.
pub const NPD: u64 = 0x280_a000;
pub const NPT: u64 = 0x280_e000;
/// For addresses above 4 GiB.
pub const FAR_NPDPT: u64 = 0x280_f000;
pub const FAR_NPD: u64 = 0x281_0000;
/// The stack of the guest's guest.
pub const STACK_TOP: u64 = 0x282_0000;
