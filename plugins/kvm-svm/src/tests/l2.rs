//! VMRUN and #VMEXIT as L1 sees them, through the calls that the host makes: a `vmcb12` in memory, instructions of L1 and L2,
//! KVM's turn.

use super::bench::{Bench, RAM, READ};
use super::nested::{RELEASES, l1, vmcb12};
use crate::silicon::vmcb::{EventInfo, Vmcb};
use vmtape_abi::{Backend, Errno, Host, MemoryStatus};
use vmtape_arch::{
    access::Verdict,
    event::EventKind,
    exception::{Exception, Vector},
    exit::{Exit, Resume, ResumeKind, SvmExitCode as C},
    msr::Msr,
    note::Note,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{TableReg, gpr},
};
use zerocopy::IntoBytes;

pub const VMCB12: u64 = 0x10_0000;
const L1_RIP: u64 = 0x40_1464;
pub const AFTER: u64 = L1_RIP + 3;
pub const L2_RIP: u64 = 0x40_0dcc;

/// An L1 before a VMRUN of this `vmcb12`.
pub struct World {
    pub bench: Bench,
}

impl World {
    pub fn new(options: &[(&str, &str)], npt: bool, edit: impl FnOnce(&mut Vmcb)) -> Self {
        Self::on(l1(options, npt), npt, edit)
    }

    /// The same on a machine.
    pub fn on(mut bench: Bench, npt: bool, edit: impl FnOnce(&mut Vmcb)) -> Self {
        bench.vm.set_msr(0, &mut bench.states[0], Msr::VM_HSAVE_PA.0, 0x7000, &mut bench.host).unwrap();
        let mut vmcb = vmcb12();
        vmcb.control.nested_ctl.set_np_enable(npt);
        vmcb.control.intercepts.set(C::VMMCALL, true);
        (vmcb.save.rip, vmcb.save.rax, vmcb.save.rsp, vmcb.save.rflags) = (L2_RIP, 0x12, 0x8000, 2);
        vmcb.save.cr3 = bench.states[0].cr3;
        edit(&mut vmcb);
        let mut world = Self { bench };
        world.store(&vmcb);
        let state = world.bench.state();
        (state.rip, state.gpr[gpr::RAX], state.gpr[gpr::RSP]) = (L1_RIP, VMCB12, 0x9000);
        world
    }

    fn store(&mut self, vmcb: &Vmcb) {
        self.bench.host.write(VMCB12, vmcb.as_bytes());
    }

    pub fn vmcb12(&mut self) -> Vmcb {
        let mut vmcb = Vmcb::default();
        assert!(self.bench.host.read(VMCB12, vmcb.as_mut_bytes()));
        vmcb
    }

    /// An instruction or condition on silicon, and KVM's turn if it exits.
    pub fn step(&mut self, insn: Sensitive) -> Option<Resume> {
        let Bench { vm, states, host } = &mut self.bench;
        let (mut exit, mut fault) = (Exit::default(), Exception::default());
        match vm.sensitive(0, &mut states[0], &insn, host, &mut exit, &mut fault) {
            Verdict::EXIT => Some(vm.handle_exit(0, &mut states[0], &exit, host)),
            verdict => {
                assert_eq!(verdict, Verdict::NATIVE);
                None
            }
        }
    }

    pub fn svm(&mut self, number: u32) -> Resume {
        let insn = Sensitive { kind: SensitiveKind::SVM, number, len: 3, ..Default::default() };
        self.step(insn).expect("it always exits")
    }

    pub fn vmrun(&mut self) {
        assert_eq!(self.svm(0xd8), Resume::GUEST);
    }

    pub fn vmmcall(&mut self) {
        let insn = Sensitive { kind: SensitiveKind::VMMCALL, len: 3, ..Default::default() };
        assert_eq!(self.step(insn), Some(Resume::GUEST));
    }

    pub fn enter(&mut self) {
        // What was injected has been delivered.
        self.bench.enter(0);
    }

    pub fn in_l2(&self) -> bool {
        self.bench.vm.vcpus[0].is_guest_mode()
    }

    fn notes(&mut self) -> Vec<String> {
        let notes = std::mem::take(&mut self.bench.host.notes);
        let name = |note: &Note| note.to_raw().kind.name().unwrap_or("?").to_owned();
        notes.iter().map(name).filter(|name| name.starts_with("kvm_nested")).collect()
    }
}

