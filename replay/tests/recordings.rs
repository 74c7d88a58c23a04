//! Recordings against runs, on small tapes: what is exempt stays exempt, and nothing else does.

use std::path::Path;
use vmtape_arch::{
    exception::Vector,
    exit::{Exit, Isa, SvmExitCode, VmxReason},
    level::Place,
    msr::ReachedPat,
    note::Note,
};
use vmtape_replay::{Report, recording, report::Verdict};
use vmtape_traces::{
    Event, Metadata, Options, Tape, Writer,
    event::{End, ExitEvent},
};

/// An exit with its notes.
type Step = (Exit, u64, Vec<Note>);

fn tape(folder: &Path, name: &str, steps: &[Step], lines: &[(usize, &str)]) -> Tape {
    let path = folder.join(name);
    let mut writer = Writer::create(&path, &Metadata::default(), &[], Options::default()).unwrap();
    for (n, (exit, rip, notes)) in steps.iter().enumerate() {
        for (_, text) in lines.iter().filter(|(at, _)| *at == n) {
            writer.push(Event::Line { vcpu: 0, text: (*text).to_owned() });
        }
        let exit = ExitEvent { vcpu: 0, icount: n as u64, rip: *rip, exit: *exit };
        writer.push(Event::Exit(Box::new(exit)));
        notes.iter().for_each(|note| writer.push(Event::Note { vcpu: 0, place: Place::L1, note: *note }));
        writer.push(Event::Note {
            vcpu: 0,
            place: Place::L1,
            note: Note::Entry { rip: *rip, intr_info: 0, error_code: 0 },
        });
    }
    writer.push(Event::End { icount: 0, exits: steps.len() as u64, end: End::Cut });
    writer.finish().unwrap();
    Tape::open(&path).unwrap()
}

fn compare(real: &[Step], lines: &[(usize, &str)], ours: &[Step]) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let real = tape(folder.path(), "real", real, lines);
    let ours = tape(folder.path(), "ours", ours, &[]);
    let mut report = Report::new("", "real", "ours");
    recording::compare(&real, &ours, &mut report, "").unwrap();
    report
}

fn npf(gpa: u64, level: u8) -> Step {
    let exit = Exit {
        isa: Isa::SVM,
        reason: SvmExitCode::NPF.0,
        info1: 0x1_0000_0004,
        info2: gpa,
        ..Exit::default()
    };
    let notes = vec![
        Note::PageFault { address: gpa, code: 0x1_0000_0004 },
        Note::SpteRequested { gfn: gpa >> 12, pfn: gpa >> 12 ^ 0x5000, level },
    ];
    (exit, 0x40_0000 + gpa, notes)
}

fn msr(isa: Isa, data: u64) -> Step {
    let reason = if isa == Isa::VMX { VmxReason::MSR_READ.0 } else { SvmExitCode::MSR.0 };
    let note = Note::Msr {
        write: false,
        index: 0x1b,
        data,
        exception: false,
        host_initiated: false,
        passed: false,
        pat: ReachedPat::ONLY,
    };
    (Exit { isa, reason, ..Exit::default() }, 0x40_1000, vec![note])
}

fn interrupt() -> Step {
    (Exit { isa: Isa::SVM, reason: SvmExitCode::INTR.0, ..Exit::default() }, 0x40_9999, Vec::new())
}

#[test]
fn firmware_interrupts_and_frames_do_not_count() {
    let mut theirs = vec![npf(0x8000, 1), npf(0x20_0000, 2), interrupt(), msr(Isa::SVM, 7)];
    theirs[1].2[1] = Note::SpteRequested { gfn: 0x200, pfn: 1, level: 2 };
    let report = compare(&theirs, &[], &[npf(0x20_0000, 2), msr(Isa::SVM, 7)]);
    assert_eq!((report.verdict, report.compared.exits), (Verdict::Same, 2), "{:?}", report.divergence);
    assert_eq!(report.exempted.get("firmware"), Some(&1));
    assert_eq!(report.exempted.get("host scheduling"), Some(&1));
}

