//! Boot sectors of random bytes: whatever they do, nothing panics or hangs, two recordings are the same file, and a replay repeats
//! them in both modes. More of them: `VMTAPE_RANDOM_GUESTS=10000`.

use anyhow::{Result, ensure};
use std::{fs, path::Path};
use vmtape_conformance::{BACKENDS, random, tail, vmtape};

const GUESTS: u64 = 24;
/// A guest that runs in circles ends by this.
const LIMITS: [&str; 4] = ["--max-insns", "20000", "--max-exits", "20000"];

fn hold(folder: &Path, backend: &str, other: &str) -> Result<()> {
    for tape in ["a.tape", "b.tape"] {
        let line =
            [&["record", "-q", "-b", backend, "-m", "16M", "-o", tape, "guest.bin"][..], &LIMITS].concat();
        let recorded = vmtape(folder, &line)?;
        // 0: the run ended. 1: it cannot go on, or makes no progress. Anything else is ours.
        ensure!(matches!(recorded.status.code(), Some(0 | 1)), "record: {}", tail(&recorded));
    }
    ensure!(fs::read(folder.join("a.tape"))? == fs::read(folder.join("b.tape"))?, "two recordings differ");
    for mode in ["run", "exits"] {
        let replayed = vmtape(folder, &["replay", "--mode", mode, "a.tape"])?;
        ensure!(replayed.status.success(), "replay --mode {mode}: {}", tail(&replayed));
        let elsewhere = vmtape(folder, &["replay", "--mode", mode, "-b", other, "a.tape"])?;
        ensure!(
            matches!(elsewhere.status.code(), Some(0 | 1 | 125)),
            "replay --mode {mode} -b {other}: {}",
            tail(&elsewhere)
        );
        let stderr = String::from_utf8_lossy(&elsewhere.stderr);
        ensure!(!stderr.contains("panicked"), "replay --mode {mode} -b {other}: {stderr}");
    }
    Ok(())
}

#[test]
fn random_code_does_no_harm() -> Result<()> {
    let guests =
        std::env::var("VMTAPE_RANDOM_GUESTS").ok().and_then(|count| count.parse().ok()).unwrap_or(GUESTS);
    let folder = tempfile::tempdir()?;
    let mut failed = Vec::new();
    for seed in 0..guests {
        fs::write(
            folder.path().join("guest.bin"),
            if seed % 2 == 0 { random::boot_sector(seed) } else { random::paged(seed) },
        )?;
        let backend = BACKENDS[seed as usize % BACKENDS.len()];
        let other = BACKENDS[(seed as usize + 1) % BACKENDS.len()];
        if let Err(error) = hold(folder.path(), backend, other) {
            failed.push(format!("seed {seed} on {backend}: {error:#}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
