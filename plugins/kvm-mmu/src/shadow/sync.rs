//! Unsync pages: guest page tables of level 1 that the guest may write, and how they become exact again.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c mmu_try_to_unsync_pages(), mmu_sync_children(); paging_tmpl.h sync_spte()

use super::table_of;
use crate::{
    mmu::Mmu,
    pages::{ENTRIES, entry_address},
    spte::{Leaf, NONPRESENT},
    walk::Acc,
};
use vmtape_abi::{Host, MemoryStatus};
use vmtape_arch::{note::Note, paging::Pte};

/// What synchronizing one entry did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Synced {
    Same,
    /// Silicon may hold the old entry.
    Flush,
    /// The guest's table cannot be read.
    Failed,
}

impl Mmu {
    /// `mark_unsync`: something below this entry is unsync.
    pub(crate) fn mark_unsync(&mut self, sptep: u64) {
        let (table, index) = table_of(sptep);
        let Some(sp) = self.shadow.get_mut(table) else { return };
        let (word, bit) = (index / 64, 1 << (index % 64));
        if sp.unsync_children[word] & bit != 0 {
            return;
        }
        let first = !sp.has_unsync_children();
        sp.unsync_children[word] |= bit;
        if first {
            for parent in sp.parents.clone() {
                self.mark_unsync(parent);
            }
        }
    }

    /// `mmu_try_to_unsync_pages`. False: the frame has to stay write-protected.
    pub(crate) fn try_to_unsync(
        &mut self,
        vcpu: u32,
        gfn: u64,
        can_unsync: bool,
        prefetch: bool,
        host: &mut dyn Host,
    ) -> bool {
        if self.shadow.is_tracked(gfn) {
            return false;
        }
        let place = self.place(vcpu);
        for table in self.shadow.with_gptes(gfn) {
            if !can_unsync {
                return false;
            }
            let sp = self.shadow.sp_mut(table);
            if sp.unsync {
                continue;
            }
            if prefetch {
                return false;
            }
            sp.unsync = true;
            host.note_at(vcpu, place, Note::UnsyncPage { gfn, role: sp.role.into_bits() });
            for parent in sp.parents.clone() {
                self.mark_unsync(parent);
            }
        }
        true
    }

    /// The unsync pages below a page, in the order of their addresses; forgets the marks that led to them
    /// (`mmu_unsync_walk`, `mmu_pages_clear_parents`).
    pub(crate) fn unsync_below(&mut self, table: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let sp = self.shadow.sp_mut(table);
        let (marks, level) = (std::mem::take(&mut sp.unsync_children), sp.role.level());
        for index in 0..ENTRIES {
            if marks[index / 64] >> (index % 64) & 1 == 0 {
                continue;
            }
            let Some(child) = self.child(entry_address(table, index as u64), level) else { continue };
            if self.shadow.sp(child).unsync {
                found.push(child);
            }
            if self.shadow.sp(child).has_unsync_children() {
                found.extend(self.unsync_below(child));
            }
        }
        found
    }

    /// `mmu_sync_children`.
    pub(crate) fn sync_children(&mut self, vcpu: u32, table: u64, host: &mut dyn Host) {
        let pages = self.unsync_below(table);
        for page in &pages {
            let gfn = self.shadow.sp(*page).gfn;
            self.shadow.flush |= self.write_protect_gfn(vcpu, gfn, host);
        }
        for page in pages {
            // One page may be reached by several ways, and syncing one may have zapped another.
            let Some(sp) = self.shadow.get(page).filter(|sp| sp.unsync) else { continue };
            host.note_at(vcpu, self.place(vcpu), Note::SyncPage { gfn: sp.gfn, role: sp.role.into_bits() });
            self.shadow.sp_mut(page).unsync = false;
            self.sync_page(vcpu, page, host);
        }
        self.shadow_flush(host);
    }

