//! VMRUN and #VMEXIT on the VMCB: clean bits, failed entries, what is mirrored when.

use super::bench::*;
use crate::silicon::{checks::Invalid, vmcb::Clean, vmrun::published};
use vmtape_abi::Backend;
use vmtape_arch::{
    exit::{Exit, Isa, ResumeKind, StimulusKind, SvmExitCode},
    host::Silicon,
    note::Note,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{TableReg, gpr, seg},
};

/// Bits that KVM leaves clear when it marks all clean: interrupts and CR2.
const KVM_CLEAN: u32 = !(1 << 3 | 1 << 9);
const PA: u64 = 0x1000;

impl Bench {
    fn clean(&self) -> u32 {
        self.vm.vcpus[0].vmcb01.vmcb.control.clean.into_bits()
    }

    /// An exit of CPUID, and KVM's turn.
    fn cpuid(&mut self) {
        let insn = Sensitive { kind: SensitiveKind::CPUID, len: 2, ..Default::default() };
        let mut exit = Exit::default();
        let state = &mut self.states[0];
        let mut fault = Default::default();
        self.vm.sensitive(0, state, &insn, &mut self.host, &mut exit, &mut fault);
        assert_eq!((exit.isa, exit.reason, exit.stimulus), (Isa::SVM, 0x72, StimulusKind::SENSITIVE));
        self.vm.handle_exit(0, state, &exit, &mut self.host);
    }
}

/// What changes, how, and the bits that it costs.
type Change = (&'static str, fn(&mut Bench), Clean);

/// After an exit everything is clean but what KVM always rewrites; each change of KVM's costs its own bit.
#[test]
fn kvm_clears_the_clean_bits_of_what_it_changed() {
    let changes: [Change; 7] = [
        ("nothing", |_| {}, Clean::new()),
        ("RIP and RAX", |b| b.state().gpr[gpr::RAX] = 5, Clean::new()),
        ("TSC offset", |b| b.state().tsc_offset = 5, Clean::new().with_intercepts(true)),
        ("CR3", |b| b.state().cr3 = 0x5000, Clean::new().with_crx(true)),
        ("DR7", |b| b.state().dr7 = 0x401, Clean::new().with_drx(true)),
        (
            "GDTR",
            |b| b.state().gdtr = TableReg { limit: 7, ..Default::default() },
            Clean::new().with_dt(true),
        ),
        ("SS", |b| b.state().seg[seg::SS].base = 5, Clean::new().with_seg(true)),
    ];
    for (what, change, cleared) in changes {
        let mut bench = Setup::default().build();
        bench.cpuid();
        assert_eq!(bench.clean(), KVM_CLEAN);
        change(&mut bench);
        bench.enter(0);
        assert_eq!(bench.clean(), KVM_CLEAN & !cleared.into_bits(), "{what}");
    }
}

/// What is marked clean is not read: a change that forgets its bit does not reach silicon, until the bit is cleared, another
/// VMCB was run, or the silicon keeps nothing.
#[test]
fn clean_bits_go_stale() {
    let mut bench = Setup::default().build();
    bench.cpuid();
    let silicon = bench.vm.shared.kvm.silicon;
    let vcpu = &mut bench.vm.vcpus[0];
    let code = SvmExitCode::RDTSC;
    let mut run = |clean: Clean, pa: u64, honour: bool| {
        vcpu.running.vmrun(&mut vcpu.vmcb01.vmcb.clone(), PA, &silicon, true).unwrap();
        let mut changed = vcpu.vmcb01.vmcb.clone();
        changed.control.intercepts.set(code, true);
        changed.control.clean = clean;
        vcpu.running.vmrun(&mut changed, pa, &silicon, honour).unwrap();
        let wanted = vcpu.running.intercepts().wants(SensitiveKind::RDTSC);
        assert_eq!(vcpu.running.vmcb.control.intercepts.has(code), wanted);
        vcpu.running.vmrun(&mut vcpu.vmcb01.vmcb.clone(), 0, &silicon, false).unwrap();
        wanted
    };
    assert!(!run(Clean::ALL, PA, true), "stale on purpose");
    assert!(run(Clean::ALL.with_intercepts(false), PA, true));
    assert!(run(Clean::ALL, PA + 0x1000, true));
    assert!(run(Clean::ALL, PA, false));
}

/// KVM asks for reads of CR4 under nested paging too, and of CR3 not; the software CPU of the recordings goes by CR0's bit.
/// See: KVM svm/svm.c init_vmcb()
#[test]
fn reads_of_cr4_exit() {
    const READ_CR3: u32 = 1 << (16 + 3);
    const READ_CR4: u32 = 1 << (16 + 4);
    let bench = Setup::default().build();
    let silicon = bench.vm.shared.kvm.silicon;
    let read = |silicon| published(&bench.vm.vcpus[0].vmcb01.vmcb, &silicon).cr & (READ_CR3 | READ_CR4);
    assert_eq!(read(silicon), READ_CR4);
    assert_eq!(read(Silicon { rmw_reads_first: true.into(), ..silicon }), 0);
}

/// A failed VMRUN writes the exit code and nothing else, and keeps nothing; KVM returns with KVM_EXIT_FAIL_ENTRY.
#[test]
fn a_refused_state_fails_the_entry() {
    let mut bench = Setup::default().build();
    bench.cpuid();
    bench.state().dr6 = 1 << 32;
    let state = &mut bench.states[0];
    let resume = bench.vm.enter(0, state, &mut bench.host);
    assert_eq!((resume.kind, resume.data[0]), (ResumeKind::FAIL_ENTRY, 0xffff_ffff));
    let told = Note::UserspaceExit { reason: ResumeKind::FAIL_ENTRY.0, errno: 0 };
    assert_eq!(bench.host.notes.last(), Some(&told));
    let silicon = bench.vm.shared.kvm.silicon;
    let vcpu = &mut bench.vm.vcpus[0];
    assert_eq!((vcpu.vmcb01.vmcb.control.exit_code, vcpu.vmcb01.vmcb.control.exit_info_1), (u64::MAX, 0));
    assert_eq!(vcpu.running.vmrun(&mut vcpu.vmcb01.vmcb, PA, &silicon, true), Err(Invalid::Dr6High));
    bench.state().dr6 = 0xffff_0ff0;
    bench.enter(0);
}

/// #VMEXIT: the exit's fields, the next RIP, and the registers as the guest left them.
#[test]
fn an_exit_is_in_the_vmcb() {
    let mut bench = Setup::default().build();
    let state = bench.state();
    (state.rip, state.gpr[gpr::RAX], state.seg[seg::CS].selector, state.cpl) = (0x1234, 0, 0x33, 3);
    bench.cpuid();
    let (control, save) = (&bench.vm.vcpus[0].vmcb01.vmcb.control, &bench.vm.vcpus[0].vmcb01.vmcb.save);
    assert_eq!((control.exit_code, control.next_rip), (0x72, 0x1236));
    assert_eq!((save.rip, save.cs.selector, save.cs.attrib, save.cpl), (0x1234, 0x33, 0x29b, 3));
    // What silicon runs with is its own: SVME, and the host's MCE.
    assert_eq!((save.efer, save.cr4), (0x1500, 0x60));
}
