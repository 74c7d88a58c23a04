//! CPUID tables, leaf by leaf.

use super::{
    VendorName,
    features::{
        self, Feature, FeatureSet,
        Register::{Eax, Ebx, Ecx, Edx},
    },
    qemu::Identity,
    vendor_name,
};
use vmtape_arch::{
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find},
    host::{Silicon, Vendor},
};
use vmtape_cpu::XSAVE_COMPONENTS;

/// Family, model and stepping: Ice Lake client and Zen, as the recordings show them.
const INTEL_SIGNATURE: u32 = 0x706e5;
const AMD_SIGNATURE: u32 = 0x80_0f12;
/// CLFLUSH line size in units of 8 bytes, and one logical processor.
const CLFLUSH_AND_COUNT: u32 = 0x0001_0800;
/// Address-space identifiers of SVM, as QEMU counts them.
const SVM_ASIDS: u32 = 0x10;
/// Bits of linear addresses.
const LINEAR_BITS: u32 = 48;
const LINEAR_BITS_LA57: u32 = 57;
/// The XSAVE area without extended components.
const XSAVE_LEGACY_SIZE: u32 = 576;
const XCR0_X87_SSE: u32 = 3;

fn plain(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn indexed(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, flags: CPUID_FLAG_SIGNIFICANT_INDEX, ..plain(function, registers) }
}

/// What CPUID says on the host itself: everything that its silicon has.
pub fn silicon_cpuid(silicon: &Silicon) -> Vec<CpuidEntry> {
    silicon_cpuid_with(silicon, &[])
}

/// As [`silicon_cpuid`], for silicon that has or lacks these features.
pub fn silicon_cpuid_with(silicon: &Silicon, changes: &[(&Feature, bool)]) -> Vec<CpuidEntry> {
    let mut set = FeatureSet::all(silicon);
    set.set(
        super::named(if silicon.vendor == Vendor::AMD { "svm" } else { "vmx" }).expect("in the table"),
        true,
    );
    for (feature, on) in changes {
        set.set(feature, *on);
    }
    table(silicon, vendor_name(silicon.vendor), &set, silicon.phys_bits, 0, None)
}

/// GuestPhysBits as KVM_GET_SUPPORTED_CPUID gives it; 0 where it does not.
pub fn guest_phys_bits(supported: &[CpuidEntry]) -> u8 {
    find(supported, 0x8000_0008, 0).map_or(0, |entry| (entry.eax >> 16) as u8)
}

