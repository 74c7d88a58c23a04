//! System-management mode.
//!
//! Where a change has no id, it was found by comparing 5.10.262, 6.1.192 and 6.12.118.

use super::{Entry, Scope, Switch};

/// Changes of KVM's SMM, for bare guests and for guests of guests.
pub const SMM: &[Entry] = &[
    Entry::patch(
        Switch::SMM_TRANSITION_TRACED,
        Scope::ALL,
        "The tracepoint kvm_smm_transition, where HF_SMM_MASK changes; before, kvm_enter_smm, when SMM is about to be entered, and \
         when all of it is left, with the SMBASE that RSM has loaded",
    )
    .commit("1270e647c802", "KVM: x86: Rename SMM tracepoint to make it reflect reality")
    .source("x86.c kvm_smm_changed(); kvm_enter_smm in 5.10, kvm_smm_transition in 6.1")
    .since("v5.14"),
    Entry::patch(
        Switch::RSM_FAILURE_SHUTDOWN,
        Scope::ALL,
        "RSM of a state that cannot be loaded shuts the processor down; before, the emulation fails (KVM_EXIT_INTERNAL_ERROR, #UD)",
    )
    .commit("25b17226cd9a", "KVM: x86: Emulate triple fault shutdown if RSM emulation fails")
    .source("emulate.c em_rsm(); not in 5.10, there in 6.1")
    .since("v5.14"),
    Entry::patch(
        Switch::SMM_SHADOW_SAVED,
        Scope::ALL,
        "The state-save area has the interrupt shadow",
    )
    .commit("fb28875fd7da", "KVM: x86: smm: preserve interrupt shadow in SMRAM")
    .source("smm.c enter_smm_save_state_64(), rsm_load_state_64()")
    .since("v6.2"),
    Entry::patch(
        Switch::SMM_FAILURE_CHECKED,
        Scope::ALL,
        "A state-save area that cannot be written, or an L2 that cannot be left, is the end of the VM at an SMI; one that cannot be \
         read shuts the processor down at RSM. Before, an SMI goes on without, and the emulation of RSM fails",
    )
    .commit("89dccf82e99e", "KVM: x86: smm: check for failures on smm entry")
    .source("smm.c enter_smm(), emulator_leave_smm()")
    .since("v6.2"),
    Entry::patch(
        Switch::SMM_SAVES_L1,
        Scope::AMD,
        "An SMI in L2 saves L1's registers in L1's host save area, and RSM loads them from there; before, #VMEXIT after RSM loads what \
         SMM has left in vmcb01",
    )
    .commit("37be407b2ce8", "KVM: nSVM: Fix L1 state corruption upon return from SMM")
    .source("svm/svm.c svm_enter_smm(), svm_leave_smm(); in 5.10, which has no vmcb01, L1's registers are KVM's own")
    .since("v5.14"),
    Entry::patch(
        Switch::RSM_RUN_PENDING,
        Scope::AMD,
        "RSM into L2 counts as VMRUN until L2 has run: an event that L1 wants waits for it",
    )
    .commit("759cbd59674a", "KVM: x86: nSVM/nVMX: set nested_run_pending on VM entry which is a result of RSM")
    .source("svm/svm.c svm_leave_smm(); not in 5.10, there in 6.1")
    .since("v5.15"),
    Entry::patch(
        Switch::RSM_CHECKS_VMCB12,
        Scope::AMD,
        "RSM into L2 checks vmcb12 as VMRUN does",
    )
    .commit("in stable 6.12.88", "(subject unverified)")
    .source("svm/svm.c svm_leave_smm(); stable 6.12.88, not in 6.1.192")
    .since("v6.12"),
    Entry::patch(
        Switch::RSM_FAILURE_LEAVES_L2,
        Scope::AMD,
        "RSM that fails when L2 has been entered leaves it without an exit, so that it is L1 that shuts down",
    )
    .commit("in 6.12.118, not in 6.1.192", "(subject unverified)")
    .source("smm.c emulator_leave_smm()")
    .since("v6.12"),
    Entry::patch(
        Switch::SMM_TOGGLE_LEAVES_NESTED,
        Scope::ALL,
        "KVM_SET_VCPU_EVENTS that enters or leaves SMM leaves L2, without an exit to L1",
    )
    .commit("f7e570780efc", "KVM: x86: Forcibly leave nested virt when SMM state is toggled")
    .source("x86.c kvm_vcpu_ioctl_x86_set_vcpu_events(); stable 5.10.97")
    .since("v5.10"),
];
