//! The Linux boot protocol: bzImages, entered in 64-bit mode if they can be, else in 32-bit mode.
//!
//! See: Linux Documentation/arch/x86/boot.rst, The Real-Mode Kernel Header, 32-bit Boot Protocol, 64-bit Boot Protocol

use super::{HIGH_MEMORY, place, ram_map, segments, upper_memory};
use crate::{error::LoadError, memory::Memory, spec::MachineSpec};
use linux_loader::loader::{
    KernelLoader,
    bootparam::{boot_e820_entry, boot_params, setup_header},
    bzimage::BzImage,
};
use std::{io::Cursor, ops::Range};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmtape_arch::{
    PAGE_SIZE,
    regs::{Cr0, Cr4, Efer},
    vcpu::{TableReg, VcpuState, gpr},
};

const SIGNATURE: std::ops::Range<usize> = 0x202..0x206;
const SETUP_HEADER: usize = 0x1f1;
const GDT_ADDRESS: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const CMDLINE_ADDRESS: u64 = 0x2_0000;
const CMDLINE_MAX: usize = 0xffff;
/// The first protocol that tells `initrd_addr_max`, and the highest address before it.
const PROTOCOL_2_03: u16 = 0x203;
const INITRD_ADDR_MAX: u32 = 0x37ff_ffff;
const ENTRY_64: u64 = 0x200;
const XLF_KERNEL_64: u16 = 1;
const UNDEFINED_LOADER: u8 = 0xff;
const VGA_NORMAL: u16 = 0xffff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Null, null, 64-bit or 32-bit code, data.
const GDT_64: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const GDT_32: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Identity-mapped GiBs for the 64-bit entry.
const MAPPED_GIB: u64 = 4;

pub fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(SIGNATURE) == Some(b"HdrS")
}

pub fn load(spec: &MachineSpec, memory: &Memory) -> Result<VcpuState, LoadError> {
    let (header, kernel) = load_kernel(&spec.image.bytes, memory)?;
    if spec.cmdline.len() > CMDLINE_MAX {
        return Err(LoadError::CommandLine(spec.cmdline.len(), CMDLINE_MAX));
    }
    let cmdline = [spec.cmdline.as_bytes(), &[0]].concat();
    place(memory, "the command line", CMDLINE_ADDRESS, &cmdline)?;
    let ramdisk = load_initrd(spec, memory, &header, kernel.end)?;
    let params = zero_page(memory, header, ramdisk);
    place(memory, "the zero page", ZERO_PAGE, params.as_slice())?;
    let long = header.xloadflags & XLF_KERNEL_64 != 0;
    place(
        memory,
        "the GDT",
        GDT_ADDRESS,
        &(if long { GDT_64 } else { GDT_32 }).map(u64::to_le_bytes).concat(),
    )?;
    if long {
        write_page_tables(memory)?;
    }
    Ok(entry_state(kernel.start, long))
}

/// Lets linux-loader parse and place the kernel in a scratch memory, and copies it from there. Gives the memory that the
/// kernel needs before it knows where everything else is.
fn load_kernel(bytes: &[u8], memory: &Memory) -> Result<(setup_header, Range<u64>), LoadError> {
    let error = |e: &dyn std::fmt::Display| LoadError::BzImage(e.to_string());
    let start = u64::from(header_u32(bytes, 0x214).ok_or_else(|| error(&"truncated header"))?);
    let len = bytes.len() as u64;
    if start < HIGH_MEMORY || !memory.covers(start, len) {
        return Err(LoadError::NoMemory { what: "the kernel", start, end: start.saturating_add(len) });
    }
    let scratch: GuestMemoryMmap<()> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(start), bytes.len())]).map_err(|e| error(&e))?;
    let loaded = BzImage::load(&scratch, None, &mut Cursor::new(bytes), Some(GuestAddress(HIGH_MEMORY)))
        .map_err(|e| error(&e))?;
    let header = loaded.setup_header.ok_or_else(|| error(&"no setup header"))?;
    let mut kernel = vec![0; (loaded.kernel_end - start) as usize];
    scratch.read_slice(&mut kernel, loaded.kernel_load).map_err(|e| error(&e))?;
    place(memory, "the kernel", start, &kernel)?;
    // A kernel that is loaded below the address that it prefers moves there.
    let runtime = start.max(header.pref_address);
    let needed = u64::from(header.init_size);
    let end = runtime.saturating_add(needed);
    if !memory.covers(runtime, needed) {
        return Err(LoadError::NoMemory { what: "the kernel's init area", start: runtime, end });
    }
    Ok((header, start..end.max(start + kernel.len() as u64)))
}

