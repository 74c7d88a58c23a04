//! `struct kvm_nested_state`: its header, which is all of it while no nested guest exists.

use crate::open_enum;
use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `flags`: KVM_STATE_NESTED_*.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct NestedFlags {
    pub guest_mode: bool,
    pub run_pending: bool,
    pub evmcs: bool,
    pub mtf_pending: bool,
    #[bits(4)]
    __: u8,
    pub gif_set: bool,
    #[bits(7)]
    __: u8,
}

impl NestedFlags {
    /// Those that KVM_SET_NESTED_STATE knows.
    pub const KNOWN: Self = Self::new()
        .with_guest_mode(true)
        .with_run_pending(true)
        .with_evmcs(true)
        .with_mtf_pending(true)
        .with_gif_set(true);
}

open_enum! {
    /// Whose structures follow: KVM_STATE_NESTED_FORMAT_*.
    pub struct NestedFormat(u16) {
        VMX = 0 => "vmx",
        SVM = 1 => "svm",
    }
}

/// `struct kvm_vmx_nested_state_hdr`, with what pads the union to 120 bytes. SVM's first word is `vmcb_pa`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct VmxNestedHeader {
    pub vmxon_pa: u64,
    pub vmcs12_pa: u64,
    pub smm_flags: u16,
    pub pad: u16,
    pub flags: u32,
    pub preemption_timer_deadline: u64,
    pub rest: [u64; 11],
}

/// `struct kvm_nested_state` without its data.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct NestedState {
    pub flags: NestedFlags,
    /// [`NestedFormat`].
    pub format: u16,
    /// Bytes of all of it.
    pub size: u32,
    pub header: VmxNestedHeader,
}

const _: () = assert!(size_of::<NestedState>() == 128);

impl NestedState {
    /// INVALID_GPA: nothing is there.
    pub const NOWHERE: u64 = u64::MAX;

    /// Of a vCPU that is not, and has never been, a nested guest's.
    pub fn none(format: NestedFormat) -> Self {
        let vmx = format == NestedFormat::VMX;
        let address = if vmx { Self::NOWHERE } else { 0 };
        Self {
            flags: NestedFlags::new().with_gif_set(!vmx),
            format: format.0,
            size: size_of::<Self>() as u32,
            header: VmxNestedHeader { vmxon_pa: address, vmcs12_pa: address, ..Default::default() },
        }
    }

    /// Whether it says that there is nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::none(NestedFormat(self.format))
    }
}
