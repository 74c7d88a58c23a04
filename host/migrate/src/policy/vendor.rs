//! From one vendor's silicon to the other's: what stands in the way of it, by name. A guest's vendor is what its CPUID says; no
//! policy refuses a guest for that alone.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_set_msr() and intercepts for a guest of Intel's; emulate.c em_syscall(); x86.c
//! kvm_vcpu_ioctl() KVM_SET_NESTED_STATE

use super::{Finding, Ground};
use crate::stream::Offer;
use vmtape_arch::{
    cpuid::{CpuidEntry, find},
    host::Vendor,
};

pub(super) fn judge(offer: &Offer, cpuid: &[CpuidEntry], ground: &Ground) -> Vec<Finding> {
    if offer.vendor == u32::from(ground.silicon.vendor.0) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if offer.nested {
        let text =
            "the nested state is in the other vendor's format: KVM_SET_NESTED_STATE fails with -EINVAL";
        findings.push(Finding::new("vendor-nested", true, text.to_owned()));
    }
    let notes = [
        (
            "vendor-syscall",
            "SYSCALL in compatibility mode and the upper halves of SYSENTER_ESP and _EIP are the other vendor's: KVM emulates an \
             AMD guest's on Intel, not an Intel guest's #UD on AMD",
        ),
        (
            "vendor-hypercall",
            "VMCALL and VMMCALL: KVM patches the guest's instruction into its own vendor's (KVM_X86_QUIRK_FIX_HYPERCALL_INSN)",
        ),
        (
            "vendor-accessed",
            "nested paging of AMD sets accessed bits of the guest's tables before it faults on a nested entry, Intel's after",
        ),
    ];
    findings.extend(notes.map(|(rule, text)| Finding::new(rule, false, text.to_owned())));
    if find(cpuid, 0xa, 0).is_some_and(|leaf| leaf.eax & 0xff != 0) {
        let text = "the guest has Intel's architectural PMU, whose events are programmed otherwise";
        findings.push(Finding::new("vendor-pmu", false, text.to_owned()));
    }
    // The guest's vendor stays what it was.
    let vendor = if find(cpuid, 0, 0).is_some_and(|leaf| leaf.ebx == u32::from_le_bytes(*b"Genu")) {
        Vendor::INTEL
    } else {
        Vendor::AMD
    };
    findings.push(Finding::new("vendor", false, format!("the guest goes on as one of {vendor}")));
    findings
}
