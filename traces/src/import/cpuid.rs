//! The guest's CPUID table from what the guest saw, so that another run can have the same.

use crate::{Event, Tape, error::Result, event::Control};
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::{
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry},
    note::Note,
};

/// Leaves that ECX selects within. See: KVM arch/x86/kvm/cpuid.c cpuid_function_is_indexed()
const INDEXED: [u32; 14] =
    [0x4, 0x7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f, 0x8000_001d];

/// The CPUID table of the guest on a tape: the one that was set, or what its CPUID instructions returned. In the second
/// case it holds the leaves that the guest asked for and no others: lay it over the table of a CPU model.
pub fn cpuid_table(tape: &Tape) -> Result<Vec<CpuidEntry>> {
    if !tape.metadata().cpuid.is_empty() {
        return Ok(tape.metadata().cpuid.clone());
    }
    let mut table = BTreeMap::new();
    for event in tape.events() {
        match event? {
            Event::Control { control: Control::SetCpuid { vcpu: 0, entries, result: 0 }, .. } => {
                return Ok(entries);
            }
            Event::Note { note, .. } => {
                if let Some(entry) = seen(&note) {
                    table.entry((entry.function, entry.index)).or_insert(entry);
                }
            }
            _ => {}
        }
    }
    Ok(table.into_values().collect())
}

/// Leaves, with their index, for which CPUID instructions found no entry in a table that nobody has told: no model that the table
/// is laid over may have them.
pub fn absent_leaves(tape: &Tape) -> Result<BTreeSet<(u32, u32)>> {
    let mut absent = BTreeSet::new();
    if !tape.metadata().cpuid.is_empty() {
        return Ok(absent);
    }
    for event in tape.events() {
        if let Event::Note { note: Note::Cpuid { function, index, found: false, .. }, .. } = event? {
            absent.insert((function, if INDEXED.contains(&function) { index } else { 0 }));
        }
    }
    Ok(absent)
}

/// The entry that a CPUID instruction found. A function above the highest basic leaf returns that leaf's values and is
/// no entry of its own.
fn seen(note: &Note) -> Option<CpuidEntry> {
    let Note::Cpuid { function, index, eax, ebx, ecx, edx, found: true, used_max_basic: false } = *note
    else {
        return None;
    };
    let indexed = INDEXED.contains(&function);
    let index = if indexed { index } else { 0 };
    let flags = if indexed { CPUID_FLAG_SIGNIFICANT_INDEX } else { 0 };
    Some(CpuidEntry { function, index, flags, eax, ebx, ecx, edx, pad: 0 })
}
