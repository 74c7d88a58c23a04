//! Differences that heal: what was different for a few instructions stays a difference.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

const MACHINE: [&str; 6] = ["-b", "svm-npt", "--host", "amd-48", "--cpu", "max,-pku,phys-bits=36"];
/// AMD's silicon sets an accessed bit in an entry that the guest rewrites soon, at the ninth exit.
const FIRST: u64 = 32_315;
const SIGNATURE: &str = "entry:-A@0x10a2bb";

fn record(folder: &Path, most: &str) -> Result<()> {
    let line = [&["record", "-q"], &MACHINE[..], &["--max-insns", most, "-o", "f.tape", "builtin:matrix"]];
    vmtape(folder, &line.concat())?;
    Ok(())
}

fn json(folder: &Path, line: &[&str]) -> Result<serde_json::Value> {
    let output = vmtape(folder, line)?;
    serde_json::from_slice(&output.stdout).map_err(|error| anyhow::anyhow!("{error}: {}", tail(&output)))
}

#[test]
fn a_difference_is_found_however_soon_it_heals() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // A run of another length ends its comparison elsewhere.
    for most in ["65536", "40000", "33000", "300000"] {
        record(folder.path(), most)?;
        let report = json(folder.path(), &["replay", "f.tape", "-b", "vmx", "--json"])?;
        let first = &report["divergence"];
        assert_eq!((&report["verdict"], &first["icount"]), (&"different".into(), &FIRST.into()), "{most}");
        assert_eq!(first["signature"], SIGNATURE, "{most}");
        assert_eq!(first["expected_exit"], 9, "{most}");
    }
    Ok(())
}

#[test]
fn before_it_there_is_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &FIRST.to_string())?;
    assert_eq!(json(folder.path(), &["replay", "f.tape", "-b", "vmx", "--json"])?["verdict"], "same");
    Ok(())
}

#[test]
fn a_guest_that_saw_it_does_not_move_there() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "65536")?;
    let checked = vmtape(folder.path(), &["check", "f.tape", "--to", "intel-48"])?;
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(text.contains("intel-48: UNSAFE"), "{text}");
    assert!(text.contains("amd-accessed-before-npf") && text.contains("at exit 9"), "{text}");
    Ok(())
}

#[test]
fn a_bisection_looks_for_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "65536")?;
    for (axis, found) in [("exits", "first bad: exit 9"), ("width", "first bad: host width 37")] {
        let bisected = vmtape(folder.path(), &["bisect", "f.tape", "-b", "vmx", "--axis", axis])?;
        let text = String::from_utf8_lossy(&bisected.stdout);
        assert!(text.starts_with(found), "{axis}: {text}");
    }
    Ok(())
}
