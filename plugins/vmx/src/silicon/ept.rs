//! The EPT walk: from a guest physical to a host physical address, or an EPT violation or misconfiguration.
//!
//! See: SDM vol. 3C 29.3 The Extended Page Table Mechanism (EPT)

use vmtape_arch::{
    paging::{EptEntry, Eptp, bits},
};

/// The memory that holds the EPT paging structures.
pub trait EptMemory {
    /// The entry at a host physical address.
    fn entry(&self, hpa: u64) -> u64;

    /// Sets accessed or dirty bits in an entry.
    fn update(&mut self, hpa: u64, entry: u64);
}

/// What this CPU's EPT can do. See: SDM vol. 3D A.10 VPID and EPT Capabilities
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptSilicon {
    /// MAXPHYADDR of the CPU, never of the guest.
    pub maxphyaddr: u8,
    pub execute_only: bool,
    pub gbpages: bool,
    /// Address bits 51:48 under 4-level EPT: a violation with bits 6:3 clear. Off: they are ignored.
    pub wide_gpa_violates: bool,
}

/// One guest physical access, as bits 2:0 of an exit qualification say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpaAccess {
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
}

impl GpaAccess {
    pub const READ: Self = Self { read: true, write: false, fetch: false };
    pub const WRITE: Self = Self { read: false, write: true, fetch: false };
    pub const FETCH: Self = Self { read: false, write: false, fetch: true };
    /// A guest paging-structure entry where that counts as a write.
    pub const READ_WRITE: Self = Self { read: true, write: true, fetch: false };
}

/// Rights over all entries that a translation used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    pub r: bool,
    pub w: bool,
    pub x: bool,
}

impl Rights {
    const ALL: Self = Self { r: true, w: true, x: true };

    fn and(self, entry: EptEntry) -> Self {
        Self { r: self.r && entry.r(), w: self.w && entry.w(), x: self.x && entry.x() }
    }

    fn allow(self, access: GpaAccess) -> bool {
        (!access.read || self.r) && (!access.write || self.w) && (!access.fetch || self.x)
    }
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptTranslation {
    pub hpa: u64,
    pub rights: Rights,
    pub page_shift: u8,
    /// A write needs no further update of a dirty bit.
    pub dirty: bool,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptFault {
    /// With the rights that the exit qualification reports: none if an entry is not present.
    Violation(Rights),
    Misconfiguration,
    /// Address bits 51:48 under 4-level EPT.
    WideGpa,
}

const BITS_PER_LEVEL: u32 = 9;

/// log2 of what an entry at this level maps.
const fn shift(level: u8) -> u32 {
    12 + BITS_PER_LEVEL * (level as u32 - 1)
}

/// Translates a guest physical address for an access.
///
/// Not present wins over malformed only above: each entry is first looked at for presence, then for form; rights count
/// once the final address is known. See: SDM vol. 3C 29.3.3.3 Prioritization of EPT Misconfigurations and EPT Violations
pub fn translate<M: EptMemory + ?Sized>(
    silicon: &EptSilicon,
    eptp: Eptp,
    gpa: u64,
    access: GpaAccess,
    memory: &mut M,
) -> Result<EptTranslation, EptFault> {
    let levels = eptp.levels_minus_one() + 1;
    if levels == 4 && silicon.wide_gpa_violates && gpa & bits(48, 51) != 0 {
        return Err(EptFault::WideGpa);
    }
    let mut used = [0u64; 5];
    let mut rights = Rights::ALL;
    let mut table = eptp.frame() << 12;
    for (depth, level) in (1..=levels).rev().enumerate() {
        let index = gpa >> shift(level) & bits(0, BITS_PER_LEVEL - 1);
        let address = table + 8 * index;
        used[depth] = address;
        let entry = EptEntry::from_bits(memory.entry(address));
        if !(entry.r() || entry.w() || entry.x()) {
            return Err(EptFault::Violation(Rights::default()));
        }
        let leaf = level == 1 || level <= 3 && entry.ps();
        if is_misconfigured(silicon, entry, level, leaf) {
            return Err(EptFault::Misconfiguration);
        }
        rights = rights.and(entry);
        if leaf {
            if !rights.allow(access) {
                return Err(EptFault::Violation(rights));
            }
            let dirty = eptp.ad() && set_accessed(&used[..=depth], access.write, memory);
            let offset = bits(0, shift(level) - 1);
            return Ok(EptTranslation {
                hpa: entry.address() & !offset | gpa & offset,
                rights,
                page_shift: shift(level) as u8,
                dirty: dirty || !eptp.ad(),
            });
        }
        table = entry.address();
    }
    unreachable!("level 1 is always a leaf")
}

/// Sets A in every entry used, and D in the leaf for a write. Returns the leaf's D.
/// See: SDM vol. 3C 29.3.5 Accessed and Dirty Flags for EPT
fn set_accessed<M: EptMemory + ?Sized>(used: &[u64], write: bool, memory: &mut M) -> bool {
    let mut dirty = false;
    for (at, address) in used.iter().enumerate() {
        let old = EptEntry::from_bits(memory.entry(*address));
        let leaf = at + 1 == used.len();
        let new = old.with_a(true).with_d(old.d() || leaf && write);
        if new != old {
            memory.update(*address, new.into_bits());
        }
        dirty = new.d();
    }
    dirty
}

/// Whether a present entry must not be like this. See: SDM vol. 3C 29.3.3.1 EPT Misconfigurations
fn is_misconfigured(silicon: &EptSilicon, entry: EptEntry, level: u8, leaf: bool) -> bool {
    let value = entry.into_bits();
    let write_only = entry.w() && !entry.r();
    let execute_only = entry.x() && !entry.r() && !entry.w() && !silicon.execute_only;
    let too_wide = value & bits(silicon.maxphyaddr.into(), 51) != 0;
    let reserved = match (level, leaf) {
        (4 | 5, _) => bits(3, 7),
        (2 | 3, false) => bits(3, 6),
        (3, true) if !silicon.gbpages => return true,
        (3, true) => bits(12, 29),
        (2, true) => bits(12, 20),
        _ => 0,
    };
    let bad_type = leaf && matches!(entry.memtype(), 2 | 3 | 7);
    write_only || execute_only || too_wide || value & reserved != 0 || bad_type
}
