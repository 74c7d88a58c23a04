//! kvm-unit-tests' `svm` and `svm_npt`, unmodified: hypervisors with guests of their own.

use anyhow::{Result, ensure};
use vmtape_conformance::{guest_status, kvm_unit_tests, tail, vmtape};

const CPU: &str = "max,+svm";

/// Sub-tests of `svm` that pass on one vCPU. Those that skip themselves, only measure, or need what is not modelled (SMIs to
/// a guest's guest, LBRs) are left out.
const SUBTESTS: [&str; 36] = [
    "null",
    "vmrun",
    "ioio",
    "vmrun_intercept_check",
    "rsm",
    "sel_cr0_write_intercept",
    "sel_cr0_write_intercept_priority",
    "sel_cr0_write_nointercept",
    "sel_cr0_lmsw_intercept",
    "cr3_read_intercept",
    "cr3_read_nointercept",
    "dr_intercept_check",
    "next_rip",
    "mode_switch",
    "asid_zero",
    "tsc_adjust",
    "exc_inject",
    "pending_event",
    "pending_event_cli",
    "interrupt",
    "nmi",
    "virq_inject",
    "virq_inject_within_shadow",
    "host_rflags",
    "svm_pae_test",
    "svm_pse_test",
    "svm_cr4_osxsave_test",
    "svm_guest_state_test",
    "svm_vmload_vmsave",
    "svm_test_singlestep",
    "svm_no_nm_test",
    "svm_intr_intercept_mix_if",
    "svm_intr_intercept_mix_gif",
    "svm_intr_intercept_mix_gif2",
    "svm_intr_intercept_mix_nmi",
    "svm_shutdown_intercept_test",
];

/// Those that need two.
const WITH_TWO: [&str; 3] = ["cr3_read_intercept_emulate", "nmi_hlt", "svm_init_startup_test"];

/// Records one image with its arguments and replays the tape.
fn passes(image: &str, backend: &str, arguments: &str, vcpus: &str) -> Result<String> {
    let image = kvm_unit_tests()?.join(image);
    let image = image.to_string_lossy();
    let folder = tempfile::tempdir()?;
    let record = ["record", "-b", backend, "--cpu", CPU, "-m", "512M", "--guest-status", "-o", "a.tape"];
    let recorded =
        vmtape(folder.path(), &[&record[..], &["--smp", vcpus, &image, "--append", arguments]].concat())?;
    ensure!(recorded.status.code() == Some(guest_status::PASS), "{}", tail(&recorded));
    let replayed = vmtape(folder.path(), &["replay", "a.tape"])?;
    ensure!(replayed.status.success(), "the replay differs: {}", tail(&replayed));
    Ok(String::from_utf8_lossy(&recorded.stdout).into_owned())
}

fn svm(backend: &str) {
    let tests = SUBTESTS.map(|test| (test, "1")).into_iter().chain(WITH_TWO.map(|test| (test, "2")));
    let failed: Vec<_> = tests
        .filter_map(|(test, vcpus)| {
            passes("svm.flat", backend, test, vcpus).err().map(|error| format!("{test}: {error:#}"))
        })
        .collect();
    assert!(failed.is_empty(), "{backend}:\n{}", failed.join("\n"));
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn svm_under_nested_paging() {
    svm("svm-npt");
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn svm_under_shadow_paging() {
    svm("svm");
}

/// As under the real kvm_amd.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn svm_npt() -> Result<()> {
    let printed = passes("svm_npt.flat", "svm-npt", "", "1")?;
    ensure!(printed.contains("SUMMARY: 138 tests, 3 skipped"), "{printed}");
    Ok(())
}
