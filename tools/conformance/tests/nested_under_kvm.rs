//! The built-in hypervisors under the real kvm_amd (traces/recordings/npt1-nested, npt0-nested, npt1-nested-6.1, and -smm): ours see
//! the same exits of their guests and print the same, and our tapes say the same exit by exit.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path};
use vmtape_conformance::{tail, vmtape};

/// The processor and the VMM under the recordings. Guests have the CPUID that they saw there; what they did
/// not look at is not on the recording, so that a narrow one gets its width by name.
const MACHINE: [&str; 6] = ["--host", "amd-48-qemu", "--layout", "mvmm", "-m", "256M"];

/// A recording's folder, and the guest.
type Guest = (&'static str, &'static str);

/// With nested paging of their own.
const NESTED_PAGING: [Guest; 16] = [
    ("nested-exits", "nested-exits,part=instructions"),
    ("nested-events", "nested-exits,part=events"),
    ("nested-checks", "nested-exits,part=checks"),
    ("nested-npf", "nested-npf"),
    ("nested-npf-smep", "nested-npf,nx=0,smep=1"),
    ("nested-npf-guest-nx", "nested-npf,guest-nx=0"),
    ("nested-pat", "nested-pat,rounds=2"),
    ("nested-touch", "nested-touch"),
    ("nested-touch-ngpa", "nested-touch,ngpa=0xfee00030"),
    ("nested-touch-wide", "nested-touch,pte=0x1002000001"),
    ("nested-touch-width", "nested-touch,width=32,gpa=0x100000000"),
    ("nested-touch-width-user", "nested-touch,width=32,gpa=0x100000000,access=write,cpl=3"),
    ("nested-touch-pb36", "nested-touch"),
    ("nested-touch-wide-pb36", "nested-touch,pte=0x1002000001"),
    ("nested-touch-npte-pb36", "nested-touch,npte=0x1002000007"),
    ("nested-touch-width-pb36", "nested-touch,width=32,gpa=0x100000000"),
];

/// Without: their guests run on tables that the host shadows, or maps as it maps theirs.
const NO_NESTED_PAGING: [Guest; 7] = [
    ("nested-exits-np0", "nested-exits,part=instructions,npt=0"),
    ("nested-events-np0", "nested-exits,part=events,npt=0"),
    ("nested-checks-np0", "nested-exits,part=checks,npt=0"),
    ("nested-pat-np0", "nested-pat,npt=0,rounds=2"),
    ("nested-touch-np0", "nested-touch,npt=0"),
    ("nested-touch-np0-wide", "nested-touch,npt=0,pte=0x1002000001"),
    ("nested-touch-np0-wide-pb36", "nested-touch,npt=0,pte=0x1002000001"),
];

const SHADOW: [Guest; 1] = [("nested-touch-np0-pb36", "nested-touch,npt=0")];

const OLDER: [Guest; 4] = [
    ("nested-events", "nested-exits,part=events"),
    ("nested-npf", "nested-npf"),
    ("nested-pat", "nested-pat,rounds=2"),
    ("nested-touch", "nested-touch"),
];

const RECORDED: &str = "tape:real.tape";
const NARROW: &str = "max,+svm,phys-bits=36";

/// Lines that tell of QEMU, the silicon under the recordings: it looks at VMRUN's address before the intercept, does not
/// intercept reads of CR4, tells no segment of string I/O, and the event that it was delivering at a triple fault is the
/// first one.
const OF_QEMU: [&str; 5] = [
    "vmrun, address not aligned:",
    "vmload, address not aligned:",
    "mov from cr4:",
    "rep outsb:",
    "#GP injected, no idt, no intercept:",
];

/// How much of a recording must be the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// What the guest prints: the exits of its guest among it.
    Printed,
    /// And every exit on the tape.
    Exits,
}

fn compare(folder: &Path, backend: &str, kvm: &str, (recording, guest): Guest, scope: Scope) -> Result<()> {
    let directory = tempfile::tempdir()?;
    // INIT, which comes last, leaves a machine without firmware in nowhere.
    let has_init = recording.starts_with("nested-signals");
    let run = |arguments: &[&str]| -> Result<String> {
        let output = vmtape(directory.path(), arguments)?;
        let lost = has_init && arguments[0] == "record";
        ensure!(output.status.success() != lost, "{arguments:?}: {}", tail(&output));
        Ok(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
    };
    let trace = folder.join(recording).join("trace.txt.gz");
    run(&["import", "-o", "real.tape", &trace.to_string_lossy()])?;
    let image = format!("builtin:{guest}");
    let cpu = if recording.ends_with("-pb36") { NARROW } else { RECORDED };
    let record = ["record", "-b", backend, "--kvm", kvm, "--cpu", cpu, "-o", "ours.tape", &image];
    let printed = run(&[&record[..], &MACHINE].concat())?;
    let recorded = fs::read_to_string(folder.join(recording).join("serial.txt"))?.replace('\r', "");
    ensure!(printed.lines().count() == recorded.lines().count(), "printed\n{printed}\nrecorded\n{recorded}");
    for (ours, real) in printed.lines().zip(recorded.lines()) {
        let of_qemu = OF_QEMU.iter().any(|start| real.starts_with(start) && ours.starts_with(start));
        ensure!(ours == real || of_qemu, "ours: {ours}\nreal: {real}");
    }
    if scope == Scope::Exits {
        let verdict = run(&["diff", "real.tape", "ours.tape"])?;
        ensure!(verdict.contains("SAME:"), "{verdict}");
    }
    Ok(())
}

fn compare_all(kind: &str, backend: &str, kvm: &str, guests: &[Guest], scope: Scope) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings").join(kind);
    let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    let compare = |guest: &Guest| compare(&folder, backend, kvm, *guest, scope);
    let failed: Vec<_> = guests
        .iter()
        .filter_map(|guest| compare(guest).err().map(|error| format!("{}: {error:#}", guest.0)))
        .collect();
    assert!(failed.is_empty(), "{kind}: {} of {} differ\n{}", failed.len(), guests.len(), failed.join("\n"));
    Ok(())
}

