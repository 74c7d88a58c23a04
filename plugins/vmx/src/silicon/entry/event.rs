//! The event that VM entry injects.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 25.8.3 VM-Entry Controls for Event Injection.

use crate::silicon::vmcs::{Vmcs, VmcsField as F};
use bitfield_struct::bitfield;
use vmtape_arch::event::EventKind;

/// VM-entry interruption information. See: Table 25-17
#[bitfield(u32)]
pub struct EntryEvent {
    pub vector: u8,
    #[bits(3)]
    pub kind: u8,
    pub error_code: bool,
    #[bits(19)]
    pub reserved: u32,
    pub valid: bool,
}

impl EntryEvent {
    pub fn of(vmcs: &Vmcs) -> Self {
        Self::from_bits(vmcs.read32(F::VM_ENTRY_INTR_INFO_FIELD))
    }

    /// Whether there is an event, and of this kind.
    pub fn injects(self, kind: EventKind) -> bool {
        self.valid() && EventKind(self.kind()) == kind
    }
}
