//! Silicon that executes VMLOAD and VMSAVE and delivers NMIs by itself, for L1 and for L2.
//!
//! See: APM vol. 2 15.21.10 NMI Virtualization, 15.33.1 Virtual VMSAVE and VMLOAD; KVM svm/nested.c nested_vmcb02_prepare_control(),
//! nested_svm_vmexit()

use super::{Setup, l1_on};
use crate::{
    kvm::setup,
    silicon::vmcb::Vmcb,
    tests::l2::{VMCB12, World},
};
use vmtape_arch::{
    event::EventKind,
    exit::SvmExitCode as C,
    sensitive::{Sensitive, SensitiveKind, svm},
    vcpu::gpr,
};

fn world(kvm: &str, edit: impl FnOnce(&mut Vmcb)) -> World {
    let mut bench = l1_on(Setup { options: &[("kvm", kvm)], newest: true, ..Default::default() });
    // Its CPUID came after KVM_RUN.
    setup::after_set_cpuid(&bench.vm.shared, &mut bench.vm.vcpus[0]);
    World::on(bench, true, edit)
}

/// The NMI that silicon delivers, if it does.
fn window(world: &mut World) -> Option<(EventKind, u8)> {
    let insn = Sensitive { kind: SensitiveKind::NMI_WINDOW, ..Default::default() };
    assert_eq!(world.step(insn), None);
    let event = std::mem::take(&mut world.bench.state().inject);
    event.valid.is_set().then_some((event.kind, event.vector))
}

const NMI: Option<(EventKind, u8)> = Some((EventKind::NMI, 2));

/// L2 takes what L1 made pending, once; whether it is in the handler comes back to L1.
#[test]
fn a_virtual_nmi_of_l2() {
    let mut world = world("v6.12", |vmcb| {
        vmcb.control.intercepts.set(C::NMI, true);
        vmcb.control.int_ctl = vmcb.control.int_ctl.with_v_nmi_enable(true).with_v_nmi_pending(true);
    });
    world.vmrun();
    world.enter();
    assert!(world.bench.state().intercepts.wants(SensitiveKind::NMI_WINDOW));
    assert_eq!(window(&mut world), NMI);
    assert!(!world.bench.state().intercepts.wants(SensitiveKind::NMI_WINDOW));
    let blocked = world.bench.state().interruptibility.with_nmi(true);
    world.bench.state().interruptibility = blocked;
    world.vmmcall();
    let int_ctl = world.vmcb12().control.int_ctl;
    assert_eq!((int_ctl.v_nmi_pending(), int_ctl.v_nmi_blocking()), (false, true));
}

/// Before 6.4 the bits mean nothing.
#[test]
fn without_virtual_nmi() {
    let mut world = world("v6.1", |vmcb| {
        vmcb.control.int_ctl = vmcb.control.int_ctl.with_v_nmi_enable(true).with_v_nmi_pending(true);
    });
    world.vmrun();
    world.enter();
    assert!(!world.bench.state().intercepts.wants(SensitiveKind::NMI_WINDOW));
}

/// L1's NMI is silicon's to deliver, without an exit at IRET. Where L1 runs L2 instead KVM takes it back, and L1 has it again behind
/// the #VMEXIT that it makes.
#[test]
fn a_virtual_nmi_of_l1() {
    let mut world = world("v6.12", |vmcb| {
        vmcb.control.intercepts.set(C::NMI, true);
    });
    world.enter();
    world.bench.host.nmi = true;
    world.enter();
    assert!(!world.bench.host.nmi && world.bench.state().intercepts.wants(SensitiveKind::NMI_WINDOW));
    assert!(!world.bench.state().intercepts.wants(SensitiveKind::IRET));
    world.vmrun();
    assert!(world.in_l2());
    world.enter();
    world.bench.state().icount += 1;
    world.enter();
    assert!(!world.in_l2());
    assert_eq!(world.vmcb12().control.exit_code, u64::from(C::NMI.0));
    let open = world.bench.state().interruptibility.with_virtual_gif(true);
    world.bench.state().interruptibility = open;
    assert_eq!(window(&mut world), NMI);
}

/// An interrupt that L2 cannot take, and that is still there at #VMEXIT: L1, whose STGI does not exit, gets its window.
#[test]
fn a_window_that_l2_had_no_use_for() {
    let mut world = world("v6.12", |vmcb| vmcb.control.int_ctl.set_v_intr_masking(true));
    world.enter();
    world.bench.state().rflags = 2;
    world.bench.host.interrupt = Some(0xf1);
    world.vmrun();
    world.enter();
    assert!(!world.bench.state().intercepts.wants(SensitiveKind::INTERRUPT_WINDOW));
    world.vmmcall();
    world.enter();
    assert!(world.bench.state().intercepts.wants(SensitiveKind::INTERRUPT_WINDOW));
}

/// STGI exits where an SMI waits for it.
#[test]
fn an_smi_that_waits_for_stgi() {
    let mut world = world("v6.12", |vmcb| {
        vmcb.control.intercepts.set(C::SMI, true);
    });
    world.enter();
    world.vmrun();
    world.enter();
    let insn = |number| Sensitive { kind: SensitiveKind::SVM, number, len: 3, ..Default::default() };
    assert_eq!(world.step(insn(svm::CLGI)), None);
    world.bench.host.smi = true;
    world.bench.state().icount += 1;
    world.enter();
    assert!(world.in_l2() && world.step(insn(svm::STGI)).is_some());
    world.enter();
    assert_eq!((world.in_l2(), world.vmcb12().control.exit_code), (false, C::SMI.0.into()));
}

/// VMSAVE without an exit, once its page is mapped; in L2 with one, unless L1 has its virtualization and uses it.
#[test]
fn virtual_vmsave() {
    let exits = |world: &mut World| {
        let insn = Sensitive {
            kind: SensitiveKind::SVM,
            number: svm::VMSAVE,
            len: 3,
            value: VMCB12,
            ..Default::default()
        };
        let rip = world.bench.state().rip;
        while world.step(insn).is_some() {
            if world.bench.state().rip != rip {
                return true;
            }
            world.enter();
        }
        false
    };
    let mut world = world("v6.12", |_| ());
    world.enter();
    world.bench.state().star = 0x1234;
    world.bench.state().gpr[gpr::RAX] = VMCB12;
    assert!(!exits(&mut world));
    assert_eq!(world.vmcb12().save.star, 0x1234);
    world.vmrun();
    world.enter();
    world.bench.state().gpr[gpr::RAX] = VMCB12;
    assert!(exits(&mut world));
}
