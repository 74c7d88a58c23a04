//! The shadow MMU: tables that mirror the guest's, found by (gfn, role) and shared between vCPUs.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c and paging_tmpl.h, as of 6.12

mod map;
mod paging;
mod price;
mod roots;
pub mod silicon;
mod sync;
mod track;
mod zap;

use crate::{
    mmu::Mmu,
    pages::{ENTRIES, Pages},
    role::{CpuidRole, PageRole},
    spte::NONPRESENT,
    walk::Acc,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_abi::{ALL_VCPUS, FlushScope, Host};
use vmtape_arch::note::Note;

/// `struct kvm_mmu_page`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShadowPage {
    pub gfn: u64,
    pub role: PageRole,
    /// More of the role, under a patch; otherwise zero.
    pub cpuid: CpuidRole,
    pub root_count: u32,
    pub unsync: bool,
    /// Entries below which something is unsync.
    unsync_children: [u64; 8],
    /// Addresses of the entries that point here.
    parents: Vec<u64>,
    /// What each leaf maps: frame and rights (`shadowed_translation`); empty on direct pages.
    translation: Vec<(u64, u8)>,
    pub write_flooding: u32,
    /// Order of creation, by which pages are recycled.
    born: u64,
}

impl ShadowPage {
    fn has_unsync_children(&self) -> bool {
        self.unsync_children.iter().any(|word| *word != 0)
    }

    /// `sp_has_gptes`.
    pub fn has_gptes(&self) -> bool {
        !self.role.direct()
    }
}

/// The shadow pages of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// By page number.
    pages: Vec<Option<Box<ShadowPage>>>,
    /// Valid pages by frame, oldest first (`mmu_page_hash`).
    by_gfn: BTreeMap<u64, Vec<u64>>,
    /// Valid pages by age (`active_mmu_pages`).
    active: BTreeMap<u64, u64>,
    /// Leaf entries that map a frame, by level and first frame.
    rmap: BTreeMap<(u8, u64), Vec<u64>>,
    /// Frames that must not become writable (`gfn_write_track`).
    tracked: BTreeMap<u64, u32>,
    /// `indirect_shadow_pages`.
    indirect: u32,
    births: u64,
    /// A root was zapped: vCPUs drop it before they run (KVM_REQ_MMU_FREE_OBSOLETE_ROOTS).
    obsolete_roots: bool,
    /// Entries changed that silicon may have cached.
    flush: bool,
}

impl Shadow {
    pub(crate) fn sp(&self, table: u64) -> &ShadowPage {
        self.pages[Pages::number(table)]
            .as_deref()
            .expect("a shadow page lives as long as an entry points to it")
    }

    pub(crate) fn sp_mut(&mut self, table: u64) -> &mut ShadowPage {
        self.pages[Pages::number(table)]
            .as_deref_mut()
            .expect("a shadow page lives as long as an entry points to it")
    }

    fn get(&self, table: u64) -> Option<&ShadowPage> {
        self.pages.get(Pages::number(table))?.as_deref()
    }

    /// `for_each_gfn_valid_sp_with_gptes`: newest first.
    fn with_gptes(&self, gfn: u64) -> Vec<u64> {
        if self.indirect == 0 {
            return Vec::new();
        }
        let pages = self.by_gfn.get(&gfn).map_or(&[][..], Vec::as_slice);
        pages.iter().rev().copied().filter(|table| self.sp(*table).has_gptes()).collect()
    }

    /// Whether an entry is in a shadow page for L2.
    pub(crate) fn is_guest_mode(&self, sptep: u64) -> bool {
        self.get(table_of(sptep).0).is_some_and(|sp| sp.role.guest_mode())
    }

    /// The leaf entries at a level that map a frame.
    pub(crate) fn leaves(&self, level: u8, gfn: u64) -> &[u64] {
        self.rmap.get(&(level, crate::mmu::round_gfn(gfn, level))).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_tracked(&self, gfn: u64) -> bool {
        self.tracked.contains_key(&gfn)
    }
}

/// The table that holds an entry, and the entry's index.
pub(crate) const fn table_of(sptep: u64) -> (u64, usize) {
    (sptep & !0xfff, (sptep >> 3 & 0x1ff) as usize)
}

impl Mmu {
    // --- notes and flushes ---

    /// Hands pending flushes to the host (`kvm_flush_remote_tlbs`).
    pub(crate) fn shadow_flush(&mut self, host: &mut dyn Host) {
        if std::mem::take(&mut self.shadow.flush) {
            host.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0);
        }
    }

    // --- finding, making and removing pages ---

    /// What of a vCPU's CPUID decides which pages it shares: nothing, in KVM.
    pub(crate) fn cpuid_role(&self, vcpu: u32) -> CpuidRole {
        if !self.config.role_has_cpuid {
            return CpuidRole::new();
        }
        CpuidRole::of(&self.context(vcpu).width)
    }

    /// The frame that entry `index` of a page maps (`kvm_mmu_page_get_gfn`).
    fn entry_gfn(&self, table: u64, index: usize) -> u64 {
        let sp = self.shadow.sp(table);
        match sp.translation.get(index) {
            Some((gfn, _)) => *gfn,
            None => sp.gfn + ((index as u64) << crate::mmu::frames_shift(sp.role.level())),
        }
    }

    /// `kvm_mmu_get_shadow_page`: an existing page with this frame and role, synchronized, or a new one.
    pub(crate) fn get_page(&mut self, vcpu: u32, gfn: u64, role: PageRole, host: &mut dyn Host) -> u64 {
        let found = self.find_page(vcpu, gfn, role, host);
        let table = found.unwrap_or_else(|| self.alloc_page(vcpu, gfn, role, host));
        host.note_at(
            vcpu,
            self.place(vcpu),
            Note::GetPage { gfn, role: role.into_bits(), created: found.is_none() },
        );
        table
    }