#[test]
fn l2_runs_until_it_calls_l1() {
    for (release, npt) in RELEASES.into_iter().flat_map(|release| [(release, true), (release, false)]) {
        let mut world = World::new(&[("kvm", release)], npt, |_| ());
        let l1 = *world.bench.state();
        world.notes();
        world.vmrun();
        assert!(world.in_l2(), "{release} {npt}");
        let state = *world.bench.state();
        assert_eq!((state.rip, state.gpr[gpr::RAX], state.gpr[gpr::RSP]), (L2_RIP, 0x12, 0x8000));
        assert_eq!(state.seg[1].attr.into_bits(), 0x209b);
        world.enter();
        assert!(world.bench.state().intercepts.wants(SensitiveKind::VMMCALL));
        world.bench.state().gpr[gpr::RAX] = 0x34;
        world.bench.state().gpr[gpr::RBX] = 0x56;
        world.vmmcall();
        assert!(!world.in_l2());
        let state = *world.bench.state();
        assert_eq!((state.rip, state.gpr[gpr::RAX], state.gpr[gpr::RSP]), (AFTER, VMCB12, 0x9000));
        assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (l1.cr0, l1.cr3, l1.cr4, l1.efer));
        assert_eq!((state.seg[..4].to_vec(), state.gdtr, state.cpl), (l1.seg[..4].to_vec(), l1.gdtr, 0));
        assert_eq!(state.gpr[gpr::RBX], 0x56, "general registers are L2's");
        assert!(!world.bench.vm.vcpus[0].nested.gif);
        let vmcb = world.vmcb12();
        assert_eq!((vmcb.control.exit_code, vmcb.control.exit_info_1), (0x81, 0));
        assert_eq!((vmcb.save.rip, vmcb.save.rax, vmcb.save.rsp), (L2_RIP, 0x34, 0x8000));
        let entry = if release == "v5.10" { "kvm_nested_vmrun" } else { "kvm_nested_vmenter" };
        let told = ["kvm_nested_intercepts", "kvm_nested_vmexit", "kvm_nested_vmexit_inject"];
        assert_eq!(world.notes(), [entry, told[0], told[1], told[2]], "{release}");
        world.enter();
    }
}

#[test]
fn a_vmrun_that_kvm_refuses() {
    let mut world = World::new(&[], true, |vmcb| vmcb.control.asid = 0);
    world.notes();
    world.vmrun();
    assert!(!world.in_l2());
    assert_eq!((world.bench.state().rip, world.bench.state().gpr[gpr::RAX]), (AFTER, VMCB12));
    let vmcb = world.vmcb12();
    assert_eq!(vmcb.control.exit_code, u64::MAX);
    assert_eq!(vmcb.save.rip, L2_RIP);
    assert!(!world.bench.vm.vcpus[0].nested.gif);
    assert_eq!(world.notes(), ["kvm_nested_vmenter_failed"]);
}

/// A failure after L2's state was loaded is a whole #VMEXIT: CR3 of `vmcb12` is then L1's.
#[test]
fn a_vmrun_that_fails_late() {
    let illegal = |vmcb: &mut Vmcb| {
        (vmcb.save.efer, vmcb.save.cr0, vmcb.save.cr4) = (1 << 12, 0x8000_0011, 0);
        vmcb.save.cr3 = 1 << 40;
    };
    let mut world = World::new(&[], true, illegal);
    let cr3 = world.bench.state().cr3;
    world.notes();
    world.vmrun();
    assert!(!world.in_l2());
    let vmcb = world.vmcb12();
    assert_eq!((vmcb.control.exit_code, vmcb.save.cr3), (u64::MAX, cr3));
    let all = ["vmenter", "intercepts", "vmenter_failed", "vmexit_inject"].map(|n| format!("kvm_nested_{n}"));
    assert_eq!(world.notes(), all);
    assert_eq!(world.bench.state().rip, AFTER);
}

/// What only silicon refuses, L1 sees as an exit.
#[test]
fn a_vmrun_that_silicon_refuses() {
    let nmi_as_exception = EventInfo::new().with_valid(true).with_kind(3).with_vector(2);
    let mut world = World::new(&[("kvm", "v6.12")], true, |vmcb| vmcb.control.event_inj = nmi_as_exception);
    world.vmrun();
    assert!(world.in_l2());
    world.enter();
    assert!(!world.in_l2());
    assert_eq!(world.vmcb12().control.exit_code, u64::MAX);
    assert_eq!(world.bench.state().rip, AFTER);
}

