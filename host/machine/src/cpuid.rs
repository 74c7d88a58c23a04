//! CPUID tables per vCPU.

use vmtape_arch::cpuid::CpuidEntry;

/// The table of one vCPU: the topology leaves name its APIC identifier.
pub fn for_vcpu(table: &[CpuidEntry], vcpu: u32, _vcpus: u32) -> Vec<CpuidEntry> {
    table
        .iter()
        .map(|entry| match entry.function {
            1 => CpuidEntry { ebx: entry.ebx & 0x00ff_ffff | vcpu << 24, ..*entry },
            0xb | 0x1f => CpuidEntry { edx: vcpu, ..*entry },
            _ => *entry,
        })
        .collect()
}
