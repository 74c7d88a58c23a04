//! CPUID tables per vCPU.

use vmtape_arch::cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find};

/// The table of one vCPU: the topology leaves name its APIC identifier.
pub fn for_vcpu(table: &[CpuidEntry], vcpu: u32, vcpus: u32) -> Vec<CpuidEntry> {
    let mut own: Vec<_> = table
        .iter()
        .map(|entry| match entry.function {
            1 => CpuidEntry { ebx: entry.ebx & 0x00ff_ffff | vcpu << 24, ..*entry },
            0xb | 0x1f => CpuidEntry { edx: vcpu, ..*entry },
            _ => *entry,
        })
        .collect();
    let knows_topology = find(table, 0, 0).is_some_and(|leaf| leaf.eax >= 0xb);
    if vcpus > 1 && knows_topology && find(table, 0xb, 0).is_none() {
        let at = own.iter().position(|entry| entry.function > 0xb).unwrap_or(own.len());
        own.splice(at..at, topology(vcpu, vcpus));
    }
    own
}

/// One thread per core, all cores in one package.
// See: SDM vol. 2A CPUID, Extended Topology Enumeration Leaf (Initial EAX Value = 0BH)
fn topology(vcpu: u32, vcpus: u32) -> [CpuidEntry; 2] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let entry = |index, eax, ebx, level| CpuidEntry {
        function: 0xb,
        index,
        flags: CPUID_FLAG_SIGNIFICANT_INDEX,
        eax,
        ebx,
        ecx: index | level,
        edx: vcpu,
        pad: 0,
    };
    [entry(0, 0, 1, THREADS), entry(1, vcpus.next_power_of_two().ilog2(), vcpus, CORES)]
}
