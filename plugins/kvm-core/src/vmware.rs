//! VMware's backdoor: with the parameter `enable_vmware_backdoor` KVM takes the guest's #GP, and emulates what may have reached for a
//! port or a counter of the backdoor's without the permission to. Who answers at the port is userspace.
//!
//! See: KVM vmx/vmx.c handle_exception_nmi(), svm/svm.c gp_interception(); x86.c is_vmware_backdoor_opcode(), commits 04789b66641f
//! and 9718420e9fd4

use crate::{
    emulate, pmu,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{EmulateRequest, EmulateStatus, Host, emultype};
use vmtape_arch::{
    exception::Exception,
    exit::Resume,
    sensitive::SensitiveKind,
    vcpu::{Intercepts, VcpuState},
};
use vmtape_kvm_mmu::insn;

/// A #GP that KVM intercepts for the backdoor's sake, with its error code. L2's stays a #GP.
pub fn handle_gp<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    error_code: u32,
    host: &mut dyn Host,
) -> Resume {
    let gp = Exception::gp(error_code);
    // What the backdoor is for raises none with an error code.
    if error_code != 0 || v.core().guest_mode {
        v.core_mut().inject(state, &gp);
        return Resume::GUEST;
    }
    v.core_mut().events.clear_exceptions();
    let before = state.rflags();
    let mut intercepts = Intercepts::default();
    intercepts.set(SensitiveKind::RDPMC, true);
    let flags = emultype::TRAP_UD | emultype::VMWARE_BACKDOOR;
    let request = EmulateRequest { flags, intercepts, ..Default::default() };
    let vendor = ops.kvm().silicon.vendor;
    let (kvm, vcpu) = (ops.kvm_mut(), v.core_mut());
    let mut emulator = kvm.mmu.emulator(vcpu.id, None);
    emulator.in_mode_of(state);
    let mut backdoor = emulate::Only { mmu: &mut emulator, executes: is_backdoor_opcode };
    let result = host.emulate(vcpu.id, state, &request, &mut backdoor);
    match result.status {
        EmulateStatus::DONE => emulate::single_step(vcpu, state, before, &result),
        EmulateStatus::FAULT => emulate::fault(vcpu, state, &result.fault, &mut emulator),
        EmulateStatus::SENSITIVE => match pmu::rdpmc(vendor, vcpu, state) {
            Ok(()) => vcpu.skip(state, result.insn_len),
            Err(exception) => vcpu.inject(state, &exception),
        },
        _ => vcpu.inject(state, &gp),
    }
    Resume::GUEST
}

/// `is_vmware_backdoor_opcode`: IN, OUT, INS, OUTS, RDPMC.
fn is_backdoor_opcode(insn: &[u8]) -> bool {
    matches!(insn::opcode(insn), [0xe4..=0xe7 | 0xec..=0xef | 0x6c..=0x6f, ..] | [0x0f, 0x33, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// See: KVM x86.c is_vmware_backdoor_opcode()
    #[test]
    fn only_what_reaches_ports_and_counters() {
        for insn in [&b"\xed"[..], b"\xe4\x10", b"\xf3\x6c", b"\x66\xef", b"\x0f\x33", b"\x6f"] {
            assert!(is_backdoor_opcode(insn), "{insn:x?}");
        }
        for insn in [&b"\x0f\x30"[..], b"\x0f\x32", b"\x33\xc0", b"\xe8\0\0\0\0", b"\xf4", b"\x0f\x6f\xc0"] {
            assert!(!is_backdoor_opcode(insn), "{insn:x?}");
        }
    }
}
