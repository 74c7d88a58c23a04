//! The list of state kinds.

use crate::open_enum;

open_enum! {
    /// A part of a VM's state, named after the ioctls that get and set it.
    pub struct StateKind(u32) {
        /// KVM_GET_REGS, KVM_SET_REGS: `struct kvm_regs`.
        REGS = 0 => "regs",
        /// KVM_GET_SREGS2, KVM_SET_SREGS2: `struct kvm_sregs2`.
        SREGS2 = 1 => "sregs2",
        /// KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS: `struct kvm_debugregs`.
        DEBUGREGS = 2 => "debugregs",
        /// KVM_GET_XCRS, KVM_SET_XCRS: `struct kvm_xcrs`.
        XCRS = 3 => "xcrs",
        /// KVM_GET_XSAVE, KVM_SET_XSAVE: `struct kvm_xsave`.
        XSAVE = 4 => "xsave",
        /// KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS: `struct kvm_vcpu_events`.
        VCPU_EVENTS = 5 => "vcpu-events",
        /// KVM_GET_MP_STATE, KVM_SET_MP_STATE: `struct kvm_mp_state`.
        MP_STATE = 6 => "mp-state",
        /// KVM_GET_LAPIC, KVM_SET_LAPIC: `struct kvm_lapic_state`.
        LAPIC = 7 => "lapic",
        /// KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE: `struct kvm_nested_state`.
        NESTED_STATE = 8 => "nested-state",
        /// KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR of KVM_VCPU_TSC_OFFSET: a u64.
        TSC_OFFSET = 9 => "tsc-offset",
        /// KVM_GET_MSRS, KVM_SET_MSRS: `struct kvm_msrs`, a count and its entries.
        MSRS = 10 => "msrs",
        /// KVM_GET_CLOCK, KVM_SET_CLOCK: `struct kvm_clock_data`. The VM's, not a vCPU's.
        CLOCK = 11 => "clock",
    }
}

/// Who keeps a part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The backend: its calls `get_state` and `set_state`.
    Backend,
    /// The backend, by its calls for several MSRs; the VMM chooses which.
    Msrs,
    /// The host machine, whose devices and clock the in-kernel ones are.
    Machine,
}

impl StateKind {
    /// All of them, in an order in which they can be set.
    ///
    /// CPUID comes before everything. Then time, which timers are set by; the mode before what is checked against it
    /// (LAPIC, nested state); general registers before events, which setting them drops; the LAPIC's timer mode before the
    /// MSR with its deadline; events before nested state, which entering or leaving SMM drops.
    pub const ALL: [Self; 12] = [
        Self::CLOCK,
        Self::SREGS2,
        Self::REGS,
        Self::DEBUGREGS,
        Self::XCRS,
        Self::XSAVE,
        Self::TSC_OFFSET,
        Self::LAPIC,
        Self::MSRS,
        Self::MP_STATE,
        Self::VCPU_EVENTS,
        Self::NESTED_STATE,
    ];

    /// Who keeps it.
    pub const fn owner(self) -> Owner {
        match self {
            Self::LAPIC | Self::CLOCK => Owner::Machine,
            Self::MSRS => Owner::Msrs,
            _ => Owner::Backend,
        }
    }
}
