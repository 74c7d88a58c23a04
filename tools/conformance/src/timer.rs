//! A guest that a timer interrupts while it runs.

/// A 32-bit guest that spins until its APIC's periodic timer has interrupted it five times, at vector 0x20. At 0x100060:
///
/// ```text
///       mov esp, 0x200000; lgdt [gdtr]; jmp 8:flat
/// flat: mov eax, 0x10; mov ds, eax; mov ss, eax; lidt [idtr]
///       mov dword [0x180100], 0x80000; mov eax, tick; mov [0x180100], ax; mov dword [0x180104], 0x108e00
///       mov esi, 0xfee00000
///       mov dword [esi+0xf0], 0x1ff; mov dword [esi+0x3e0], 11
///       mov dword [esi+0x320], 0x20020; mov dword [esi+0x380], 20000; sti
/// spin: cmp dword [0x180000], 5; jb spin; xor eax, eax; out 0xf4, eax
/// tick: inc dword [0x180000]; mov dword [esi+0xb0], 0; iret
/// gdtr: dw 23; dd gdt
/// idtr: dw 0x107; dd 0x180000
/// gdt:  dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
/// ```
const CODE: &[u8] = b"\
\xbc\x00\x00\x20\x00\x0f\x01\x15\xee\x00\x10\x00\xea\x73\x00\x10\x00\x08\x00\xb8\x10\x00\x00\x00\x8e\xd8\x8e\xd0\
\x0f\x01\x1d\xf4\x00\x10\x00\xc7\x05\x00\x01\x18\x00\x00\x00\x08\x00\xb8\xdd\x00\x10\x00\x66\xa3\x00\x01\x18\x00\
\xc7\x05\x04\x01\x18\x00\x00\x8e\x10\x00\xbe\x00\x00\xe0\xfe\xc7\x86\xf0\x00\x00\x00\xff\x01\x00\x00\xc7\x86\xe0\
\x03\x00\x00\x0b\x00\x00\x00\xc7\x86\x20\x03\x00\x00\x20\x00\x02\x00\xc7\x86\x80\x03\x00\x00\x20\x4e\x00\x00\xfb\
\x83\x3d\x00\x00\x18\x00\x05\x72\xf7\x31\xc0\xe7\xf4\xff\x05\x00\x00\x18\x00\xc7\x86\xb0\x00\x00\x00\x00\x00\x00\
\x00\xcf\x17\x00\xfa\x00\x10\x00\x07\x01\x00\x00\x18\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x00\x9b\
\xcf\x00\xff\xff\x00\x00\x00\x93\xcf\x00";

/// The guest's image.
pub fn guest() -> Vec<u8> {
    multiboot(CODE)
}

/// An ELF32 multiboot image of this code, which stands and starts at 0x100060.
fn multiboot(code: &[u8]) -> Vec<u8> {
    let (base, header) = (0x10_0000u32, 84u32);
    let mut image = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut words = |words: &[u32]| image.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    let size = header + 12 + code.len() as u32;
    words(&[3 << 16 | 2, 1, base + header + 12, 52, 0, 0, 32 << 16 | 52, 1, 0]);
    words(&[1, 0, base, base, size, size, 7, 0x1000]);
    words(&[0x1bad_b002, 0, 0x1bad_b002u32.wrapping_neg()]);
    image.extend_from_slice(code);
    image
}
