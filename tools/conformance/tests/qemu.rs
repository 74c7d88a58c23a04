//! The built-in guests stand on their own: under QEMU's software CPU they print what they print here.

use anyhow::Result;
use std::{path::Path, process::Command};
use vmtape_conformance::{BACKENDS, skipped, tail, vmtape};

/// Guests whose output depends on nothing but their CPU model. `cpuid` prints the model itself, and `illegal` needs a
/// CPU narrower than 52 bits, which QEMU's reserved-bit fault gets wrong in some versions (error code 8 instead of 9).
const GUESTS: [(&str, &str); 7] = [
    ("hello", "1"),
    ("io", "1"),
    ("matrix", "1"),
    ("bar", "1"),
    ("legacy", "1"),
    ("smp2", "2"),
    ("smm", "1"),
];
const CPU: &str = "max,phys-bits=52";

/// Accesses whose entries have bits that 36 bits of address leave no room for, and some that all processors agree on.
const TOUCHES: [&str; 12] = [
    "pte=0x1002000001",
    "pte=0x1002000001,access=write",
    "pte=0x1002000001,access=write,wp=0",
    "pte=0x1002000001,cpl=3",
    "pte=0x1002000007,access=write,cpl=3",
    "pte=0x8000001002000001,access=fetch",
    "pte=0x1002000001,access=fetch,nx=0",
    "pte=0x8000002000001",
    "pte=0x1002000000",
    "pde=0x1002102001",
    "pse=1,pde=0x2002087",
    "access=write,cpl=3,times=2",
];
const NARROW_CPU: &str = "max,phys-bits=36";

type Printed = (Option<i32>, String);

fn qemu(folder: &Path, image: &str, cpu: &str, smp: &str) -> Result<Option<Printed>> {
    let output = Command::new("qemu-system-x86_64")
        .current_dir(folder)
        .args(["-accel", "tcg", "-cpu", cpu, "-m", "64", "-smp", smp, "-kernel", image])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-serial", "stdio"])
        // So that firmware leaves SMM and SMBASE to the guest.
        .args(["-display", "none", "-no-reboot", "-nodefaults", "-M", "pc,smm=off"])
        .output();
    match output {
        Ok(output) => {
            Ok(Some((output.status.code(), String::from_utf8_lossy(&output.stdout).replace('\r', ""))))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skipped("it needs qemu-system-x86_64 on the PATH");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn export(folder: &Path, guest: &str) -> Result<()> {
    let exported = vmtape(folder, &["guests", "--export", guest, "-o", IMAGE])?;
    assert!(exported.status.success(), "{guest}: {}", tail(&exported));
    Ok(())
}

const IMAGE: &str = "guest.flat";

fn run(folder: &Path, backend: &str, host: &str, cpu: &str, smp: &str) -> Result<Printed> {
    let machine = ["run", "-b", backend, "--host", host, "--cpu", cpu, "--smp", smp, "-m", "64M"];
    let run = vmtape(folder, &[&machine[..], &["--guest-status", IMAGE]].concat())?;
    let text = String::from_utf8_lossy(&run.stdout).replace('\r', "");
    Ok((run.status.code(), if text.is_empty() { tail(&run) } else { text }))
}

#[test]
fn built_in_guests_print_the_same_under_qemu() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (guest, smp) in GUESTS {
        export(folder.path(), guest)?;
        let Some((status, expected)) = qemu(folder.path(), IMAGE, CPU, smp)? else { return Ok(()) };
        for backend in BACKENDS {
            let host = if backend == "vmx" { "intel-52" } else { "amd-52" };
            let (code, printed) = run(folder.path(), backend, host, CPU, smp)?;
            assert_eq!(code, status, "{guest} under {backend}: {printed}");
            // GuestPhysBits is KVM's; QEMU's own CPU has none, and the address by GuestPhysBits follows.
            let comparable = |text: &str| -> Vec<String> {
                text.lines().filter(|line| !line.contains("GuestPhysBits")).map(str::to_owned).collect()
            };
            assert_eq!(comparable(&printed), comparable(&expected), "{guest} under {backend}");
        }
    }
    Ok(())
}

/// What a processor of 36 bits does, by an emulator that has a width and no host below it: shadow paging and
/// `allow_smaller_maxphyaddr` must look the same to the guest.
#[test]
fn a_narrow_guest_sees_what_qemu_shows_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for values in TOUCHES {
        export(folder.path(), &format!("touch,{values}"))?;
        let Some(expected) = qemu(folder.path(), IMAGE, NARROW_CPU, "1")? else { return Ok(()) };
        for (backend, host) in [("vmx,allow_smaller_maxphyaddr=on", "intel-46"), ("svm", "amd-48")] {
            let printed = run(folder.path(), backend, host, NARROW_CPU, "1")?;
            assert_eq!(printed.0, expected.0, "{values} under {backend}: {}", printed.1);
            assert_eq!(as_allowed(&printed.1), as_allowed(&expected.1), "{values} under {backend}");
        }
    }
    Ok(())
}

/// A touch's line without what may differ: QEMU 7.2 forgets that RSVD implies P, and the accessed bit of an entry above
/// the leaf is the processor's business when the access faults (SDM vol. 3A 5.8 Accessed and Dirty Flags).
fn as_allowed(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if words.get(1).is_some_and(|word| word == "#PF") {
            let error = hexadecimal(&words[2]);
            words[2] = format!("{:#x}", if error & 8 != 0 { error | 1 } else { error });
            let parent = words.len() - 1;
            words[parent] = format!("{:#x}", hexadecimal(&words[parent]) & !0x20);
        }
        words.join(" ")
    };
    text.lines().map(line).collect()
}

fn hexadecimal(word: &str) -> u64 {
    u64::from_str_radix(word.trim_start_matches("0x"), 16)
        .unwrap_or_else(|_| panic!("`{word}` is not hexadecimal"))
}
