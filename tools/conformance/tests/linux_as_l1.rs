//! Debian's kernel as a hypervisor: each exit that it traces of its guests is one that the tape says it was given, in order.
//!
//! What the initrd must do stands in this crate's README, "Linux as a hypervisor".

use anyhow::{Context, Result, ensure};
use std::{fmt, path::Path};
use vmtape_arch::{
    exit::{Isa, reason_name},
    note::Note,
};
use vmtape_conformance::{tail, vmtape};
use vmtape_traces::{Event, Tape};

const COMMAND_LINE: &str = "console=ttyS0 nokaslr mitigations=off tsc=reliable panic=-1";
/// A kernel that is never done says so.
const MOST_INSTRUCTIONS: &str = "50000000000";

/// An exit as L1's `kvm_exit` tells it.
#[derive(PartialEq, Eq)]
struct Seen {
    reason: String,
    rip: u64,
    info: [u64; 2],
    intr_info: u64,
    error_code: u64,
}

impl Seen {
    /// `svm_get_exit_info` gives an error code only with an event that has one.
    // See: APM vol. 2, 15.20 Event Injection, EV
    fn new(reason: &str, rip: u64, info: [u64; 2], intr_info: u64, error_code: u64) -> Self {
        const HAS_ERROR_CODE: u64 = 1 << 11;
        let error_code = if intr_info & HAS_ERROR_CODE != 0 { error_code } else { 0 };
        Self { reason: reason.to_owned(), rip, info, intr_info, error_code }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, rip, info: [one, two], intr_info, error_code } = self;
        write!(
            f,
            "{reason} rip {rip:#x} info1 {one:#x} info2 {two:#x} intr_info {intr_info:#x}/{error_code:#x}"
        )
    }
}

/// The exits in L1's trace, which its console has.
fn traced(console: &str) -> Result<Vec<Seen>> {
    let exits = console.lines().filter_map(|line| line.split_once(" kvm_exit: "));
    let exit = |(_, text): (&str, &str)| {
        let word = |name| {
            let mut words = text.split_whitespace().skip_while(move |word| *word != name);
            words.nth(1).with_context(|| format!("no {name} in: {text}"))
        };
        let number =
            |name| -> Result<u64> { Ok(u64::from_str_radix(word(name)?.trim_start_matches("0x"), 16)?) };
        let info = [number("info1")?, number("info2")?];
        Ok(Seen::new(word("reason")?, number("rip")?, info, number("intr_info")?, number("error_code")?))
    };
    exits.map(exit).collect()
}

/// The exits that L1 was given by the tape.
fn given(tape: &Path) -> Result<Vec<Seen>> {
    let (mut exits, mut left_at) = (Vec::new(), 0);
    for event in Tape::open(tape)?.events() {
        let Event::Note { note, .. } = event? else { continue };
        match note {
            Note::NestedVmexit { rip, .. } | Note::NestedIntrVmexit { rip } => left_at = rip,
            Note::NestedVmexitInject { code, info1, info2, intr_info, error_code } => {
                let reason = reason_name(Isa::SVM, code).unwrap_or("UNKNOWN");
                exits.push(Seen::new(reason, left_at, [info1, info2], intr_info.into(), error_code.into()));
            }
            _ => {}
        }
    }
    Ok(exits)
}

#[test]
#[ignore = "needs Linux: VMTAPE_LINUX_L1=FOLDER with vmlinuz and initrd, as tools/conformance/README.md says"]
fn its_trace_of_its_guests_is_the_tapes() -> Result<()> {
    let linux = std::env::var("VMTAPE_LINUX_L1")
        .context("VMTAPE_LINUX_L1 names no folder with vmlinuz and initrd")?;
    let folder = tempfile::tempdir()?;
    let (kernel, initrd) = (format!("{linux}/vmlinuz"), format!("{linux}/initrd"));
    let machine = ["record", "-b", "svm-npt", "--cpu", "max,+svm", "-m", "512M", "-o", "a.tape"];
    let guest = ["-kernel", &kernel, "-initrd", &initrd, "-append", COMMAND_LINE];
    let limit = ["--max-insns", MOST_INSTRUCTIONS];
    let recorded = vmtape(folder.path(), &[&machine[..], &guest, &limit].concat())?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    let traced = traced(&String::from_utf8_lossy(&recorded.stdout))?;
    let given = given(&folder.path().join("a.tape"))?;
    ensure!(!traced.is_empty(), "the kernel traced no exit of a guest of its own: {}", tail(&recorded));
    for (n, (ours, its)) in given.iter().zip(&traced).enumerate() {
        assert_eq!(ours, its, "exit {n} of {}", traced.len());
    }
    assert_eq!(given.len(), traced.len());
    for mode in ["run", "exits"] {
        let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
        ensure!(replayed.status.success(), "--mode {mode}: {}", tail(&replayed));
    }
    Ok(())
}
