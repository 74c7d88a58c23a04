//! `cpuid -r` and `cpuid -1 -r`: leaves as numbers.

use super::evidence::Evidence;
use anyhow::{Context, Result, ensure};
use vmtape_arch::{
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find, maxphyaddr},
    host::Vendor,
};
use vmtape_machine::model::guest_phys_bits;

/// Leaves that have subleaves, of those that features are in.
const INDEXED: [u32; 2] = [7, 0xd];
/// "Auth" and "Genu" in EBX of leaf 0, and "Hygo" of a licensee of AMD's.
const AMD: [u32; 2] = [0x6874_7541, 0x6f67_7948];
const INTEL: u32 = 0x756e_6547;

pub fn is_one(text: &str) -> bool {
    text.lines().any(|line| entry(line).is_some())
}

pub fn read(text: &str) -> Result<Evidence> {
    let mut tables: Vec<Vec<CpuidEntry>> = vec![Vec::new()];
    for found in text.lines().filter_map(entry) {
        if found.function == 0 && tables.last().is_none_or(|table| !table.is_empty()) {
            tables.push(Vec::new());
        }
        tables.last_mut().into_iter().for_each(|table| table.push(found));
    }
    let mut processors = tables.iter().filter(|table| !table.is_empty()).map(|table| processor(table));
    let mut evidence = processors.next().context("no leaf is in it")??;
    let (mut unequal, mut cut) = (false, false);
    for other in processors {
        let Ok(other) = other else {
            cut = true;
            continue;
        };
        unequal |= (&other.features, other.phys_bits) != (&evidence.features, evidence.phys_bits);
        evidence.and(&other);
    }
    if unequal {
        evidence.remarks.push("its processors differ: what all of them have, and the narrowest".to_owned());
    }
    if cut {
        evidence.remarks.push("a processor whose leaves are cut says nothing".to_owned());
    }
    Ok(evidence)
}

/// One processor's leaves.
fn processor(table: &[CpuidEntry]) -> Result<Evidence> {
    let Some(first) = find(table, 0, 0) else { anyhow::bail!("leaf 0 is missing") };
    let mut evidence = Evidence::of("cpuid -r");
    evidence.vendor = match first.ebx {
        ebx if AMD.contains(&ebx) => Some(Vendor::AMD),
        INTEL => Some(Vendor::INTEL),
        _ => None,
    };
    ensure!(find(table, 0x8000_0008, 0).is_some(), "leaf 0x80000008, which has the width, is missing");
    evidence.phys_bits = Some(maxphyaddr(table));
    evidence.guest_phys_bits = Some(guest_phys_bits(table)).filter(|bits| *bits != 0);
    evidence.brand = brand(table);
    evidence.leaves(table);
    if let Some(svm) = find(table, 0x8000_000a, 0) {
        evidence.feature("decodeassists", svm.edx >> 7 & 1 != 0);
    }
    // See: APM vol. 3 E.4.17 Function 8000_001Fh, EBX[11:6] PhysAddrReduction
    let taken = find(table, 0x8000_001f, 0).map_or(0, |leaf| leaf.ebx >> 6 & 0x3f);
    if taken != 0 {
        evidence
            .remarks
            .push(format!("memory encryption, where it is on, takes {taken} address bits from the kernel"));
    }
    evidence.remarks.push("features are those of the CPU, not of KVM".to_owned());
    Ok(evidence)
}

/// `0x00000007 0x00: eax=0x00000000 ebx=0x219c91a9 ecx=0x00400004 edx=0x00000000`
fn entry(line: &str) -> Option<CpuidEntry> {
    let (place, values) = line.split_once(':')?;
    let hex = |text: &str| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
    let mut numbers = place.split_whitespace();
    let (function, index) = (hex(numbers.next()?)?, hex(numbers.next()?)?);
    let mut registers = [0; 4];
    let mut words = values.split_whitespace();
    for (register, name) in registers.iter_mut().zip(["eax=", "ebx=", "ecx=", "edx="]) {
        *register = hex(words.next()?.strip_prefix(name)?)?;
    }
    let [eax, ebx, ecx, edx] = registers;
    let flags = if INDEXED.contains(&function) { CPUID_FLAG_SIGNIFICANT_INDEX } else { 0 };
    Some(CpuidEntry { function, index, flags, eax, ebx, ecx, edx, pad: 0 })
}

/// The brand string of leaves 0x80000002 to 0x80000004.
fn brand(table: &[CpuidEntry]) -> Option<String> {
    let mut bytes = Vec::new();
    for leaf in 0x8000_0002..=0x8000_0004 {
        let entry = find(table, leaf, 0)?;
        [entry.eax, entry.ebx, entry.ecx, entry.edx].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    }
    let text = String::from_utf8_lossy(&bytes).trim_matches(|c: char| c == '\0' || c == ' ').to_owned();
    (!text.is_empty()).then_some(text)
}
