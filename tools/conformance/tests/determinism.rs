//! The same recording twice is the same file, and every tape replays identically on the backend that made it.

use anyhow::{Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};
use vmtape_conformance::{BACKENDS, program, tail, vmtape};
use vmtape_traces::{Event, Tape};

const GUESTS: [&str; 6] = ["hello", "io", "cpuid", "illegal", "smp2", "bar"];

/// Records into a pipe or a file, elsewhere, with another environment, and with as much on the log as there can be.
fn record_elsewhere(folder: &Path, backend: &str, image: &str, text: Stdio) -> Result<Vec<u8>> {
    let recording = Command::new(program()?)
        .args(["-vv", "record", "-b", backend, "-o", "../elsewhere.tape", image])
        .current_dir(folder.join("below"))
        .env_clear()
        // The stack of the process starts elsewhere, too.
        .env("FILLER", "x".repeat(50_000))
        .envs([("RUST_LOG", "trace"), ("TZ", "Asia/Tokyo"), ("LANG", "de_DE.UTF-8"), ("COLUMNS", "40")])
        .stdin(Stdio::null())
        .stdout(text)
        .stderr(Stdio::null())
        .spawn()?;
    let recorded = recording.wait_with_output()?;
    ensure!(recorded.status.success(), "{backend} {image}: {}", tail(&recorded));
    Ok(fs::read(folder.join("elsewhere.tape"))?)
}

#[test]
fn two_recordings_are_byte_identical() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("below"))?;
    for backend in BACKENDS {
        for guest in GUESTS {
            let image = format!("builtin:{guest}");
            let recorded = vmtape(folder.path(), &["record", "-b", backend, "-o", "a.tape", &image])?;
            assert!(recorded.status.success(), "{backend} {guest}: {}", tail(&recorded));
            let tape = fs::read(folder.path().join("a.tape"))?;
            let file = fs::File::create(folder.path().join("text"))?;
            for text in [Stdio::piped(), file.into()] {
                let other = record_elsewhere(folder.path(), backend, &image, text)?;
                assert!(tape == other, "{backend} {guest}: two recordings differ");
            }
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

/// Every handler of this guest faults at its first instruction, so none retires, and after a while its events alone take time.
#[test]
fn where_a_run_stops_changes_no_guest() -> Result<()> {
    // xor di, di; mov es, di; mov cx, 0x200; mov ax, 0xffff; rep stosw; ud2: all vectors are FFFF:FFFF.
    let mut sector = b"\x31\xff\x8e\xc7\xb9\x00\x02\xb8\xff\xff\xf3\xab\x0f\x0b".to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("endless"), sector)?;
    let mut hashes = Vec::new();
    for more in [&["--milestone-every", "0"][..], &["--milestone-every", "7"], &["--checkpoint-every", "1"]] {
        let line =
            ["record", "-q", "-b", "vmx", "-m", "16M", "--max-insns", "2000", "-o", "a.tape", "endless"];
        let recorded = vmtape(folder.path(), &[&line, more].concat())?;
        assert!(recorded.status.success(), "{more:?}: {}", tail(&recorded));
        let events = Tape::open_whole(&folder.path().join("a.tape"))?;
        let hash = |event| if let Event::StateHash { hash, .. } = event { Some(hash) } else { None };
        hashes.push(events.events().map_while(Result::ok).filter_map(hash).last());
    }
    assert!(hashes[0].is_some() && hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:x?}");
    Ok(())
}