#[test]
fn an_interrupt_of_l1s_takes_l2_out() {
    let mut world = World::new(&[], true, |vmcb| {
        vmcb.control.intercepts.set(C::INTR, true);
        vmcb.control.int_ctl.set_v_intr_masking(true);
    });
    world.bench.state().rflags |= 0x200;
    world.vmrun();
    world.enter();
    world.bench.state().icount += 1;
    world.bench.host.interrupt = Some(0x21);
    world.notes();
    world.enter();
    assert!(!world.in_l2());
    let told = ["kvm_nested_intr_vmexit", "kvm_nested_vmexit_inject"];
    assert_eq!(world.notes(), told);
    assert_eq!(world.vmcb12().control.exit_code, 0x60);
    // GIF is clear: L1 does not get it before STGI.
    assert!(!world.bench.state().inject.valid && world.bench.host.interrupt.is_some());
    assert!(!world.bench.state().takes_interrupts());
    world.svm(0xdc);
    world.enter();
    assert_eq!(world.bench.state().inject.vector, 0x21);
    assert!(world.bench.state().takes_interrupts());
}

/// An interrupt that is pending at VMRUN: L2 gets in, and out again before its first instruction.
#[test]
fn an_interrupt_at_vmrun() {
    let mut world = World::new(&[], true, |vmcb| {
        vmcb.control.intercepts.set(C::INTR, true);
    });
    world.bench.state().rflags |= 0x200;
    world.svm(0xdd);
    world.bench.state().gpr[gpr::RAX] = VMCB12;
    world.bench.host.interrupt = Some(0x21);
    let mut vmcb = world.vmcb12();
    vmcb.save.rflags = 0x202;
    world.store(&vmcb);
    world.vmrun();
    world.enter();
    assert!(world.in_l2() && world.bench.state().intercepts.wants(SensitiveKind::IMMEDIATE_EXIT));
    world.step(Sensitive { kind: SensitiveKind::IMMEDIATE_EXIT, ..Default::default() });
    assert!(world.in_l2());
    world.enter();
    assert!(!world.in_l2());
    assert_eq!((world.vmcb12().control.exit_code, world.vmcb12().save.rip), (0x60, L2_RIP));
}

#[test]
fn l1_injects_an_exception() {
    let inject = EventInfo::new().with_valid(true).with_kind(3).with_vector(14).with_error_valid(true);
    let mut world = World::new(&[], true, |vmcb| {
        (vmcb.control.event_inj, vmcb.control.event_inj_err) = (inject, 6);
        vmcb.control.intercepts.set(C::EXCP_PF, true);
    });
    world.vmrun();
    world.enter();
    let event = world.bench.state().inject;
    assert_eq!((event.kind, event.vector, event.error_code), (EventKind::HARDWARE_EXCEPTION, 14, 6));
    world.bench.state().inject = Default::default();
    world.vmmcall();
    let control = world.vmcb12().control;
    assert_eq!(
        (control.exit_code, control.event_inj.valid(), control.exit_int_info.valid()),
        (0x81, false, false)
    );
}

/// An exception that KVM raises for L2 (here the #GP of an unknown MSR) is an exit if L1 wants it.
#[test]
fn exceptions_that_kvm_raises() {
    for wanted in [true, false] {
        let mut world = World::new(&[], true, |vmcb| {
            vmcb.control.intercepts.set(C::EXCP_GP, wanted);
        });
        world.vmrun();
        world.enter();
        let insn = Sensitive { kind: SensitiveKind::RDMSR, number: 0x1234, len: 2, ..Default::default() };
        world.bench.state().gpr[gpr::RCX] = 0x1234;
        world.step(insn);
        world.enter();
        assert_eq!(world.in_l2(), !wanted);
        if wanted {
            let control = world.vmcb12().control;
            assert_eq!((control.exit_code, control.exit_info_1), (0x4d, 0));
        } else {
            assert_eq!(world.bench.state().inject.vector, Vector::GP.0);
        }
    }
}

