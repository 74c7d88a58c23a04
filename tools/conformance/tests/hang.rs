//! Guests that would never end, recorded and replayed as a user does it.

use anyhow::{Result, ensure};
use std::{fs, path::Path};
use vmtape_conformance::{BACKENDS, identity::compile, tail, vmtape};

/// Real-mode code at 0x7c00.
fn boot_sector(code: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..code.len()].copy_from_slice(code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn record(folder: &Path, backend: &str, code: &[u8]) -> Result<String> {
    fs::write(folder.join("guest.bin"), boot_sector(code))?;
    let recorded = vmtape(folder, &["record", "-b", backend, "-o", "a.tape", "guest.bin"])?;
    ensure!(recorded.status.code().is_some_and(|code| code < 2), "{backend}: {}", tail(&recorded));
    let replayed = vmtape(folder, &["replay", "a.tape"])?;
    ensure!(replayed.status.success(), "{backend}: {}", tail(&replayed));
    Ok(String::from_utf8_lossy(&recorded.stderr).into_owned())
}

/// cli; the PIT's channel 0 in mode 2; hlt: what every panic ends in.
const PANIC: &[u8] = b"\xfa\xb0\x34\xe6\x43\x30\xc0\xe6\x40\xe6\x40\xf4";
/// x2APIC on, the LVT timer in TSC-deadline mode, deadline 2^64-1; sti; hlt
const DEADLINE: &[u8] = b"\x66\xb9\x1b\x00\x00\x00\x66\xb8\x00\x0d\xe0\xfe\x66\x31\xd2\x0f\x30\
    \x66\xb9\x0f\x08\x00\x00\x66\xb8\xff\x01\x00\x00\x0f\x30\
    \x66\xb9\x32\x08\x00\x00\x66\xb8\x40\x00\x04\x00\x0f\x30\
    \x66\xb9\xe0\x06\x00\x00\x66\xb8\xff\xff\xff\xff\x66\xba\xff\xff\xff\xff\x0f\x30\xfb\xf4";

#[test]
fn halted_for_ever() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        let told = record(folder.path(), backend, PANIC)?;
        assert!(told.contains("halted for ever: interrupts are off"), "{backend}: {told}");
        let told = record(folder.path(), backend, DEADLINE)?;
        assert!(told.contains("halted for ever: the next timer is due in more than a century"), "{told}");
    }
    Ok(())
}

/// mov ecx, 5000; mov dx, 0x80; rep outsb; then mov al, 0; out 0xf4: every iteration goes to userspace.
const OUTS: &[u8] = b"\x66\xb9\x88\x13\x00\x00\xba\x80\x00\xf3\x6e\xba\xf4\x00\x66\x31\xc0\x66\xef";
/// mov cx, 3000; mov di, 0x1900; push 0; pop es; mov dx, 0x80; rep insb; out 0xf4: 1024 at a time, and none beyond a page.
const INS: &[u8] =
    b"\xb9\xb8\x0b\xbf\x00\x19\x6a\x00\x07\xba\x80\x00\xf3\x6c\xba\xf4\x00\x66\x31\xc0\x66\xef";

/// See: KVM arch/x86/kvm/emulate.c x86_emulate_insn(), pio_in_emulated()
#[test]
fn string_io_exits_as_often_as_in_kvm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for (code, exits) in [(OUTS, 5000), (INS, 3 + 1)] {
            record(folder.path(), backend, code)?;
            let shown = vmtape(folder.path(), &["stat", "--json", "a.tape"])?;
            let stat: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
            let by_reason = stat["exits_by_reason"].as_object().into_iter().flatten();
            let of_io = by_reason.filter(|(reason, _)| matches!(reason.as_str(), "IO_INSTRUCTION" | "io"));
            let count: u64 = of_io.filter_map(|(_, count)| count.as_u64()).sum();
            // And the exit that ends the guest.
            assert_eq!(count, exits + 1, "{backend}: {stat}");
            if code == INS {
                let shown = vmtape(folder.path(), &["show", "a.tape"])?;
                let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
                let reads: Vec<_> =
                    shown.lines().filter_map(|line| line.split_once("pio_read at 0x80 size 1 ")).collect();
                let counts: Vec<_> = reads.iter().map(|(_, rest)| rest.trim_end()).collect();
                // 0x1900 + 1024, the rest of the page, 1024, what is left: one KVM_EXIT_IO for each.
                let expected = [1024, 768, 1024, 184].map(|count| format!("count {count} val 0xff (...)"));
                assert_eq!(counts, expected, "{backend}");
                assert_eq!(shown.matches("reason KVM_EXIT_IO (2)").count(), 4 + 1, "{backend}");
            }
        }
    }
    Ok(())
}

