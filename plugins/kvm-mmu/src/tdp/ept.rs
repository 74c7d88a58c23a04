//! The walk of extended page tables.
//!
//! Manual: Intel SDM 325384-087, chapter 29.

use super::{
    nested::{Nested, NestedFault},
    pml::Pml,
    private::PrivateTables,
};
use crate::{
    config::Config,
    memory_type::{self, EptType},
    pages::entry_address,
    spte::Format,
};
use vmtape_arch::{
    access::AccessKind,
    memory_type::MemoryType,
    paging::{EptEntry, bits},
};

/// Walks EPT. See: SDM 29.3.2 EPT Translation Mechanism, 29.3.3 EPT-Induced VM Exits
pub(super) fn walk_ept(
    tables: &mut PrivateTables<'_>,
    config: &Config,
    root: u64,
    levels: u8,
    gpa: u64,
    kind: AccessKind,
    pml: Option<&mut Pml>,
) -> Result<Nested, NestedFault> {
    let Format::Ept { ad } = config.format else { return Err(NestedFault::Misconfiguration) };
    const NOTHING: NestedFault = NestedFault::Violation { read: false, write: false, fetch: false };
    if levels < 5 && config.wide_gpa_faults && gpa >> 48 != 0 {
        return Err(NOTHING);
    }
    let mut used = [0; 5];
    let (mut table, mut level) = (root, levels);
    let (mut r, mut w, mut x) = (true, true, true);
    loop {
        let address = entry_address(table, gpa >> (12 + 9 * (level - 1)) & 0x1ff);
        let value = tables.entry(address);
        let entry = EptEntry::from_bits(value);
        if !entry.r() && !entry.w() && !entry.x() {
            return Err(NOTHING);
        }
        if ept_misconfigured(entry, level, config) {
            return Err(NestedFault::Misconfiguration);
        }
        (r, w, x) = (r && entry.r(), w && entry.w(), x && entry.x());
        used[level as usize - 1] = address;
        if level > 1 && !entry.ps() {
            table = entry.address();
            level -= 1;
            continue;
        }
        let allowed = match kind {
            AccessKind::FETCH => x,
            AccessKind::WRITE => w,
            _ => r,
        };
        if !allowed {
            return Err(NestedFault::Violation { read: r, write: w, fetch: x });
        }
        let mut dirty = true;
        if ad {
            let wanted = kind == AccessKind::WRITE && !entry.d();
            let sets_dirty = wanted && !tables.loses_dirty(value);
            if let Some(pml) = pml {
                // See: SDM 29.3.6 Page-Modification Logging: the index is examined before either flag is set.
                let path = &used[level as usize - 1..levels as usize];
                let sets_accessed =
                    path.iter().any(|address| !EptEntry::from_bits(tables.stored(*address)).a());
                if pml.is_full() && (sets_dirty || sets_accessed) {
                    return Err(NestedFault::LogFull);
                }
                if sets_dirty {
                    pml.log(gpa);
                }
            }
            for &address in &used[level as usize - 1..levels as usize] {
                let value = tables.stored(address);
                let used = EptEntry::from_bits(value);
                if !used.a() && !tables.loses_accessed(value) {
                    tables.set(address, used.with_a(true).into_bits());
                }
            }
            dirty = entry.d() || kind == AccessKind::WRITE;
            if sets_dirty {
                let stored = EptEntry::from_bits(tables.stored(address));
                tables.set(address, stored.with_d(true).into_bits());
            }
        }
        let offset = bits(0, 11 + 9 * (u32::from(level) - 1));
        return Ok(Nested {
            hpa: entry.address() & !offset | gpa & offset,
            read: r,
            write: w && dirty,
            fetch: x,
            memory_type: memory_type::Nested::Ept(EptType {
                memory_type: MemoryType::of_encoding(entry.memtype()),
                ignore_pat: entry.ipat(),
            }),
        });
    }
}

/// See: SDM 29.3.3.1 EPT Misconfigurations
pub(crate) fn ept_misconfigured(entry: EptEntry, level: u8, config: &Config) -> bool {
    let value = entry.into_bits();
    let leaf = level == 1 || level <= 3 && entry.ps();
    let reserved = bits(u32::from(config.host_width), 51)
        | match level {
            4 | 5 => bits(3, 7),
            3 if leaf && !config.gbpages => bits(7, 7),
            3 if leaf => bits(12, 29),
            2 if leaf => bits(12, 20),
            2 | 3 => bits(3, 6),
            _ => 0,
        };
    entry.w() && !entry.r() || value & reserved != 0 || leaf && matches!(entry.memtype(), 2 | 3 | 7)
}
