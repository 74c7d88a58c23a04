//! Interprocessor interrupts, in the words of KVM's tracepoints (arch/x86/kvm/trace.h).

use bitfield_struct::bitfield;
use vmtape_arch::open_enum;

open_enum! {
    /// How an interrupt is delivered. See: SDM vol. 3A 12.6.1 Interrupt Command Register (ICR)
    pub struct DeliveryMode(u8) {
        FIXED = 0 => "Fixed",
        LOWEST_PRIORITY = 1 => "LowPrio",
        SMI = 2 => "SMI",
        /// Of which KVM makes the end of a halt (APIC_DM_REMRD, KVM_HC_KICK_CPU).
        REMOTE_READ = 3 => "Res3",
        NMI = 4 => "NMI",
        INIT = 5 => "INIT",
        SIPI = 6 => "SIPI",
        EXTINT = 7 => "ExtINT",
    }
}

open_enum! {
    /// Whom an interprocessor interrupt goes to, before the destination field counts.
    pub struct Shorthand(u8) {
        NONE = 0 => "dst",
        SELF = 1 => "self",
        ALL = 2 => "all",
        ALL_BUT_SELF = 3 => "all-but-self",
    }
}

/// The interrupt command register. See: SDM vol. 3A Figure 12-12
#[bitfield(u64)]
pub struct Icr {
    pub vector: u8,
    #[bits(3)]
    pub mode: u8,
    pub logical: bool,
    pub busy: bool,
    __: bool,
    pub assert: bool,
    pub level: bool,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    pub shorthand: u8,
    #[bits(12)]
    __: u16,
    pub destination: u32,
}

impl Icr {
    /// A register of which only the low half is known.
    pub const fn from_low(low: u32) -> Self {
        Self::from_bits(low as u64)
    }

    pub const fn low(self) -> u32 {
        self.into_bits() as u32
    }
}
