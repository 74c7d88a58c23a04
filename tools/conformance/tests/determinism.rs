//! The same recording twice is the same file, and every tape replays identically on the backend that made it.

use anyhow::Result;
use std::fs;
use vmtape_conformance::{BACKENDS, tail, vmtape};

const GUESTS: [&str; 6] = ["hello", "io", "cpuid", "illegal", "smp2", "bar"];

#[test]
fn two_recordings_are_byte_identical() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for guest in GUESTS {
            let image = format!("builtin:{guest}");
            for tape in ["a.tape", "b.tape"] {
                let recorded = vmtape(folder.path(), &["record", "-b", backend, "-o", tape, &image])?;
                assert!(recorded.status.success(), "{backend} {guest}: {}", tail(&recorded));
            }
            let (a, b) = (fs::read(folder.path().join("a.tape"))?, fs::read(folder.path().join("b.tape"))?);
            assert!(a == b, "{backend} {guest}: two recordings differ");
        }
    }
    Ok(())
}

#[test]
fn a_tape_replays_identically_in_both_modes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for guest in GUESTS {
            let image = format!("builtin:{guest}");
            let recorded = vmtape(folder.path(), &["record", "-b", backend, "-o", "a.tape", &image])?;
            assert!(recorded.status.success(), "{backend} {guest}: {}", tail(&recorded));
            for mode in ["run", "exits"] {
                let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
                assert!(replayed.status.success(), "{backend} {guest} --mode {mode}: {}", tail(&replayed));
            }
        }
    }
    Ok(())
}
