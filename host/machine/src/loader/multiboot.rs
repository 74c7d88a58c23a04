//! Multiboot 1 images in 32-bit ELF files: kvm-unit-tests' `.flat` and the built-in guests.
//!
//! See: Multiboot Specification version 0.6.96, 3.1 OS image format, 3.2 Machine state, 3.3 Boot information format.
//! Addresses are those of QEMU's option ROM.

use super::{HIGH_MEMORY, acpi, place, ram_map, segments, upper_memory};
use crate::{error::LoadError, memory::Memory, spec::MachineSpec};
use object::{
    LittleEndian, elf,
    read::elf::{FileHeader, ProgramHeader},
};
use vmtape_arch::{
    PAGE_SIZE,
    regs::Cr0,
    vcpu::{VcpuState, gpr},
};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const BOOT_MAGIC: u64 = 0x2bad_b002;
const SEARCH_LIMIT: usize = 8192;
/// Header flags 0-15 are requirements; of those, page-aligned modules, memory information and video mode are
/// known, and the last cannot be given.
const REQUIREMENTS: u32 = 0xffff;
const PAGE_ALIGN: u32 = 1 << 0;
const MEMORY_INFO: u32 = 1 << 1;

const MMAP_ADDRESS: u64 = 0x9000;
const INFO_ADDRESS: u64 = 0x9500;
const LOADER_NAME_ADDRESS: u64 = 0x9580;
const MODULE_ADDRESS: u64 = 0x95a0;
const CMDLINE_ADDRESS: u64 = 0x9600;
const CMDLINE_MAX: usize = 0x9ff;

/// Bits of the information structure's `flags`.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MMAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

const MMAP_RAM: u32 = 1;
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 0x10;

pub fn load(spec: &MachineSpec, memory: &Memory) -> Result<VcpuState, LoadError> {
    let (entry, end) = load_elf(&spec.image.bytes, memory)?;
    write_info(spec, memory, end)?;
    acpi::write(spec, memory)?;
    // Once more: an image that covers the boot information wins, as it does under QEMU.
    load_elf(&spec.image.bytes, memory)?;
    Ok(entry_state(entry))
}

/// Loads all segments; gives the entry point and the end of the image in memory.
fn load_elf(bytes: &[u8], memory: &Memory) -> Result<(u32, u64), LoadError> {
    let damaged = |e: object::read::Error| LoadError::Elf(e.to_string());
    if bytes.get(4) != Some(&elf::ELFCLASS32.0) {
        return Err(LoadError::ElfClass);
    }
    let header = elf::FileHeader32::<LittleEndian>::parse(bytes).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    if header.e_machine(endian) != elf::EM_386 {
        return Err(LoadError::ElfClass);
    }
    check_header(bytes)?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for segment in header.program_headers(endian, bytes).map_err(damaged)? {
        if segment.p_type(endian) == elf::PT_LOAD && segment.p_memsz(endian) != 0 {
            load_segment(segment, bytes, memory, &mut ranges)?;
        }
    }
    let entry = header.e_entry(endian);
    if !ranges.iter().any(|(start, end)| (*start..*end).contains(&entry.into())) {
        return Err(LoadError::Entry(entry.into()));
    }
    Ok((entry, ranges.iter().map(|(_, end)| *end).max().unwrap_or(0)))
}

fn load_segment(
    segment: &elf::ProgramHeader32<LittleEndian>,
    bytes: &[u8],
    memory: &Memory,
    ranges: &mut Vec<(u64, u64)>,
) -> Result<(), LoadError> {
    let endian = LittleEndian;
    let (offset, in_file) = segment.file_range(endian);
    let start = u64::from(segment.p_paddr(endian));
    let in_memory = u64::from(segment.p_memsz(endian));
    if in_file > in_memory {
        return Err(LoadError::SegmentSize(start));
    }
    let data = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..offset.checked_add(in_file as usize)?))
        .ok_or(LoadError::Truncated { end: offset + in_file, len: bytes.len() as u64 })?;
    let end = start + in_memory;
    if let Some((other, _)) = ranges.iter().find(|(s, e)| start < *e && *s < end) {
        return Err(LoadError::Overlap(*other, start));
    }
    ranges.push((start, end));
    // The rest of the segment is zero already: memory is fresh.
    if !memory.covers(start, in_memory) {
        return Err(LoadError::NoMemory { what: "a segment", start, end });
    }
    place(memory, "a segment", start, data)
}

