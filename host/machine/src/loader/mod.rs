//! Image loaders: a file's bytes become memory contents and the first vCPU's initial state.

mod bzimage;
mod multiboot;
mod raw;
mod segments;

use crate::{Error, memory::Memory, spec::MachineSpec};
use thiserror::Error;
use vmtape_arch::vcpu::VcpuState;

/// Why an image cannot be loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LoadError {
    #[error("neither a 32-bit ELF multiboot image, nor a bzImage, nor a boot sector")]
    Unknown,
    #[error("damaged ELF file: {0}")]
    Elf(String),
    #[error(
        "ELF for another machine or class: a 32-bit i386 executable is needed (kvm-unit-tests' .flat, not .elf)"
    )]
    ElfClass,
    #[error("no multiboot header in the first 8 KiB")]
    NoMultiboot,
    #[error("the multiboot header asks for features {0:#x} that this loader does not give")]
    MultibootFeatures(u32),
    #[error("truncated: a segment ends at byte {end:#x} of a file of {len:#x} bytes")]
    Truncated { end: u64, len: u64 },
    #[error("segment at {0:#x} has more bytes in the file than in memory")]
    SegmentSize(u64),
    #[error("segments at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    #[error("{what} needs memory {start:#x}-{end:#x}, which is not RAM of this guest")]
    NoMemory { what: &'static str, start: u64, end: u64 },
    #[error("entry point {0:#x} is outside the image")]
    Entry(u64),
    #[error("bzImage: {0}")]
    BzImage(String),
    #[error("command line of {0} bytes: at most {1} fit")]
    CommandLine(usize, usize),
    #[error("initrd does not fit into memory")]
    Initrd,
    #[error("boot sector image of {0} bytes is too large")]
    BootSector(usize),
}

/// Loads the guest of a specification and gives the state in which vCPU 0 starts.
pub fn load(spec: &MachineSpec, memory: &Memory) -> Result<VcpuState, Error> {
    let bytes = &spec.image.bytes;
    let loaded = if bytes.starts_with(b"\x7fELF") {
        multiboot::load(spec, memory)
    } else if bzimage::is_bzimage(bytes) {
        bzimage::load(spec, memory)
    } else if raw::is_boot_sector(bytes) {
        raw::load(bytes, memory)
    } else {
        Err(LoadError::Unknown)
    };
    loaded.map_err(|cause| Error::Image { file: spec.image.name.clone(), cause })
}

/// Writes guest memory, or says what did not fit.
fn place(memory: &Memory, what: &'static str, gpa: u64, data: &[u8]) -> Result<(), LoadError> {
    let end = gpa.saturating_add(data.len() as u64);
    if memory.covers(gpa, data.len() as u64) && memory.write_gpa(gpa, data) {
        Ok(())
    } else {
        Err(LoadError::NoMemory { what, start: gpa, end })
    }
}

/// RAM as a BIOS would report it: base and size.
fn ram_map(memory: &Memory) -> Vec<(u64, u64)> {
    const BASE_MEMORY_END: u64 = 0xa_0000;
    const HIGH_MEMORY: u64 = 0x10_0000;
    let mut map = vec![(0, memory.slots().first().map_or(0, |slot| slot.size.min(BASE_MEMORY_END)))];
    for slot in memory.slots() {
        let end = slot.gpa + slot.size;
        if end > HIGH_MEMORY {
            let start = slot.gpa.max(HIGH_MEMORY);
            map.push((start, end - start));
        }
    }
    map
}

/// Bytes of RAM from 1 MiB up to the first hole.
fn upper_memory(memory: &Memory) -> u64 {
    ram_map(memory).get(1).map_or(0, |(_, size)| *size)
}
