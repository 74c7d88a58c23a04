//! `struct kvm_vcpu_events`.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `flags`: KVM_VCPUEVENT_VALID_*.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct VcpuEventsFlags {
    pub nmi_pending: bool,
    pub sipi_vector: bool,
    pub shadow: bool,
    pub smm: bool,
    pub payload: bool,
    pub triple_fault: bool,
    #[bits(26)]
    __: u32,
}

impl VcpuEventsFlags {
    /// Those that KVM_SET_VCPU_EVENTS knows.
    pub const KNOWN: Self = Self::new()
        .with_nmi_pending(true)
        .with_sipi_vector(true)
        .with_shadow(true)
        .with_smm(true)
        .with_payload(true)
        .with_triple_fault(true);
}

/// `interrupt_shadow`: KVM_X86_SHADOW_INT_*.
pub mod interrupt_shadow {
    pub const MOV_SS: u8 = 1;
    pub const STI: u8 = 2;
}

/// `struct kvm_vcpu_events`. Truth values are bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct VcpuEvents {
    pub exception_injected: u8,
    pub exception_nr: u8,
    pub exception_has_error_code: u8,
    pub exception_pending: u8,
    pub exception_error_code: u32,
    pub interrupt_injected: u8,
    pub interrupt_nr: u8,
    pub interrupt_soft: u8,
    /// Bits of [`interrupt_shadow`].
    pub interrupt_shadow: u8,
    pub nmi_injected: u8,
    pub nmi_pending: u8,
    pub nmi_masked: u8,
    pub nmi_pad: u8,
    pub sipi_vector: u32,
    pub flags: VcpuEventsFlags,
    pub smi_smm: u8,
    pub smi_pending: u8,
    pub smi_smm_inside_nmi: u8,
    pub smi_latched_init: u8,
    pub triple_fault_pending: u8,
    pub reserved: [u8; 26],
    pub exception_has_payload: u8,
    pub exception_payload: u64,
}

const _: () = assert!(size_of::<VcpuEvents>() == 64);
