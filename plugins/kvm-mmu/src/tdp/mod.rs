//! The TDP MMU: one table per VM and level count, from guest physical to host physical addresses, in EPT or NPT format.
//!
//! See: KVM arch/x86/kvm/mmu/tdp_mmu.c, as of 6.12

pub(crate) mod ept;
mod nested;
pub(crate) mod npt;
pub mod pml;
pub(crate) mod private;
pub(crate) mod recent;
mod roots;
pub mod silicon;
#[cfg(test)]
mod tests;

pub use roots::Tdp;

use crate::{
    context::Root,
    dirty::Source,
    fault::{Alias, PageFault, RetPf},
    fault_points::FaultPoint,
    large::{frames_shift, round_gfn},
    mmu::Mmu,
    pages::entry_address,
    role::PageRole,
    spte::{Leaf, MMIO_GENERATION_MASK, NONPRESENT},
    walk::Acc,
};
use vmtape_abi::{ALL_VCPUS, FlushScope, Host};
use vmtape_arch::note::Note;

/// An entry on the way down.
#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    level: u8,
    spte: u64,
}

/// Index of a frame in a table at `level`.
const fn index(gfn: u64, level: u8) -> u64 {
    gfn >> frames_shift(level) & 0x1ff
}

impl Mmu {
    /// `kvm_mmu_get_tdp_level`.
    pub fn tdp_level(&mut self, vcpu: u32) -> u8 {
        let width = self.context(vcpu).width.maxphyaddr;
        match self.config {
            config if config.forced_tdp_level => config.max_tdp_level,
            config if config.max_tdp_level == 5 && width <= 48 => 4,
            config => config.max_tdp_level,
        }
    }

    /// `kvm_calc_tdp_mmu_root_page_role`.
    pub(crate) fn tdp_role(&mut self, vcpu: u32) -> PageRole {
        PageRole::new()
            .with_access(Acc::ALL.into_bits())
            .with_cr0_wp(true)
            .with_efer_nx(true)
            .with_ad_disabled(!self.config.format.has_ad())
            .with_level(self.tdp_level(vcpu))
            .with_direct(true)
            .with_guest_mode(self.vcpus[vcpu as usize].guest_mode)
            .with_smm(self.vcpus[vcpu as usize].smm.into())
    }

    /// `kvm_tdp_mmu_alloc_root`: gives the vCPU its root, new or shared.
    pub(crate) fn tdp_load(&mut self, vcpu: u32, host: &mut dyn Host) {
        let role = self.tdp_role(vcpu);
        self.context_mut(vcpu).root_role = role;
        let known = self.tdp.roots.iter().find(|(of, _)| *of == role).map(|(_, hpa)| *hpa);
        let hpa = known.unwrap_or_else(|| {
            host.note_at(
                vcpu,
                self.place(vcpu),
                Note::GetPage { gfn: 0, role: role.into_bits(), created: true },
            );
            let hpa = self.pages.alloc(NONPRESENT);
            self.tdp.roots.push((role, hpa));
            hpa
        });
        self.context_mut(vcpu).root = Some(Root { hpa, pgd: 0 });
    }

