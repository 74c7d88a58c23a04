//! Quirks of a VM that its VMM disables, by KVM_CAP_DISABLE_QUIRKS and KVM_CAP_DISABLE_QUIRKS2.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap(), include/uapi/asm/kvm.h KVM_X86_QUIRK_*

use super::{Options, Switch, entries_of};

/// Quirks that are modelled: their bit and the switch that is on unless they are disabled.
const QUIRKS: [(u64, Switch); 3] = [
    (1 << 5, Switch::FIX_HYPERCALL_INSN),
    (1 << 9, Switch::IGNORE_GUEST_PAT),
    (1 << 11, Switch::NESTED_SVM_SHARED_PAT),
];

impl Options {
    /// The bits that may be disabled: those that are modelled, and that the release has.
    pub fn quirks(&self) -> u64 {
        let known = |switch| {
            let entry = entries_of(self.scope).find(|e| e.switch == switch);
            entry.is_some_and(|e| e.has_come(self.profile.release))
        };
        QUIRKS.iter().filter(|(_, switch)| known(*switch)).map(|(bit, _)| bit).sum()
    }

    /// What was disabled since the VM was made.
    pub fn disabled_quirks(&self) -> u64 {
        self.disabled_quirks
    }

    /// These are disabled since the VM was made, and no others.
    pub fn set_disabled_quirks(&mut self, bits: u64) {
        let changed = (bits ^ self.disabled_quirks) & self.quirks();
        for (bit, switch) in QUIRKS.iter().filter(|(bit, _)| changed & bit != 0) {
            self.on.set(*switch, bits & bit == 0);
        }
        self.disabled_quirks = bits;
    }
}
