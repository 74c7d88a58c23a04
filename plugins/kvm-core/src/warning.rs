//! What KVM writes to the kernel log (`pr_warn_ratelimited`), as lines and as notes.

use crate::tracer::Tracer;
use vmtape_abi::Host;
use vmtape_arch::{note::Note, open_enum};

/// The host's log level of a warning.
const WARN: u32 = 2;

open_enum! {
    /// The warnings that are modelled; the number is that of the note.
    pub struct Warning(u32) {
        CPUID_AFTER_RUN = 1 => "KVM: KVM_SET_CPUID{,2} after KVM_RUN may cause guest instability",
        CPUID_WILL_FAIL = 2 => "KVM: KVM_SET_CPUID{,2} will fail after KVM_RUN starting with Linux 5.16",
    }
}

/// The two warnings of Linux 5.14 and 5.15. See: KVM mmu/mmu.c kvm_mmu_after_set_cpuid(), commit 63f5a1909f9e
pub fn cpuid_after_run(tracer: Tracer, host: &mut dyn Host) {
    for warning in [Warning::CPUID_AFTER_RUN, Warning::CPUID_WILL_FAIL] {
        host.log(WARN, warning.name().unwrap_or_default());
        tracer.note(Note::Warning { id: warning.0, value: 0 }, host);
    }
}
