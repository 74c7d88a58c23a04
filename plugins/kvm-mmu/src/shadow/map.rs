//! Leaves of shadow pages: set, prefetched, and the direct mapping used while the guest has paging off.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c mmu_set_spte(), direct_map(); spte.c make_spte()

use super::table_of;
use crate::{
    dirty::Source,
    fault::{PFN_NOSLOT, PageFault, RetPf},
    fault_points::FaultPoint,
    large::{frames_shift, round_gfn},
    mmu::Mmu,
    pages::{ENTRIES, entry_address},
    spte::{Leaf, MMIO_GENERATION_MASK, NONPRESENT},
    walk::Acc,
};
use vmtape_abi::Host;
use vmtape_arch::{PAGE_SIZE, note::Note};

/// PTE_PREFETCH_NUM.
pub(crate) const PREFETCH: usize = 8;
/// RMAP_RECYCLE_THRESHOLD.
const RMAP_LIMIT: usize = 1000;

/// A position on the way down a shadow table (`struct kvm_shadow_walk_iterator`).
#[derive(Clone, Copy)]
pub(crate) struct Position {
    pub level: u8,
    pub table: u64,
    pub sptep: u64,
}

impl Position {
    pub fn new(level: u8, table: u64, address: u64) -> Self {
        let index = address >> (12 + frames_shift(level.max(1))) & 0x1ff;
        Self { level, table, sptep: entry_address(table, index) }
    }
}

impl Mmu {
    /// Where a walk of the current root starts (`shadow_walk_init`); `None` without a table.
    pub(crate) fn shadow_start(&self, vcpu: u32, address: u64) -> Option<Position> {
        let mmu = self.context(vcpu);
        let root = mmu.root?;
        self.shadow_start_at(vcpu, root.hpa, address)
    }

    /// As `shadow_start`, from a given root.
    pub(crate) fn shadow_start_at(&self, vcpu: u32, root: u64, address: u64) -> Option<Position> {
        let mmu = self.context(vcpu);
        let level = mmu.root_role.level();
        if level == 3 || !mmu.root_role.direct() && mmu.cpu_role.base.level() < 4 {
            let pdpte = mmu.pae_root[(address >> 30 & 3) as usize];
            let directory = self.shadow.at_level(pdpte & !0xfff, 2);
            return directory.map(|table| Position::new(2, table, address));
        }
        self.shadow.get(root).map(|_| Position::new(level, root, address))
    }

    /// The next position down, if a table is there (`shadow_walk_next`).
    pub(crate) fn shadow_next(&self, at: Position, address: u64) -> Option<Position> {
        self.child(at.sptep, at.level).map(|table| Position::new(at.level - 1, table, address))
    }

    /// The lowest entry for a linear address under the current root.
    pub(crate) fn shadow_find(&self, vcpu: u32, address: u64) -> u64 {
        let Some(mut at) = self.shadow_start(vcpu, address) else { return NONPRESENT };
        while let Some(next) = self.shadow_next(at, address) {
            at = next;
        }
        self.pages.read(at.sptep)
    }

    /// `make_spte`: the leaf, and whether the frame had to be write-protected.
    #[expect(clippy::too_many_arguments)]
    pub(crate) fn make_leaf(
        &mut self,
        vcpu: u32,
        mut leaf: Leaf,
        gfn: u64,
        old: u64,
        can_unsync: bool,
        prefetch: bool,
        host: &mut dyn Host,
    ) -> (u64, bool) {
        let format = self.config.format;
        let mut protected = false;
        if leaf.acc.write() && leaf.host_writable {
            if format.is_writable(old) {
                leaf.dirty = false;
            } else if !self.try_to_unsync(vcpu, gfn, can_unsync, prefetch, host) {
                protected = true;
                leaf.acc.set_write(false);
            }
        }
        let new = format.leaf(&leaf);
        if format.is_writable(new) {
            self.mark(vcpu, gfn, Source::Mapped, host);
        }
        (new, protected)
    }

    /// `mark_mmio_spte`.
    pub(crate) fn set_mmio(&mut self, vcpu: u32, sptep: u64, gfn: u64, acc: Acc, host: &mut dyn Host) {
        let format = self.config.format;
        let spte = format.mmio(gfn, acc, self.generation & MMIO_GENERATION_MASK);
        host.note_at(
            vcpu,
            self.place(vcpu),
            Note::MarkMmioSpte { gfn, access: format.mmio_parts(spte).1.into_bits() },
        );
        self.pages.write(sptep, spte);
    }

