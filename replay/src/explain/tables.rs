//! The guest's paging entries for an address, as memory holds them: for a side that walked nothing, because it had a
//! translation already. Nothing is judged here.

use crate::observer::Entry;
use vmtape_arch::{
    PAGE_SHIFT, PAGE_SIZE,
    paging::{PagingMode, Pte},
    vcpu::{VcpuState, seg},
};
use vmtape_machine::Machine;

/// One level of a paging mode: its number, and the bits of an address that select an entry.
type Level = (u8, u32, u32);

/// Levels from the root down, with the size of an entry.
fn levels(state: &VcpuState) -> (&'static [Level], u64) {
    const LEVEL5: [Level; 5] = [(5, 48, 9), (4, 39, 9), (3, 30, 9), (2, 21, 9), (1, 12, 9)];
    const PAE: [Level; 3] = [(3, 30, 2), (2, 21, 9), (1, 12, 9)];
    const TWO: [Level; 2] = [(2, 22, 10), (1, 12, 10)];
    match state.paging_mode() {
        PagingMode::None => (&[], 8),
        PagingMode::Bits32 => (&TWO, 4),
        PagingMode::Pae => (&PAE, 8),
        PagingMode::Level4 => (&LEVEL5[1..], 8),
        PagingMode::Level5 => (&LEVEL5, 8),
    }
}

/// The entries from the root down to the first one that leads nowhere.
pub fn entries(machine: &Machine, state: &VcpuState, gva: u64) -> Vec<Entry> {
    let (levels, size) = levels(state);
    let mut found = Vec::new();
    // CR3 in PAE mode is aligned to 32 bytes; its other low bits are flags or a PCID.
    let mut table = match size == 8 && levels.len() == 3 {
        true => state.cr3 & 0xffff_ffe0,
        false => Pte::from_bits(state.cr3).address(),
    };
    for &(level, shift, bits) in levels {
        let gpa = table + (gva >> shift & ((1 << bits) - 1)) * size;
        let Some(value) = read(machine, gpa, size) else { break };
        found.push(Entry { level, gpa: Some(gpa), before: value, after: value });
        let pte = Pte::from_bits(value);
        if !pte.p() || pte.ps() && level > 1 {
            break;
        }
        table = pte.address() & (u64::MAX >> if size == 4 { 32 } else { 0 });
    }
    found
}

/// The bytes at RIP, up to the end of the page: an instruction, or the beginning of one.
pub fn instruction(machine: &Machine, state: &VcpuState) -> Vec<u8> {
    const LONGEST: u64 = 15;
    let base = if state.is_64bit_code() { 0 } else { state.seg[seg::CS].base };
    let gva = base.wrapping_add(state.rip);
    let Some(gpa) = translate(machine, state, gva) else { return Vec::new() };
    let len = LONGEST.min(PAGE_SIZE - gpa % PAGE_SIZE);
    let mut bytes = vec![0; len as usize];
    let read = machine.memory().hpa(gpa).is_some_and(|hpa| machine.memory().ram().read(hpa, &mut bytes));
    if read { bytes } else { Vec::new() }
}

/// Where an address leads, if its entries are present.
fn translate(machine: &Machine, state: &VcpuState, gva: u64) -> Option<u64> {
    if !state.cr0().pg() {
        return Some(gva);
    }
    let leaf = *entries(machine, state, gva).last()?;
    let pte = Pte::from_bits(leaf.before);
    let (modes, _) = levels(state);
    let &(_, shift, _) = modes.iter().find(|(level, ..)| *level == leaf.level)?;
    let offset = (1 << shift) - 1;
    (pte.p() && (leaf.level == 1 || pte.ps())).then_some(pte.address() & !offset | gva & offset)
}

fn read(machine: &Machine, gpa: u64, size: u64) -> Option<u64> {
    let memory = machine.memory();
    let hpa = memory.hpa(gpa >> PAGE_SHIFT << PAGE_SHIFT)? + gpa % (1 << PAGE_SHIFT);
    let mut bytes = [0; 8];
    memory.ram().read(hpa, &mut bytes[..size as usize]).then(|| u64::from_le_bytes(bytes))
}