#[test]
fn nested_paging() -> Result<()> {
    compare_all("npt1-nested", "svm-npt", "v6.12", &NESTED_PAGING, Scope::Printed)
}

#[test]
fn no_nested_paging() -> Result<()> {
    compare_all("npt1-nested", "svm-npt", "v6.12", &NO_NESTED_PAGING, Scope::Printed)
}

#[test]
fn shadow_paging() -> Result<()> {
    let guests = [&NO_NESTED_PAGING[..], &SHADOW[..]].concat();
    compare_all("npt0-nested", "svm", "v6.12", &guests, Scope::Printed)
}

#[test]
fn an_older_kvm() -> Result<()> {
    compare_all("npt1-nested-6.1", "svm-npt", "v6.1", &OLDER, Scope::Printed)
}

/// Whose every exit is told by the recording as ours is.
const SAME_EXITS: [Guest; 12] = [
    ("nested-npf", "nested-npf"),
    ("nested-npf-smep", "nested-npf,nx=0,smep=1"),
    ("nested-npf-guest-nx", "nested-npf,guest-nx=0"),
    ("nested-pat", "nested-pat,rounds=2"),
    ("nested-pat-np0", "nested-pat,npt=0,rounds=2"),
    ("nested-touch", "nested-touch"),
    ("nested-touch-ngpa", "nested-touch,ngpa=0xfee00030"),
    ("nested-touch-wide", "nested-touch,pte=0x1002000001"),
    ("nested-touch-width", "nested-touch,width=32,gpa=0x100000000"),
    ("nested-touch-width-user", "nested-touch,width=32,gpa=0x100000000,access=write,cpl=3"),
    ("nested-touch-np0", "nested-touch,npt=0"),
    ("nested-touch-np0-wide", "nested-touch,npt=0,pte=0x1002000001"),
];

#[test]
fn exit_by_exit() -> Result<()> {
    compare_all("npt1-nested", "svm-npt", "v6.12", &SAME_EXITS, Scope::Exits)
}

#[test]
fn exit_by_exit_under_shadow_paging() -> Result<()> {
    let guests = [
        ("nested-events-np0", "nested-exits,part=events,npt=0"),
        ("nested-pat-np0", "nested-pat,npt=0,rounds=2"),
        ("nested-touch-np0", "nested-touch,npt=0"),
        ("nested-touch-np0-wide", "nested-touch,npt=0,pte=0x1002000001"),
    ];
    compare_all("npt0-nested", "svm", "v6.12", &guests, Scope::Exits)
}

#[test]
fn exit_by_exit_under_an_older_kvm() -> Result<()> {
    let guests =
        OLDER.into_iter().filter(|(name, _)| ["nested-npf", "nested-pat", "nested-touch"].contains(name));
    compare_all("npt1-nested-6.1", "svm-npt", "v6.1", &guests.collect::<Vec<_>>(), Scope::Exits)
}

/// SMIs, in a guest and in its guest, and other signals: exit by exit.
#[test]
fn system_management_mode() -> Result<()> {
    let guests = [
        ("smm", "smm"),
        ("nested-smm", "nested-exits,part=smm"),
        ("nested-signals", "nested-exits,part=signals"),
        ("nested-smm-np0", "nested-exits,part=smm,npt=0"),
        ("nested-signals-np0", "nested-exits,part=signals,npt=0"),
    ];
    compare_all("npt1-smm", "svm-npt", "v6.12", &guests, Scope::Exits)?;
    compare_all("npt0-smm", "svm", "v6.12", &[guests[0], guests[3], guests[4]], Scope::Exits)?;
    compare_all("npt1-smm-6.1", "svm-npt", "v6.1", &guests[..4], Scope::Exits)
}

/// Two kernels, one difference. With
/// V_INTR_MASKING and no intercept of VINTR, an interrupt window of kernel 6.1 reaches the guest's guest as vector 0.
#[test]
fn the_two_kernels_differ_where_their_sources_do() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings");
    let read = |kind: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(folder.join(kind).join("nested-events/serial.txt"))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let (newer, older) = (read("npt1-nested")?, read("npt1-nested-6.1")?);
    assert_eq!(newer.len(), older.len());
    let differ: Vec<_> = newer.iter().zip(&older).filter(|(newer, older)| newer != older).collect();
    assert_eq!(differ.len(), 1, "{differ:?}");
    assert!(differ[0].0.starts_with("interrupt masked by the hypervisor: exit 0x81"), "{differ:?}");
    assert!(differ[0].1.contains("guest vector 0x0"), "{differ:?}");
    Ok(())
}
