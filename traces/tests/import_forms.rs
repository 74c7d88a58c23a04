//! The same recording in the forms in which its writers print it gives the same tape; numbers are the trace's own.

use flate2::read::MultiGzDecoder;
use std::{fs, io::Read, path::Path};
use vmtape_arch::{
    exit::{Isa, SvmExitCode, VmxReason},
    note::Note,
};
use vmtape_traces::{
    Event, Exits, Options, Tape,
    event::NO_VCPU,
    exits::ExitGroup,
    import::{self, Source, Summary},
    text::{MODE_UNTOLD, Printer},
};

fn recording(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings/npt1/setjmp").join(name);
    let mut text = String::new();
    MultiGzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn events(text: &str) -> (Vec<Event>, Summary) {
    let mut events = Vec::new();
    let summary = import::events(&Source::Text(text.to_owned()), &mut |event| {
        events.push(event);
        Ok(())
    });
    (events, summary.unwrap())
}

fn groups(events: Vec<Event>) -> Vec<ExitGroup> {
    Exits::new(events.into_iter().map(Ok), 0).map(Result::unwrap).collect()
}

/// What `vmtape show` prints of the trace, without its header.
fn shown(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (trace, tape) = (folder.path().join("trace.txt"), folder.path().join("trace.tape"));
    fs::write(&trace, text).unwrap();
    import::to_tape(&trace, &tape, Options::default()).unwrap();
    let tape = Tape::open_whole(&tape).unwrap();
    let mut printer = Printer::of_tape(Vec::new(), tape.metadata()).unwrap();
    tape.events().for_each(|event| printer.event(&event.unwrap()).unwrap());
    let text = String::from_utf8(printer.finish().unwrap()).unwrap();
    let (again, _) = self::events(&text);
    let (first, _) = self::events(&fs::read_to_string(&trace).unwrap());
    let different = again.iter().zip(&first).find(|(again, first)| again != first);
    assert_eq!(different, None, "what is shown reads as the same: {text}");
    assert_eq!(again.len(), first.len(), "{text}");
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.to_owned() + "\n").collect()
}

/// A note without what libtraceevent's texts do not tell.
fn told(note: &Note) -> Note {
    match *note {
        Note::EmulateInsn { rip, csbase, len, insn, failed, .. } => {
            Note::EmulateInsn { rip, csbase, len, insn, mode: MODE_UNTOLD, failed }
        }
        // It takes the sign of errno for none: `restart (4)` is `KVM_EXIT_UNKNOWN (0)`.
        Note::UserspaceExit { errno: ..0, .. } => Note::UserspaceExit { reason: 0, errno: 0 },
        note => note,
    }
}

/// `trace-cmd report` of a recording against the text of tracefs: the exits that both have, in full.
fn same_exits(report: &str, full: bool) {
    let (theirs, _) = events(&recording("trace.txt.gz"));
    let (ours, summary) = events(&recording(report));
    assert_eq!((summary.unreadable, summary.comments, summary.vcpus), (0, 1, 1));
    let (theirs, ours) = (groups(theirs), groups(ours));
    assert!(ours.len() > 300, "{}", ours.len());
    // The last one is cut.
    for (own, their) in ours.iter().zip(&theirs).take(ours.len() - 1) {
        assert_eq!(own.exit, their.exit);
        assert_eq!(own.resume, their.resume);
        let notes = |group: &ExitGroup| -> Vec<Note> {
            if full {
                return group.notes.clone();
            }
            // It prints these without their frame: they stay lines.
            let framed = |note: &&Note| {
                !matches!(note, Note::ZapPage { .. } | Note::SyncPage { .. } | Note::UnsyncPage { .. })
            };
            group.notes.iter().filter(framed).map(told).collect()
        };
        assert_eq!(notes(own), notes(their), "exit {}", own.number);
    }
}

#[test]
fn trace_cmd_report_with_its_kvm_plugin() {
    same_exits("report.txt.gz", false);
}

#[test]
fn trace_cmd_report_raw() {
    same_exits("report-raw.txt.gz", true);
}

