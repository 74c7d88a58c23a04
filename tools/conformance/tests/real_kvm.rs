//! Our tapes against recordings of the real KVM (see traces/recordings/README.md): the images are kvm-unit-tests', so
//! these comparisons run where VMTAPE_KUT is set.

use anyhow::Result;
use std::path::{Path, PathBuf};
use vmtape_conformance::{kvm_unit_tests, tail, vmtape};

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../traces/recordings")
        .canonicalize()
        .expect("recordings exist")
}

/// Imports a recording, records the same guest with the same CPUID and options, and compares the two tapes.
fn compare(recording: &str, guest: &str, backend: &str, options: &[&str]) -> Result<()> {
    let images = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    let trace = recordings().join(recording).join("trace.txt.gz");
    let imported = vmtape(folder.path(), &["import", "-o", "real.tape", &trace.to_string_lossy()])?;
    assert!(imported.status.success(), "{recording}: {}", tail(&imported));
    let image = images.join(format!("{guest}.flat"));
    let mut record = vec!["record", "-b", backend, "-o", "ours.tape", "-m", "256M"];
    record.extend(options);
    let image = image.to_string_lossy();
    record.push(&image);
    let recorded = vmtape(folder.path(), &record)?;
    assert!(recorded.status.success(), "{recording}: {}", tail(&recorded));
    let compared = vmtape(folder.path(), &["diff", "real.tape", "ours.tape"])?;
    assert!(compared.status.success(), "{recording}: {}", tail(&compared));
    Ok(())
}

const INTEL: [&str; 6] = ["--host", "intel-40-bochs", "--layout", "mvmm", "--cpu", "tape:real.tape"];
const AMD: [&str; 4] = ["--host", "amd-48-qemu", "--cpu", "tape:real.tape"];

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn kvm_intel_setjmp() -> Result<()> {
    compare("ept1/setjmp", "setjmp", "vmx", &INTEL)
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn kvm_intel_umip() -> Result<()> {
    compare("ept1/umip", "umip", "vmx", &INTEL)
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn kvm_intel_setjmp_shadow_paging() -> Result<()> {
    let options: Vec<_> = INTEL.into_iter().chain(["--kvm", "ept=off"]).collect();
    compare("ept0/setjmp", "setjmp", "vmx", &options)
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn kvm_amd_setjmp_nested_paging() -> Result<()> {
    compare("npt1/setjmp", "setjmp", "svm-npt", &AMD)
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn kvm_amd_setjmp_shadow_paging() -> Result<()> {
    compare("npt0/setjmp", "setjmp", "svm", &AMD)
}
