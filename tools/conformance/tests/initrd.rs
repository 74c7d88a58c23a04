//! A kernel finds its initrd where the boot protocol puts it, and a tape has both: it replays when the files are gone.

use anyhow::{Result, ensure};
use std::{fs, path::Path};
use vmtape_conformance::{BACKENDS, tail, vmtape};

/// 32-bit code that prints the initrd of the zero page at ESI, and leaves with status 1.
const PRINT_INITRD: [u8; 30] = [
    0x8b, 0x9e, 0x18, 0x02, 0x00, 0x00, // mov ebx, [esi + 0x218]: ramdisk_image
    0x8b, 0x8e, 0x1c, 0x02, 0x00, 0x00, // mov ecx, [esi + 0x21c]: ramdisk_size
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x8a, 0x03, // mov al, [ebx]
    0xee, // out dx, al
    0x43, // inc ebx
    0xe2, 0xfa, // loop
    0x66, 0xba, 0xf4, 0x00, // mov dx, 0xf4
    0x31, 0xc0, // xor eax, eax
    0xee, // out dx, al
    0xf4, // hlt
];
const LINE: &str = "an initrd of one line\n";

/// A bzImage of protocol 2.12 without a 64-bit entry: a boot sector, a sector of setup code, and the code at 1 MiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1; // setup_sects
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0c, 0x02]); // version
    image[0x211] = 1; // loadflags: LOADED_HIGH
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes()); // code32_start
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    image.extend(PRINT_INITRD);
    image.resize(0x600, 0);
    image
}

fn files(folder: &Path) -> Result<()> {
    fs::write(folder.join("bzImage"), bzimage())?;
    Ok(fs::write(folder.join("initrd"), LINE)?)
}

#[test]
fn tapes_have_the_initrd() -> Result<()> {
    for backend in BACKENDS {
        let folder = tempfile::tempdir()?;
        files(folder.path())?;
        let line = ["record", "-b", backend, "-o", "a.tape", "-kernel", "bzImage", "-initrd", "initrd"];
        let recorded = vmtape(folder.path(), &line)?;
        ensure!(recorded.status.success(), "{backend}: {}", tail(&recorded));
        assert_eq!(String::from_utf8_lossy(&recorded.stdout), LINE, "{backend}");
        fs::remove_file(folder.path().join("bzImage"))?;
        fs::remove_file(folder.path().join("initrd"))?;
        for mode in ["run", "exits"] {
            let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
            ensure!(replayed.status.success(), "{backend} --mode {mode}: {}", tail(&replayed));
        }
    }
    Ok(())
}

#[test]
fn an_initrd_that_cannot_be_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    files(folder.path())?;
    let mut sector = vec![0xf4; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::write(folder.path().join("sector"), sector)?;
    fs::write(folder.path().join("empty"), [])?;
    fs::write(folder.path().join("large"), vec![1; 4 << 20])?;
    for (image, initrd, says) in [
        ("bzImage", "absent", "absent"),
        ("bzImage", "empty", "the initrd is empty"),
        ("bzImage", "large", "give the guest more memory (-m)"),
        ("sector", "initrd", "a boot sector takes no initrd"),
    ] {
        let run = vmtape(folder.path(), &["run", "-b", "vmx", "-m", "4M", image, "--initrd", initrd])?;
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(125), "{image} {initrd}: {stderr}");
        assert!(stderr.contains(says), "{image} {initrd}: {stderr}");
    }
    Ok(())
}
