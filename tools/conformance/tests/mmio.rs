//! What KVM's emulator tells of accesses to devices that are no single one of up to eight bytes.

use anyhow::Result;
use vmtape_arch::{exit::ResumeKind, note::Note};
use vmtape_conformance::{
    BACKENDS,
    sector::{LEAVE, replayed},
};
use vmtape_traces::{Event, Tape};

/// So much memory that nobody is at [`NOBODY`], which real mode reaches: reads give ones.
const MEMORY: &str = "1M";
const NOBODY: u64 = 0x10_0000;
/// Where that is behind segment 0xffff.
const OFFSET: u16 = 0x10;

/// What the tape tells of MMIO: type, length, address, value; and exits to userspace.
#[derive(Debug, PartialEq)]
enum Told {
    Mmio(u8, u8, u64, u64),
    Userspace,
}

/// What one instruction tells: its opcode, and where it finds its operand behind [`NOBODY`].
fn told(backend: &str, opcode: &[u8], offset: u16) -> Result<Vec<Told>> {
    let folder = tempfile::tempdir()?;
    // mov eax, cr4; or ax, 0x200; mov cr4, eax: there is SSE; mov bx, -1; mov ds, bx
    let ready = b"\x0f\x20\xe0\x0d\x00\x02\x0f\x22\xe0\xbb\xff\xff\x8e\xdb";
    // ModRM 06: [disp16], EAX or XMM0.
    let code = [ready, opcode, b"\x06", &(OFFSET + offset).to_le_bytes(), LEAVE].concat();
    replayed(folder.path(), backend, MEMORY, &["run"], &code, &[])?;
    let tape = Tape::open(&folder.path().join("a.tape"))?;
    let mut told = Vec::new();
    for event in tape.events() {
        match event? {
            Event::Note { note: Note::Mmio { kind, len, gpa, value }, .. } => {
                told.push(Told::Mmio(kind, len, gpa, value));
            }
            Event::Note { note: Note::UserspaceExit { reason, .. }, .. } if reason == ResumeKind::MMIO.0 => {
                told.push(Told::Userspace);
            }
            _ => {}
        }
    }
    Ok(told)
}

/// See: KVM x86.c emulator_read_write(), read_prepare(), write_mmio(), complete_emulated_mmio() (6.12)
#[test]
fn an_operand_is_told_as_a_whole() -> Result<()> {
    use Told::{Mmio, Userspace};
    const UNSATISFIED: u8 = 0;
    const READ: u8 = 1;
    const WRITE: u8 = 2;
    const MOVDQU_LOAD: &[u8] = b"\xf3\x0f\x6f";
    const MOVDQU_STORE: &[u8] = b"\xf3\x0f\x7f";
    const MOV_LOAD: &[u8] = b"\x66\x8b";
    const MOV_STORE: &[u8] = b"\x66\x89";
    const CROSSING: u16 = 0xffe;
    let at = NOBODY;
    let (first, second) = (at + u64::from(CROSSING), at + 0x1000);
    // EAX is what CR4 is.
    let ax = 0x200;
    for backend in BACKENDS {
        let whole = told(backend, MOVDQU_LOAD, 0)?;
        let ones = u64::MAX;
        let expected = [Mmio(UNSATISFIED, 16, at, 0), Userspace, Userspace, Mmio(READ, 16, at, ones)];
        assert_eq!(whole, expected, "{backend}: two exits, one access");
        let stored = told(backend, MOVDQU_STORE, 0)?;
        assert_eq!(stored, [Mmio(WRITE, 16, at, 0), Userspace, Userspace], "{backend}");
        // What cannot be had at once is told with the length on the last page, what came with that of all.
        let across = told(backend, MOV_LOAD, CROSSING)?;
        let ones = u32::MAX.into();
        let expected = [Mmio(UNSATISFIED, 2, first, 0), Userspace, Userspace, Mmio(READ, 4, first, ones)];
        assert_eq!(across, expected, "{backend}");
        let stored = told(backend, MOV_STORE, CROSSING)?;
        let pages = [Mmio(WRITE, 2, first, ax), Mmio(WRITE, 2, second, 0), Userspace, Userspace];
        assert_eq!(stored, pages, "{backend}: one for each page");
    }
    Ok(())
}
