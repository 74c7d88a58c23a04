//! Recordings of the real KVM become tapes, line by line, and tapes become the same text again.

mod common;

use common::{PageTableTest, any_event, tape_of};
use flate2::read::MultiGzDecoder;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    env, fs,
    io::Read,
    path::{Path, PathBuf},
};
use vmtape_arch::{
    cpuid,
    exit::{Isa, SvmExitCode, VmxReason},
    note::Note,
};
use vmtape_traces::{
    Event, Exits, Options, Tape,
    import::{self, Source, Summary},
    text::Printer,
};

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

/// Every trace below the folder, and below VMTAPE_RECORDINGS if that is set.
fn traces() -> Vec<PathBuf> {
    let mut folders = vec![recordings()];
    folders.extend(env::var_os("VMTAPE_RECORDINGS").map(PathBuf::from));
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.file_name().is_some_and(|name| name == "trace.txt.gz") {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

fn text(trace: &Path) -> String {
    let mut text = String::new();
    MultiGzDecoder::new(fs::File::open(trace).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn events(source: &Source) -> (Vec<Event>, Summary) {
    let mut events = Vec::new();
    let summary = import::events(source, &mut |event| {
        events.push(event);
        Ok(())
    });
    (events, summary.unwrap())
}

fn print(events: &[Event]) -> String {
    let mut printer = Printer::new(Vec::new()).unwrap();
    events.iter().for_each(|event| printer.event(event).unwrap());
    String::from_utf8(printer.finish().unwrap()).unwrap()
}

#[test]
fn every_line_is_accounted_for() {
    assert!(traces().len() >= 8);
    for trace in traces() {
        let (events, summary) = events(&Source::Path(trace.clone()));
        let text = text(&trace);
        assert_eq!(summary.lines, text.lines().count() as u64, "{}", trace.display());
        assert!(summary.accounts_for_all(), "{}: {summary:?}", trace.display());
        assert_eq!((summary.unreadable, summary.lost_lines), (0, 0), "{}", trace.display());
        // Counted again, in another way.
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            *counts.entry(line.split(": ").nth(1).unwrap()).or_default() += 1;
        }
        for (name, count) in counts {
            let seen = |counts: &BTreeMap<String, u64>| counts.get(name).copied().unwrap_or(0);
            assert_eq!(seen(&summary.decoded) + seen(&summary.kept), count, "{}: {name}", trace.display());
            let decoded = !matches!(seen(&summary.kept), n if n > 0);
            let known = vmtape_arch::note::NoteKind::from_name(name).is_some() || name == "kvm_exit";
            assert!(decoded || !known || name.contains("nested"), "{}: {name} kept", trace.display());
        }
        let exits = events.iter().filter(|e| matches!(e, Event::Exit(_))).count() as u64;
        assert_eq!(exits, summary.decoded.get("kvm_exit").copied().unwrap_or(0));
        println!(
            "{}: {} lines, {} exits, {} decoded, {} kept",
            trace.parent().unwrap().display(),
            summary.lines,
            exits,
            summary.decoded.values().sum::<u64>(),
            summary.kept.values().sum::<u64>(),
        );
    }
}

#[test]
fn printing_and_importing_are_inverse_on_recordings() {
    for trace in traces() {
        let (first, _) = events(&Source::Path(trace.clone()));
        let (second, summary) = events(&Source::Text(print(&first)));
        assert_eq!(summary.unreadable, 0);
        let different = first.iter().zip(&second).position(|(a, b)| a != b);
        if let Some(at) = different {
            panic!("{} event {at}:\n{:?}\n{:?}", trace.display(), first[at], second[at]);
        }
        assert_eq!(first.len(), second.len(), "{}", trace.display());
    }
}

#[test]
fn printing_and_importing_are_inverse_on_tapes() {
    let first = PageTableTest::exits(9, 2_000);
    let (second, summary) = events(&Source::Text(print(&first)));
    assert_eq!(summary.unreadable + summary.kept.values().sum::<u64>(), 0);
    let different = first.iter().zip(&second).position(|(a, b)| a != b);
    assert_eq!(different.map(|at| (&first[at], &second[at])), None);
    assert_eq!(first.len(), second.len());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(lines in prop::collection::vec("\\PC{0,80}", 0..20)) {
        let _ = import::events(&Source::Text(lines.join("\n")), &mut |_| Ok(()));
    }

    #[test]
    fn any_event_can_be_printed(events in prop::collection::vec(any_event(), 1..50)) {
        let _ = import::events(&Source::Text(print(&events)), &mut |_| Ok(()));
    }

    #[test]
    fn bent_lines_do_no_harm(line in 0usize..4000, at in 0usize..200, byte in 32u8..127) {
        let text = text(&recordings().join("ept1/setjmp/trace.txt.gz"));
        let mut line = text.lines().nth(line).unwrap().as_bytes().to_vec();
        let at = at % line.len().max(1);
        if let Some(old) = line.get_mut(at) {
            *old = byte;
        }
        let _ = import::events(&Source::Text(String::from_utf8_lossy(&line).into_owned()), &mut |_| Ok(()));
    }
}

#[test]
fn what_kvm_intel_did_first() {
    let (events, _) = events(&Source::Path(recordings().join("ept1/setjmp/trace.txt.gz")));
    let groups: Vec<_> = Exits::new(events.into_iter().map(Ok), 0).map(Result::unwrap).collect();
    assert_eq!(groups.len(), 770);
    let first = &groups[0];
    assert_eq!((first.exit.rip, first.exit.exit.isa), (0x4000bc, Isa::VMX));
    assert_eq!(VmxReason(first.exit.exit.reason), VmxReason::EPT_VIOLATION);
    // kvm_exit has no address: it comes from the kvm_page_fault behind it.
    assert_eq!((first.exit.exit.info1, first.exit.exit.gpa), (0x784, 0x4000bc));
    assert_eq!(first.notes[0], Note::PageFault { address: 0x4000bc, code: 0x784 });
    assert!(first.notes.contains(&Note::SetSpte { gfn: 0x400, spte: 0x8600_0000_07c0_0bf7, level: 2 }));
    assert_eq!(first.notes.last(), Some(&Note::Entry { rip: 0x4000bc, intr_info: 0, error_code: 0 }));
    assert!(first.resume.is_some());
    let cr4 = groups.iter().find(|group| group.exit.rip == 0x40e059).unwrap();
    assert!(cr4.notes.contains(&Note::Cr { write: true, number: 4, value: 0x20 }));
}

#[test]
fn what_kvm_amd_did_under_shadow_paging() {
    let (events, _) = events(&Source::Path(recordings().join("npt0/setjmp/trace.txt.gz")));
    let groups: Vec<_> = Exits::new(events.into_iter().map(Ok), 0).map(Result::unwrap).collect();
    let fault = groups.iter().find(|group| group.exit.exit.reason == SvmExitCode::EXCP_PF.0).unwrap();
    let address = fault.notes.iter().find_map(|note| match note {
        Note::PageFault { address, .. } => Some(*address),
        _ => None,
    });
    assert_eq!(Some(fault.exit.exit.gva), address);
    assert!(groups.iter().all(|group| group.exit.vcpu == 0 && group.exit.exit.isa == Isa::SVM));
}

#[test]
fn a_trace_without_exits_still_has_its_notes() {
    let (events, summary) = events(&Source::Path(recordings().join("pvm/msr_focus/trace.txt.gz")));
    assert_eq!((summary.exits, summary.vcpus), (0, 1));
    let msrs =
        events.iter().filter(|e| matches!(e, Event::Note { vcpu: 0, note: Note::Msr { .. }, .. })).count();
    assert!(msrs > 0);
}

#[test]
fn the_guests_cpuid_comes_with_its_trace() {
    let folder = tempfile::tempdir().unwrap();
    let tape = folder.path().join("real.tape");
    let table_of = |recording: &str| {
        let trace = recordings().join(recording).join("trace.txt.gz");
        let summary = import::to_tape(&trace, &tape, Options::default()).unwrap();
        let tape = Tape::open_whole(&tape).unwrap();
        assert_eq!(tape.totals().unwrap().exits, summary.exits);
        import::cpuid_table(&tape).unwrap()
    };
    let intel = table_of("ept1/umip");
    let functions: Vec<_> = intel.iter().map(|entry| (entry.function, entry.index, entry.flags)).collect();
    assert_eq!(functions, [(0, 0, 0), (1, 0, 0), (7, 0, 1), (0xa, 0, 0)]);
    assert_eq!(cpuid::find(&intel, 7, 0).unwrap().ecx, 0x40_5f4e);
    let amd = table_of("npt1/setjmp");
    assert_eq!(cpuid::maxphyaddr(&amd), 40);
}

#[test]
fn text_of_other_releases() {
    let lines = "\
 a-7 [000] .... 1.000000: kvm_exit: vcpu 1 reason EPT_VIOLATION FAILED_VMENTRY rip 0x10 info1 0x0000000000000182 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000
 a-7 [000] .... 1.000001: kvm_page_fault: address fee00000 error_code 182
 b-8 [001] .... 1.000002: sched_switch: prev_comm=a
 a-7 [000] .... 1.000002: kvm_inj_exception: #UD (0x0)
 a-7 [000] .... 1.000002: kvm_inj_virq: irq 236
 a-7 [000] .... 1.000002: kvm_mmu_sync_page: sp gen 0 gfn 7f l1 4-byte q3 rwu- nxe !ad root 0 unsync
 a-7 [000] .... 1.000003: kvm_entry: vcpu 1, rip 0x12 intr_info 0x80000306 error_code 0x00000000
CPU:1 [LOST 42 EVENTS]
";
    let (events, summary) = events(&Source::Text(lines.to_owned()));
    assert_eq!(
        (summary.vcpus, summary.lost_events, summary.kept["sched_switch"]),
        (1, 42, 1),
        "one vCPU, number 1"
    );
    let group = Exits::new(events.into_iter().map(Ok), 0).next().unwrap().unwrap();
    assert_eq!(
        (group.exit.vcpu, group.exit.exit.reason, group.exit.exit.gpa),
        (1, 1 << 31 | 48, 0xfee0_0000)
    );
    let role = vmtape_arch::note::PageRole::new()
        .with_level(1)
        .with_has_4_byte_gpte(true)
        .with_quadrant(3)
        .with_access(6)
        .with_efer_nx(true)
        .with_ad_disabled(true);
    assert_eq!(
        group.notes,
        [
            Note::PageFault { address: 0xfee0_0000, code: 0x182 },
            Note::InjException {
                vector: vmtape_arch::exception::Vector::UD,
                has_error: false,
                error_code: 0,
                reinjected: false
            },
            Note::InjVirq { vector: 236, soft: false, reinjected: false },
            Note::SyncPage { gfn: 0x7f, role: role.into_bits() },
            Note::Entry { rip: 0x12, intr_info: 0x8000_0306, error_code: 0 },
        ]
    );
}

#[test]
fn numbers_that_cannot_be_stay_lines() {
    for (event, text) in [
        ("kvm_mmu_get_page", "sp gen 0 gfn 0 l16 8-byte q0 direct wux nxe ad root 0 sync new"),
        ("kvm_pio", "pio_write at 0x10000 size 1 count 1 val 0x53"),
        ("kvm_cr", "cr_write 4 = 0x10000000000000000"),
    ] {
        let line = format!(" a-7 [000] .... 1.0: {event}: {text}");
        let (events, summary) = events(&Source::Text(line));
        let kept = Event::Line { vcpu: vmtape_traces::event::NO_VCPU, text: format!("{event}: {text}") };
        let moment = Event::Moment { vcpu: vmtape_traces::event::NO_VCPU, icount: 1_000_000, rip: None };
        assert_eq!(events, [moment, kept]);
        assert_eq!(summary.kept[event], 1);
    }
}

#[test]
fn what_is_no_trace_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.txt");
    let cut_gzip = {
        let whole = fs::read(recordings().join("ept1/setjmp/trace.txt.gz")).unwrap();
        whole[..whole.len() / 2].to_vec()
    };
    let cases: [(Vec<u8>, &str); 5] = [
        (b"".to_vec(), "none of its 0 lines"),
        (b"hello\nworld\n".to_vec(), "none of its 2 lines"),
        (b"\x17\x08\x44tracing7\0".to_vec(), "trace.dat"),
        (vec![b'a'; 1 << 20], "longer than"),
        (cut_gzip, "x.txt: "),
    ];
    for (bytes, what) in cases {
        fs::write(&path, bytes).unwrap();
        let tape = folder.path().join("x.tape");
        let error = import::to_tape(&path, &tape, Options::default()).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("x.txt"), "{error}");
        assert!(!tape.exists() && !vmtape_traces::writer::partial(&tape).exists());
    }
    assert!(!tape_of(&[]).is_empty());
}

/// Exits that no entry follows: memory grows neither with what comes after one, nor with their number.
#[test]
fn exits_without_entries_are_not_held_for_ever() {
    const EVENTS: usize = 140_000;
    let exit = "kvm_exit: reason MSR_WRITE rip 0x401000 info 0 0";
    let of_one = (0..EVENTS).map(|n| {
        let event = if n == 0 { exit } else { "kvm_msr: msr_write 10 = 0x5" };
        format!(" CPU 0/KVM-1000  [000] d.... 1.{n:06}: {event}\n")
    });
    let of_many = (0..EVENTS).map(|n| format!(" CPU 0/KVM-{}  [000] d.... 1.{n:06}: {exit}\n", n + 1));
    for (text, exits) in [(of_one.collect::<String>(), 1), (of_many.collect(), EVENTS)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let (events, summary) = events(&Source::Path(file.path().to_owned()));
        assert!(summary.accounts_for_all() && summary.exits == exits as u64, "{summary:?}");
        // What comes after so many is outside, with a time of its own.
        let first_outside = events.iter().position(|event| matches!(event, Event::Moment { .. }));
        assert!(
            exits > 1 || first_outside.is_some_and(|at| (100_000..135_000).contains(&at)),
            "{first_outside:?}"
        );
    }
}

/// A trace that was made up: memory does not grow with the names in it.
#[test]
fn names_without_end_are_counted_together() {
    let lines = (0..10_000).map(|n| format!("  CPU 0/KVM-1000  [000] .....  1.{n:06}: event_{n}: text\n"));
    let text = format!("# tracer: nop\n{}", lines.collect::<String>());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (_, summary) = events(&Source::Path(file.path().to_owned()));
    assert!(summary.kept.len() <= 4097 && summary.accounts_for_all(), "{}", summary.kept.len());
    assert_eq!(summary.kept.values().sum::<u64>(), 10_000);
}
