//! Guests of a few instructions in real mode: a boot sector that leaves with a number.

use crate::{tail, vmtape};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path};
use vmtape_traces::{Tape, event::End};

/// Where a handler lies in the boot sector, and the sector in memory.
pub const HANDLER: usize = 0x100;
pub const LOADED_AT: u32 = 0x7c00;
/// mov dx, 0xf4; out dx, eax: the run ends with twice EAX and one.
pub const LEAVE: &[u8] = b"\xba\xf4\x00\x66\xef";
/// xor ax, ax; mov ds, ax
pub const FLAT: &[u8] = b"\x31\xc0\x8e\xd8";

/// Writes the boot sector of this code and this handler, `guest.bin`.
pub fn write(folder: &Path, code: &[u8], handler: &[u8]) -> Result<()> {
    ensure!(code.len() <= HANDLER && HANDLER + handler.len() <= 510, "it does not fit a sector");
    let mut sector = vec![0; 512];
    sector[..code.len()].copy_from_slice(code);
    sector[HANDLER..HANDLER + handler.len()].copy_from_slice(handler);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(fs::write(folder.join("guest.bin"), sector)?)
}

/// Records a boot sector of this code and this handler as `a.tape`, replays it in both modes; what the guest left with in EAX,
/// without its highest bit.
pub fn leaves_with(folder: &Path, backend: &str, code: &[u8], handler: &[u8]) -> Result<u32> {
    replayed(folder, backend, "16M", &["run", "exits"], code, handler)
}

/// Likewise with so much memory, replayed in these modes.
pub fn replayed(
    folder: &Path,
    backend: &str,
    memory: &str,
    modes: &[&str],
    code: &[u8],
    handler: &[u8],
) -> Result<u32> {
    write(folder, code, handler)?;
    let recorded =
        vmtape(folder, &["record", "-q", "-b", backend, "-m", memory, "-o", "a.tape", "guest.bin"])?;
    let path = folder.join("a.tape");
    let (_, end) = Tape::open(&path)?.end()?.with_context(|| tail(&recorded))?;
    for mode in modes {
        let replayed = vmtape(folder, &["replay", "--mode", mode, "a.tape"])?;
        ensure!(replayed.status.success(), "{backend}, {mode}: {}", tail(&replayed));
    }
    let End::DebugExit { status } = end else { bail!("{backend}: {end:?}") };
    Ok(status >> 1)
}
