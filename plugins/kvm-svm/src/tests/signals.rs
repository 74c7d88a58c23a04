//! INIT and SMI while L2 runs, and what L2 has of its own or of L1's: clock and last branches.
//!
//! See: KVM svm/nested.c svm_check_nested_events(), nested_svm_vmexit()

use super::{
    l2::{AFTER, VMCB12, World},
    nested::RELEASES,
};
use crate::silicon::vmcb::Vmcb;
use vmtape_abi::{Backend, Host};
use vmtape_arch::{
    exit::SvmExitCode as C,
    msr::Msr,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::gpr,
};

/// L2 of an L1 that intercepts this; it has run.
fn running(options: &[(&str, &str)], code: C) -> World {
    let mut world = World::new(options, true, |vmcb| {
        vmcb.control.intercepts.set(code, true);
    });
    world.vmrun();
    world.enter();
    world.bench.state().icount += 1;
    world
}

/// Whoever sends them keeps them: the INIT resets the vCPU once GIF is set again.
#[test]
fn init_and_smi_take_l2_out() {
    for release in RELEASES {
        for (code, is_init) in [(C::INIT, true), (C::SMI, false)] {
            let mut world = running(&[("kvm", release)], code);
            let held = world.bench.state().interruptibility;
            assert_eq!((held.init(), held.smi()), (is_init, false), "{release}: the INIT waits for L1");
            (world.bench.host.init, world.bench.host.smi) = (is_init, !is_init);
            world.enter();
            assert!(!world.in_l2(), "{release}");
            let control = world.vmcb12().control;
            assert_eq!((control.exit_code, control.exit_info_1), (code.0.into(), 0), "{release}");
            let held = world.bench.state().interruptibility;
            assert!(held.init() && held.smi(), "{release}: GIF is clear, which holds both back");
            assert_eq!(world.bench.state().rip, AFTER);
            world.svm(0xdc);
            let held = world.bench.state().interruptibility.init();
            assert_eq!(held, is_init && release == "v5.10", "{release}: after STGI they come");
        }
    }
}

/// 5.10 does not look for the INIT that is pending at STGI, nor at VMRUN, before something else makes it look.
#[test]
fn an_init_that_is_overlooked() {
    for release in RELEASES {
        let mut world = World::new(&[("kvm", release)], true, |vmcb| {
            vmcb.control.intercepts.set(C::INIT, true);
            vmcb.control.intercepts.set(C::CPUID, false);
        });
        world.svm(0xdd);
        world.bench.host.init = true;
        world.bench.state().gpr[gpr::RAX] = VMCB12;
        world.vmrun();
        world.enter();
        let immediate = SensitiveKind::IMMEDIATE_EXIT;
        let late = world.bench.state().intercepts.wants(immediate);
        assert_eq!(late, release != "v5.10", "{release}: L2 runs");
        world.bench.state().icount += 1;
        world.step(Sensitive { kind: SensitiveKind::CPUID, len: 2, ..Default::default() });
        world.enter();
        assert_eq!(world.in_l2(), release == "v5.10", "{release}: nothing looks after CPUID");
        world.bench.host.interrupt = Some(0x21);
        world.enter();
        assert!(!world.in_l2(), "{release}: an interrupt makes KVM look");
        assert_eq!(world.vmcb12().control.exit_code, C::INIT.0.into(), "{release}");
    }
}

#[test]
fn nobody_hears_of_an_init_that_l1_does_not_want() {
    let mut world = running(&[], C::HLT);
    assert!(!world.bench.state().interruptibility.init() && !world.bench.state().interruptibility.smi());
    world.bench.host.init = true;
    world.enter();
    assert!(world.in_l2());
}

/// Into SMM as L1, whose state-save area says that L2 ran; RSM goes on with L2. 5.10 gives L1 no exit code of its own.
#[test]
fn an_smi_that_l1_does_not_want() {
    const SVM_GUEST: u64 = 0x3_fed8;
    for release in RELEASES {
        let mut world = running(&[("kvm", release)], C::HLT);
        let l2 = world.bench.state().rip;
        world.bench.host.smi = true;
        world.enter();
        assert_eq!((world.in_l2(), world.bench.host.smi), (false, false), "{release}: it was taken");
        assert_eq!((world.bench.state().rip, world.bench.state().cr0 & 1), (0x8000, 0), "{release}");
        let saved = [SVM_GUEST, SVM_GUEST + 8].map(|at| world.bench.host.read_u64(at));
        assert_eq!(saved, [Some(1), Some(VMCB12)], "{release}");
        let is_software = world.vmcb12().control.exit_code == C::SW.0.into();
        assert_eq!(is_software, release != "v5.10", "{release}");
        let held = world.bench.state().interruptibility;
        assert!(held.smi() && held.init() && held.nmi(), "{release}: they wait for RSM");
        world.step(Sensitive { kind: SensitiveKind::RSM, len: 2, ..Default::default() });
        assert_eq!((world.in_l2(), world.bench.state().rip), (true, l2), "{release}");
        world.enter();
        let held = world.bench.state().interruptibility;
        assert!(!held.smi() && !held.nmi(), "{release}");
    }
}

