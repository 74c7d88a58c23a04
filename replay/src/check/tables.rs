//! All of a guest's page tables, read out of a machine that stands still.
//!
//! See: SDM vol. 3A 4.4 PAE Paging, 4.5 4-Level Paging and 5-Level Paging

use std::collections::BTreeSet;
use vmtape_arch::{
    paging::{PagingMode, Pte},
    vcpu::VcpuState,
};
use vmtape_machine::{Machine, Memory};

/// A present entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub level: u8,
    /// Where it stands, guest physical.
    pub at: u64,
    pub value: u64,
}

/// Tables that a scan looks at. A guest with more has a direct map of many terabytes in small pages.
const MOST_TABLES: usize = 1 << 18;
const ENTRIES: u64 = 512;

/// The top of a vCPU's tables: their gpa and level; `None` without paging, and for 32-bit paging, whose entries hold no
/// address that any host has not.
fn root(state: &VcpuState) -> Option<(u64, u8)> {
    let level = match state.paging_mode() {
        PagingMode::None | PagingMode::Bits32 => return None,
        mode => mode.levels(),
    };
    /// CR3 of PAE paging is aligned to 32 bytes, otherwise to a page. Bits from 52 on are no address.
    const PAE_TABLE: u64 = 0xffff_ffe0;
    const TABLE: u64 = 0x000f_ffff_ffff_f000;
    Some((state.cr3 & if level == 3 { PAE_TABLE } else { TABLE }, level))
}

fn read(memory: &Memory, gpa: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.ram().read(memory.hpa(gpa)?, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// Where the entry for a linear address stands in its table of this level, with entries of 8 bytes.
pub fn offset(gva: u64, level: u8) -> u64 {
    let shift = 12 + 9 * u32::from(level.clamp(1, 5) - 1);
    (gva >> shift & (ENTRIES - 1)) * 8
}

/// Whether an entry leads to a table, not to a page.
fn leads_down(entry: &Entry, root_level: u8) -> bool {
    let may_be_page = entry.level == 2 || entry.level == 3 && root_level > 3;
    entry.level > 1 && !(may_be_page && Pte::from_bits(entry.value).ps())
}

/// Every present entry that a vCPU's CR3 leads to.
pub fn scan(machine: &Machine, vcpu: u32, found: &mut dyn FnMut(Entry)) {
    let Some((table, root_level)) = machine.state(vcpu).and_then(root) else { return };
    let mut seen = BTreeSet::from([(table, root_level)]);
    let mut pending = vec![(table, root_level)];
    while let Some((table, level)) = pending.pop() {
        let entries = if level == 3 && root_level == 3 { 4 } else { ENTRIES };
        for index in 0..entries {
            let at = table + 8 * index;
            let Some(value) = read(machine.memory(), at) else { break };
            let entry = Entry { level, at, value };
            if !Pte::from_bits(value).p() {
                continue;
            }
            found(entry);
            let next = (Pte::from_bits(value).address(), level - 1);
            if leads_down(&entry, root_level) && seen.len() < MOST_TABLES && seen.insert(next) {
                pending.push(next);
            }
        }
    }
}
