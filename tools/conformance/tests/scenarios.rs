//! The scenarios: all of them hold, and one that does not hold is seen.

use anyhow::{Context, Result};
use std::{fs, path::Path};
use vmtape_conformance::{skipped, tail, vmtape};

#[test]
fn every_scenario_is_as_expected() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = vmtape(folder.path(), &["scenarios", "--junit", "scenarios.xml"])?;
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", tail(&output));
    shown.lines().filter_map(|line| line.strip_prefix("SKIPPED ")).for_each(skipped);
    let junit = fs::read_to_string(folder.path().join("scenarios.xml"))?;
    assert!(junit.contains("<testsuite ") && !junit.contains("<failure"), "{junit}");
    Ok(())
}

/// Each subject has rows, each row names its source, and each runs on all three backends or says for which it is.
#[test]
fn the_list_covers_every_subject() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = vmtape(folder.path(), &["scenarios", "--list", "--json"])?;
    let list: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let rows = list["scenarios"].as_array().context("a list of scenarios")?;
    for history in [
        "smaller-maxphyaddr",
        "guest-width",
        "ept-5level",
        "cpuid-after-run",
        "nested-pat",
        "nested-svm",
        "fleet",
        "dirty-logging",
        "crash",
    ] {
        assert!(rows.iter().any(|row| row["history"] == history), "no scenario about {history}");
    }
    for row in rows {
        assert!(row["source"].as_str().is_some_and(|source| !source.is_empty()), "{row}");
    }
    Ok(())
}

/// What changed in nested SVM has a row, or a reason at the head of the file.
#[test]
fn every_change_of_nested_svm_is_accounted_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = vmtape(folder.path(), &["backends", "--patches", "svm-npt"])?;
    let shown = String::from_utf8(output.stdout)?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmtape/scenarios/nested_svm.toml");
    let rows = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let names = shown.lines().filter_map(|line| line.split_once(" (")).map(|(name, _)| name);
    let nested: Vec<_> =
        names.filter(|name| name.starts_with("nested-") || name.starts_with("vmrun-")).collect();
    assert!(nested.len() > 40, "{shown}");
    let missing: Vec<_> = nested.into_iter().filter(|name| !rows.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    Ok(())
}

#[test]
fn a_deviation_is_seen_in_every_form() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = "history = 'mine'
[[scenario]]
name = 'hello'
text = 'the guest says something else'
source = 'nobody'
command = 'record -b {backend} builtin:hello'
[scenario.expect]
vmx = ['out: good-bye']
svm = ['no event: kvm_exit']
";
    fs::write(folder.path().join("mine.toml"), file)?;
    let output = vmtape(folder.path(), &["scenarios", "mine.toml", "--json", "--junit", "mine.xml"])?;
    assert_eq!(output.status.code(), Some(1), "{}", tail(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["totals"]["deviating"], 2, "{report}");
    assert!(
        report["outcomes"][0]["commands"][0].as_str().is_some_and(|text| text.starts_with("vmtape record"))
    );
    assert!(fs::read_to_string(folder.path().join("mine.xml"))?.contains("failures=\"2\""));
    let usage = vmtape(folder.path(), &["scenarios", "--name", "no such row"])?;
    assert_eq!(usage.status.code(), Some(2), "{}", tail(&usage));
    fs::write(folder.path().join("broken.toml"), "history = 3")?;
    let broken = vmtape(folder.path(), &["scenarios", "broken.toml"])?;
    assert_eq!(broken.status.code(), Some(125), "{}", tail(&broken));
    Ok(())
}
