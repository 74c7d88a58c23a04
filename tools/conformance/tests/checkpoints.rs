//! Checkpoints are for whoever goes back: a verdict is the same with and without them.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

/// Exits between checkpoints; zero: none.
const EVERY: [&str; 4] = ["0", "1", "7", "100"];
const NARROW: &str = "max,-pku,phys-bits=36";

/// The verdict of a replay, with where and as what the first divergence is.
fn verdict(folder: &Path, every: &str, from: [&str; 3], to: [&str; 2], guest: &str) -> Result<[String; 4]> {
    let [backend, host, most] = from;
    let line = ["record", "-q", "-b", backend, "--host", host, "--cpu", NARROW, "--max-insns", most];
    let line = [&line[..], &["--checkpoint-every", every, "-o", "c.tape", guest]].concat();
    vmtape(folder, &line)?;
    let replayed = vmtape(folder, &["replay", "c.tape", "-b", to[0], "--host", to[1], "--json"])?;
    let report: serde_json::Value = serde_json::from_slice(&replayed.stdout)
        .map_err(|error| anyhow::anyhow!("{error}: {}", tail(&replayed)))?;
    let first = &report["divergence"];
    Ok([
        format!("{:?}", replayed.status.code()),
        first["icount"].to_string(),
        first["rip"].to_string(),
        first["signature"].to_string(),
    ])
}

fn all_equal(guests: &[&str], most: &str) -> Result<Vec<[String; 4]>> {
    const PAIRS: [([&str; 2], [&str; 2]); 4] = [
        (["vmx", "intel-52"], ["svm-npt", "amd-52"]),
        (["svm-npt", "amd-48"], ["vmx", "intel-48"]),
        (["svm", "amd-48"], ["svm-npt", "amd-48"]),
        (["vmx", "intel-52"], ["svm", "amd-52"]),
    ];
    let folder = tempfile::tempdir()?;
    let mut verdicts = Vec::new();
    for guest in guests {
        for (from, to) in PAIRS {
            let one = |every| verdict(folder.path(), every, [from[0], from[1], most], to, guest);
            let without = one(EVERY[0])?;
            for every in &EVERY[1..] {
                assert_eq!(one(every)?, without, "{guest}, {from:?} to {to:?}, every {every} exits");
            }
            verdicts.push(without);
        }
    }
    Ok(verdicts)
}

#[test]
fn checkpoints_change_no_verdict() -> Result<()> {
    let verdicts = all_equal(&["builtin:role", "builtin:illegal", "builtin:late"], "40000")?;
    assert!(verdicts.iter().any(|verdict| verdict[0] == "Some(1)"), "{verdicts:?}");
    assert!(verdicts.iter().any(|verdict| verdict[0] == "Some(0)"), "{verdicts:?}");
    Ok(())
}

#[test]
#[ignore = "takes minutes: every built-in guest, to its end"]
fn checkpoints_change_no_verdict_of_any_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listed = vmtape(folder.path(), &["guests"])?;
    let text = String::from_utf8(listed.stdout)?;
    let guests: Vec<_> = text.split_whitespace().filter(|word| word.starts_with("builtin:")).collect();
    assert!(!guests.is_empty(), "{text}");
    all_equal(&guests, "3000000")?;
    Ok(())
}
