//! kvm-unit-tests' `access` with a guest narrower than its host: facts C.0, and what the real kvm_amd printed.

use anyhow::Result;
use std::{collections::BTreeMap, fs, path::Path};
use vmtape_conformance::{guest_status, kvm_unit_tests, tail, vmtape};

struct Run {
    status: Option<i32>,
    serial: String,
}

/// Runs the image; gives its status and what it printed.
fn access(backend: &str, options: &[&str]) -> Result<Option<Run>> {
    let Some(images) = kvm_unit_tests() else { return Ok(None) };
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
    Ok(Some(Run { status: output.status.code(), serial }))
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
fn equal_widths_pass_everywhere() -> Result<()> {
    for (backend, host) in [("vmx", "intel-46"), ("svm", "amd-48"), ("svm-npt", "amd-48")] {
        if let Some(run) = access(backend, &["--host", host, "--cpu", "max,-pku"])? {
            assert_eq!(run.status, Some(guest_status::PASS), "{backend}: {}", run.serial);
            assert!(
                run.serial.contains(" 0 failures") || !run.serial.contains("FAIL"),
                "{backend}: {}",
                run.serial
            );
        }
    }
    Ok(())
}

#[test]
fn a_narrow_guest_passes_under_shadow_paging() -> Result<()> {
    if let Some(run) = access("svm", &["--host", "amd-48", "--cpu", "max,-pku,phys-bits=36"])? {
        assert_eq!(run.status, Some(guest_status::PASS), "{}", run.serial);
    }
    Ok(())
}

/// A failing run prints hundreds of megabytes before its end; its first part tells.
const FIRST_PART: [&str; 2] = ["--max-insns", "60000000"];

#[test]
fn a_narrow_guest_fails_under_vmx_with_the_capability_off() -> Result<()> {
    let options = ["--host", "intel-46", "--cpu", "max,-pku,phys-bits=36", FIRST_PART[0], FIRST_PART[1]];
    if let Some(run) = access("vmx", &options)? {
        let failures = failures(&run.serial);
        // No accessed bit in the entry: Intel silicon leaves it alone when the final access exits.
        let first = failures.get("pte.p pte.36 pde.p").map(String::as_str).unwrap_or_default();
        assert!(first.starts_with("FAIL: unexpected access"), "{first}");
        assert!(failures.len() > 100, "only {} failures", failures.len());
    }
    Ok(())
}

#[test]
fn a_narrow_guest_fails_under_nested_paging_as_on_the_real_kvm_amd() -> Result<()> {
    let options = ["--host", "amd-48-qemu", "--cpu", "max,-pku,phys-bits=36", FIRST_PART[0], FIRST_PART[1]];
    let Some(run) = access("svm-npt", &options)? else { return Ok(()) };
    let recording =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/npt1/access_pb36/serial.txt");
    let real = fs::read_to_string(recording)?.replace('\r', "");
    let ours = run.serial.replace('\r', "");
    // The recording was cut within a line.
    let real: Vec<&str> = real.lines().collect();
    let ours: Vec<&str> = ours.lines().collect();
    let whole = real.len() - 1;
    assert!(whole > 300 && ours.len() >= whole, "{} lines recorded, {} printed", real.len(), ours.len());
    for (n, (real, ours)) in real.iter().zip(&ours).take(whole).enumerate() {
        assert_eq!(real, ours, "line {}", n + 1);
    }
    Ok(())
}