/// The table of vCPU 0 with these features and widths, of this processor or the software CPU's own.
pub fn table(
    silicon: &Silicon,
    name: &VendorName,
    set: &FeatureSet,
    phys_bits: u8,
    guest_phys_bits: u8,
    identity: Option<&Identity>,
) -> Vec<CpuidEntry> {
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    let vendor = [word(0), word(8), word(4)];
    let own_signature = if silicon.vendor == Vendor::AMD { AMD_SIGNATURE } else { INTEL_SIGNATURE };
    let signature = identity.map_or(own_signature, Identity::signature);
    let brand = identity.map_or("vmtape software CPU", |identity| &identity.id);
    let bits = |leaf, register| set.bits(leaf, 0, register);

    let mut entries = vec![
        plain(0, [0xd, vendor[0], vendor[1], vendor[2]]),
        plain(1, [signature, CLFLUSH_AND_COUNT, bits(1, Ecx), bits(1, Edx)]),
    ];
    // ARAT: the local APIC's timer does not stop.
    entries.push(plain(6, [1 << 2, 0, 0, 0]));
    entries.push(indexed(7, 0, [0, bits(7, Ebx), bits(7, Ecx), bits(7, Edx)]));
    // No performance counters.
    entries.push(plain(0xa, [0; 4]));
    if set.has("xsave") {
        entries.extend(xsave(set));
    }
    // Duplicates of leaf 1 EDX are AMD's habit. See: APM vol. 3 E.4.2 Function 8000_0001h
    let duplicates = if silicon.vendor == Vendor::AMD { bits(1, Edx) & AMD_DUPLICATED_EDX } else { 0 };
    let last = if set.has("svm") { features::SVM } else { 0x8000_0008 };
    // Vendor and signature again are AMD's habit, too; Intel's are reserved.
    let amd = silicon.vendor == Vendor::AMD;
    let again = if amd { vendor } else { [0; 3] };
    entries.push(plain(0x8000_0000, [last, again[0], again[1], again[2]]));
    entries.push(plain(
        0x8000_0001,
        [if amd { signature } else { 0 }, 0, bits(0x8000_0001, Ecx), bits(0x8000_0001, Edx) | duplicates],
    ));
    for (i, text) in brand.as_bytes().chunks(16).chain([&b""[..]; 3]).take(3).enumerate() {
        let mut padded = [0; 16];
        padded[..text.len()].copy_from_slice(text);
        let word =
            |at: usize| u32::from_le_bytes([padded[at], padded[at + 1], padded[at + 2], padded[at + 3]]);
        entries.push(plain(0x8000_0002 + i as u32, [word(0), word(4), word(8), word(12)]));
    }
    let linear = if set.has("la57") { LINEAR_BITS_LA57 } else { LINEAR_BITS };
    let widths = u32::from(phys_bits) | linear << 8 | u32::from(guest_phys_bits) << 16;
    entries.push(plain(features::WIDTHS, [widths, bits(features::WIDTHS, Ebx), 0, 0]));
    if set.has("svm") {
        entries.push(plain(features::SVM, [1, SVM_ASIDS, 0, bits(features::SVM, Edx)]));
    }
    let paravirtual = bits(features::KVM, Eax);
    if paravirtual != 0 {
        let both = if set.has(features::KVMCLOCK) { KVM_CLOCKSOURCE2 } else { 0 };
        entries
            .push(plain(features::KVM_SIGNATURE, [features::KVM, KVMKVMKVM[0], KVMKVMKVM[1], KVMKVMKVM[2]]));
        entries.push(plain(features::KVM, [paravirtual | both, 0, 0, 0]));
    }
    entries
}

/// "KVMKVMKVM" in EBX, ECX, EDX.
const KVMKVMKVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
/// KVM_FEATURE_CLOCKSOURCE2: the registers with KVM's own numbers.
const KVM_CLOCKSOURCE2: u32 = 1 << 3;

/// Bits of leaf 1 EDX that leaf 8000_0001 EDX repeats: FPU to CX8, APIC, MTRR to PSE36, MMX, FXSR.
const AMD_DUPLICATED_EDX: u32 = 0x0183_f3ff;

/// Leaf 0xD: the components that XCR0 may hold. See: SDM vol. 1 13.2 Enumeration of CPU Support for XSAVE Instructions
fn xsave(set: &FeatureSet) -> Vec<CpuidEntry> {
    let present: Vec<_> = XSAVE_COMPONENTS
        .iter()
        .filter(|component| match component.number {
            2 => set.has("avx"),
            9 => set.has("pku"),
            _ => false,
        })
        .collect();
    let xcr0 = present.iter().fold(XCR0_X87_SSE, |bits, component| bits | 1 << component.number);
    let size = present.iter().map(|c| c.offset + c.size).fold(XSAVE_LEGACY_SIZE, u32::max);
    let mut entries = vec![
        indexed(0xd, 0, [xcr0, XSAVE_LEGACY_SIZE, size, 0]),
        indexed(0xd, 1, [set.bits(0xd, 1, Eax), XSAVE_LEGACY_SIZE, 0, 0]),
    ];
    entries.extend(
        present
            .iter()
            .map(|component| indexed(0xd, component.number, [component.size, component.offset, 0, 0])),
    );
    entries
}
