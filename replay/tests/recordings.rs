//! Recordings against runs, on small tapes: what is exempt stays exempt, and nothing else does.

use std::path::Path;
use vmtape_arch::{
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
