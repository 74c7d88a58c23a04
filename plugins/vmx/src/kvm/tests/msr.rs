//! MSRs of `kvm_intel`. Values from vmx_get_msr() and vmx_set_msr() of Linux 6.12, and kvm-unit-tests' x86/msr.c.

use super::{NO_ASM, guest};
use vmtape_arch::{exception::Exception, msr::Msr, vcpu::gpr};

const VM_HSAVE_PA: Msr = Msr::VM_HSAVE_PA;
const UMWAIT_CONTROL: Msr = Msr(0xe1);
const IC_CFG: Msr = Msr(0xc001_1021);

/// Writes by the guest, and what a read gives afterwards; `None`: #GP.
#[test]
fn guest_writes() {
    for (writes, read) in [
        (&[(Msr::IA32_FEAT_CTL, 4)][..], None),
        (&[(Msr::IA32_FEAT_CTL, 1)], Some(1)),
        (&[(Msr::IA32_FEAT_CTL, 1), (Msr::IA32_FEAT_CTL, 0)], None),
        (&[(Msr::IA32_DEBUGCTL, 3)], Some(0)),
        (&[(Msr::IA32_DEBUGCTL, 4)], None),
        (&[(Msr::IA32_UCODE_REV, 5)], Some(0x1_0000_0000)),
        // The guest has no WAITPKG.
        (&[(UMWAIT_CONTROL, 0)], None),
        (&[(VM_HSAVE_PA, 0x1000)], Some(0)),
        (&[(IC_CFG, 0)], None),
        (&[(Msr(0x480), 0)], None),
    ] {
        let mut guest = guest(NO_ASM);
        let vcpu = &mut guest.vm.vcpus[0];
        let (ops, state, host) = (&guest.vm.shared, &mut guest.state, &mut guest.host);
        let mut written: Result<(), Exception> = Ok(());
        for (index, data) in writes {
            (state.gpr[gpr::RCX], state.gpr[gpr::RAX], state.gpr[gpr::RDX]) = (index.0.into(), *data, 0);
            written = vmtape_kvm_core::msr::emulate_wrmsr(ops, vcpu, state, host).map(drop);
        }
        assert_eq!(written.is_ok(), read.is_some(), "{writes:x?}");
        if let Some(expected) = read {
            vmtape_kvm_core::msr::emulate_rdmsr(ops, vcpu, state, host).unwrap();
            assert_eq!(state.gpr[gpr::RAX] | state.gpr[gpr::RDX] << 32, expected, "{writes:x?}");
        }
    }
}
