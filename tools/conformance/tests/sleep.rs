//! ACPI, on every backend: the tables that a guest finds where a firmware has them, and suspend to RAM, recorded and replayed.

use anyhow::Result;
use std::fs;
use vmtape_conformance::{
    BACKENDS,
    sector::{FLAT, LEAVE, leaves_with},
    tail, vmtape,
};

/// mov ax, 0xf000; mov ds, ax
const FIRMWARE: &[u8] = b"\xb8\x00\xf0\x8e\xd8";

/// A byte of the clock's memory: mov al, INDEX; out 0x70, al; mov al, VALUE; out 0x71, al
fn cmos(index: u8, value: u8) -> [u8; 8] {
    [0xb0, index, 0xe6, 0x70, 0xb0, value, 0xe6, 0x71]
}

/// mov dx, PORT; mov ax, VALUE; out dx, ax
fn out(port: u16, value: u16) -> Vec<u8> {
    [&b"\xba"[..], &port.to_le_bytes(), b"\xb8", &value.to_le_bytes(), b"\xef"].concat()
}

/// mov dword [AT], VALUE
fn store(at: u16, value: [u8; 4]) -> Vec<u8> {
    [&b"\x66\xc7\x06"[..], &at.to_le_bytes(), &value].concat()
}

/// RSDP, then the RSDT that it names. See: ACPI 6.5, 5.2.5.3 RSDP Structure
#[test]
fn tables_are_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        // mov eax, [0]; shr eax, 1
        let rsdp = [FIRMWARE, b"\x66\xa1\0\0\x66\xd1\xe8", LEAVE].concat();
        assert_eq!(leaves_with(folder.path(), backend, &rsdp, &[])?, u32::from_le_bytes(*b"RSD ") >> 1);
        // mov bx, [16]; mov eax, [bx]; shr eax, 1
        let rsdt = [FIRMWARE, b"\x8b\x1e\x10\0\x66\x8b\x07\x66\xd1\xe8", LEAVE].concat();
        assert_eq!(leaves_with(folder.path(), backend, &rsdt, &[])?, u32::from_le_bytes(*b"RSDT") >> 1);
        // The timer: mov dx, 0x608; in eax, dx
        let timer = [b"\xba\x08\x06\x66\xed", LEAVE].concat();
        assert!(leaves_with(folder.path(), backend, &timer, &[])? < 100, "{backend}: the run has just begun");
    }
    Ok(())
}

/// The guest asks for an alarm and sleeps; it goes on at its waking vector in real mode, a second later, with its memory.
/// See: ACPI 6.5, 16.1.3.1; kvm-unit-tests x86/s3.c
#[test]
fn a_guest_sleeps_until_its_alarm() -> Result<()> {
    const WAKING_VECTOR: u16 = 0x4c;
    const ANY: u8 = 0xc0;
    let folder = tempfile::tempdir()?;
    // The code to go on with: mov ax, cs; add al, 7; LEAVE
    let code = [&b"\x8c\xc8\x04\x07\x90"[..], LEAVE, b"\x90\x90"].concat();
    let copied: Vec<u8> = (0..3)
        .flat_map(|n| store(0x2000 + 4 * n, std::array::from_fn(|byte| code[4 * usize::from(n) + byte])))
        .collect();
    let prepared = |alarm: u8| {
        [
            FIRMWARE,
            &store(WAKING_VECTOR, 0x2000_u32.to_le_bytes()),
            FLAT,
            &copied,
            &cmos(1, ANY),
            &cmos(3, ANY),
            &cmos(5, ANY),
            &cmos(0xb, alarm),
            &out(0x602, 0x400),
            &out(0x604, 0x2400),
            LEAVE,
        ]
        .concat()
    };
    for backend in BACKENDS {
        assert_eq!(leaves_with(folder.path(), backend, &prepared(0x22), &[])?, 0x207, "{backend}");
        let mut sector = prepared(2);
        sector.resize(512, 0);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        fs::write(folder.path().join("asleep.bin"), sector)?;
        let run = vmtape(folder.path(), &["run", "-b", backend, "asleep.bin"])?;
        assert!(tail(&run).contains("no alarm is to wake it"), "{backend}: {}", tail(&run));
    }
    Ok(())
}
