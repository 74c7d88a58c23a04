//! Memory does not grow with a tape: it is counted, shown and compared in 300 MB, however long it is. By hand:
//! `VMTAPE_LONG_TAPE=100000000`, which takes some 2 GB of disk.

use anyhow::{Context, Result};
use std::{
    path::Path,
    process::{Command, Output},
};
use vmtape_arch::note::Note;
use vmtape_conformance::{program, tail, vmtape};
use vmtape_traces::{Event, Options, Tape, Writer, event::End};

/// Kept in memory, their exits would take twice of what there is.
const EXITS: u64 = 1_000_000;
/// Of private memory, in units of 1024 bytes.
const MOST: u64 = 300 << 10;

/// A tape that repeats the exits of another one until there are so many; what the last CPUID gives is `last`.
fn repeat(original: &Tape, path: &Path, exits: u64, last: u32) -> Result<()> {
    let mut group = Vec::new();
    for event in original.events() {
        let event = event?;
        if matches!(
            event,
            Event::Exit(_)
                | Event::Registers(_)
                | Event::Note { .. }
                | Event::Read { .. }
                | Event::Resume { .. }
        ) {
            group.push(event);
        }
    }
    let span = original.totals()?.icount;
    let mut writer = Writer::create(path, original.metadata(), &[], Options::default())?;
    let (mut written, mut round) = (0, 0);
    while written < exits {
        for event in &group {
            let mut event = event.clone();
            if let Event::Exit(exit) = &mut event {
                exit.icount += round * span;
                written += 1;
            }
            writer.push(event);
        }
        round += 1;
    }
    let (icount, mut exits) = (round * span, written);
    // One more, which is told apart.
    let cpuid = |event: &Event| matches!(event, Event::Note { note: Note::Cpuid { .. }, .. });
    let at = group.iter().position(cpuid).context("the guest executes CPUID")?;
    let first = group[..at].iter().rposition(|event| matches!(event, Event::Exit(_))).context("an exit")?;
    for event in &group[first..=at] {
        let mut event = event.clone();
        match &mut event {
            Event::Exit(exit) => (exit.icount, exits) = (icount, exits + 1),
            Event::Note { note: Note::Cpuid { eax, .. }, .. } => *eax = last,
            _ => {}
        }
        writer.push(event);
    }
    writer.push(Event::End { icount, exits, end: End::Idle { reason: String::new() } });
    writer.finish()?;
    Ok(())
}

/// Runs `vmtape` with bounded memory.
fn bounded(folder: &Path, arguments: &[&str]) -> Result<Output> {
    let limited = format!("ulimit -d {MOST} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.current_dir(folder).args(["-c", &limited]).arg(program()?).args(arguments);
    command.output().context("sh")
}

#[test]
fn memory_does_not_grow_with_a_tape() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let exits = std::env::var("VMTAPE_LONG_TAPE").map_or(Ok(EXITS), |count| count.parse())?;
    let recorded = vmtape(folder, &["record", "-q", "-b", "vmx", "-o", "short.tape", "builtin:cpuid"])?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    let original = Tape::open(&folder.join("short.tape"))?;
    repeat(&original, &folder.join("a.tape"), exits, 1)?;
    repeat(&original, &folder.join("b.tape"), exits, 2)?;
    let total = Tape::open(&folder.join("a.tape"))?.totals()?.exits;
    let (last, count) = (total - 1, total.to_string());

    let stat = bounded(folder, &["stat", "a.tape"])?;
    assert!(
        stat.status.success() && String::from_utf8_lossy(&stat.stdout).contains(&count),
        "{}",
        tail(&stat)
    );
    let shown = bounded(folder, &["show", "a.tape", "--from", &last.to_string()])?;
    let text = String::from_utf8(shown.stdout.clone())?;
    assert!(shown.status.success() && text.matches("kvm_exit:").count() == 1, "{}", tail(&shown));
    let same = bounded(folder, &["diff", "a.tape", "a.tape"])?;
    assert!(same.status.success(), "{}", tail(&same));
    let differ = bounded(folder, &["diff", "a.tape", "b.tape", "--json"])?;
    let report: serde_json::Value = serde_json::from_slice(&differ.stdout).with_context(|| tail(&differ))?;
    assert_eq!(report["divergence"]["expected_exit"], last, "{report}");
    Ok(())
}
