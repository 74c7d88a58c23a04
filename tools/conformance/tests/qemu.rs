//! The built-in guests stand on their own: under QEMU's software CPU they print what they print here.

use anyhow::Result;
use std::{path::Path, process::Command};
use vmtape_conformance::{BACKENDS, tail, vmtape};

/// Guests whose output depends on nothing but their CPU model. `cpuid` prints the model itself, and `illegal` needs a
/// CPU narrower than 52 bits, which QEMU's reserved-bit fault gets wrong in some versions (error code 8 instead of 9).
const GUESTS: [(&str, &str); 5] = [("hello", "1"), ("io", "1"), ("matrix", "1"), ("bar", "1"), ("smp2", "2")];
const CPU: &str = "max,phys-bits=52";

fn qemu(folder: &Path, image: &str, smp: &str) -> Result<Option<(Option<i32>, String)>> {
    let output = Command::new("qemu-system-x86_64")
        .current_dir(folder)
        .args(["-accel", "tcg", "-cpu", CPU, "-m", "64", "-smp", smp, "-kernel", image])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-serial", "stdio"])
        .args(["-display", "none", "-no-reboot", "-nodefaults"])
        .output();
    match output {
        Ok(output) => {
            Ok(Some((output.status.code(), String::from_utf8_lossy(&output.stdout).replace('\r', ""))))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED, LOUDLY: qemu-system-x86_64 is not installed");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[test]
fn built_in_guests_print_the_same_under_qemu() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (guest, smp) in GUESTS {
        let image = format!("{guest}.flat");
        let exported = vmtape(folder.path(), &["guests", "--export", guest, "-o", &image])?;
        assert!(exported.status.success(), "{guest}: {}", tail(&exported));
        let Some((status, expected)) = qemu(folder.path(), &image, smp)? else { return Ok(()) };
        for backend in BACKENDS {
            let host = if backend == "vmx" { "intel-52" } else { "amd-52" };
            let run = vmtape(
                folder.path(),
                &[
                    "run",
                    "-b",
                    backend,
                    "--host",
                    host,
                    "--cpu",
                    CPU,
                    "--smp",
                    smp,
                    "-m",
                    "64M",
                    "--guest-status",
                    &image,
                ],
            )?;
            assert_eq!(run.status.code(), status, "{guest} under {backend}: {}", tail(&run));
            let printed = String::from_utf8_lossy(&run.stdout).replace('\r', "");
            // GuestPhysBits is KVM's; QEMU's own CPU has none, and the address by GuestPhysBits follows.
            let comparable = |text: &str| -> Vec<String> {
                text.lines().filter(|line| !line.contains("GuestPhysBits")).map(str::to_owned).collect()
            };
            assert_eq!(comparable(&printed), comparable(&expected), "{guest} under {backend}");
        }
    }
    Ok(())
}
