//! The shadow MMU: tables that mirror the guest's, found by (gfn, role) and shared between vCPUs.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c and paging_tmpl.h, as of 6.12

mod map;
mod page;
mod paging;
mod price;
mod roots;
pub mod silicon;
mod sync;
mod track;
mod zap;

pub(crate) use map::Position;
pub use page::Shadow;
pub(crate) use page::{ShadowPage, table_of};

use crate::{
    fault_points::FaultPoint,
    large::{frames_shift, round_gfn},
    mmu::Mmu,
    pages::{ENTRIES, Pages},
    role::{CpuidRole, PageRole},
    spte::NONPRESENT,
    walk::Acc,
};
use vmtape_abi::{ALL_VCPUS, FlushScope, Host};
use vmtape_arch::note::Note;

impl Mmu {
    // --- notes and flushes ---

    /// Hands pending flushes to the host (`kvm_flush_remote_tlbs`).
    pub(crate) fn shadow_flush(&mut self, host: &mut dyn Host) {
        if std::mem::take(&mut self.shadow.flush) {
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
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
            None => sp.gfn + ((index as u64) << frames_shift(sp.role.level())),
        }
    }

    /// The page that an entry at a level links to (`spte_to_child_sp`); none below a leaf, and none where a bent entry leads.
    pub(crate) fn child(&self, sptep: u64, level: u8) -> Option<u64> {
        let (format, spte) = (self.config.format, self.pages.read(sptep));
        let links = format.is_present(spte) && !format.is_last(spte, level);
        if links { self.shadow.at_level(format.address(spte), level - 1) } else { None }
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
            self.account_shadowed(vcpu, gfn, role.level(), host);
        }
        table
    }

    /// `account_shadowed`: the guest's table is written only with our knowledge from now on.
    fn account_shadowed(&mut self, vcpu: u32, gfn: u64, level: u8, host: &mut dyn Host) {
        self.shadow.indirect += 1;
        if level > 1 {
            *self.shadow.tracked.entry(gfn).or_default() += 1;
        }
        self.large.disallow(gfn);
        if self.write_protect_gfn(vcpu, gfn, host) {
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
    pub(crate) fn write_protect_gfn(&mut self, vcpu: u32, gfn: u64, host: &mut dyn Host) -> bool {
        let format = self.config.format;
        let mut changed = self.tdp_write_protect(vcpu, gfn, host);
        for level in 1..=3 {
            let Some(sptes) = self.shadow.rmap.get(&(level, round_gfn(gfn, level))) else {
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
        let stays = !self.config.dirty.drops_large && !format.is_writable(spte);
        if format.is_present(spte) && (stays || !format.is_large(spte)) {
            return None;
        }
        let role = self.child_role(sptep, direct, acc);
        Some(self.get_page(vcpu, gfn, role, host))
    }

    /// `link_shadow_page`.
    pub(crate) fn link(&mut self, vcpu: u32, sptep: u64, child: u64, host: &mut dyn Host) {
        let format = self.config.format;
        if format.is_present(self.pages.read(sptep)) {
            self.drop_leaf(sptep);
            self.shadow.flush = true;
            self.shadow_flush(host);
        }
        let link = format.nonleaf(child);
        self.pages.write(sptep, link);
        let sp = self.shadow.sp_mut(child);
        sp.parents.push(sptep);
        let gfn = sp.gfn;
        self.damage(vcpu, FaultPoint::LINK_FLIP, gfn, sptep, link, host);
        let sp = self.shadow.sp(child);
        if sp.unsync || sp.has_unsync_children() {
            self.mark_unsync(sptep);
        }
    }
}