/// V_IRQ: L2 takes it as soon as it can, without an exit.
#[test]
fn a_virtual_interrupt() {
    let mut world = World::new(&[], true, |vmcb| {
        let int_ctl = vmcb.control.int_ctl.with_v_irq(true).with_v_intr_prio(15).with_v_intr_masking(true);
        (vmcb.control.int_ctl, vmcb.control.int_vector) = (int_ctl, 0xf1);
    });
    world.vmrun();
    world.enter();
    assert!(world.bench.state().intercepts.wants(SensitiveKind::INTERRUPT_WINDOW));
    let window = Sensitive { kind: SensitiveKind::INTERRUPT_WINDOW, ..Default::default() };
    assert_eq!(world.step(window), None);
    let event = std::mem::take(&mut world.bench.state().inject);
    assert_eq!((event.kind, event.vector), (EventKind::EXTERNAL_INTERRUPT, 0xf1));
    assert!(!world.bench.state().intercepts.wants(SensitiveKind::INTERRUPT_WINDOW));
    world.vmmcall();
    assert!(!world.vmcb12().control.int_ctl.v_irq());
}

/// Between an exit of L2 for an access to a device and its emulation another processor writes an instruction that L1 intercepts, as
/// kvm-unit-tests' cr3_read_intercept_emulate does: it is L1's. What L1's map leaves to L0 is executed.
#[test]
fn what_the_emulator_meets_may_be_l1s() {
    for (npt, kind, code, exits) in [
        (true, SensitiveKind::PUSHF, C::PUSHF, true),
        (false, SensitiveKind::PUSHF, C::PUSHF, true),
        (true, SensitiveKind::PUSHF, C::POPF, false),
        (true, SensitiveKind::RDMSR, C::MSR, false),
        (false, SensitiveKind::RDMSR, C::MSR, false),
    ] {
        let mut world = World::new(&[], npt, |vmcb| {
            vmcb.control.nested_ctl.set_np_enable(false);
            vmcb.control.intercepts.set(code, true);
        });
        world.bench.set_entry(3, (RAM + 0x1000_0000) | 7);
        world.vmrun();
        world.enter();
        world.bench.host.sensitive = Some(Sensitive { kind, len: 1, ..Default::default() });
        world.bench.state().icount += 1;
        world.bench.run(READ, false);
        assert_eq!(world.in_l2(), !exits, "{npt} {kind}");
        if exits {
            let control = world.vmcb12().control;
            assert_eq!((control.exit_code, control.next_rip), (code.0.into(), L2_RIP + 1), "{npt} {kind}");
        }
    }
}

/// Where exits come from a tape it is the tape that tells whether silicon has delivered it.
#[test]
fn a_virtual_interrupt_that_a_tape_tells_of() {
    for delivered in [false, true] {
        let mut world = World::new(&[], true, |vmcb| {
            let int_ctl =
                vmcb.control.int_ctl.with_v_irq(true).with_v_intr_prio(15).with_v_intr_masking(true);
            (vmcb.control.int_ctl, vmcb.control.int_vector) = (int_ctl, 0xf1);
        });
        world.vmrun();
        world.enter();
        assert!(world.bench.state().interruptibility.virtual_irq());
        world.bench.state().interruptibility.set_virtual_irq(!delivered);
        world.vmmcall();
        assert_eq!(world.vmcb12().control.int_ctl.v_irq(), !delivered);
        assert!(!world.bench.state().interruptibility.virtual_irq());
    }
}

/// L2's CR8 under V_INTR_MASKING is V_TPR: no access exits, it holds virtual interrupts back, L1 finds it at #VMEXIT, and L1's own
/// stays.
#[test]
fn l2_has_a_task_priority_of_its_own() {
    let mut world = World::new(&[], true, |vmcb| {
        let int_ctl = vmcb.control.int_ctl.with_v_irq(true).with_v_intr_prio(8).with_v_intr_masking(true);
        (vmcb.control.int_ctl, vmcb.control.int_vector) = (int_ctl.with_v_tpr(10), 0xf1);
    });
    world.bench.state().cr8 = 3;
    world.enter();
    world.vmrun();
    world.enter();
    let state = world.bench.state();
    assert_eq!((state.cr8, state.interruptibility.virtual_tpr()), (10, true));
    assert_eq!(state.intercepts.cr & (1 << 8 | 1 << 24), 0);
    let window = Sensitive { kind: SensitiveKind::INTERRUPT_WINDOW, ..Default::default() };
    for (cr8, taken) in [(10, false), (8, false), (7, true)] {
        world.bench.state().cr8 = cr8;
        assert_eq!(world.step(window), None);
        let event = std::mem::take(&mut world.bench.state().inject);
        assert_eq!(event.valid.is_set(), taken, "{cr8}");
    }
    world.bench.state().cr8 = 12;
    world.vmmcall();
    let int_ctl = world.vmcb12().control.int_ctl;
    assert_eq!((int_ctl.v_tpr(), int_ctl.v_irq()), (12, false));
    let state = world.bench.state();
    assert_eq!((state.cr8, state.interruptibility.virtual_tpr()), (3, false));
}

