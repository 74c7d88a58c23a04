//! Interrupt messages between the APICs.

use vmtape_arch::open_enum;

open_enum! {
    /// How an interrupt is delivered. See: SDM vol. 3A 12.6.1 Interrupt Command Register (ICR)
    pub struct DeliveryMode(u8) {
        FIXED = 0 => "fixed",
        LOWEST_PRIORITY = 1 => "lowest priority",
        SMI = 2 => "SMI",
        /// Of which KVM makes the end of a halt (APIC_DM_REMRD, KVM_HC_KICK_CPU).
        REMOTE_READ = 3 => "remote read",
        NMI = 4 => "NMI",
        INIT = 5 => "INIT",
        SIPI = 6 => "SIPI",
        EXTINT = 7 => "ExtINT",
    }
}

open_enum! {
    /// Whom an interprocessor interrupt goes to, before the destination field counts.
    pub struct Shorthand(u8) {
        NONE = 0 => "none",
        SELF = 1 => "self",
        ALL = 2 => "all including self",
        ALL_BUT_SELF = 3 => "all but self",
    }
}

/// One interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message {
    pub vector: u8,
    pub mode: DeliveryMode,
    pub logical: bool,
    pub destination: u32,
    pub shorthand: Shorthand,
    pub level: bool,
    /// INIT level de-assert is ignored.
    pub deassert: bool,
    /// Sent by the local APIC of this vCPU (shorthands).
    pub source: u32,
}