    #[expect(clippy::too_many_arguments)]
    /// `mmu_set_spte`; without a fault it prefetches.
    pub(crate) fn set_leaf(
        &mut self,
        vcpu: u32,
        sptep: u64,
        acc: Acc,
        gfn: u64,
        pfn: u64,
        fault: Option<&PageFault>,
        host: &mut dyn Host,
    ) -> RetPf {
        if pfn == PFN_NOSLOT {
            self.set_mmio(vcpu, sptep, gfn, acc, host);
            return RetPf::Emulate;
        }
        let format = self.config.format;
        let (table, index) = table_of(sptep);
        let level = self.shadow.sp(table).role.level();
        let old = self.pages.read(sptep);
        let mut known = false;
        if format.is_present(old) {
            if !format.is_last(old, level) {
                self.drop_parent(format.address(old), sptep);
                self.shadow.flush = true;
            } else if format.address(old) >> 12 != pfn {
                self.drop_leaf(sptep);
                self.shadow.flush = true;
            } else {
                known = true;
            }
        }
        let old = self.pages.read(sptep);
        let leaf = Leaf {
            pfn,
            level,
            acc,
            host_writable: fault.is_none_or(|fault| fault.map_writable),
            accessed: fault.is_some(),
            dirty: true,
            ept_type: self.ept_type(vcpu, gfn),
        };
        let (new, protected) = self.make_leaf(vcpu, leaf, gfn, old, true, fault.is_none(), host);
        let mut result = RetPf::Fixed;
        if new == old {
            result = RetPf::Spurious;
        } else {
            self.shadow.flush |=
                format.is_present(old) && format.is_mmu_writable(old) && !format.is_writable(new);
            self.pages.write(sptep, new);
            self.damage(vcpu, FaultPoint::SPTE_FLIP, gfn, sptep, new, host);
            let spte = self.config.told(new);
            host.note_at(vcpu, self.place(vcpu), Note::SetSpte { gfn, spte, level });
        }
        if protected && fault.is_some_and(|fault| fault.code.w()) {
            result = RetPf::WriteProtected;
        }
        if let Some(entry) = self.shadow.sp_mut(table).translation.get_mut(index) {
            *entry = (gfn, acc.into_bits());
        }
        if !known {
            self.rmap_add(level, gfn, sptep);
        }
        self.shadow_flush(host);
        result
    }

    /// `rmap_add`: a frame that too many entries map is unmapped altogether.
    fn rmap_add(&mut self, level: u8, gfn: u64, sptep: u64) {
        let sptes = self.shadow.rmap.entry((level, round_gfn(gfn, level))).or_default();
        sptes.push(sptep);
        if sptes.len() > RMAP_LIMIT {
            for sptep in std::mem::take(sptes) {
                self.pages.write(sptep, NONPRESENT);
            }
            self.shadow.rmap.remove(&(level, round_gfn(gfn, level)));
            self.shadow.flush = true;
        }
    }

    /// `make_mmu_pages_available` may find none.
    pub(crate) fn no_page_available(
        &self,
        vcpu: u32,
        fault: &PageFault,
        host: &mut dyn Host,
    ) -> Option<RetPf> {
        let code = fault.code.into_bits();
        let answer = self.fault(vcpu, FaultPoint::MMU_PAGES_ENOSPC, fault.addr, code, host)?;
        Some(RetPf::Failed(FaultPoint::errno(answer)))
    }

    /// `direct_page_fault`: the guest has paging off, or the address is physical anyway (`tdp_mmu=off`).
    pub(crate) fn direct_page_fault(
        &mut self,
        vcpu: u32,
        fault: &mut PageFault,
        host: &mut dyn Host,
    ) -> RetPf {
        fault.gfn = fault.addr >> 12;
        fault.slot = self.slots.find(fault.addr).copied();
        if !self.config.tdp {
            // See: mmu.c nonpaging_page_fault()
            fault.max_level = 2;
        }
        if self.is_write_to_tracked(fault) {
            return RetPf::WriteProtected;
        }
        let fast = self.shadow_fast_page_fault(vcpu, fault, host);
        if fast != RetPf::Invalid {
            return fast;
        }
        let result = self.faultin_pfn(vcpu, fault, Acc::ALL, host);
        if result != RetPf::Continue {
            return result;
        }
        if let Some(failed) = self.no_page_available(vcpu, fault, host) {
            return failed;
        }
        self.make_pages_available(vcpu, host);
        self.direct_map(vcpu, fault, host)
    }

    /// `page_fault_handle_page_track`.
    pub(crate) fn is_write_to_tracked(&self, fault: &PageFault) -> bool {
        let write = !fault.code.rsvd() && fault.code.p() && fault.code.w();
        write && self.shadow.is_tracked(fault.gfn)
    }

