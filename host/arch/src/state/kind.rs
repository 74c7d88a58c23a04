//! The list of state kinds. Save, restore, and a guest's move to another machine follow from its rows, and what a comparison
//! leaves out stands in them.

use super::{ClockData, DebugRegs, LapicState, MpState, Regs, Sregs2, VcpuEvents, Xcrs, Xsave};
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
        /// KVM_GET_TSC_KHZ, KVM_SET_TSC_KHZ: a u32.
        TSC_KHZ = 12 => "tsc-khz",
    }
}

/// Who keeps a part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The backend: its calls `get_state` and `set_state`.
    Backend(BackendState),
    /// The backend, by its calls for several MSRs; the VMM chooses which.
    Msrs,
    /// The host machine, whose devices and clock the in-kernel ones are.
    Machine(MachineState),
}

/// What backends keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    Regs,
    Sregs2,
    DebugRegs,
    Xcrs,
    Xsave,
    VcpuEvents,
    MpState,
    NestedState,
    TscOffset,
}

/// What the host machine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineState {
    Lapic,
    Clock,
    TscKhz,
}

/// What the hash over a machine's state, and the comparison of two machines, have of a kind. Both look at a vCPU's registers
/// ([`VcpuState::each_register`](crate::vcpu::VcpuState::each_register)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// All of it: it is in the registers.
    Whole,
    /// What is in the registers; this is not.
    But(&'static str),
    /// Nothing of it, for a reason.
    Nothing(&'static str),
}

/// A row of the list.
#[derive(Clone, Copy, Debug)]
pub struct StateRow {
    pub kind: StateKind,
    pub owner: Owner,
    /// Bytes of the structure; `None`: they follow from what is in it.
    pub size: Option<usize>,
    pub compared: Compared,
}

const fn row(kind: StateKind, owner: Owner, size: Option<usize>, compared: Compared) -> StateRow {
    StateRow { kind, owner, size, compared }
}

/// A structure's row.
const fn of<T>(kind: StateKind, owner: Owner, compared: Compared) -> StateRow {
    row(kind, owner, Some(size_of::<T>()), compared)
}

use Compared::{But, Nothing, Whole};
use Owner::{Backend, Machine};

/// The list, in an order in which the kinds can be set.
///
/// CPUID comes before everything. Then time, which timers are set by; the mode before what is checked against it
/// (LAPIC, nested state); general registers before events, which setting them drops; the LAPIC's timer mode before the
/// MSR with its deadline; events before nested state, which entering or leaving SMM drops.
pub const STATE: [StateRow; 13] = [
    of::<ClockData>(
        StateKind::CLOCK,
        Machine(MachineState::Clock),
        Nothing("each vCPU's time-stamp counter follows it, and is compared"),
    ),
    of::<u32>(StateKind::TSC_KHZ, Machine(MachineState::TscKhz), Nothing("every machine has the same")),
    of::<Sregs2>(
        StateKind::SREGS2,
        Backend(BackendState::Sregs2),
        But("APIC_BASE, which is the local APIC's"),
    ),
    of::<Regs>(StateKind::REGS, Backend(BackendState::Regs), Whole),
    of::<DebugRegs>(StateKind::DEBUGREGS, Backend(BackendState::DebugRegs), Whole),
    of::<Xcrs>(StateKind::XCRS, Backend(BackendState::Xcrs), Whole),
    of::<Xsave>(StateKind::XSAVE, Backend(BackendState::Xsave), Whole),
    of::<u64>(StateKind::TSC_OFFSET, Backend(BackendState::TscOffset), Whole),
    of::<LapicState>(
        StateKind::LAPIC,
        Machine(MachineState::Lapic),
        Nothing("what a guest does with it is compared, and silicon may virtualize it"),
    ),
    row(
        StateKind::MSRS,
        Owner::Msrs,
        None,
        But("registers that are the backend's own: MTRRs, machine checks"),
    ),
    of::<MpState>(StateKind::MP_STATE, Backend(BackendState::MpState), Whole),
    of::<VcpuEvents>(
        StateKind::VCPU_EVENTS,
        Backend(BackendState::VcpuEvents),
        But(
            "events on their way: when one is queued is the backend's affair, the guest takes it or does not",
        ),
    ),
    row(
        StateKind::NESTED_STATE,
        Backend(BackendState::NestedState),
        None,
        Nothing("it is in each vendor's own form; what L1 sees of it is in memory and registers"),
    ),
];

// Each kind has one row: one that is added does not compile until its row says who keeps it and what compares it.
const _: () = {
    let (names, mut name) = (StateKind::NAMED, 0);
    assert!(names.len() == STATE.len());
    while name < names.len() {
        let (mut rows, mut n) = (0, 0);
        while n < STATE.len() {
            rows += (STATE[n].kind.0 == names[name].0.0) as usize;
            n += 1;
        }
        assert!(rows == 1);
        name += 1;
    }
};

impl StateKind {
    /// All of them, in the list's order.
    pub const ALL: [Self; STATE.len()] = {
        let (mut all, mut n) = ([Self(0); STATE.len()], 0);
        while n < all.len() {
            all[n] = STATE[n].kind;
            n += 1;
        }
        all
    };

    /// Its row. `None`: this build does not know it.
    pub fn row(self) -> Option<&'static StateRow> {
        STATE.iter().find(|row| row.kind == self)
    }

    /// Who keeps it.
    pub fn owner(self) -> Option<Owner> {
        self.row().map(|row| row.owner)
    }
}
