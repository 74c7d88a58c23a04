//! Events injected into or being delivered to a guest.

use crate::{flag::Flag, layout, open_enum};
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes};

open_enum! {
    /// The kind of an event, with VMX's numbers. See: SDM vol. 3C Table 25-17. Format of the VM-Entry
    /// Interruption-Information Field
    #[derive(IntoBytes, Immutable)]
    pub struct EventKind(u8) {
        EXTERNAL_INTERRUPT = 0 => "IRQ",
        NMI = 2 => "NMI",
        HARDWARE_EXCEPTION = 3 => "exception",
        SOFTWARE_INTERRUPT = 4 => "INTn",
        PRIVILEGED_SOFTWARE_EXCEPTION = 5 => "ICEBP",
        SOFTWARE_EXCEPTION = 6 => "software exception",
    }
}

/// An event: to be injected at the next entry, or in delivery when an exit happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct Event {
    pub valid: Flag,
    pub kind: EventKind,
    pub vector: u8,
    pub has_error_code: Flag,
    pub error_code: u32,
    /// Length of the instruction that raised a software interrupt or software exception; the return RIP is after it.
    pub insn_len: u8,
    /// True where KVM injects the event again because an exit interrupted its delivery.
    pub reinjected: Flag,
    pub pad: [u8; 6],
}

layout!(Event: 16, vector: 2, error_code: 4, insn_len: 8);

impl Event {
    /// The event in the format of a VMX interruption-information field (0 if not valid).
    pub const fn vmx_info(&self) -> u32 {
        if !self.valid.is_set() {
            return 0;
        }
        0x8000_0000
            | self.vector as u32
            | (self.kind.0 as u32) << 8
            | (self.has_error_code.is_set() as u32) << 11
    }
}
