//! An ELF32 file with one segment and a multiboot-1 header at its start.

/// Where the segment is loaded.
pub const LOAD_ADDRESS: u32 = 0x10_0000;
/// Bytes of the multiboot header that stands at the start of the segment.
pub const MULTIBOOT_HEADER_SIZE: u32 = 12;

const ELF_HEADER_SIZE: u32 = 52;
const PROGRAM_HEADER_SIZE: u32 = 32;
/// The segment's place in the file, aligned so that headers stay out of it.
const SEGMENT_OFFSET: u32 = 0x80;

// See: Multiboot Specification 0.6.96, 3.1.1 The layout of Multiboot header
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
const MULTIBOOT_FLAGS: u32 = 0;

/// The header; `body` is placed right behind it. `bss` bytes of zeroes follow the body in memory.
pub fn elf32(entry: u32, body: &[u8], bss: u32) -> Vec<u8> {
    let size = MULTIBOOT_HEADER_SIZE + body.len() as u32;
    let mut file = Vec::new();
    let words = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    // e_ident: ELFCLASS32, ELFDATA2LSB, EV_CURRENT; e_type ET_EXEC, e_machine EM_386.
    file.extend_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0");
    words(&mut file, &[1, entry, ELF_HEADER_SIZE, 0, 0]);
    for half in [ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE, 1, 0, 0, 0] {
        file.extend_from_slice(&(half as u16).to_le_bytes());
    }
    // PT_LOAD, readable, writable and executable.
    words(&mut file, &[1, SEGMENT_OFFSET, LOAD_ADDRESS, LOAD_ADDRESS, size, size + bss, 7, 0x80]);
    file.resize(SEGMENT_OFFSET as usize, 0);
    let checksum = 0u32.wrapping_sub(MULTIBOOT_MAGIC).wrapping_sub(MULTIBOOT_FLAGS);
    words(&mut file, &[MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, checksum]);
    file.extend_from_slice(body);
    file
}
