//! What a VMM does while its guest runs is part of the tape; milestones hold tapes of different backends together.

use anyhow::{Context, Result};
use std::path::Path;
use vmtape_conformance::{BACKENDS, tail, vmtape};
use vmtape_traces::{Event, Tape, event::Control};

/// Every kind of ioctl, at every kind of moment. Linux 5.10 takes a changed CPUID after KVM_RUN.
const SCRIPT: &[&str] = &[
    "--kvm=v5.10",
    "--set-cpuid=start,phys-bits=40",
    "--set-cpuid=exit=130,phys-bits=36",
    "--set-cpuid=insn=20000,same",
    "--memory-region=gpa=0x1000000000,size=2M,exit=20",
    "--memory-region=gpa=0x1000000000,size=0,slot=1,exit=100",
    "--memory-region=gpa=0x1000000000,size=1M,slot=1,exit=110",
    "--set-msr=0x277=0x0606060606060606,exit=60",
    "--get-msr=0x277,exit=61",
    "--get-cpuid=exit=300",
    "--get-supported-cpuid=exit=300",
    "--check-extension=185,exit=300",
    "--query=last-vmentry-cpu,exit=300",
];

fn record(folder: &Path, tape: &str, backend: &str, more: &[&str]) -> Result<Tape> {
    let line = ["record", "-q", "-o", tape, "-b", backend, "builtin:matrix"];
    let recorded = vmtape(folder, &[&line, more].concat())?;
    assert!(recorded.status.success(), "{backend}: {}", tail(&recorded));
    Ok(Tape::open_whole(&folder.join(tape))?)
}

fn replays(folder: &Path, tape: &str, more: &[&str]) -> Result<()> {
    let replayed = vmtape(folder, &[&["replay", tape], more].concat())?;
    assert!(replayed.status.success(), "{more:?}: {}", tail(&replayed));
    Ok(())
}

#[test]
fn a_script_is_on_the_tape_and_replays_in_every_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        let name = format!("{backend}.tape");
        let script = [SCRIPT, &["--checkpoint-every", "40"]].concat();
        let tape = record(folder.path(), &name, backend, &script)?;
        let mut controls = Vec::new();
        for event in tape.events() {
            if let Event::Control { control, .. } = event? {
                controls.push(control);
            }
        }
        assert_eq!(controls.len(), SCRIPT.len() - 1, "{backend}");
        let pat = |control: &Control| matches!(control, Control::GetMsr { data: 0x0606_0606_0606_0606, .. });
        assert!(controls.iter().any(pat), "{backend}");
        replays(folder.path(), &name, &[])?;
        replays(folder.path(), &name, &["--mode", "exits"])?;
        // Before, between and after the changes of slots and CPUID.
        for exit in ["90", "105", "125", "200"] {
            replays(folder.path(), &name, &["--from", exit])?;
        }
    }
    Ok(())
}

#[test]
fn milestones_are_the_same_under_every_backend_that_treats_the_guest_alike() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guest = ["--cpu", "qemu64,phys-bits=36,vendor=GenuineIntel", "--milestone-every", "10000"];
    let record = |tape: &str, backend: &str, host: &str| {
        record(folder.path(), tape, backend, &[&guest[..], &["--host", host]].concat())
    };
    let emulated = record("vmx.tape", "vmx,allow_smaller_maxphyaddr=on", "intel-46")?;
    let shadow = record("svm.tape", "svm", "amd-46")?;
    let nested = record("svm-npt.tape", "svm-npt", "amd-46")?;
    let last = emulated.milestones().last().copied().context("a run of more than 10000 instructions")?;
    assert_eq!(emulated.alike_until(&shadow), (Some(last), None));
    let (alike, differs) = emulated.alike_until(&nested);
    let (alike, differs) = (alike.context("the same boot")?, differs.context("AMD's accessed bit")?);
    assert_eq!(differs.icount - alike.icount, 10_000);
    Ok(())
}
