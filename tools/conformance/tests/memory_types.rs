//! Memory types are outcomes: who decides how an access is cached, and what another host makes of it.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

/// The page that is touched is uncacheable by the guest's own entry: PCD and PWT select entry 3 of the PAT after reset.
const TOUCH: &str = "builtin:touch,pte=0x200001f";
const AMD: [&str; 4] = ["-b", "svm-npt", "--host", "amd-48"];

fn record(folder: &Path, machine: &[&str]) -> Result<()> {
    vmtape(folder, &[&["record", "-q"], machine, &["-o", "t.tape", TOUCH]].concat())?;
    Ok(())
}

fn replay(folder: &Path, line: &[&str]) -> Result<serde_json::Value> {
    let output = vmtape(folder, &[&["replay", "t.tape", "--json"], line].concat())?;
    serde_json::from_slice(&output.stdout).map_err(|error| anyhow::anyhow!("{error}: {}", tail(&output)))
}

/// NPT gives the guest's PAT a say, EPT without non-coherent DMA does not.
#[test]
fn a_type_that_the_other_host_ignores() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &AMD)?;
    let shown = vmtape(folder.path(), &["show", "t.tape"])?;
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("memory_type") && shown.contains("UC at"), "{shown}");
    assert_eq!(replay(folder.path(), &[])?["verdict"], "same");

    let report = replay(folder.path(), &["-b", "vmx", "--host", "intel-48"])?;
    let divergence = &report["divergence"];
    let signature = divergence["signature"].as_str().unwrap_or_default();
    assert!(signature.starts_with("memory-type:UC>WB@"), "{report}");
    let summary = divergence["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("was accessed as UC and is WB"), "{report}");
    assert!(summary.contains("the guest's tables and PAT say UC"), "{report}");

    let assigned = ["-b", "vmx,noncoherent_dma=on", "--host", "intel-48"];
    assert_eq!(replay(folder.path(), &assigned)?["verdict"], "same");
    Ok(())
}

/// KVM up to 6.10 took the types of EPT entries from the guest's MTRRs, which this guest never enables.
#[test]
fn guest_mtrrs_count_up_to_6_10() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx,noncoherent_dma=on", "--host", "intel-48", "--kvm", "v6.1"])?;
    let report = replay(folder.path(), &["--kvm", "v6.12"])?;
    let signature = report["divergence"]["signature"].as_str().unwrap_or_default();
    assert!(signature.starts_with("memory-type:UC>WB@"), "{report}");
    Ok(())
}

/// Two tapes of one guest are equal, types and all; a guest in which everything is write-back has none on its tape.
#[test]
fn write_back_is_not_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = [&["record", "-q"], &AMD[..], &["-o", "w.tape", "builtin:touch"]].concat();
    vmtape(folder.path(), &line)?;
    let shown = vmtape(folder.path(), &["show", "w.tape"])?;
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(!shown.contains("memory_type"), "{shown}");
    Ok(())
}
