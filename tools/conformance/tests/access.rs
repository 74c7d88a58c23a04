//! kvm-unit-tests' `access`, with a guest as wide as its host and with a narrower one. See `access_recordings` for what the
//! real kvm_amd printed.

use anyhow::Result;
use std::collections::BTreeMap;
use vmtape_conformance::{guest_status, kvm_unit_tests, tail, vmtape};

struct Run {
    status: Option<i32>,
    serial: String,
}

/// Runs the image; gives its status and what it printed.
fn access(backend: &str, options: &[&str]) -> Result<Run> {
    let images = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    let image = images.join("access_test.flat");
    let mut line = vec!["run", "-b", backend, "--guest-status", "-m", "256M"];
    line.extend(options);
    let image = image.to_string_lossy();
    line.push(&image);
    let output = vmtape(folder.path(), &line)?;
    let serial = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(125) || output.status.code() == Some(2) {
        anyhow::bail!("{backend} {options:?}: {}", tail(&output));
    }
    Ok(Run { status: output.status.code(), serial })
}

/// Test name -> what was printed of it (the verdict and the dump of the mapping).
fn failures(serial: &str) -> BTreeMap<String, String> {
    let serial = serial.replace('\r', "");
    serial
        .split("\ntest ")
        .skip(1)
        .filter_map(|text| {
            let (name, rest) = text.split_once(": ")?;
            let kept: Vec<&str> = rest.lines().take(6).collect();
            Some((name.to_owned(), kept.join("\n")))
        })
        .collect()
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn equal_widths_pass_everywhere() -> Result<()> {
    for (backend, host) in [("vmx", "intel-46"), ("svm", "amd-48"), ("svm-npt", "amd-48")] {
        let run = access(backend, &["--host", host, "--cpu", "max,-pku"])?;
        assert_eq!(run.status, Some(guest_status::PASS), "{backend}: {}", run.serial);
        assert!(
            run.serial.contains(" 0 failures") || !run.serial.contains("FAIL"),
            "{backend}: {}",
            run.serial
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn a_narrow_guest_passes_under_shadow_paging() -> Result<()> {
    let run = access("svm", &["--host", "amd-48", "--cpu", "max,-pku,phys-bits=36"])?;
    assert_eq!(run.status, Some(guest_status::PASS), "{}", run.serial);
    Ok(())
}

/// A failing run prints hundreds of megabytes before its end; its first part tells.
const FIRST_PART: [&str; 2] = ["--max-insns", "60000000"];

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn a_narrow_guest_fails_under_vmx_with_the_capability_off() -> Result<()> {
    let options = ["--host", "intel-46", "--cpu", "max,-pku,phys-bits=36", FIRST_PART[0], FIRST_PART[1]];
    let failures = failures(&access("vmx", &options)?.serial);
    // No accessed bit in the entry: Intel silicon leaves it alone when the final access exits.
    let first = failures.get("pte.p pte.36 pde.p").map(String::as_str).unwrap_or_default();
    assert!(first.starts_with("FAIL: unexpected access"), "{first}");
    assert!(failures.len() > 100, "only {} failures", failures.len());
    Ok(())
}