fn header_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Places the initrd as high as the kernel allows, beyond the memory that the kernel needs; gives its address and size.
// See: The Real-Mode Kernel Header, ramdisk_image, initrd_addr_max
fn load_initrd(
    spec: &MachineSpec,
    memory: &Memory,
    header: &setup_header,
    kernel_end: u64,
) -> Result<(u32, u32), LoadError> {
    let Some(initrd) = &spec.initrd else { return Ok((0, 0)) };
    if initrd.is_empty() {
        return Err(LoadError::EmptyInitrd);
    }
    let highest = if header.version < PROTOCOL_2_03 { INITRD_ADDR_MAX } else { header.initrd_addr_max };
    let top = (HIGH_MEMORY + upper_memory(memory)).min(u64::from(highest) + 1);
    let len = initrd.len() as u64;
    let start = top.saturating_sub(len) & !(PAGE_SIZE - 1);
    if start < kernel_end {
        return Err(LoadError::Initrd { len, start: kernel_end, end: top });
    }
    place(memory, "the initrd", start, initrd)?;
    Ok((start as u32, len as u32))
}

fn zero_page(memory: &Memory, header: setup_header, ramdisk: (u32, u32)) -> boot_params {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.vid_mode = VGA_NORMAL;
    params.hdr.cmd_line_ptr = CMDLINE_ADDRESS as u32;
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = ramdisk;
    let mut map: Vec<_> = ram_map(memory).into_iter().map(|(base, size)| (base, size, E820_RAM)).collect();
    map.insert(1, (0xa_0000, HIGH_MEMORY - 0xa_0000, E820_RESERVED));
    params.e820_entries = map.len() as u8;
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: kind };
    }
    params
}

/// One PML4, one page-directory-pointer table, and page directories with 2 MiB pages.
fn write_page_tables(memory: &Memory) -> Result<(), LoadError> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 0x80;
    let what = "the boot page tables";
    let (pdpt, directories) = (PAGE_TABLES + PAGE_SIZE, PAGE_TABLES + 2 * PAGE_SIZE);
    place(memory, what, PAGE_TABLES, &(pdpt | PRESENT_WRITE).to_le_bytes())?;
    for gib in 0..MAPPED_GIB {
        let directory = directories + gib * PAGE_SIZE;
        place(memory, what, pdpt + gib * 8, &(directory | PRESENT_WRITE).to_le_bytes())?;
        let entries: Vec<u8> = (0..512)
            .flat_map(|i| (((gib << 30) + (i << 21)) | PRESENT_WRITE | LARGE).to_le_bytes())
            .collect();
        place(memory, what, directory, &entries)?;
    }
    Ok(())
}

fn entry_state(start: u64, long: bool) -> VcpuState {
    let mut state = VcpuState::reset();
    segments::set_flat(&mut state, BOOT_CS, BOOT_DS, long);
    state.gdtr = TableReg { base: GDT_ADDRESS, limit: (GDT_64.len() * 8 - 1) as u16, ..Default::default() };
    state.cr0 = Cr0::new().with_pe(true).with_et(true).with_pg(long).into_bits();
    state.gpr[gpr::RSI] = ZERO_PAGE;
    state.rip = start;
    if long {
        state.cr3 = PAGE_TABLES;
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
        state.rip = start + ENTRY_64;
    }
    state
}

const _: () = assert!(SETUP_HEADER == std::mem::offset_of!(boot_params, hdr));
