//! Interrupt messages between the APICs.

pub use vmtape_arch::apic::{DeliveryMode, Shorthand};

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