    /// Drops every table.
    pub(crate) fn tdp_zap_all(&mut self) {
        for (role, root) in std::mem::take(&mut self.tdp.roots) {
            self.tdp_release(root, role.level());
        }
        if self.config.tdp && self.config.tdp_mmu {
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.root_mmu.root = None);
        }
    }

    pub(crate) fn tdp_release(&mut self, table: u64, level: u8) {
        for i in 0..512 {
            let spte = self.pages.read(entry_address(table, i));
            if let Some(child) = self.tdp_child(spte, level) {
                self.tdp_release(child, level - 1);
            }
        }
        self.pages.release(table);
    }

    /// The table that an entry at a level links to (`spte_to_child_pt`); none below a leaf, and none where a bent entry leads.
    pub(crate) fn tdp_child(&self, spte: u64, level: u8) -> Option<u64> {
        let format = self.config.format;
        let table = Some(spte).filter(|spte| format.is_present(*spte) && !format.is_last(*spte, level));
        let table = table.map(|spte| format.address(spte));
        table.filter(|table| self.pages.holds(*table) && self.shadow.get(*table).is_none())
    }

    /// The entries for a frame, from the root to the lowest one that is there.
    fn tdp_way(&self, root: u64, level: u8, gfn: u64) -> impl Iterator<Item = Entry> {
        let entry = move |table: u64, level: u8| {
            let address = entry_address(table, index(gfn, level));
            Entry { address, level, spte: self.pages.read(address) }
        };
        std::iter::successors(Some(entry(root, level)), move |above| {
            self.tdp_child(above.spte, above.level).map(|table| entry(table, above.level - 1))
        })
    }

    /// Those entries and their levels.
    pub(crate) fn tdp_entries(&self, root: u64, level: u8, gfn: u64) -> Vec<(u8, u64)> {
        self.tdp_way(root, level, gfn).map(|entry| (entry.level, entry.spte)).collect()
    }

    /// The lowest entry for a frame.
    fn tdp_last(&self, root: u64, level: u8, gfn: u64) -> Entry {
        let format = self.config.format;
        let (mut table, mut level) = (root, level);
        loop {
            let address = entry_address(table, index(gfn, level));
            let spte = self.pages.read(address);
            match self.tdp_child(spte, level) {
                Some(child) => (table, level) = (child, level - 1),
                None if format.is_last(spte, level) => return Entry { address, level, spte },
                // Not present, or bent: what is there is no table.
                None if format.is_present(spte) => return Entry { address, level, spte: NONPRESENT },
                None => return Entry { address, level, spte },
            }
        }
    }

    /// Addresses of the leaves at a level that map a frame, in all roots.
    pub(crate) fn tdp_leaves(&self, gfn: u64, level: u8) -> impl Iterator<Item = u64> + use<> {
        let last = |(role, root): &(PageRole, u64)| self.tdp_last(*root, role.level(), gfn);
        let leaf = |entry: &Entry| entry.level == level && self.config.format.is_present(entry.spte);
        let leaves: Vec<u64> =
            self.tdp.roots.iter().map(last).filter(leaf).map(|entry| entry.address).collect();
        leaves.into_iter()
    }

    /// `kvm_tdp_mmu_unmap_gfn_range`: no leaf maps these frames any more.
    pub(crate) fn tdp_unmap(&mut self, start: u64, end: u64) {
        let format = self.config.format;
        for (role, root) in self.tdp.roots.clone() {
            let mut gfn = start;
            while gfn < end {
                let entry = self.tdp_last(root, role.level(), gfn);
                if format.is_present(entry.spte) {
                    self.pages.write(entry.address, NONPRESENT);
                }
                gfn = round_gfn(gfn, entry.level) + (1 << frames_shift(entry.level));
            }
        }
    }

    /// Addresses of the entries at a level that lead to a table for a frame, in all roots.
    pub(crate) fn tdp_tables(&self, gfn: u64, level: u8) -> Vec<u64> {
        let table = |(role, root): &(PageRole, u64)| {
            let entry = self.tdp_way(*root, role.level(), gfn).find(|entry| entry.level == level)?;
            self.tdp_child(entry.spte, level).map(|_| entry.address)
        };
        self.tdp.roots.iter().filter_map(table).collect()
    }

    /// The lowest entry for a frame.
    pub(crate) fn tdp_find(&self, vcpu: u32, gfn: u64) -> u64 {
        let mmu = self.context(vcpu);
        mmu.root.map_or(NONPRESENT, |root| self.tdp_last(root.hpa, mmu.root_role.level(), gfn).spte)
    }

    /// `kvm_tdp_mmu_page_fault`.
    pub(crate) fn tdp_page_fault(&mut self, vcpu: u32, fault: &mut PageFault, host: &mut dyn Host) -> RetPf {
        fault.gfn = fault.addr >> 12;
        fault.slot = self.slots.find(fault.addr).copied();
        if self.is_write_to_tracked(fault) {
            return RetPf::WriteProtected;
        }
        let fast = self.fast_page_fault(vcpu, fault, host);
        if fast != RetPf::Invalid {
            return fast;
        }
        let result = self.faultin_pfn(vcpu, fault, Acc::ALL, host);
        if result != RetPf::Continue {
            return result;
        }
        self.tdp_map(vcpu, fault, host)
    }

    /// `fast_page_fault`: a write to an entry that only dirty logging protects, or a fault that is already repaired.
    fn fast_page_fault(&mut self, vcpu: u32, fault: &PageFault, host: &mut dyn Host) -> RetPf {
        let format = self.config.format;
        let possible = match () {
            () if fault.code.rsvd() => false,
            () if !fault.code.p() => !format.has_ad(),
            () => fault.code.w(),
        };
        let Some(root) = self.context(vcpu).root.filter(|_| possible) else { return RetPf::Invalid };
        let level = self.context(vcpu).root_role.level();
        let entry = self.tdp_last(root.hpa, level, fault.gfn);
        let (fetch, write) = (fault.code.fetch(), fault.code.w());
        let logs_dirty = fault.slot.is_some_and(|slot| slot.logs_dirty());
        let result = match entry.spte {
            spte if !format.is_present(spte) => RetPf::Invalid,
            spte if format.allows(spte, fetch, write) => RetPf::Spurious,
            spte if write && format.is_mmu_writable(spte) && !(entry.level > 1 && logs_dirty) => {
                self.pages.write(entry.address, format.made_writable(spte));
                self.mark(vcpu, fault.gfn, Source::FastPageFault, host);
                RetPf::Fixed
            }
            _ => RetPf::Invalid,
        };
        let fixed = result == RetPf::Fixed;
        host.note_at(
            vcpu,
            self.place(vcpu),
            Note::FastPageFault { address: fault.addr, code: self.told_code(fault.code), fixed },
        );
        result
    }

    /// `kvm_tdp_mmu_map`.
    fn tdp_map(&mut self, vcpu: u32, fault: &mut PageFault, host: &mut dyn Host) -> RetPf {
        self.hugepage_adjust(vcpu, fault, host);
        self.note_requested(vcpu, fault, host);
        let Some(root) = self.context(vcpu).root else { return RetPf::Retry };
        let role = self.context(vcpu).root_role;
        let mut level = role.level();
        let mut table = root.hpa;
        loop {
            let address = entry_address(table, index(fault.gfn, level));
            let entry = Entry { address, level, spte: self.pages.read(address) };
            if level == fault.goal_level {
                return self.tdp_map_leaf(vcpu, fault, entry, host);
            }
            table = match self.tdp_child(entry.spte, level) {
                Some(child) => child,
                None => self.tdp_link(vcpu, fault.gfn, role, entry, host),
            };
            level -= 1;
        }
    }

    /// Puts a new table below an entry that is absent or a large page, which is split.
    /// See: tdp_mmu.c tdp_mmu_link_sp(), tdp_mmu_split_huge_page()
    fn tdp_link(
        &mut self,
        vcpu: u32,
        gfn: u64,
        role: PageRole,
        mut entry: Entry,
        host: &mut dyn Host,
    ) -> u64 {
        let format = self.config.format;
        let gfn = round_gfn(gfn, entry.level);
        if format.is_present(entry.spte) && !self.config.tdp_splits_on_fault {
            // See: KVM 6.1 mmu/tdp_mmu.c tdp_mmu_zap_spte_atomic()
            self.tdp_set(vcpu, gfn, entry, NONPRESENT, host);
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
            entry.spte = NONPRESENT;
        }
        let child = role.with_level(entry.level - 1);
        host.note_at(vcpu, self.place(vcpu), Note::GetPage { gfn, role: child.into_bits(), created: true });
        let table = if format.is_present(entry.spte) {
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
            self.tdp_split(entry.spte, entry.level)
        } else {
            self.pages.alloc(NONPRESENT)
        };
        let link = format.nonleaf(table);
        self.tdp_set(vcpu, gfn, entry, link, host);
        self.damage(vcpu, FaultPoint::LINK_FLIP, gfn, entry.address, link, host);
        table
    }

    /// A table of small pages that map what a large page at `level` maps (`tdp_mmu_split_huge_page`).
    pub(crate) fn tdp_split(&mut self, huge: u64, level: u8) -> u64 {
        let table = self.pages.alloc(NONPRESENT);
        for i in 0..512 {
            let spte = self.config.format.huge_split(huge, i, level - 1);
            self.pages.write(entry_address(table, i), spte);
        }
        table
    }

    fn tdp_set(&mut self, vcpu: u32, gfn: u64, entry: Entry, new: u64, host: &mut dyn Host) {
        let gfn = round_gfn(gfn, entry.level);
        let [old, told] = [entry.spte, new].map(|spte| self.config.told(spte));
        let note = Note::TdpSpteChanged { gfn, level: entry.level, old, new: told };
        host.note_at(vcpu, self.place(vcpu), note);
        self.pages.write(entry.address, new);
    }

    /// Whether a page of another frame is in the way: with too few levels, frames share entries.
    fn collides(&self, fault: &PageFault, entry: Entry, new: u64) -> bool {
        let format = self.config.format;
        let leaf = format.is_present(entry.spte) && format.is_last(entry.spte, entry.level);
        leaf && (fault.slot.is_none() || format.address(entry.spte) != format.address(new))
    }

    /// `tdp_mmu_map_handle_target_level`.
    fn tdp_map_leaf(&mut self, vcpu: u32, fault: &PageFault, entry: Entry, host: &mut dyn Host) -> RetPf {
        let format = self.config.format;
        let gfn = round_gfn(fault.gfn, entry.level);
        let (new, protected) = match fault.slot {
            None => (format.mmio(fault.gfn, Acc::ALL, self.generation & MMIO_GENERATION_MASK), false),
            Some(_) => {
                let leaf = Leaf {
                    pfn: fault.pfn,
                    level: entry.level,
                    acc: Acc::ALL,
                    host_writable: fault.map_writable,
                    accessed: true,
                    dirty: true,
                    ept_type: self.ept_type(vcpu, gfn),
                };
                let old = if format.is_present(entry.spte) { entry.spte } else { NONPRESENT };
                self.make_leaf(vcpu, leaf, gfn, old, true, false, host)
            }
        };
        let refused = protected && fault.code.w();
        // MMIO is emulated even where the entry stands already: silicon that cannot reach the entry (GPA[51:48] under four
        // levels) faults on every access.
        if new == entry.spte && !format.is_mmio(new) {
            return if refused { RetPf::WriteProtected } else { RetPf::Spurious };
        }
        if self.collides(fault, entry, new) {
            let mmio = format.is_mmio(new);
            self.alias = Some(Alias { old: entry.spte, gfn, mmio });
            if !mmio {
                // 6.12 stops the host with BUG() in handle_changed_spte(). 7.2 leaves the entry alone, as is done here, if the
                // entry allows the access, and is stopped like 6.12 if not: by a host's read-only page of zeroes, for example.
                // Both were seen so under kvm_amd on a software CPU with 52 bits that ignores bits 51:48.
                return RetPf::Spurious;
            }
        }
        if new != entry.spte {
            self.tdp_set(vcpu, gfn, entry, new, host);
            self.damage(vcpu, FaultPoint::SPTE_FLIP, gfn, entry.address, new, host);
        }
        let table = self.tdp_child(entry.spte, entry.level).filter(|_| new != entry.spte);
        if let Some(table) = table {
            self.tdp_release(table, entry.level - 1);
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
        }
        if format.is_mmio(new) {
            host.note_at(
                vcpu,
                self.place(vcpu),
                Note::MarkMmioSpte { gfn, access: format.mmio_parts(new).1.into_bits() },
            );
            return RetPf::Emulate;
        }
        let spte = self.config.told(new);
        host.note_at(vcpu, self.place(vcpu), Note::SetSpte { gfn, spte, level: entry.level });
        if refused { RetPf::WriteProtected } else { RetPf::Fixed }
    }

    /// `kvm_tdp_mmu_write_protect_gfn`: the frame holds a page table of L1's that is shadowed from now on.
    pub(crate) fn tdp_write_protect(&mut self, vcpu: u32, gfn: u64, host: &mut dyn Host) -> bool {
        let format = self.config.format;
        let mut changed = false;
        for at in 0..self.tdp.roots.len() {
            let (role, root) = self.tdp.roots[at];
            let entry = self.tdp_last(root, role.level(), gfn);
            let new = format.write_protected(entry.spte, false);
            if format.is_present(entry.spte) && new != entry.spte {
                self.tdp_set(vcpu, gfn, entry, new, host);
                changed = true;
            }
        }
        changed
    }
}