/// xor eax, eax; cpuid; wait until EAX is not zero, which it is; xor eax, eax; out 0xf4, eax
const WAITS: &[u8] = b"\x66\x31\xc0\x0f\xa2\x66\x85\xc0\x74\xfb\xba\xf4\x00\x66\x31\xc0\x66\xef\xf4";

/// A build of a plugin that makes the guest spin, without any exit, is a verdict: `git bisect run` goes on.
#[test]
fn a_build_that_makes_the_guest_spin_is_a_verdict() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("guest.bin"), boot_sector(WAITS))?;
    compile(folder.path(), "", "")?;
    let plugin = ["--plugin", "libidentity.so"];
    let line = ["record", "-b", "identity", "--host", "intel-46", "-o", "a.tape", "guest.bin"];
    let recorded = vmtape(folder.path(), &[&line[..], &plugin].concat())?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    let cpuid = "        cpuid(vm, state);\n";
    compile(folder.path(), cpuid, &format!("{cpuid}        state->gpr[vt_GPR_RAX] = 0;\n"))?;
    let output = vmtape(folder.path(), &[&["replay", "--bisect", "a.tape"], &plugin[..]].concat())?;
    assert_eq!(output.status.code(), Some(1), "{}", tail(&output));
    // Where the tape's own machine does not repeat it, nothing is said of another one.
    let output =
        vmtape(folder.path(), &[&["check", "a.tape", "--to", "intel-52,identity"], &plugin[..]].concat())?;
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.contains("does not repeat this tape"), "{told}");
    Ok(())
}

/// What `vmtape replay` says of the recorded guest elsewhere.
fn elsewhere(folder: &Path, backend: &str) -> Result<String> {
    let replayed = vmtape(folder, &["replay", "-b", backend, "a.tape"])?;
    Ok(String::from_utf8_lossy(&replayed.stdout).into_owned())
}

/// xor ax, ax; mov ds, ax; the vector of #UD leads to UD2, for ever.
const UNDEFINED: &[u8] = b"\x31\xc0\x8e\xd8\xc7\x06\x00\x00\x0f\x0b\x0f\x0b";
/// xor eax, eax; vmcall; xor eax, eax; out 0xf4, eax
const VMCALL: &[u8] = b"\x66\x31\xc0\x0f\x01\xc1\xba\xf4\x00\x66\x31\xc0\x66\xef";

/// Exits are fed on another backend: nothing that differs is unexplained.
fn is_explained_exit_by_exit(folder: &Path, backend: &str, other: &str) -> Result<()> {
    let replayed = vmtape(folder, &["replay", "-b", other, "a.tape", "--mode", "exits", "--continue"])?;
    let told = String::from_utf8_lossy(&replayed.stdout).into_owned();
    ensure!(
        replayed.status.code() != Some(2) && !told.contains("unexplained"),
        "{backend} to {other}: {told}"
    );
    Ok(())
}

/// xor ax, ax; mov ds, ax; the vector of #UD leads to the end; rsm
const RSM: &[u8] = b"\x31\xc0\x8e\xd8\xc7\x06\x18\x00\x14\x7c\xc7\x06\x1a\x00\x00\x00\x0f\xaa\x90\x90\
    \xba\xf4\x00\x66\x31\xc0\x66\xef";

/// Outside of SMM it is #UD: KVM intercepts it on AMD's silicon and does what Intel's does by itself. A hypercall in the other vendor's
/// words is undefined for one silicon only, whoever made the tape.
#[test]
fn what_one_silicon_does_not_know_is_no_difference() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for other in BACKENDS.into_iter().filter(|other| *other != backend) {
            record(folder.path(), backend, RSM)?;
            let told = elsewhere(folder.path(), other)?;
            assert!(told.contains("SAME:"), "{backend} to {other}: {told}");
            is_explained_exit_by_exit(folder.path(), backend, other)?;
            record(folder.path(), backend, VMCALL)?;
            is_explained_exit_by_exit(folder.path(), backend, other)?;
        }
    }
    Ok(())
}

/// One end in two vendors' words is one end, and a rule that one side names is the cause.
#[test]
fn ends_are_alike_and_rules_are_causes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for other in ["svm", "svm-npt"] {
        record(folder.path(), "vmx", UNDEFINED)?;
        let told = elsewhere(folder.path(), other)?;
        assert!(told.contains("SAME:"), "{other}: {told}");
        record(folder.path(), "vmx", VMCALL)?;
        let told = elsewhere(folder.path(), other)?;
        assert!(told.contains("cause: hypercall-patched (KVM)"), "{other}: {told}");
    }
    Ok(())
}
