//! Registers that no event tells: a build of a backend that leaves something else in them is DIFFERENT without the guest being
//! run, and an honest one is not.

use anyhow::{Result, ensure};
use std::path::Path;
use vmtape_conformance::{BACKENDS, identity::compile, tail, vmtape};

const SAME: Option<i32> = Some(0);
const DIFFERENT: Option<i32> = Some(1);

const PLUGIN: [&str; 2] = ["--plugin", "libidentity.so"];
const RECORD: [&str; 7] = ["record", "-q", "-b", "identity", "--host", "intel-46", "-o"];
const CPUID: &str = "        cpuid(vm, state);\n";
const ENTER: &str = "    // RFLAGS.IF, and not";

fn lines(folder: &Path, parts: &[&[&str]]) -> Result<std::process::Output> {
    vmtape(folder, &parts.concat())
}

/// What a build does besides, where, and who is said to have done it.
const LIES: [(&str, &str, &str); 9] = [
    (CPUID, "state->gpr[vt_GPR_RAX] = 0;", "the handling"),
    (CPUID, "state->gpr[15] ^= 1;", "the handling"),
    (CPUID, "state->rflags ^= 1;", "the handling"),
    (CPUID, "state->lstar ^= 1;", "the handling"),
    (CPUID, "state->seg[5].base ^= 1;", "the handling"),
    (CPUID, "state->fpu.xmm[5][1] ^= 1;", "the handling"),
    (CPUID, "state->cr2 ^= 1;", "the handling"),
    (CPUID, "state->dr[1] ^= 1;", "the handling"),
    (ENTER, "state->gpr[15] ^= 1;", "the entry before it"),
];

#[test]
fn a_build_that_changes_a_register_that_no_event_tells_is_different() -> Result<()> {
    let folder = tempfile::tempdir()?;
    compile(folder.path(), "", "")?;
    let recorded = lines(folder.path(), &[&RECORD, &["a.tape", "builtin:cpuid"], &PLUGIN])?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    let replay = ["replay", "a.tape", "--mode", "exits"];
    let honest = lines(folder.path(), &[&replay, &PLUGIN])?;
    assert_eq!(honest.status.code(), SAME, "{}", tail(&honest));
    let mut failed = Vec::new();
    for (place, lie, who) in LIES {
        let (before, after) = if place == CPUID { (place, "") } else { ("", place) };
        compile(folder.path(), place, &format!("{before}        {lie}\n{after}"))?;
        let replayed = lines(folder.path(), &[&replay, &PLUGIN])?;
        let text = String::from_utf8_lossy(&replayed.stdout).into_owned();
        let named = text.contains(&format!(": {who} changes registers otherwise"));
        if replayed.status.code() != DIFFERENT || !named {
            failed.push(format!("{lie}: {}", tail(&replayed)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// The same build is the same, whatever it does, from wherever the tape tells its registers anew.
#[test]
fn an_honest_replay_is_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for guest in ["builtin:io", "builtin:matrix", "builtin:smp2", "builtin:pending"] {
        for backend in BACKENDS {
            for every in ["0", "7"] {
                let record =
                    ["record", "-q", "-b", backend, "--checkpoint-every", every, "-o", "b.tape", guest];
                lines(folder.path(), &[&record])?;
                let replayed = lines(folder.path(), &[&["replay", "b.tape", "--mode", "exits"]])?;
                assert_eq!(replayed.status.code(), SAME, "{guest} {backend} {every}: {}", tail(&replayed));
            }
        }
    }
    Ok(())
}

/// NMIs that another vCPU sends wait one at a time: each is taken by an entry that no exit comes before, and not by a later one.
#[test]
fn each_nmi_of_another_vcpu_is_taken_by_its_own_entry() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for every in ["0", "7"] {
            let record = ["record", "-b", backend, "--checkpoint-every", every, "-o", "n.tape"];
            let recorded = lines(folder.path(), &[&record, &["builtin:smp2,nmis=5"]])?;
            let text = String::from_utf8_lossy(&recorded.stdout).into_owned();
            ensure!(text.contains("NMIs that came: 5\n"), "{backend}: {}", tail(&recorded));
            let replayed = lines(folder.path(), &[&["replay", "n.tape", "--mode", "exits"]])?;
            assert_eq!(replayed.status.code(), SAME, "{backend} {every}: {}", tail(&replayed));
        }
    }
    Ok(())
}
