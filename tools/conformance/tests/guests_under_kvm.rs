//! The built-in guests under the real kvm_amd (traces/recordings/npt1-guests, npt0-guests): our tapes of the same guests say
//! the same exit by exit, and the guests print the same.

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use std::{fs, io::Read, path::Path};
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

/// A recording whose guest printed one character more: all the rest is found to be the same.
#[test]
fn a_guest_that_prints_something_else_is_compared_to_its_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = |arguments: &[&str]| vmtape(folder.path(), arguments);
    let recording =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/npt1-guests/hello/trace.txt.gz");
    let mut text = String::new();
    GzDecoder::new(fs::File::open(&recording)?).read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    let exits: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains(" kvm_exit: ")).collect();
    let printed: Vec<&[usize]> =
        exits.windows(2).filter(|pair| lines[pair[0] + 1].contains("pio_write at 0x3f8 ")).collect();
    let more = printed[3];
    let edited = [&lines[..more[1]], &lines[more[0]..]].concat().join("\n");
    fs::write(folder.path().join("edited.txt"), edited)?;
    run(&["import", "-o", "real.tape", "edited.txt"])?;
    let record = ["record", "-b", "svm-npt", "-o", "ours.tape", "builtin:hello"];
    run(&[&record[..], &MACHINE].concat())?;
    let compared = run(&["diff", "--json", "real.tape", "ours.tape"])?;
    assert_eq!(compared.status.code(), Some(1), "{}", tail(&compared));
    let report: serde_json::Value = serde_json::from_slice(&compared.stdout)?;
    let alignment = &report["alignment"];
    ensure!(alignment["count"] == serde_json::json!({"output": 1}), "{alignment}");
    ensure!((&alignment["expected"], &alignment["actual"]) == (&1.into(), &0.into()), "{alignment}");
    ensure!(alignment["lost"] == false && alignment["equal"].as_u64() > Some(30), "{alignment}");
    Ok(())
}

/// What a recorded guest was told not to be there is in no table that is laid over it.
#[test]
fn leaves_that_were_not_found_stay_absent() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let exit = "vcpu 0 reason CPUID rip 0x10 info1 0x0000000000000000 info2 0x0000000000000000 intr_info 0x00000000 \
                error_code 0x00000000";
    let cpuid = |function, rest| format!("func {function} idx 0 rax {rest}");
    let mut text = String::new();
    for (at, cpuid) in [
        cpuid("0", "d rbx 756e6547 rcx 6c65746e rdx 49656e69, cpuid entry found"),
        cpuid("7", "0 rbx 0 rcx 0 rdx 0, cpuid entry not found"),
    ]
    .iter()
    .enumerate()
    {
        text += &format!(" CPU 0/KVM-7 [002] d..1. 1.00{at}001: kvm_exit: {exit}\n");
        text += &format!(" CPU 0/KVM-7 [002] ..... 1.00{at}002: kvm_cpuid: {cpuid}\n");
        text += &format!(" CPU 0/KVM-7 [002] d..1. 1.00{at}003: kvm_entry: vcpu 0, rip 0x12\n");
    }
    fs::write(folder.path().join("trace.txt"), text)?;
    for line in [
        &["import", "-o", "real.tape", "trace.txt"][..],
        &["record", "-q", "-b", "vmx", "--cpu", "tape:real.tape", "-o", "ours.tape", "builtin:hello"],
        &["export", "--format", "jsonl", "-o", "ours.jsonl", "ours.tape"],
    ] {
        let output = vmtape(folder.path(), line)?;
        ensure!(output.status.success(), "{line:?}: {}", tail(&output));
    }
    let text = fs::read_to_string(folder.path().join("ours.jsonl"))?;
    let head: serde_json::Value = serde_json::from_str(text.lines().next().context("a line")?)?;
    let table = head["metadata"]["cpuid"].as_array().context("a table")?;
    let has = |function: &str| table.iter().any(|entry| entry["function"] == function);
    ensure!(has("0x0") && has("0x1") && !has("0x7"), "{table:?}");
    Ok(())
}