#[test]
fn texts_of_the_plugin() {
    let (events, summary) = events(
        "\
CPU 1 is empty
cpus=2
 qemu-7 [000] 1.000000: kvm_entry:             vcpu 3 rip 0xfff0
 qemu-7 [000] 1.000001: kvm_exit:             reason UNKNOWN (78) rip 0x10 info 2 fee00000
 qemu-7 [000] 1.000001: kvm_emulate_insn:     0:401087: 45 8b 30 FAIL
 qemu-7 [000] 1.000001: kvm_mmu_get_page:     existing sp gfn 7f 1 q3 rw- pae !nxe !wp root 0 unsync
 qemu-7 [000] 1.000002: kvm_entry:             vcpu 3 rip 0x12
 qemu-7 [000] 1.000003: kvm_exit:             reason EXIT_EXCP_PF rip 0x10 info 2 fee00000
 qemu-7 [000] 1.000004: kvm_exit:             reason EXIT_WRITE_CR4 rip 0x14 info 0 0
 qemu-7 [000] 1.000005: kvm_exit:             reason EXIT_XSETBV rip 0x18 info 0 0
",
    );
    assert_eq!(
        (summary.exits, summary.vcpus, summary.unreadable, summary.comments),
        (4, 1, 0, 2),
        "one vCPU, number 3"
    );
    assert!(summary.terse);
    let groups = groups(events);
    let codes: Vec<_> =
        groups.iter().map(|group| (group.exit.vcpu, group.exit.exit.isa, group.exit.exit.reason)).collect();
    let code = |code| (3, Isa::SVM, code);
    assert_eq!(codes, [code(78), code(SvmExitCode::EXCP_PF.0), code(0x14), code(0x8d)]);
    assert_eq!(groups[0].exit.exit.gva, 0xfee0_0000);
    let insn = Note::EmulateInsn {
        rip: 0x401087,
        csbase: 0,
        len: 3,
        insn: 0x30_8b45,
        mode: MODE_UNTOLD,
        failed: true,
    };
    assert_eq!(groups[0].notes[0], insn);
}

/// Kernels before 5.10: no vCPU and no `intr_info` in `kvm_exit`, no rip in `kvm_entry`.
#[test]
fn kernels_before_5_10() {
    let trace = " qemu-kvm-7 [000] d... 1.000000: kvm_entry: vcpu 2
 qemu-kvm-7 [000] .... 1.000001: kvm_exit: reason EPT_VIOLATION rip 0x3ff info 181 0
 qemu-kvm-7 [000] .... 1.000001: kvm_page_fault: address 1000 error_code 181
 qemu-kvm-7 [000] d... 1.000002: kvm_entry: vcpu 2
 qemu-kvm-7 [000] .... 1.000003: kvm_exit: reason EXTERNAL_INTERRUPT rip 0x400 info 0 800000f6
";
    let (events, summary) = events(trace);
    assert_eq!((summary.exits, summary.kept["kvm_entry"], summary.unreadable), (2, 2, 0));
    let groups = groups(events);
    let first = &groups[0].exit;
    assert_eq!((first.vcpu, VmxReason(first.exit.reason), first.rip), (2, VmxReason::EPT_VIOLATION, 0x3ff));
    assert_eq!((first.exit.info1, first.exit.info2, first.exit.gpa), (0x181, 0, 0x1000));
    assert_eq!(groups[1].exit.exit.info2, 0x8000_00f6);
    let shown = shown(trace);
    assert!(shown.contains("kvm_entry: vcpu 2\n") && !shown.contains("intr_info"), "{shown}");
}