/// Finds the multiboot header and checks what it asks for.
fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let limit = bytes.len().min(SEARCH_LIMIT);
    let flags = (0..limit)
        .step_by(4)
        .filter(|at| word(*at) == Some(HEADER_MAGIC))
        .find_map(|at| {
            let (flags, checksum) = (word(at + 4)?, word(at + 8)?);
            (HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0).then_some(flags)
        })
        .ok_or(LoadError::NoMultiboot)?;
    match flags & REQUIREMENTS & !(PAGE_ALIGN | MEMORY_INFO) {
        0 => Ok(()),
        unknown => Err(LoadError::MultibootFeatures(unknown)),
    }
}

/// Writes the information structure and all it points to.
fn write_info(spec: &MachineSpec, memory: &Memory, image_end: u64) -> Result<(), LoadError> {
    let mut cmdline = spec.image.name.clone().into_bytes();
    if !spec.cmdline.is_empty() {
        cmdline.push(b' ');
        cmdline.extend_from_slice(spec.cmdline.as_bytes());
    }
    if cmdline.len() > CMDLINE_MAX {
        return Err(LoadError::CommandLine(cmdline.len(), CMDLINE_MAX));
    }
    cmdline.push(0);
    place(memory, "the command line", CMDLINE_ADDRESS, &cmdline)?;
    place(memory, "the boot loader's name", LOADER_NAME_ADDRESS, b"vmtape\0")?;

    let mut mmap = Vec::new();
    for (base, size) in ram_map(memory) {
        mmap.extend_from_slice(&20u32.to_le_bytes());
        mmap.extend_from_slice(&base.to_le_bytes());
        mmap.extend_from_slice(&size.to_le_bytes());
        mmap.extend_from_slice(&MMAP_RAM.to_le_bytes());
    }
    place(memory, "the memory map", MMAP_ADDRESS, &mmap)?;

    let modules = match &spec.initrd {
        Some(initrd) => {
            write_module(memory, image_end, initrd)?;
            1
        }
        None => 0,
    };

    let mut info = [0u32; 30];
    info[0] = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MMAP | INFO_LOADER_NAME;
    info[1] = 640;
    info[2] = u32::try_from(upper_memory(memory) / 1024).unwrap_or(u32::MAX);
    info[4] = CMDLINE_ADDRESS as u32;
    info[5] = modules;
    info[6] = MODULE_ADDRESS as u32;
    info[11] = mmap.len() as u32;
    info[12] = MMAP_ADDRESS as u32;
    info[16] = LOADER_NAME_ADDRESS as u32;
    place(memory, "the multiboot information", INFO_ADDRESS, &info.map(u32::to_le_bytes).concat())
}

fn write_module(memory: &Memory, image_end: u64, initrd: &[u8]) -> Result<(), LoadError> {
    let start = image_end.next_multiple_of(PAGE_SIZE);
    let len = initrd.len() as u64;
    let end = start + len;
    if !memory.covers(start, len) || end > u64::from(u32::MAX) {
        return Err(LoadError::Initrd { len, start, end: HIGH_MEMORY + upper_memory(memory) });
    }
    place(memory, "the initrd", start, initrd)?;
    let module = [start as u32, end as u32, 0, 0].map(u32::to_le_bytes).concat();
    place(memory, "the module table", MODULE_ADDRESS, &module)
}

/// 32-bit protected mode without paging, interrupts off.
fn entry_state(entry: u32) -> VcpuState {
    let mut state = VcpuState::reset();
    segments::set_flat(&mut state, CODE_SELECTOR, DATA_SELECTOR, false);
    state.cr0 = Cr0::new().with_pe(true).with_et(true).into_bits();
    state.rip = entry.into();
    state.gpr[gpr::RAX] = BOOT_MAGIC;
    state.gpr[gpr::RBX] = INFO_ADDRESS;
    state
}