#[test]
fn values_and_qualifications_count() {
    let other_value = compare(&[msr(Isa::VMX, 7)], &[], &[msr(Isa::VMX, 8)]);
    assert_eq!(other_value.verdict, Verdict::Different);
    let mut other_info = msr(Isa::VMX, 7);
    other_info.0.info1 = 4;
    let report = compare(&[msr(Isa::VMX, 7)], &[], &[other_info]);
    assert_eq!(report.divergence.unwrap().rows[0].what, "info1");
}

#[test]
fn a_mapping_level_counts() {
    assert_eq!(compare(&[npf(0x20_0000, 2)], &[], &[npf(0x20_0000, 1)]).verdict, Verdict::Different);
}

#[test]
fn refaults_count_only_after_the_host_took_pages_back() {
    let theirs = [npf(0x20_0000, 2), npf(0x20_0000, 2), msr(Isa::SVM, 7)];
    let ours = [npf(0x20_0000, 2), msr(Isa::SVM, 7)];
    assert_eq!(compare(&theirs, &[], &ours).verdict, Verdict::Different);
    let unmapped = compare(&theirs, &[(1, "kvm_unmap_hva_range: mmu notifier")], &ours);
    assert_eq!(unmapped.verdict, Verdict::Same, "{:?}", unmapped.divergence);
    assert_eq!(unmapped.exempted.get("refaults"), Some(&1));
}

#[test]
fn kinds_that_were_not_traced_do_not_count() {
    let mut bare = msr(Isa::VMX, 7);
    bare.2.clear();
    assert_eq!(compare(&[bare.clone()], &[], &[msr(Isa::VMX, 8)]).verdict, Verdict::Same);
    let traced_elsewhere = [bare, msr(Isa::VMX, 7)];
    let ours = [msr(Isa::VMX, 8), msr(Isa::VMX, 7)];
    assert_eq!(compare(&traced_elsewhere, &[], &ours).verdict, Verdict::Different);
}

#[test]
fn a_run_that_ends_early_is_different() {
    let theirs = [msr(Isa::VMX, 7), msr(Isa::VMX, 7)];
    assert_eq!(compare(&theirs, &[], &theirs[..1]).verdict, Verdict::Different);
    let longer = compare(&theirs[..1], &[], &theirs);
    assert_eq!((longer.verdict, longer.exempted.len()), (Verdict::Same, 1));
}

#[test]
fn nothing_in_common_is_no_verdict() {
    let ours = [npf(0x20_0000, 2)];
    assert_eq!(compare(&[], &[], &ours).verdict, Verdict::Nothing, "no exit was understood");
    assert_eq!(compare(&ours, &[], &[]).verdict, Verdict::Nothing, "no exit was taken");
    let other_host = compare(&[interrupt()], &[], &ours);
    assert_eq!(other_host.verdict, Verdict::Nothing, "only the host's own exits");
}

/// An exit with one note.
fn noted(note: Note) -> Step {
    let mut step = msr(Isa::SVM, 7);
    step.2.push(note);
    step
}

