//! Shadow pages and entries go: one by one, the oldest for want of room, or all.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c __kvm_mmu_prepare_zap_page(), make_mmu_pages_available(), as of 6.12

use super::{Shadow, ShadowPage, table_of};
use crate::{
    large::round_gfn,
    mmu::Mmu,
    pages::{ENTRIES, Pages, entry_address},
    spte::NONPRESENT,
};
use vmtape_abi::Host;
use vmtape_arch::note::Note;

/// KVM_MIN_FREE_MMU_PAGES and KVM_REFILL_PAGES.
const MIN_FREE_PAGES: usize = 5;
const REFILL_PAGES: usize = 25;
/// KVM_MIN_ALLOC_MMU_PAGES, and pages per thousand of guest memory.
const MIN_PAGES: usize = 64;
const PERMILLE_PAGES: usize = 20;

impl Mmu {
    /// `kvm_mmu_prepare_zap_page` and `kvm_mmu_commit_zap_page`.
    pub(crate) fn zap_page(&mut self, vcpu: u32, table: u64, host: &mut dyn Host) {
        self.prepare_zap(vcpu, table, host);
        self.shadow.flush = true;
        self.shadow_flush(host);
    }

    pub(crate) fn prepare_zap(&mut self, vcpu: u32, table: u64, host: &mut dyn Host) {
        let Some(&ShadowPage { gfn, role, .. }) = self.shadow.get(table) else { return };
        host.note_at(vcpu, self.place(vcpu), Note::ZapPage { gfn, role: role.into_bits() });
        if role.level() > 1 {
            for child in self.unsync_below(table) {
                if self.shadow.get(child).is_some_and(|sp| sp.unsync) {
                    self.prepare_zap(vcpu, child, host);
                }
            }
        }
        for index in 0..ENTRIES {
            let sptep = entry_address(table, index as u64);
            let child = self.child(sptep, role.level());
            self.zap_entry(sptep);
            if let Some(child) = child
                && self.is_parentless_nested(child)
            {
                self.prepare_zap(vcpu, child, host);
            }
        }
        for parent in std::mem::take(&mut self.shadow.sp_mut(table).parents) {
            self.pages.write(parent, NONPRESENT);
        }
        if !role.invalid() {
            if !role.direct() {
                self.unaccount_shadowed(gfn, role.level());
            }
            self.unhash(table);
        }
        let sp = self.shadow.sp_mut(table);
        if std::mem::take(&mut sp.unsync) {
            let role = sp.role;
            host.note_at(vcpu, self.place(vcpu), Note::SyncPage { gfn, role: role.into_bits() });
        }
        let sp = self.shadow.sp_mut(table);
        sp.role.set_invalid(true);
        if sp.root_count == 0 {
            self.shadow.pages[Pages::number(table)] = None;
            self.pages.release(table);
        } else {
            self.shadow.obsolete_roots |= !role.invalid();
        }
        self.shadow.flush = true;
    }

    /// "Recursively zap nested TDP SPs, parentless SPs are unlikely to be used again in the near future." See: mmu.c
    /// mmu_page_zap_pte()
    fn is_parentless_nested(&self, table: u64) -> bool {
        let orphan = |sp: &ShadowPage| sp.role.guest_mode() && sp.root_count == 0 && sp.parents.is_empty();
        self.config.tdp && self.shadow.get(table).is_some_and(orphan)
    }

    fn unhash(&mut self, table: u64) {
        let (gfn, born) = (self.shadow.sp(table).gfn, self.shadow.sp(table).born);
        self.shadow.active.remove(&born);
        if let Some(pages) = self.shadow.by_gfn.get_mut(&gfn) {
            pages.retain(|other| *other != table);
            if pages.is_empty() {
                self.shadow.by_gfn.remove(&gfn);
            }
        }
    }

    /// `mmu_page_zap_pte`: makes an entry not present, whatever it was. True: silicon may have cached it.
    pub(crate) fn zap_entry(&mut self, sptep: u64) -> bool {
        let spte = self.pages.read(sptep);
        if spte == NONPRESENT {
            return false;
        }
        let format = self.config.format;
        let (table, _) = table_of(sptep);
        if !format.is_present(spte) {
            self.pages.write(sptep, NONPRESENT);
            return false;
        }
        if format.is_last(spte, self.shadow.sp(table).role.level()) {
            self.drop_leaf(sptep);
        } else {
            self.drop_parent(format.address(spte), sptep);
        }
        true
    }

    /// `drop_parent_pte`.
    pub(crate) fn drop_parent(&mut self, child: u64, sptep: u64) {
        let parents = self.shadow.get_mut(child).map(|sp| &mut sp.parents);
        if let Some(parents) = parents
            && let Some(at) = parents.iter().position(|parent| *parent == sptep)
        {
            parents.swap_remove(at);
        }
        self.pages.write(sptep, NONPRESENT);
    }

    /// `drop_spte`: a leaf goes, and its reverse mapping with it.
    pub(crate) fn drop_leaf(&mut self, sptep: u64) {
        let present = self.config.format.is_present(self.pages.read(sptep));
        self.pages.write(sptep, NONPRESENT);
        if !present {
            return;
        }
        let (table, index) = table_of(sptep);
        let Some(level) = self.shadow.get(table).map(|sp| sp.role.level()) else { return };
        let key = (level, round_gfn(self.entry_gfn(table, index), level));
        if let Some(sptes) = self.shadow.rmap.get_mut(&key) {
            if let Some(at) = sptes.iter().position(|other| *other == sptep) {
                sptes.swap_remove(at);
            }
            if sptes.is_empty() {
                self.shadow.rmap.remove(&key);
            }
        }
    }

    /// `make_mmu_pages_available`: recycles the oldest pages that are no roots.
    pub(crate) fn make_pages_available(&mut self, vcpu: u32, host: &mut dyn Host) {
        let frames: u64 = self.slots.iter().map(|slot| slot.size >> 12).sum();
        let limit = (frames as usize * PERMILLE_PAGES / 1000).max(MIN_PAGES);
        let available = limit.saturating_sub(self.shadow.active.len());
        if available >= MIN_FREE_PAGES {
            return;
        }
        let target = self.shadow.active.len().saturating_sub(REFILL_PAGES - available);
        while self.shadow.active.len() > target {
            let oldest =
                self.shadow.active.values().copied().find(|table| self.shadow.sp(*table).root_count == 0);
            let Some(table) = oldest else { break };
            self.prepare_zap(vcpu, table, host);
        }
        self.shadow_flush(host);
    }

    /// Drops every shadow page and root.
    pub(crate) fn shadow_zap_all(&mut self) {
        for number in 0..self.shadow.pages.len() {
            if self.shadow.pages[number].take().is_some() {
                self.pages.release(Pages::address(number));
            }
        }
        let births = self.shadow.births;
        self.shadow = Shadow { births, ..Shadow::default() };
        self.large = Default::default();
        let tdp_mmu = self.config.tdp && self.config.tdp_mmu;
        for vcpu in &mut self.vcpus {
            let root_mmu = Some(&mut vcpu.root_mmu).filter(|_| !tdp_mmu);
            for context in root_mmu.into_iter().chain([&mut vcpu.guest_mmu]) {
                (context.root, context.pae_root) = (None, [0; 4]);
                context.prev_roots.clear();
            }
        }
    }
}
