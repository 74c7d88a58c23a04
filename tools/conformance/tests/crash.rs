//! A host that crashes at every moment of its work, against what the history of KVM's crash path says of each.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use vmtape_conformance::{tail, vmtape};

/// Every moment under a profile.
fn crashes(backend: &str, kvm: &str) -> Result<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let output = vmtape(folder.path(), &["host", "crash", "-b", backend, "--kvm", kvm, "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| tail(&output))?;
    let crashes = report["profiles"][0]["crashes"].as_array().context("moments")?.clone();
    let clean = crashes.iter().all(is_clean);
    assert_eq!(output.status.code(), Some(if clean { 0 } else { 1 }), "{backend} {kvm}");
    Ok(crashes)
}

fn is_clean(crash: &Value) -> bool {
    let empty = |key: &str| crash[key].as_array().is_some_and(Vec::is_empty);
    let nothing = ["active", "overwritten", "virtualizing", "deaf"].into_iter().all(empty);
    nothing && crash["next_kernel"] == true
}

/// Where the crash comes, as the kernel says.
fn at(crash: &Value) -> &str {
    let first = if crash["moment"] == 0 { None } else { crash["log"][0].as_str() };
    first.unwrap_or("after it")
}

/// The vCPUs whose VMCSs are active, and those whose shadow VMCSs are.
fn active(crash: &Value) -> [BTreeSet<u64>; 2] {
    let of = |shadow: bool| {
        let vmcss = crash["active"].as_array().into_iter().flatten();
        vmcss.filter(|vmcs| vmcs["shadow"] == shadow).filter_map(|vmcs| vmcs["vcpu"].as_u64()).collect()
    };
    [of(false), of(true)]
}

/// The vCPU that a work is about.
fn moved(crash: &Value) -> Option<u64> {
    crash["work"]["move"].as_u64()
}

/// The gate is shut while CPU 0's list changes, and whatever is active there stays so.
// See: KVM 5.6 vmx/vmx.c vmx_vcpu_load_vmcs(), __loaded_vmcs_clear(), crash_vmclear_local_loaded_vmcss()
fn behind_the_gate(crash: &Value) -> BTreeSet<u64> {
    let (at, list) = (at(crash), crash["list"].as_u64().expect("a number"));
    let changes = ["list_add()", "list_del()", "VMCLEAR"].iter().any(|place| at.contains(place));
    if !at.starts_with("CPU 0") || !changes {
        return BTreeSet::new();
    }
    let cleared = at.contains("after VMCLEAR");
    if crash["work"] == "disable" {
        // The newest goes first: which one it is at, the kernel does not say; it has fewer and fewer.
        return (0..list).collect();
    }
    (0..list).filter(|vcpu| !(cleared && moved(crash) == Some(*vcpu))).collect()
}

#[test]
fn every_moment_under_the_gate() -> Result<()> {
    let crashes = crashes("vmx", "v5.6")?;
    assert!(crashes.len() > 200, "{}", crashes.len());
    let mut bad = 0;
    for crash in &crashes {
        let [left, shadows] = active(crash);
        let expected = behind_the_gate(crash);
        if crash["work"] == "disable" {
            assert!(left.is_subset(&expected), "{crash}");
        } else {
            assert_eq!(left, expected, "{crash}");
        }
        assert_eq!(shadows.len(), 0);
        let pages = crash["overwritten"].as_array().context("pages")?;
        assert_eq!(pages.len(), left.len(), "what is active is written back: {crash}");
        assert!(pages.iter().all(|page| page["bytes"] == 4096), "{crash}");
        bad += usize::from(!left.is_empty());
    }
    assert!(bad > 50, "{bad}");
    Ok(())
}

/// See: commits 31603d4fc2bb, dbef2808af6c, aec511ad1535
#[test]
fn since_then_no_moment_leaves_a_vmcs_active() -> Result<()> {
    for kvm in ["v5.7", "v5.10", "v6.1", "v6.6", "v6.12", "v7.2", "v5.7,-crash-list-heads-set"] {
        for crash in crashes("vmx", kvm)? {
            assert_eq!(active(&crash), [BTreeSet::new(), BTreeSet::new()], "{kvm}: {crash}");
            let half_on = at(&crash).contains("after CR4.VMXE") && crash["work"] == "enable"
                || at(&crash).contains("after VMXOFF");
            let faults =
                kvm.starts_with("v5.7") && half_on || kvm.contains(",-") && crash["work"] == "unused";
            assert_eq!(crash["next_kernel"], !faults, "{kvm}: {crash}");
            assert_eq!(is_clean(&crash), !faults, "{kvm}: {crash}");
        }
    }
    Ok(())
}

/// See: commits 355f4fb1405e, a0ee1d5faff1
#[test]
fn shadow_vmcss() -> Result<()> {
    let of = |kvm: &str| -> Result<usize> {
        let crashes = crashes("vmx,shadow_vmcs=on", kvm)?;
        Ok(crashes.iter().filter(|crash| !active(crash)[1].is_empty()).count())
    };
    assert!(of("v5.10")? > 100);
    assert_eq!(of("v6.12")?, 0);
    Ok(())
}

/// See: commit d81f952aa657
#[test]
fn a_crash_between_clgi_and_stgi() -> Result<()> {
    for backend in ["svm", "svm-npt"] {
        for (kvm, deaf) in [("v5.6", true), ("v5.10", false), ("v7.2", false)] {
            let crashes = crashes(backend, kvm)?;
            let in_clgi: Vec<_> = crashes.iter().filter(|crash| at(crash).contains("CLGI")).collect();
            assert_eq!(in_clgi.len(), 1 + 2 + 3 + 4, "{backend} {kvm}");
            for crash in &crashes {
                let expected = deaf && at(crash).contains("CLGI");
                assert_eq!(is_clean(crash), !expected, "{backend} {kvm}: {crash}");
            }
        }
    }
    Ok(())
}

/// The experiment of the posting: five lines.
// See: KVM list, Feb 2020, "KVM: VMX: Always VMCLEAR in-use VMCSes during crash with kexec support"
#[test]
fn what_the_walk_finds_while_the_list_changes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = vmtape(folder.path(), &["host", "crash", "--kvm", "v5.7", "--found"])?;
    let text = String::from_utf8(output.stdout)?;
    let found = text.lines().filter_map(|line| Some(line.split_once(": found the VMCS of vCPU ")?.1));
    assert_eq!(found.collect::<Vec<_>>(), ["2", "1", "0", "2", "0"], "{text}");
    Ok(())
}

#[test]
fn wrong_words_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (line, code, words) in [
        (&["--kvm", "v4.4"][..], 2, "v4.4"),
        (&["-b", "none"], 125, "no backend named"),
        (&["--list", "17"], 2, "17"),
        (&["--host", "amd-48"], 2, "Intel"),
    ] {
        let output = vmtape(folder.path(), &[&["host", "crash"], line].concat())?;
        assert!(
            output.status.code() == Some(code) && tail(&output).contains(words),
            "{line:?}: {}",
            tail(&output)
        );
    }
    Ok(())
}