#[test]
fn what_the_emulator_and_the_walker_did_counts() {
    let insn =
        |insn, mode| Note::EmulateInsn { rip: 0x40_1000, csbase: 0, len: 2, insn, mode, failed: false };
    let prot64 = 9;
    let pairs = [
        (insn(0x01d8, prot64), insn(0x03d8, prot64)),
        (
            Note::PagetableWalk { address: 0x1000, pferr: 2 },
            Note::PagetableWalk { address: 0x1000, pferr: 6 },
        ),
        (Note::WalkerError { pferr: 9 }, Note::WalkerError { pferr: 8 }),
        (Note::SetSpte { gfn: 1, spte: 0x5067, level: 1 }, Note::SetSpte { gfn: 2, spte: 0x5067, level: 1 }),
        (
            Note::FastPageFault { address: 0x1000, code: 2, fixed: true },
            Note::FastPageFault { address: 0x1000, code: 2, fixed: false },
        ),
        (
            Note::Apic { write: true, register: 0x300, value: 1 },
            Note::Apic { write: true, register: 0x300, value: 2 },
        ),
        (Note::ApicIpi { icr: 0xc_4500, destination: 0 }, Note::ApicIpi { icr: 0xc_4600, destination: 0 }),
    ];
    for (real, other) in pairs {
        let same = compare(&[noted(real)], &[], &[noted(real)]);
        assert_eq!(same.verdict, Verdict::Same, "{real:?}");
        let report = compare(&[noted(real)], &[], &[noted(other)]);
        assert_eq!(report.verdict, Verdict::Different, "{other:?}");
    }
    // The host's frames are its own.
    let elsewhere = Note::SetSpte { gfn: 1, spte: 0x9067, level: 1 };
    let spte = compare(&[noted(elsewhere)], &[], &[noted(Note::SetSpte { gfn: 1, spte: 0x5067, level: 1 })]);
    assert_eq!(spte.verdict, Verdict::Same);
    // A printer that does not tell the mode.
    let untold = compare(&[noted(insn(0x01d8, 0xff))], &[], &[noted(insn(0x01d8, prot64))]);
    assert_eq!(untold.verdict, Verdict::Same, "{:?}", untold.divergence);
}

/// An entry that the host's own work puts off injects its event again; an exit that interrupts the delivery does so for the guest.
#[test]
fn events_are_injected_again_for_the_guest_only_after_its_exits() {
    let again =
        Note::InjException { vector: Vector::GP, has_error: true, error_code: 0x18, reinjected: true };
    let with = |intr_info| {
        let mut step = noted(again);
        step.0.intr_info = intr_info;
        [step]
    };
    let without = |intr_info| {
        let mut step = with(intr_info);
        step[0].2.pop();
        step
    };
    let (valid_gp, none) = (0x8000_0b0d, 0);
    for host in [&[][..], &[interrupt()]] {
        let put_off = compare(&[&with(none), host].concat(), &[], &without(none));
        assert_eq!(put_off.verdict, Verdict::Same, "{:?}", put_off.divergence);
        let delivered = compare(&[&with(valid_gp), host].concat(), &[], &without(valid_gp));
        assert_eq!(delivered.verdict, Verdict::Different);
    }
}

#[test]
fn only_interrupts_that_a_processor_sent_are_held_against_each_other() {
    let accepted = Note::ApicAcceptIrq { apic: 0, mode: 0, level: false, vector: 0x20 };
    let sent = Note::ApicIpi { icr: 0x4_4020, destination: 0 };
    let with = |notes: &[Note]| {
        let mut step = msr(Isa::SVM, 7);
        step.2.extend(notes);
        step
    };
    let timer = compare(&[with(&[accepted])], &[], &[with(&[])]);
    assert_eq!(timer.verdict, Verdict::Same, "{:?}", timer.divergence);
    let both = [with(&[sent, accepted])];
    assert_eq!(compare(&both, &[], &both).verdict, Verdict::Same);
    assert_eq!(compare(&both, &[], &[with(&[sent])]).verdict, Verdict::Different);
}

/// A guest reads what its firmware left in the local APIC, until it has written there.
#[test]
fn the_firmwares_apic_does_not_count() {
    let read = |value| noted(Note::Apic { write: false, register: 0x300, value });
    let write = noted(Note::Apic { write: true, register: 0x300, value: 5 });
    let firmware = npf(0x8000, 1);
    let begin = npf(0x20_0000, 2);
    let report = compare(&[firmware.clone(), begin.clone(), read(7)], &[], &[begin.clone(), read(0)]);
    assert_eq!(report.verdict, Verdict::Same, "{:?}", report.divergence);
    let bare = compare(&[begin.clone(), read(7)], &[], &[begin.clone(), read(0)]);
    assert_eq!(bare.verdict, Verdict::Different, "there was no firmware");
    let written = [begin.clone(), write.clone(), read(0)];
    let report = compare(&[firmware, begin, write, read(7)], &[], &written);
    assert_eq!(report.verdict, Verdict::Different, "the guest has written it");
}