    /// `fast_page_fault` on shadow pages of a direct MMU.
    fn shadow_fast_page_fault(&mut self, vcpu: u32, fault: &PageFault, host: &mut dyn Host) -> RetPf {
        if fault.code.rsvd() || !fault.code.p() || !fault.code.w() {
            return RetPf::Invalid;
        }
        let Some(mut at) = self.shadow_start(vcpu, fault.addr) else { return RetPf::Invalid };
        while let Some(next) = self.shadow_next(at, fault.addr) {
            at = next;
        }
        let (format, spte) = (self.config.format, self.pages.read(at.sptep));
        let logs_dirty = fault.slot.is_some_and(|slot| slot.logs_dirty());
        let result = match () {
            () if !format.is_present(spte) => RetPf::Invalid,
            () if format.allows(spte, fault.code.fetch(), true) => RetPf::Spurious,
            () if format.is_mmu_writable(spte) && !(at.level > 1 && logs_dirty) => {
                self.pages.write(at.sptep, format.made_writable(spte));
                self.mark(vcpu, fault.gfn, Source::FastPageFault, host);
                RetPf::Fixed
            }
            () => RetPf::Invalid,
        };
        let fixed = result == RetPf::Fixed;
        host.note_at(
            vcpu,
            self.place(vcpu),
            Note::FastPageFault { address: fault.addr, code: self.told_code(fault.code), fixed },
        );
        result
    }

    /// `direct_map`.
    fn direct_map(&mut self, vcpu: u32, fault: &mut PageFault, host: &mut dyn Host) -> RetPf {
        self.hugepage_adjust(vcpu, fault, host);
        self.note_requested(vcpu, fault, host);
        let Some(mut at) = self.shadow_start(vcpu, fault.addr) else { return RetPf::Retry };
        while at.level != fault.goal_level {
            let gfn = round_gfn(fault.gfn, at.level);
            if let Some(child) = self.get_child(vcpu, at.sptep, gfn, true, Acc::ALL, host) {
                self.link(vcpu, at.sptep, child, host);
            }
            let Some(next) = self.shadow_next(at, fault.addr) else { return RetPf::Retry };
            at = next;
        }
        let gfn = round_gfn(fault.gfn, at.level);
        let pfn = fault.pfn;
        let result = self.set_leaf(vcpu, at.sptep, Acc::ALL, gfn, pfn, Some(fault), host);
        if result != RetPf::Spurious {
            self.prefetch_direct(vcpu, at.sptep, host);
        }
        result
    }

    /// `direct_pte_prefetch`: the neighbours in the same group of eight, run by run.
    pub(crate) fn prefetch_direct(&mut self, vcpu: u32, sptep: u64, host: &mut dyn Host) {
        let (table, index) = table_of(sptep);
        let role = self.shadow.sp(table).role;
        if role.level() > 1 || role.ad_disabled() {
            return;
        }
        let first = index & !(PREFETCH - 1);
        let mut start = None;
        for at in first..=first + PREFETCH {
            let entry = entry_address(table, at as u64);
            let end_of_run = at == first + PREFETCH
                || entry == sptep
                || self.config.format.is_present(self.pages.read(entry));
            match start {
                Some(from) if end_of_run => {
                    if !self.prefetch_run(vcpu, table, from, at, host) {
                        return;
                    }
                    start = None;
                }
                None if !end_of_run => start = Some(at),
                _ => {}
            }
        }
    }

    /// `direct_pte_prefetch_many`: all of a run, or nothing if the slot does not hold all of it.
    fn prefetch_run(&mut self, vcpu: u32, table: u64, from: usize, to: usize, host: &mut dyn Host) -> bool {
        debug_assert!(to <= ENTRIES);
        let acc = Acc::from(self.shadow.sp(table).role);
        let gfn = self.entry_gfn(table, from);
        let Some(slot) = self.slots.find(gfn << 12).copied() else { return false };
        let end = (gfn + (to - from) as u64) << 12;
        if slot.readonly() || acc.write() && slot.logs_dirty() || end > slot.gpa + slot.size {
            return false;
        }
        // Nobody waits for a page that is only prefetched. See: KVM kvm_main.c gfn_to_page_many_atomic()
        let size = (to - from) as u64 * PAGE_SIZE;
        let there = (host.resident(slot.hpa(gfn << 12), size) / PAGE_SIZE) as usize;
        for index in from..from + there {
            let gfn = self.entry_gfn(table, index);
            let pfn = slot.hpa(gfn << 12) >> 12;
            self.set_leaf(vcpu, entry_address(table, index as u64), acc, gfn, pfn, None, host);
        }
        there != 0
    }
}