/// Without V_INTR_MASKING it is L1's.
#[test]
fn l2_shares_the_task_priority() {
    let mut world = World::new(&[], true, |vmcb| vmcb.control.int_ctl.set_v_tpr(10));
    world.bench.state().cr8 = 3;
    world.enter();
    world.vmrun();
    world.enter();
    assert_eq!(world.bench.state().cr8, 3);
    world.bench.state().cr8 = 5;
    world.vmmcall();
    assert_eq!((world.bench.state().cr8, world.vmcb12().control.int_ctl.v_tpr()), (5, 5));
}

/// A clean bit that lies: the tables of the last run stay, as silicon's own would.
#[test]
fn clean_bits_of_l1_count() {
    for (release, stale) in [("v5.10", false), ("v6.1", true), ("v7.2", true)] {
        let mut world = World::new(&[("kvm", release)], true, |vmcb| vmcb.save.gdtr.base = 0x1000);
        world.vmrun();
        world.enter();
        assert_eq!(world.bench.state().gdtr, TableReg { base: 0x1000, ..Default::default() });
        world.vmmcall();
        world.enter();
        let mut vmcb = world.vmcb12();
        vmcb.save.gdtr.base = 0x2000;
        vmcb.control.clean.set_dt(true);
        world.store(&vmcb);
        world.vmrun();
        world.enter();
        assert_eq!(world.bench.state().gdtr.base, if stale { 0x1000 } else { 0x2000 }, "{release}");
    }
}

#[test]
fn vmsave_and_vmload_are_inverse() {
    let mut world = World::new(&[], true, |_| ());
    let state = world.bench.state();
    (state.kernel_gs_base, state.star, state.sysenter_eip) = (1, 2, 3);
    (state.seg[4].base, state.seg[7].selector) = (0x1234_5000, 0x40);
    let saved = *state;
    world.svm(0xdb);
    assert_eq!((world.vmcb12().save.star, world.vmcb12().save.rip), (2, L2_RIP));
    let mut vmcb = world.vmcb12();
    vmcb.save.gs.base = 0x8000_0000_0000;
    world.store(&vmcb);
    let state = world.bench.state();
    (state.star, state.seg[4].base, state.kernel_gs_base) = (0, 0, 0);
    state.gpr[gpr::RAX] = VMCB12;
    world.svm(0xda);
    let state = world.bench.state();
    assert_eq!((state.star, state.kernel_gs_base, state.seg[4]), (2, 1, saved.seg[4]));
    assert_eq!(state.seg[5].base, 0xffff_8000_0000_0000, "silicon makes it canonical");
}

/// Addresses that are no memory, by release.
#[test]
fn a_vmcb_outside_memory() {
    for (release, gp) in [("v5.10", true), ("v6.12", true), ("v7.2", false)] {
        let mut world = World::new(&[("kvm", release)], true, |_| ());
        world.bench.state().gpr[gpr::RAX] = RAM + 0x1000_0000;
        let resume = world.svm(0xd8);
        assert_eq!(resume.kind == ResumeKind::INTERNAL_ERROR, !gp, "{release}");
        if gp {
            world.enter();
            assert_eq!(world.bench.state().inject.vector, Vector::GP.0);
        } else {
            assert_eq!((resume.data[0], resume.data[1], resume.data[3]), (1, 6, 0x80));
        }
    }
}

/// A VMCB's page that does not come: the wait ends with a signal that kills, and KVM_RUN before the guest goes on.
#[test]
fn a_vmcb_that_does_not_come() {
    for release in RELEASES {
        for at_vmrun in [true, false] {
            let mut world = World::new(&[("kvm", release)], true, |_| ());
            if !at_vmrun {
                world.vmrun();
                world.enter();
            }
            world.bench.host.absent.insert(VMCB12, MemoryStatus::MISSING);
            if at_vmrun {
                world.svm(0xd8);
            } else {
                world.vmmcall();
            }
            let Bench { vm, states, host } = &mut world.bench;
            assert_eq!(
                vm.enter(0, &mut states[0], host),
                Resume::errno(Errno::EINTR.0),
                "{release} {at_vmrun}"
            );
        }
    }
}
