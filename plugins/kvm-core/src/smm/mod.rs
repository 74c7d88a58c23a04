//! System-management mode: the SMI that waits, the way in, and RSM.
//!
//! There is one set of memory slots: what a VMM gives KVM's second address space, that of SMM, is taken to be what it gives the
//! first.
//!
//! See: KVM arch/x86/kvm/smm.c (6.12); before, x86.c enter_smm() and emulate.c em_rsm()

mod enter;
mod leave;
pub mod save_state;

pub use enter::deliver;
pub use leave::rsm;

use crate::{
    profile::{Options, Switch},
    vcpu::Vcpu,
    vm::{Ops, VendorVcpu},
};
use serde::{Deserialize, Serialize};
use vmtape_abi::Host;
use vmtape_arch::{note::Note, vcpu::VcpuState};
use vmtape_kvm_mmu::slots::Slots;

/// SMBASE after reset.
const SMBASE_RESET: u64 = 0x3_0000;

/// What KVM keeps of SMM for a vCPU. An SMI that waits is the local APIC's, which is the machine's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Smm {
    /// KVM was built with SMM.
    pub supported: bool,
    /// Where the handler and the state-save area lie.
    pub smbase: u64,
    /// `is_smm`: HF_SMM_MASK.
    pub active: bool,
    /// HF_SMM_INSIDE_NMI_MASK: NMIs were blocked before, and stay so.
    pub inside_nmi: bool,
    /// MSR_SMI_COUNT.
    pub count: u64,
}

impl Smm {
    pub fn new(supported: bool) -> Self {
        Self { supported, smbase: SMBASE_RESET, active: false, inside_nmi: false, count: 0 }
    }

    /// Whether these options have SMM: releases before the build option always do.
    pub fn is_supported(options: &Options) -> bool {
        options.on(Switch::CONFIG_KVM_SMM) || !options.on(Switch::SMM_FAILURE_CHECKED)
    }
}

/// `smi_allowed`, for injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmiAllowed {
    Now,
    /// In SMM, or GIF is clear.
    Blocked,
    /// -EBUSY: L2 must get in first, or L1 gets the SMI.
    Busy,
}

/// What became of a pending SMI before an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Smi {
    #[default]
    None,
    /// SMM has been entered: nothing else is injected at this entry.
    Taken,
    /// Something else comes first, behind which the guest is left again.
    Waits,
}

/// A failure that ends the VM or shuts the vCPU down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// `kvm_smm_changed`, asked for by an ioctl.
pub(crate) fn toggle<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &VcpuState,
    active: bool,
    host: &mut dyn Host,
) {
    note(ops, v.core(), active, host);
    changed(ops, v, state, active, host);
}

/// `kvm_smm_changed`, without its tracepoint.
fn changed<O: Ops>(ops: &mut O, v: &mut O::Vcpu, state: &VcpuState, active: bool, host: &mut dyn Host) {
    let core = v.core_mut();
    core.smm.active = active;
    core.smm.inside_nmi &= active;
    let id = core.id;
    let mmu = &mut ops.kvm_mut().mmu;
    mmu.vcpu(id).smm = active;
    mmu.reset_context(id, state, host);
}

/// `kvm_smm_transition`; before 5.14 the event of this content is `kvm_enter_smm`.
fn note<O: Ops>(ops: &O, core: &Vcpu, entering: bool, host: &mut dyn Host) {
    let old = !ops.kvm().options.on(Switch::SMM_TRANSITION_TRACED);
    core.note(Note::SmmTransition { smbase: core.smm.smbase, entering, old }, host);
}

/// The parts of guest memory that a range lies in, one for each page, as host physical address and length; `None` stands for memory that is
/// not there.
fn pages(slots: &Slots, gpa: u64, len: usize) -> Vec<(Option<u64>, usize)> {
    let first = (vmtape_arch::PAGE_SIZE - gpa % vmtape_arch::PAGE_SIZE).min(len as u64) as usize;
    let parts = [(gpa, first), (gpa.wrapping_add(first as u64), len - first)];
    parts.into_iter().filter(|(_, len)| *len != 0).map(|(gpa, len)| (slots.hpa(gpa), len)).collect()
}
