//! An interrupt for a guest that runs is injected by an entry that no exit came before: exits mode feeds and compares it.

use anyhow::Result;
use std::path::Path;
use vmtape_arch::{
    level::{Level, Place},
    note::Note,
};
use vmtape_conformance::{tail, timer, vmtape};
use vmtape_traces::{Event, Options, Tape, Writer};

/// Backends whose silicon does not deliver interrupts by itself.
const INJECTING: [&str; 2] = ["svm", "svm-npt"];
const TICKS: usize = 5;

fn record(folder: &Path, backend: &str) -> Result<Tape> {
    std::fs::write(folder.join("timer"), timer::guest())?;
    let recorded = vmtape(folder, &["record", "-q", "-b", backend, "-o", "a.tape", "timer"])?;
    anyhow::ensure!(recorded.status.success(), "{backend}: {}", tail(&recorded));
    Ok(Tape::open(&folder.join("a.tape"))?)
}

#[test]
fn ticks_of_a_running_guest_are_on_the_tape_and_come_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in INJECTING {
        let mut injected = Vec::new();
        for event in record(folder.path(), backend)?.events() {
            if let Event::Entry(entry) = event? {
                injected.push(entry.outcome.inject.vector);
            }
        }
        assert_eq!(injected, [0x20; TICKS], "{backend}");
        for mode in ["exits", "run"] {
            let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
            assert_eq!(replayed.status.code(), Some(0), "{backend} {mode}: {}", tail(&replayed));
        }
    }
    Ok(())
}

#[test]
fn another_injection_is_a_difference() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in INJECTING {
        let tape = record(folder.path(), backend)?;
        let images = tape.images()?;
        let images: Vec<_> = images.iter().map(|(name, data)| (name.as_str(), &data[..])).collect();
        let other = folder.path().join("b.tape");
        let mut writer = Writer::create(&other, tape.metadata(), &images, Options::default())?;
        let mut entries = 0;
        for event in tape.events() {
            let mut event = event?;
            if let Event::Entry(entry) = &mut event {
                entries += 1;
                entry.outcome.inject.vector += u8::from(entries == 3);
            }
            writer.push(event);
        }
        writer.finish()?;
        let replayed = vmtape(folder.path(), &["replay", "b.tape", "--mode", "exits"])?;
        assert_eq!(replayed.status.code(), Some(1), "{backend}: {}", tail(&replayed));
        let text = String::from_utf8_lossy(&replayed.stdout);
        assert!(
            text.contains("injects") && text.contains("0x20 instead of") && text.contains("0x21"),
            "{text}"
        );
    }
    Ok(())
}

/// Such an entry may also take L2 out, for an interrupt that is L1's.
#[test]
fn an_exit_of_l2_at_an_entry_is_shown_with_l2s() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tape = record(folder.path(), "svm-npt")?;
    let mut writer = Writer::create(&folder.path().join("b.tape"), tape.metadata(), &[], Options::default())?;
    for event in tape.events() {
        let event = event?;
        let entry = matches!(event, Event::Entry(_));
        writer.push(event);
        if entry {
            let l2 = Place { level: Level::L2, ..Place::L1 };
            writer.push(Event::Note { vcpu: 0, place: l2, note: Note::NestedIntrVmexit { rip: 0x1234 } });
        }
    }
    writer.finish()?;
    let shown = vmtape(folder.path(), &["show", "b.tape", "--level", "L2"])?;
    let text = String::from_utf8_lossy(&shown.stdout);
    assert_eq!(text.matches("kvm_nested_intr_vmexit: rip: 0x0000000000001234").count(), TICKS, "{text}");
    Ok(())
}

/// A boot sector whose interval timer ticks again while the handler of the first tick runs, which masks interrupts, does not
/// leave the guest (the PIC ends interrupts by itself), and leaves for good at the third tick. At 0x7c00:
///
/// ```text
///       cli; xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7000; mov word [0x80], tick; mov [0x82], ax
///       ; PIC: edge triggered, vectors from 0x20 on, cascade, 8086 with automatic EOI, all but the timer masked
///       mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 3; out 0x21, al
///       mov al, 0xfe; out 0x21, al
///       ; PIT: channel 0, mode 2, 256
///       mov al, 0x34; out 0x43, al; xor al, al; out 0x40, al; mov al, 1; out 0x40, al; sti
/// spin: jmp spin
/// tick: mov bx, 8
/// long: xor cx, cx; loop $; dec bx; jnz long
///       inc byte [0x600]; cmp byte [0x600], 3; jae done; iret
/// done: xor al, al; out 0xf4, al
/// ```
const TICK_IN_HANDLER: &[u8] = b"\
\xfa\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x70\xc7\x06\x80\x00\x36\x7c\xa3\x82\x00\xb0\x11\xe6\x20\xb0\x20\xe6\x21\xb0\
\x04\xe6\x21\xb0\x03\xe6\x21\xb0\xfe\xe6\x21\xb0\x34\xe6\x43\x30\xc0\xe6\x40\xb0\x01\xe6\x40\xfb\xeb\xfe\xbb\x08\
\x00\x31\xc9\xe2\xfe\x4b\x75\xf9\xfe\x06\x00\x06\x80\x3e\x00\x06\x03\x73\x01\xcf\x30\xc0\xe6\xf4";

#[test]
fn a_tick_in_the_handler_of_the_one_before_comes_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut sector = TICK_IN_HANDLER.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    std::fs::write(folder.path().join("sector"), sector)?;
    for backend in vmtape_conformance::BACKENDS {
        let record = ["record", "-b", backend, "--max-insns", "20000000", "-o", "a.tape", "sector"];
        let recorded = vmtape(folder.path(), &record)?;
        anyhow::ensure!(recorded.status.success(), "{backend}: {}", tail(&recorded));
        let tape = Tape::open(&folder.path().join("a.tape"))?;
        let mut outcomes = Vec::new();
        for event in tape.events() {
            if let Event::Entry(entry) = event? {
                outcomes.push(entry.outcome);
            }
        }
        let injects_then_waits = outcomes.windows(2).any(|two| {
            let [one, next] = two else { return false };
            one.inject.vector == 0x20 && next.inject.vector == 0 && next.windows != 0
        });
        assert!(injects_then_waits, "{backend}: {outcomes:?}");
        for mode in ["exits", "run"] {
            let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
            assert_eq!(replayed.status.code(), Some(0), "{backend} {mode}: {}", tail(&replayed));
        }
    }
    Ok(())
}
