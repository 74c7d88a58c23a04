//! Boot sectors and what follows them: loaded at 0x7c00, started in real mode.

use super::{acpi, place};
use crate::{error::LoadError, memory::Memory, spec::MachineSpec};
use vmtape_arch::vcpu::{VcpuState, seg};

const LOAD_ADDRESS: u64 = 0x7c00;
const END: u64 = 0x8_0000;
const SIGNATURE: std::ops::Range<usize> = 510..512;

pub fn is_boot_sector(bytes: &[u8]) -> bool {
    bytes.get(SIGNATURE) == Some(&[0x55, 0xaa])
}

pub fn load(spec: &MachineSpec, memory: &Memory) -> Result<VcpuState, LoadError> {
    let bytes = &spec.image.bytes;
    if spec.initrd.is_some() {
        return Err(LoadError::InitrdOfBootSector);
    }
    if bytes.len() as u64 > END - LOAD_ADDRESS {
        return Err(LoadError::BootSector(bytes.len()));
    }
    acpi::write(spec, memory)?;
    place(memory, "the boot sector", LOAD_ADDRESS, bytes)?;
    let mut state = VcpuState::reset();
    state.seg[seg::CS].selector = 0;
    state.seg[seg::CS].base = 0;
    state.rip = LOAD_ADDRESS;
    Ok(state)
}
