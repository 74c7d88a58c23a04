//! Image loaders: a file's bytes become memory contents and the first vCPU's initial state.

pub(crate) mod acpi;
mod bzimage;
mod multiboot;
mod raw;
mod segments;

use crate::{Error, error::LoadError, memory::Memory, spec::MachineSpec};
use vmtape_arch::vcpu::VcpuState;

/// Where memory begins again above the hole for devices and firmware.
const HIGH_MEMORY: u64 = 0x10_0000;

/// Loads the guest of a specification and gives the state in which vCPU 0 starts.
pub fn load(spec: &MachineSpec, memory: &Memory) -> Result<VcpuState, Error> {
    let bytes = &spec.image.bytes;
    let loaded = if bytes.starts_with(b"\x7fELF") {
        multiboot::load(spec, memory)
    } else if bzimage::is_bzimage(bytes) {
        bzimage::load(spec, memory)
    } else if raw::is_boot_sector(bytes) {
        raw::load(spec, memory)
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
