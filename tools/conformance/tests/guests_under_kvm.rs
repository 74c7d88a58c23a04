//! The built-in guests under the real kvm_amd (traces/recordings/npt1-guests, npt0-guests): our tapes of the same guests say
//! the same exit by exit, and the guests print the same.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};
use vmtape_conformance::{tail, vmtape};

/// The processor and the VMM under the recordings.
const MACHINE: [&str; 6] = ["--host", "amd-48-qemu", "--layout", "mvmm", "-m", "256M"];

/// A guest that asks for its CPUID has all that it saw of it in the recording.
const RECORDED: &str = "tape:real.tape";
const WIDE: &str = "max";
const NARROW: &str = "max,phys-bits=36";

/// A recording's folder, the guest, and its CPU.
type Guest = (&'static str, &'static str, &'static str);

const GUESTS: [Guest; 17] = [
    ("hello", "hello", WIDE),
    ("cpuid", "cpuid", RECORDED),
    ("bar", "bar,size=0x40000000", RECORDED),
    ("bar-pb36", "bar,size=0x40000000", RECORDED),
    ("legacy", "legacy", WIDE),
    ("illegal", "illegal", RECORDED),
    ("illegal-pb36", "illegal", RECORDED),
    ("late", "late,before=20,rounds=50", RECORDED),
    ("late-pb36", "late,before=20,rounds=50", RECORDED),
    ("matrix", "matrix", RECORDED),
    ("touch-leaf", "touch,pte=0x1002000001", WIDE),
    ("touch-mmio", "touch,gpa=0x100000000", WIDE),
    ("touch-leaf-pb36", "touch,pte=0x1002000001", NARROW),
    ("touch-leaf-write-pb36", "touch,pte=0x1002000001,access=write", NARROW),
    ("touch-leaf-fetch-pb36", "touch,pte=0x1002000001,access=fetch", NARROW),
    ("touch-table-pb36", "touch,pde=0x1002102001", NARROW),
    ("touch-large-pb36", "touch,pse=1,pde=0x2002087", NARROW),
];

/// Under nested paging an address beyond the guest's width exits, so that every such case of the matrix is an exit.
const NESTED: Guest = ("matrix-pb36", "matrix", RECORDED);

/// INT from CPL 3, which shadow paging interrupts nowhere.
const SHADOW: [Guest; 2] = [
    ("touch-leaf-user-pb36", "touch,pte=0x1002000007,access=write,cpl=3", NARROW),
    ("touch-protection-pb36", "touch,access=write,cpl=3,times=2", NARROW),
];

/// Compares one recording with a run of ours. The error says what differs.
fn compare(folder: &Path, backend: &str, (recording, guest, cpu): Guest) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> Result<String> {
        let output = vmtape(directory.path(), arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}", tail(&output));
        Ok(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
    };
    let trace = folder.join(recording).join("trace.txt.gz");
    run(&["import", "-o", "real.tape", &trace.to_string_lossy()])?;
    let image = format!("builtin:{guest}");
    let record = ["record", "-b", backend, "--cpu", cpu, "-o", "ours.tape", &image];
    let printed = run(&[&record[..], &MACHINE].concat())?;
    let recorded = fs::read_to_string(folder.join(recording).join("serial.txt"))?.replace('\r', "");
    ensure!(as_allowed(&printed) == as_allowed(&recorded), "printed\n{printed}\nrecorded\n{recorded}");
    let verdict = run(&["diff", "real.tape", "ours.tape"])?;
    ensure!(verdict.contains("SAME:"), "{verdict}");
    Ok(())
}

/// A touch's line without the accessed bit of the entry above the leaf: when it is set, where the access goes no further,
/// is QEMU's model of AMD's silicon and not KVM's doing.
fn as_allowed(text: &str) -> Vec<String> {
    let line = |line: &str| match line.strip_prefix("touch: ").and_then(|touch| touch.rsplit_once("0x")) {
        Some((before, entry)) => {
            let entry = u64::from_str_radix(entry, 16).map(|entry| format!("{:#x}", entry & !ACCESSED));
            format!("{before}{}", entry.as_deref().unwrap_or(line))
        }
        None => line.to_owned(),
    };
    text.lines().map(line).collect()
}

// See: APM vol. 2 5.4.1 Field Definitions
const ACCESSED: u64 = 1 << 5;

fn compare_all(kind: &str, backend: &str, guests: impl Iterator<Item = Guest>) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings").join(kind);
    let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    let failed: Vec<_> = guests
        .filter_map(|guest| compare(&folder, backend, guest).err().map(|e| format!("{}: {e:#}", guest.0)))
        .collect();
    assert!(failed.is_empty(), "{kind}:\n{}", failed.join("\n"));
    Ok(())
}

#[test]
fn nested_paging() -> Result<()> {
    compare_all("npt1-guests", "svm-npt", GUESTS.into_iter().chain([NESTED]))
}

#[test]
fn shadow_paging() -> Result<()> {
    compare_all("npt0-guests", "svm", GUESTS.into_iter().chain(SHADOW))
}

/// The comparison must be able to fail: a guest of another width differs where the recorded one was injected a fault.
#[test]
fn another_width_differs() -> Result<()> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/npt0-guests").canonicalize()?;
    let wide = ("touch-leaf-pb36", "touch,pte=0x1002000001", WIDE);
    let error = compare(&folder, "svm", wide).expect_err("the guests have other widths");
    assert!(error.to_string().starts_with("printed"), "{error:#}");
    Ok(())
}