    /// `kvm_mmu_find_shadow_page`.
    fn find_page(&mut self, vcpu: u32, gfn: u64, role: PageRole, host: &mut dyn Host) -> Option<u64> {
        let candidates = self.shadow.by_gfn.get(&gfn)?.clone();
        let cpuid = self.cpuid_role(vcpu);
        for table in candidates.into_iter().rev() {
            // An earlier turn may have zapped it.
            let Some(sp) = self.shadow.get(table).filter(|sp| !sp.role.invalid() && sp.gfn == gfn) else {
                continue;
            };
            if sp.role != role || sp.cpuid != cpuid {
                if role.level() > 1 && sp.unsync {
                    self.zap_page(vcpu, table, host);
                }
                continue;
            }
            if role.direct() {
                return Some(table);
            }
            if sp.unsync && !self.sync_page(vcpu, table, host) {
                return None;
            }
            self.shadow.sp_mut(table).write_flooding = 0;
            return Some(table);
        }
        None
    }

    /// `kvm_mmu_alloc_shadow_page`.
    fn alloc_page(&mut self, vcpu: u32, gfn: u64, role: PageRole, host: &mut dyn Host) -> u64 {
        let table = self.pages.alloc(NONPRESENT);
        let number = Pages::number(table);
        if self.shadow.pages.len() <= number {
            self.shadow.pages.resize_with(number + 1, || None);
        }
        let born = self.shadow.births;
        self.shadow.births += 1;
        self.shadow.active.insert(born, table);
        self.shadow.by_gfn.entry(gfn).or_default().push(table);
        self.shadow.pages[number] = Some(Box::new(ShadowPage {
            gfn,
            role,
            cpuid: self.cpuid_role(vcpu),
            root_count: 0,
            unsync: false,
            unsync_children: [0; 8],
            parents: Vec::new(),
            translation: if role.direct() { Vec::new() } else { vec![(0, 0); ENTRIES] },
            write_flooding: 0,
            born,
        }));
        if !role.direct() {
            self.account_shadowed(gfn, role.level(), host);
        }
        table
    }

    /// `account_shadowed`: the guest's table is written only with our knowledge from now on.
    fn account_shadowed(&mut self, gfn: u64, level: u8, host: &mut dyn Host) {
        self.shadow.indirect += 1;
        if level > 1 {
            *self.shadow.tracked.entry(gfn).or_default() += 1;
        }
        self.large.disallow(gfn);
        if self.write_protect_gfn(gfn) {
            self.shadow.flush = true;
            self.shadow_flush(host);
        }
    }

    /// `unaccount_shadowed`.
    fn unaccount_shadowed(&mut self, gfn: u64, level: u8) {
        self.shadow.indirect -= 1;
        if level > 1
            && let Some(count) = self.shadow.tracked.get_mut(&gfn)
        {
            *count -= 1;
            if *count == 0 {
                self.shadow.tracked.remove(&gfn);
            }
        }
        self.large.allow(gfn);
    }

    /// `kvm_mmu_slot_gfn_write_protect`: takes write access from every entry that maps the frame.
    pub(crate) fn write_protect_gfn(&mut self, gfn: u64) -> bool {
        let format = self.config.format;
        let mut changed = false;
        for level in 1..=3 {
            let Some(sptes) = self.shadow.rmap.get(&(level, crate::mmu::round_gfn(gfn, level))) else {
                continue;
            };
            for sptep in sptes {
                let spte = self.pages.read(*sptep);
                if format.is_writable(spte) || format.is_mmu_writable(spte) {
                    self.pages.write(*sptep, format.write_protected(spte, false));
                    changed = true;
                }
            }
        }
        changed
    }

    /// The role of a page below `sptep` (`kvm_mmu_child_role`).
    pub(crate) fn child_role(&self, sptep: u64, direct: bool, acc: Acc) -> PageRole {
        let (table, index) = table_of(sptep);
        let parent = self.shadow.sp(table).role;
        let role = parent.with_level(parent.level() - 1).with_access(acc.into_bits()).with_direct(direct);
        let role = role.with_invalid(false).with_passthrough(false);
        if role.has_4_byte_gpte() { role.with_quadrant(index as u8 & 1) } else { role }
    }

    /// `kvm_mmu_get_child_sp`: `None` where a table is there already.
    pub(crate) fn get_child(
        &mut self,
        vcpu: u32,
        sptep: u64,
        gfn: u64,
        direct: bool,
        acc: Acc,
        host: &mut dyn Host,
    ) -> Option<u64> {
        let (format, spte) = (self.config.format, self.pages.read(sptep));
        if format.is_present(spte) && !format.is_large(spte) {
            return None;
        }
        let role = self.child_role(sptep, direct, acc);
        Some(self.get_page(vcpu, gfn, role, host))
    }

    /// `link_shadow_page`.
    pub(crate) fn link(&mut self, sptep: u64, child: u64, host: &mut dyn Host) {
        let format = self.config.format;
        if format.is_present(self.pages.read(sptep)) {
            self.drop_leaf(sptep);
            self.shadow.flush = true;
            self.shadow_flush(host);
        }
        self.pages.write(sptep, format.nonleaf(child));
        self.shadow.sp_mut(child).parents.push(sptep);
        let sp = self.shadow.sp(child);
        if sp.unsync || sp.has_unsync_children() {
            self.mark_unsync(sptep);
        }
    }
}
