//! From the multiboot entry to 64-bit code: tables as data, and the few instructions that switch modes.

use crate::{
    image::{self, LOAD_ADDRESS, MULTIBOOT_HEADER_SIZE},
    kernel::{self, Kernel, VECTORS},
    parameters::Values,
};
use iced_x86::{IcedError, code_asm::*};

pub use crate::places::{layout, selector};

// See: SDM vol. 3A 3.4.5 Segment Descriptors
const GDT: [u64; 8] = [
    0,
    0x00cf_9b00_0000_ffff, // 32-bit code
    0x00cf_9300_0000_ffff, // data
    0x00af_9b00_0000_ffff, // 64-bit code
    0x00cf_f300_0000_ffff, // user data
    0x00af_fb00_0000_ffff, // user 64-bit code
    0x0000_8900_0000_0067 | (layout::TSS & 0xff_ffff) << 16,
    0,
];

/// Present, writable, user, accessed, dirty; 2 MiB pages have bit 7 too. User, so that CPL 3 can run the programs' code.
const TABLE_FLAGS: u64 = 0x27;
const LARGE_PAGE_FLAGS: u64 = 0xe7;

/// Builds the image of a program.
pub fn image(
    program: fn(&mut Kernel, &Values) -> Result<(), IcedError>,
    values: &Values,
) -> Result<Vec<u8>, IcedError> {
    let mut kernel = Kernel::new()?;
    program(&mut kernel, values)?;
    let code64 = kernel.finish()?;
    assert!(layout::CODE64 + code64.bytes.len() as u64 <= layout::BSS, "the program overlaps its data");

    let mut memory = vec![0; (layout::CODE64 - u64::from(LOAD_ADDRESS)) as usize];
    let mut put = |address: u64, words: &[u64]| put(&mut memory, address, words);
    put(layout::GDT, &GDT);
    put(layout::GDTR, &[gdtr()]);
    put(layout::IDT, &idt(&code64.stubs));
    // The TSS holds RSP0 at offset 4; the I/O bitmap lies beyond the limit.
    put(layout::TSS, &[layout::RSP0_TOP << 32, layout::RSP0_TOP >> 32]);
    put(layout::TSS + 0x60, &[0x68 << 48]);
    put(layout::PML4, &[layout::PDPT | TABLE_FLAGS]);
    let directories: Vec<u64> = (0..4).map(|i| (layout::PD + i * 0x1000) | TABLE_FLAGS).collect();
    put(layout::PDPT, &directories);
    let pages: Vec<u64> = (0..2048).map(|i| i << 21 | LARGE_PAGE_FLAGS).collect();
    put(layout::PD, &pages);

    let entry = u64::from(LOAD_ADDRESS + MULTIBOOT_HEADER_SIZE);
    let start = switch_to_64bit(entry)?;
    memory[MULTIBOOT_HEADER_SIZE as usize..][..start.len()].copy_from_slice(&start);
    memory.extend_from_slice(&code64.bytes);
    Ok(finish(memory))
}

/// Builds the image of a program that stays in 32-bit code, with `tables` where the long-mode tables would be.
pub fn image32(
    program: fn(&mut CodeAssembler, &Values) -> Result<(), IcedError>,
    tables: &[u32],
    values: &Values,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    program(&mut a, values)?;
    let code = a.assemble(u64::from(LOAD_ADDRESS + MULTIBOOT_HEADER_SIZE))?;
    let mut memory = vec![0; (layout::CODE64 - u64::from(LOAD_ADDRESS)) as usize];
    put(&mut memory, layout::GDT, &GDT);
    put(&mut memory, layout::GDTR, &[gdtr()]);
    let words: Vec<u64> =
        tables.chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect();
    put(&mut memory, layout::PML4, &words);
    let start = MULTIBOOT_HEADER_SIZE as usize;
    assert!(
        start + code.len() <= (layout::GDT - u64::from(LOAD_ADDRESS)) as usize,
        "the program overlaps its tables"
    );
    memory[start..][..code.len()].copy_from_slice(&code);
    Ok(finish(memory))
}

/// Writes words at a guest address of an image.
fn put(memory: &mut [u8], address: u64, words: &[u64]) {
    let offset = (address - u64::from(LOAD_ADDRESS)) as usize;
    for (slot, word) in memory[offset..].chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
}

/// Limit and base of the GDT, as LGDT reads them.
fn gdtr() -> u64 {
    (size_of_val(&GDT) as u64 - 1) | layout::GDT << 16
}

fn finish(mut memory: Vec<u8>) -> Vec<u8> {
    memory.resize((layout::BSS - u64::from(LOAD_ADDRESS)) as usize, 0);
    let body = &memory[MULTIBOOT_HEADER_SIZE as usize..];
    image::elf32(LOAD_ADDRESS + MULTIBOOT_HEADER_SIZE, body, (layout::BSS_END - layout::BSS) as u32)
}

/// 64-bit interrupt gates. See: SDM vol. 3A Figure 6-8. 64-Bit IDT Gate Descriptors
fn idt(stubs: &[u64; VECTORS]) -> Vec<u64> {
    stubs
        .iter()
        .enumerate()
        .flat_map(|(vector, address)| {
            // CPL 3 may only raise the vector by which user code comes back.
            let dpl = if vector == usize::from(kernel::RETURN_VECTOR) { 3u64 } else { 0 };
            let attributes = 0x8e00 | dpl << 13;
            let low = address & 0xffff
                | u64::from(selector::CODE64) << 16
                | attributes << 32
                | (address >> 16 & 0xffff) << 48;
            [low, address >> 32]
        })
        .collect()
}

/// 32-bit protected mode without paging to 64-bit mode; the code of the boot processor and, after its real-mode
/// trampoline, of the others.
pub fn switch_to_64bit(address: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    // CR4: PAE. EFER: LME and NXE. CR0: PE, MP, ET, NE, WP, PG.
    a.mov(eax, 0x20)?;
    a.mov(cr4, eax)?;
    a.mov(eax, layout::PML4 as u32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    a.or(eax, 0x900)?;
    a.wrmsr()?;
    a.mov(eax, 0x8001_0033u32)?;
    a.mov(cr0, eax)?;
    a.lgdt(fword_ptr(layout::GDTR))?;
    // JMP FAR 18:CODE64; the assembler library has no mnemonic for it in this form.
    let target = (layout::CODE64 as u32).to_le_bytes();
    let code64 = selector::CODE64.to_le_bytes();
    a.db(&[0xea, target[0], target[1], target[2], target[3], code64[0], code64[1]])?;
    a.assemble(address)
}
