//! MSRs of `kvm_amd`. Values from svm_get_msr() and svm_set_msr() of Linux 5.10, 6.1 and 6.12.

use super::bench::*;
use vmtape_abi::{Backend, Errno};
use vmtape_arch::{cpuid::CpuidEntry, exception::Exception, msr::Msr, regs::Efer, vcpu::gpr};
use vmtape_kvm_core::cpuid::GuestCpuid;

const IC_CFG: u32 = 0xc001_1021;
const TW_CFG: u32 = 0xc001_1023;
const SVMDIS: u64 = 1 << 4;
const LOCK: u64 = 1 << 3;

impl Bench {
    fn get_msr(&mut self, index: u32) -> Result<u64, Errno> {
        self.vm.get_msr(0, &mut self.states[0], index, &mut self.host)
    }

    fn set_msr(&mut self, index: u32, data: u64) -> Result<(), Errno> {
        self.vm.set_msr(0, &mut self.states[0], index, data, &mut self.host)
    }

    /// WRMSR by the guest.
    fn wrmsr(&mut self, index: Msr, data: u64) -> Result<(), Exception> {
        let state = &mut self.states[0];
        state.gpr[gpr::RCX] = index.0.into();
        state.gpr[gpr::RAX] = data & 0xffff_ffff;
        state.gpr[gpr::RDX] = data >> 32;
        let vm = &mut self.vm;
        let written =
            vmtape_kvm_core::msr::emulate_wrmsr(&vm.shared, &mut vm.vcpus[0], state, &mut self.host);
        written.map(drop)
    }
}

/// KVM knows the instruction cache's MSR for reading only; writes of the other configuration registers vanish.
#[test]
fn configuration_registers() {
    let mut bench = Setup::default().build();
    assert!(bench.get_msr(IC_CFG).is_err(), "there is no leaf 1");
    for (signature, value) in [(0x0060_0f20, 0x1e), (0x0061_0f01, 0x1e), (0x0060_0f12, 0), (0x0080_0f11, 0)] {
        let leaf = CpuidEntry { function: 1, eax: signature, ..Default::default() };
        bench.vm.vcpus[0].core.cpuid = GuestCpuid::unchecked(&[leaf]);
        assert_eq!(bench.get_msr(IC_CFG), Ok(value), "{signature:#x}");
        assert!(bench.set_msr(IC_CFG, value).is_err());
    }
    assert_eq!(bench.set_msr(TW_CFG, 1), Ok(()));
    assert_eq!(bench.get_msr(TW_CFG), Ok(0));
    assert_eq!(bench.get_msr(Msr::IA32_UCODE_REV.0), Ok(0x0100_0065));
    assert!(bench.wrmsr(Msr::IA32_FEAT_CTL, 1).is_err(), "Intel's");
}

/// svm_set_vm_cr(): what SVMDIS locks, and that SVM cannot be disabled while it is in use.
#[test]
fn vm_cr() {
    let mut bench = Setup::default().build();
    assert!(bench.wrmsr(Msr::VM_CR, 1 << 5).is_err());
    assert!(bench.wrmsr(Msr::VM_CR, LOCK | SVMDIS | 1).is_ok());
    assert!(bench.wrmsr(Msr::VM_CR, 0).is_ok());
    assert_eq!(bench.get_msr(Msr::VM_CR.0), Ok(LOCK | SVMDIS));
    let mut bench = Setup::default().build();
    bench.state().efer |= Efer::new().with_svme(true).into_bits();
    assert!(bench.wrmsr(Msr::VM_CR, SVMDIS).is_err());
    assert_eq!(bench.get_msr(Msr::VM_CR.0), Ok(SVMDIS), "KVM keeps what it refused");
}

/// A guest's VM_HSAVE_PA is checked (page_address_valid()), a VMM's is cut to a page.
#[test]
fn hsave_pa() {
    let mut bench = Setup::default().build();
    for (data, legal) in [(0x1000, true), (0x1001, false), (BIT36, false), (BIT36 - 0x1000, true)] {
        assert_eq!(bench.wrmsr(Msr::VM_HSAVE_PA, data).is_ok(), legal, "{data:#x}");
    }
    bench.set_msr(Msr::VM_HSAVE_PA.0, BIT36 | 0x1234).unwrap();
    assert_eq!(bench.get_msr(Msr::VM_HSAVE_PA.0), Ok(BIT36 | 0x1000));
}

/// SPEC_CTRL is the guest's own from its first value that is not zero on.
#[test]
fn spec_ctrl_is_let_through_once_used() {
    let mut bench = Setup::default().build();
    let exits = |bench: &Bench| bench.vm.vcpus[0].msrpm.exits(Msr::IA32_SPEC_CTRL.0, false);
    bench.set_msr(Msr::IA32_SPEC_CTRL.0, 0).unwrap();
    assert!(exits(&bench));
    bench.set_msr(Msr::IA32_SPEC_CTRL.0, 1).unwrap();
    bench.set_msr(Msr::IA32_SPEC_CTRL.0, 0).unwrap();
    assert!(!exits(&bench));
}