    /// `kvm_sync_page`: makes every entry agree with the guest's. False: the page was zapped.
    pub(crate) fn sync_page(&mut self, vcpu: u32, table: u64, host: &mut dyn Host) -> bool {
        if !self.can_sync(vcpu, table) {
            self.zap_page(vcpu, table, host);
            return false;
        }
        for index in 0..ENTRIES {
            match self.sync_entry(vcpu, table, index, host) {
                Synced::Same => {}
                Synced::Flush => self.shadow.flush = true,
                Synced::Failed => {
                    self.zap_page(vcpu, table, host);
                    return false;
                }
            }
        }
        self.shadow_flush(host);
        true
    }

    /// `kvm_sync_page_check`: the page belongs to the paging mode that the vCPU is in.
    fn can_sync(&mut self, vcpu: u32, table: u64) -> bool {
        let root = self.context(vcpu).root_role;
        let sp = self.shadow.sp(table);
        let (role, same_cpuid) = (sp.role, sp.cpuid == self.cpuid_role(vcpu));
        let same = role.with_level(root.level()).with_access(root.access()).with_quadrant(root.quadrant());
        !role.direct() && same_cpuid && same.with_passthrough(root.passthrough()) == root
    }

    /// `kvm_sync_spte`, `FNAME(sync_spte)`.
    pub(crate) fn sync_entry(&mut self, vcpu: u32, table: u64, index: usize, host: &mut dyn Host) -> Synced {
        let sptep = entry_address(table, index as u64);
        let old = self.pages.read(sptep);
        if old == NONPRESENT {
            return Synced::Same;
        }
        let Some(gpte) = self.read_gpte(table, index, host) else { return Synced::Failed };
        if !self.prefetchable(vcpu, gpte) {
            self.drop_leaf(sptep);
            return Synced::Flush;
        }
        let role = self.shadow.sp(table).role;
        let (gfn, acc) = self.gpte_parts(vcpu, role, gpte);
        let format = self.config.format;
        if format.is_mmio(old) {
            if format.mmio_parts(old).0 == gfn {
                self.set_mmio(vcpu, sptep, gfn, acc, host);
            } else {
                self.pages.write(sptep, NONPRESENT);
            }
            return Synced::Same;
        }
        let (known_gfn, known_acc) = self.shadow.sp(table).translation[index];
        if gfn != known_gfn {
            self.drop_leaf(sptep);
            return Synced::Flush;
        }
        if Acc::from_bits(known_acc) == acc {
            return Synced::Same;
        }
        self.shadow.sp_mut(table).translation[index].1 = acc.into_bits();
        let host_writable = self.slots.find(gfn << 12).is_some_and(|slot| !slot.readonly());
        let leaf = Leaf {
            pfn: format.address(old) >> 12,
            level: 1,
            acc,
            host_writable,
            accessed: false,
            dirty: true,
            ept_type: self.ept_type(vcpu, gfn),
        };
        let new = self.make_leaf(vcpu, leaf, gfn, old, false, true, host).0;
        self.pages.write(sptep, new);
        Synced::Flush
    }

    /// The guest's entry behind an entry of a level-1 page.
    fn read_gpte(&self, table: u64, index: usize, host: &mut dyn Host) -> Option<Pte> {
        let sp = self.shadow.sp(table);
        let hpa = self.slots.hpa(sp.gfn << 12)?;
        let (at, size) = if sp.role.has_4_byte_gpte() {
            let first = u64::from(sp.role.quadrant()) * ENTRIES as u64;
            (hpa + 4 * (first + index as u64), 4)
        } else {
            (hpa + 8 * index as u64, 8)
        };
        // `kvm_vcpu_read_guest_atomic`
        let mut entry = [0; 8];
        let status = host.try_read(at, &mut entry[..size]);
        (status == MemoryStatus::READY).then(|| Pte::from_bits(u64::from_le_bytes(entry)))
    }
}
