//! Where a guest's tables, stacks and variables lie, and the selectors of its GDT.

/// Fixed places in the guest's memory. What a program needs beyond them it takes from above `FREE`.
pub mod layout {
    pub const GDT: u64 = 0x10_1000;
    /// Limit and base of the GDT, for LGDT.
    pub const GDTR: u64 = 0x10_1100;
    pub const IDT: u64 = 0x10_2000;
    pub const TSS: u64 = 0x10_3000;
    pub const PML4: u64 = 0x10_4000;
    pub const PDPT: u64 = 0x10_5000;
    /// Four page directories: 0-4 GiB in 2 MiB pages.
    pub const PD: u64 = 0x10_6000;
    pub const CODE64: u64 = 0x10_a000;
    /// Zeroed memory from here on.
    pub const BSS: u64 = 0x12_0000;
    /// What the exception handler keeps; see `kernel`.
    pub const VARS: u64 = 0x12_0000;
    pub const STACK_TOP: u64 = 0x14_0000;
    /// For exceptions from CPL 3.
    pub const RSP0_TOP: u64 = 0x14_8000;
    pub const USER_STACK_TOP: u64 = 0x15_0000;
    pub const AP_STACK_TOP: u64 = 0x15_8000;
    pub const BSS_END: u64 = 0x16_0000;
}

/// Selectors of the GDT below.
pub mod selector {
    pub const CODE32: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE64: u16 = 0x18;
    pub const USER_DATA: u16 = 0x23;
    pub const USER_CODE64: u16 = 0x2b;
    pub const TSS: u16 = 0x30;
}
