//! Differences that heal: what was different for a few instructions stays a difference.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

const NARROW: &str = "max,-pku,phys-bits=36";
const MACHINE: [&str; 6] = ["-b", "svm-npt", "--host", "amd-48", "--cpu", NARROW];
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

/// Pairs of backend and host of one width, which silicon does not make equal.
const PAIRS: [[[&str; 2]; 2]; 4] = [
    [["svm-npt", "amd-48"], ["vmx", "intel-48"]],
    [["vmx", "intel-48"], ["svm-npt", "amd-48"]],
    [["vmx", "intel-48"], ["svm", "amd-48"]],
    [["svm", "amd-48"], ["vmx,ept=off", "intel-48"]],
];
const MOST: u64 = 600_000;

/// Records a guest for so many instructions and replays it.
fn replay(folder: &Path, [from, to]: [[&str; 2]; 2], guest: &str, most: u64) -> Result<serde_json::Value> {
    let most = most.to_string();
    let line = ["record", "-q", "--cpu", NARROW, "-b", from[0], "--host", from[1], "--max-insns", &most];
    vmtape(folder, &[&line[..], &["-o", "p.tape", guest]].concat())?;
    json(folder, &["replay", "p.tape", "-b", to[0], "--host", to[1], "--json"])
}

/// The first divergence is the first: a run that ends before it is the same, one instruction later it is not.
fn first_is_first(guests: &[&str]) -> Result<u32> {
    let folder = tempfile::tempdir()?;
    let mut found = 0;
    for guest in guests {
        for pair in PAIRS {
            let whole = replay(folder.path(), pair, guest, MOST)?;
            let Some(at) = whole["divergence"]["icount"].as_u64() else { continue };
            let (before, after) =
                (replay(folder.path(), pair, guest, at)?, replay(folder.path(), pair, guest, at + 1)?);
            assert_ne!(before["verdict"], "different", "{guest}, {pair:?}, {at} instructions: {before}");
            let [expected, actual] = [&whole, &after].map(|report| &report["divergence"]);
            assert_eq!(
                (&actual["icount"], &actual["signature"]),
                (&expected["icount"], &expected["signature"]),
                "{guest}, {pair:?}"
            );
            found += 1;
        }
    }
    Ok(found)
}

#[test]
fn the_first_divergence_does_not_depend_on_where_a_comparison_stops() -> Result<()> {
    assert!(first_is_first(&["builtin:matrix", "builtin:bar", "builtin:illegal"])? > 3);
    Ok(())
}

#[test]
#[ignore = "takes minutes: every built-in guest"]
fn nor_does_that_of_any_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listed = String::from_utf8(vmtape(folder.path(), &["guests"])?.stdout)?;
    let names = listed
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next());
    let guests: Vec<_> = names.map(|name| format!("builtin:{name}")).collect();
    assert!(guests.len() > 10, "{listed}");
    first_is_first(&guests.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(())
}
