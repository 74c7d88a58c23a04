//! kvm-unit-tests' `svm` and `svm_npt`, unmodified: hypervisors with guests of their own.

use anyhow::{Result, ensure};
use vmtape_conformance::{guest_status, kvm_unit_tests, tail, vmtape};

const CPU: &str = "max,+svm";

/// Sub-tests of `svm` that pass on one vCPU. Those that only measure are left out, and so is svm_init_intercept_test, whose INIT
/// stays pending behind the exit and, since KVM 0bba8fc24c75, resets the CPU that it waits for at STGI. svm_exception_test takes RFLAGS.TF of one guest into the next,
/// where the #DB handler of svm_test_singlestep, which precedes it, takes it out.
const SUBTESTS: [&str; 48] = [
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
    "svm_lbrv_test0",
    "svm_lbrv_test1",
    "svm_lbrv_test2",
    "svm_lbrv_test3",
    "svm_lbrv_nested_test1",
    "svm_lbrv_nested_test2",
    "svm_lbrv_nested_test3",
    "svm_intr_intercept_mix_if",
    "svm_intr_intercept_mix_gif",
    "svm_intr_intercept_mix_gif2",
    "svm_intr_intercept_mix_nmi",
    "svm_intr_intercept_mix_smi",
    "pause_filter_test",
    "svm_shutdown_intercept_test",
    "svm_test_singlestep svm_exception_test",
    "svm_tsc_scale_test",
    "msr_intercept_check",
];

/// Those that need two.
const WITH_TWO: [&str; 3] = ["cr3_read_intercept_emulate", "nmi_hlt", "svm_init_startup_test"];

/// And those that need another machine, with what it is.
const ELSEWHERE: [(&str, &[&str]); 6] = [
    // VMSAVE to every free page.
    ("svm_vmrun_errata_test", &["--cpu", CPU, "--smp", "1", "-m", "64M"]),
    ("vgif", &["--cpu", CPU, "--smp", "1", "-m", "512M", "--host", "amd-52"]),
    ("vnmi", &["--cpu", CPU, "--smp", "1", "-m", "512M", "--host", "amd-52"]),
    ("svm_vmload_vmsave", &["--cpu", CPU, "--smp", "1", "-m", "512M", "--host", "amd-52"]),
    // With instructions that KVM emulates for L2.
    ("sel_cr0*", &["--kvm", "v6.12,force_emulation_prefix=1", "--cpu", CPU, "--smp", "1", "-m", "512M"]),
    // Since 7.2 an intercept of an instruction that L1 does not have means nothing.
    (
        "svm_unsupported_instruction_intercept_test",
        &["--kvm", "v7.2", "--cpu", "max,+svm,-rdtscp,-xsave,-invpcid", "--smp", "1", "-m", "512M"],
    ),
];

/// Records one image with its arguments on this machine, and replays the tape.
fn passes(image: &str, backend: &str, arguments: &str, machine: &[&str]) -> Result<String> {
    let image = kvm_unit_tests()?.join(image);
    let image = image.to_string_lossy();
    let folder = tempfile::tempdir()?;
    let record = ["record", "-b", backend, "--guest-status", "-o", "a.tape", &image, "--append", arguments];
    let recorded = vmtape(folder.path(), &[&record[..], machine].concat())?;
    ensure!(recorded.status.code() == Some(guest_status::PASS), "{}", tail(&recorded));
    let replayed = vmtape(folder.path(), &["replay", "a.tape"])?;
    ensure!(replayed.status.success(), "the replay differs: {}", tail(&replayed));
    Ok(String::from_utf8_lossy(&recorded.stdout).into_owned())
}

fn vcpus(count: &'static str) -> [&'static str; 6] {
    ["--cpu", CPU, "-m", "512M", "--smp", count]
}

fn svm(backend: &str) {
    let (one, two) = (vcpus("1"), vcpus("2"));
    let alone = SUBTESTS.map(|test| (test, &one[..]));
    let together = WITH_TWO.map(|test| (test, &two[..]));
    let failed: Vec<_> = alone
        .into_iter()
        .chain(together)
        .chain(ELSEWHERE)
        .filter_map(|(test, machine)| {
            passes("svm.flat", backend, test, machine).err().map(|error| format!("{test}: {error:#}"))
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
    let printed = passes("svm_npt.flat", "svm-npt", "", &vcpus("1"))?;
    ensure!(printed.contains("SUMMARY: 138 tests, 3 skipped"), "{printed}");
    Ok(())
}