/// No number is another's, and no line is invented.
#[test]
fn what_is_shown_is_the_trace() {
    let trace = "     CPU 1/KVM-1001    [000] .....     5.000001: kvm_page_fault: vcpu 1 rip 0x1234 address 0x0000000000001000 error_code 0x4
     CPU 1/KVM-1001    [000] .....     5.000011: kvm_entry: vcpu 1, rip 0x1000
     CPU 1/KVM-1001    [000] .....     5.000020: kvm_exit: vcpu 1 reason npf rip 0x1000 info1 0x0000000000000004 info2 0x0000000000005000 intr_info 0x00000000 error_code 0x00000000
     CPU 1/KVM-1001    [000] .....     5.000030: kvm_exit: vcpu 1 reason npf rip 0x1002 info1 0x0000000000000004 info2 0x0000000000005000 intr_info 0x00000000 error_code 0x00000000
CPU:0 [LOST 12 EVENTS]
     CPU 1/KVM-1001    [000] .....     5.000040: kvm_fpu: load
          host-1       [000] .....     5.000050: sched_switch: a b c
     CPU 1/KVM-1001    [000] .....     5.000060: kvm_page_fault: address fee00000 error_code 182
";
    let own = |text: &str| {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(own(&shown(trace)), own(trace));
    // Whatever the task is called.
    let (events, _) = events(&trace.replace("CPU 1/KVM-1001", "CPU 0/KVM-77"));
    assert!(events.iter().all(|event| !matches!(event, Event::Note { vcpu, .. } if *vcpu != 1)));
    assert!(groups(events).iter().all(|group| group.exit.vcpu == 1));
}

#[test]
fn clocks_that_count_are_kept() {
    let trace = "     CPU 0/KVM-1000    [000] ..... 7431541265: kvm_fpu: load
     CPU 0/KVM-1000    [000] ..... 7431541266: kvm_entry: vcpu 0, rip 0x1000
";
    let shown = shown(trace);
    assert!(shown.contains(" 7431541265: kvm_fpu") && shown.contains(" 7431541266: kvm_entry"), "{shown}");
}

/// Two machines have a vCPU 0 each; a thread may run several vCPUs; threads of one process are one machine.
#[test]
fn machines_and_vcpus() {
    let line = |task: &str, vcpu: u32, rip: u32| {
        format!(
            " {task} [000] 1.0: kvm_exit: vcpu {vcpu} reason cpuid rip {rip:#x} info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0\n"
        )
    };
    let trace = [line("a-7", 0, 1), line("b-8", 0, 2), line("a-7", 1, 3), line("b-8", 0, 4)].concat();
    let (found, summary) = events(&trace);
    let vcpus = |found| {
        let mut found: Vec<_> = groups(found)
            .iter()
            .map(|group| (group.exit.rip, group.exit.vcpu >> 16, group.exit.vcpu & 0xffff))
            .collect();
        found.sort();
        found
    };
    assert_eq!(summary.vms, 2);
    assert_eq!(vcpus(found), [(1, 0, 0), (2, 1, 0), (3, 0, 1), (4, 1, 0)]);
    let trace = [line("a-7 (  5)", 0, 1), line("b-8 (  6)", 1, 2), line("c-9 (  6)", 0, 3)].concat();
    let (found, summary) = events(&trace);
    assert_eq!(summary.vms, 2);
    assert_eq!(vcpus(found), [(1, 0, 0), (2, 1, 1), (3, 1, 0)]);
}

/// What was open when events were lost is not put together with what follows.
#[test]
fn a_gap_ends_an_exit() {
    let (found, summary) = events(
        "\
 a-7 [000] 1.0: kvm_exit: vcpu 0 reason cpuid rip 0x1 info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0
CPU:0 [LOST 3 EVENTS]
 a-7 [000] 1.1: kvm_entry: vcpu 0, rip 0x2
",
    );
    assert_eq!((summary.lost_lines, summary.lost_events), (1, 3));
    assert!(found.contains(&Event::Line { vcpu: NO_VCPU, text: "lost_events: cpu 0 count 3".to_owned() }));
    let groups = groups(found);
    assert_eq!((groups[0].resume, groups.len()), (None, 1));
}

#[test]
fn a_trace_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, tape) = (folder.path().join("x.txt"), folder.path().join("x.tape"));
    fs::write(&trace, " a-7 [000] .... 1.0: sched_switch: a ==> b\n").unwrap();
    let error = import::to_tape(&trace, &tape, Options::default()).unwrap_err().to_string();
    assert!(error.contains("no event of KVM") && error.contains("x.txt"), "{error}");
    assert!(!tape.exists());
}
