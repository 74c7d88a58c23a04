//! VMCBs near the border of validity, on every release: no panic and no hang; two recordings are the same file, and a
//! replay repeats them.

use anyhow::{Result, ensure};
use std::fs;
use vmtape_conformance::{tail, vmtape};

/// A run that gets nowhere ends by this.
const BUDGET: &str = "2000000";
const SEEDS: u32 = 3;

fn hold(backend: &str, kvm: &str, guest: &str, mode: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = |arguments: &[&str]| vmtape(folder.path(), arguments);
    for tape in ["a.tape", "b.tape"] {
        let cpu = "max,+svm";
        let record = ["record", "-q", "-b", backend, "--kvm", kvm, "--cpu", cpu, "--max-insns", BUDGET];
        let recorded = run(&[&record[..], &["-o", tape, guest]].concat())?;
        // 0: the run ended. 1: it cannot go on, as where KVM gives up. Anything else is ours.
        ensure!(matches!(recorded.status.code(), Some(0 | 1)), "{}", tail(&recorded));
    }
    ensure!(
        fs::read(folder.path().join("a.tape"))? == fs::read(folder.path().join("b.tape"))?,
        "two recordings differ"
    );
    let replayed = run(&["replay", "a.tape", "--mode", mode])?;
    ensure!(replayed.status.success(), "--mode {mode}: {}", tail(&replayed));
    Ok(())
}

fn all_hold(backend: &str, mode: &str) {
    let mut failed = Vec::new();
    for kvm in ["v5.10", "v6.1", "v6.12", "latest"] {
        for seed in 0..SEEDS {
            let npt = u32::from(backend == "svm-npt" && seed % 2 == 0);
            let guest = format!("builtin:nested-random,rounds=60,seed={seed},npt={npt}");
            if let Err(error) = hold(backend, kvm, &guest, mode) {
                failed.push(format!("{backend} {kvm} {guest}: {error:#}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn under_nested_paging() {
    all_hold("svm-npt", "run");
}

#[test]
fn under_shadow_paging() {
    all_hold("svm", "run");
}

#[test]
fn exit_by_exit() {
    all_hold("svm-npt", "exits");
}