/// VMRUN must have come through before: L2 is entered, and left at once.
#[test]
fn a_signal_that_is_there_at_vmrun() {
    let mut world = World::new(&[], true, |vmcb| {
        vmcb.control.intercepts.set(C::SMI, true);
    });
    world.vmrun();
    world.bench.host.smi = true;
    world.enter();
    assert!(world.in_l2());
    let immediate = vmtape_arch::sensitive::SensitiveKind::IMMEDIATE_EXIT;
    assert!(world.bench.state().intercepts.wants(immediate));
}

#[test]
fn l2s_clock_has_l1s_ratio() {
    for (release, expected) in [("v5.10", 1000 + 7), ("v6.12", 500 + 7), ("v7.2", 500 + 7)] {
        let mut world = World::new(&[("kvm", release)], true, |vmcb| vmcb.control.tsc_offset = 7);
        let (state, host) = (&mut world.bench.states[0], &mut world.bench.host);
        let written = world.bench.vm.set_msr(0, state, Msr::TSC_RATIO.0, 1 << 31, host);
        assert_eq!(written.is_ok(), release != "v5.10");
        world.vmrun();
        assert_eq!(world.bench.state().guest_tsc(1000), expected, "{release}");
        world.enter();
        world.vmmcall();
        assert_eq!(world.bench.state().guest_tsc(1000), 1000, "{release}");
    }
}

/// L1 records branches, and L2 does after it: with virtual LBRs each has its own; otherwise L1 finds what L2 left, in 6.1 too
/// because L1's were in use. See: kvm-unit-tests x86/svm_tests.c svm_lbrv_test1(), svm_lbrv_nested_test1()
#[test]
fn last_branches_of_l1_and_l2() {
    const L1: [u64; 2] = [0x1000, 0x2000];
    const L2: [u64; 2] = [0x3000, 0x4000];
    for (release, is_virtual) in RELEASES.into_iter().flat_map(|release| [(release, false), (release, true)])
    {
        let edit = |vmcb: &mut Vmcb| {
            vmcb.control.virt_ext.set_lbr_virtualization(is_virtual);
            (vmcb.save.dbgctl, vmcb.save.br_from, vmcb.save.br_to) = (3, 0x5000, 0x6000);
        };
        let mut world = World::new(&[("kvm", release)], true, edit);
        (world.bench.state().debugctl, world.bench.state().last_branch) = (1, L1);
        world.vmrun();
        let apart = is_virtual && release != "v5.10";
        let found = world.bench.state().last_branch;
        assert_eq!(found, if apart { [0x5000, 0x6000] } else { L1 }, "{release}");
        let debugctl = if apart && release == "v6.1" { 3 } else { 1 };
        assert_eq!(world.bench.state().debugctl, debugctl, "{release}");
        world.enter();
        world.bench.state().last_branch = L2;
        world.vmmcall();
        assert_eq!(world.bench.state().last_branch, if apart { L1 } else { L2 }, "{release}");
        assert_eq!(world.bench.state().debugctl, 1, "{release}");
        let save = world.vmcb12().save;
        assert_eq!([save.br_from, save.br_to], if apart { L2 } else { [0x5000, 0x6000] }, "{release}");
    }
}

/// Up to 6.12.60 an L1 that recorded nothing finds what it had, where L2 alone did.
#[test]
fn last_branches_that_l2_alone_has_recorded() {
    for (release, found) in [("v5.10", 2), ("v6.1", 1), ("v6.12", 2), ("v7.2", 2)] {
        let mut world = World::new(&[("kvm", release)], true, |_| ());
        world.bench.state().last_branch = [1; 2];
        world.vmrun();
        world.enter();
        (world.bench.state().debugctl, world.bench.state().last_branch) = (1, [2; 2]);
        world.vmmcall();
        assert_eq!(world.bench.state().last_branch, [found; 2], "{release}");
    }
}
