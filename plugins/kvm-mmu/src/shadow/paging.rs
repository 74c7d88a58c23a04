//! Page faults while the guest has paging on: its tables are walked by software and mirrored.
//!
//! See: KVM arch/x86/kvm/mmu/paging_tmpl.h page_fault(), fetch(), pte_prefetch()

use super::{
    map::{PREFETCH, Position},
    table_of,
};
use crate::{
    context::GuestTables,
    fault::{PageFault, RetPf, WalkFault},
    large::round_gfn,
    mmu::Mmu,
    pages::entry_address,
    role::PageRole,
    walk::{Acc, Mode, Paging, Step, Steps, Walk, WalkAccess},
};
use vmtape_abi::{Host, MemoryStatus};
use vmtape_arch::{
    PAGE_SIZE,
    access::AccessKind,
    paging::{Pte, bits},
    vcpu::VcpuState,
};

impl Mmu {
    /// `FNAME(page_fault)`; `Err`: the fault is the guest's own.
    pub(crate) fn paging_page_fault(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        fault: &mut PageFault,
        host: &mut dyn Host,
    ) -> Result<RetPf, WalkFault> {
        let code = fault.code;
        let kind = match () {
            () if code.w() => AccessKind::WRITE,
            () if code.fetch() => AccessKind::FETCH,
            () => AccessKind::READ,
        };
        let access = WalkAccess { kind, user: code.u(), implicit: code.implicit() };
        let pferr = code.with_rsvd(false).into_bits() as u32;
        let (mut walk, steps) = self.walk_addr(vcpu, state, fault.addr, &access, pferr, host)?;
        fault.gfn = walk.gpa >> 12;
        fault.max_level = walk.level;
        fault.slot = self.slots.find(walk.gpa).copied();
        if self.is_write_to_tracked(fault) {
            self.clear_flooding(vcpu, fault.addr);
            return Ok(RetPf::WriteProtected);
        }
        let Paging { wp, smep, .. } = self.context(vcpu).paging(state);
        self.protect_clean(vcpu, &mut walk, &steps, code.w());
        let result = self.faultin_pfn(vcpu, fault, walk.acc, host);
        if result != RetPf::Continue {
            return Ok(result);
        }
        let mut leaf = walk.acc;
        if code.w() && !leaf.write() && !wp && !code.u() && fault.slot.is_some() {
            // CR0.WP=0: the kernel may write where users may not go meanwhile, nor the kernel execute under SMEP.
            leaf = leaf.with_write(true).with_user(false).with_exec(leaf.exec() && !smep);
        }
        if self.config.dirty.wp_before_page {
            walk.acc = leaf;
        }
        if let Some(failed) = self.no_page_available(vcpu, fault, host) {
            return Ok(failed);
        }
        self.make_pages_available(vcpu, host);
        Ok(self.fetch(vcpu, fault, &walk, leaf, &steps, host))
    }

    /// `protect_clean_gpte`: a page whose dirty bit is clear is mapped read-only, so that the first write is seen.
    fn protect_clean(&self, vcpu: u32, walk: &mut Walk, steps: &Steps, write: bool) {
        let (_, d) = self.guest_format(vcpu).accessed_dirty();
        let clean = steps.last().is_some_and(|leaf| !Paging::has_all(leaf.before, d));
        if !write && clean {
            walk.acc.set_write(false);
        }
    }

    /// `shadow_page_table_clear_flood`.
    fn clear_flooding(&mut self, vcpu: u32, address: u64) {
        let mut at = self.shadow_start(vcpu, address);
        while let Some(position) = at {
            self.shadow.sp_mut(position.table).write_flooding = 0;
            at = self.shadow_next(position, address);
        }
    }

    /// `FNAME(fetch)`: mirrors the guest's tables down to the leaf, then maps it with the rights `leaf`.
    fn fetch(
        &mut self,
        vcpu: u32,
        fault: &mut PageFault,
        walk: &Walk,
        leaf: Acc,
        steps: &Steps,
        host: &mut dyn Host,
    ) -> RetPf {
        let Some(mut at) = self.shadow_start(vcpu, fault.addr) else { return RetPf::Retry };
        loop {
            self.shadow.sp_mut(at.table).write_flooding = 0;
            if at.level == walk.level {
                break;
            }
            let Some(step) = steps.at(at.level - 1) else { return RetPf::Retry };
            let table_gfn = step.address >> 12;
            if let Some(child) = self.get_child(vcpu, at.sptep, table_gfn, false, step.above, host) {
                if self.shadow.sp(child).has_unsync_children() {
                    self.sync_children(vcpu, child, host);
                }
                self.link(vcpu, at.sptep, child, host);
            }
            let Some(next) = self.shadow_next(at, fault.addr) else { return RetPf::Retry };
            at = next;
        }
        self.hugepage_adjust(vcpu, fault, host);
        self.note_requested(vcpu, fault, host);
        while at.level != fault.goal_level {
            self.validate_direct(at, walk.acc, host);
            let gfn = round_gfn(fault.gfn, at.level);
            if let Some(child) = self.get_child(vcpu, at.sptep, gfn, true, walk.acc, host) {
                self.link(vcpu, at.sptep, child, host);
            }
            let Some(next) = self.shadow_next(at, fault.addr) else { return RetPf::Retry };
            at = next;
        }
        let gfn = round_gfn(fault.gfn, at.level);
        let result = self.set_leaf(vcpu, at.sptep, leaf, gfn, fault.pfn, Some(fault), host);
        if result != RetPf::Spurious {
            self.prefetch(vcpu, at.sptep, steps, host);
        }
        result
    }

    /// `validate_direct_spte`: a direct page with other rights than the guest's entry has now is unlinked.
    fn validate_direct(&mut self, at: Position, acc: Acc, host: &mut dyn Host) {
        let Some(child) = self.child(at.sptep, at.level) else { return };
        if Acc::from(self.shadow.sp(child).role) != acc {
            self.drop_parent(child, at.sptep);
            self.shadow.flush = true;
            self.shadow_flush(host);
        }
    }

    /// `FNAME(pte_prefetch)`.
    fn prefetch(&mut self, vcpu: u32, sptep: u64, steps: &Steps, host: &mut dyn Host) {
        let (table, index) = table_of(sptep);
        let role = self.shadow.sp(table).role;
        if role.level() > 1 {
            return;
        }
        if role.direct() {
            return self.prefetch_direct(vcpu, sptep, host);
        }
        let Some(leaf) = steps.last() else { return };
        let Some(gptes) = self.read_group(role, leaf, host) else { return };
        let first = index & !(PREFETCH - 1);
        for (i, gpte) in gptes.into_iter().enumerate() {
            let entry = entry_address(table, (first + i) as u64);
            if entry == sptep || self.config.format.is_present(self.pages.read(entry)) {
                continue;
            }
            if !self.prefetch_gpte(vcpu, entry, role, gpte, host) {
                break;
            }
        }
    }

    /// The guest's entries around a leaf.
    fn read_group(&self, role: PageRole, leaf: &Step, host: &mut dyn Host) -> Option<[Pte; PREFETCH]> {
        let size = if role.has_4_byte_gpte() { 4 } else { 8 };
        let first = leaf.address & !(PREFETCH as u64 * size - 1);
        let hpa = self.slots.hpa(first)?;
        let mut bytes = [0; 8 * PREFETCH];
        let bytes = &mut bytes[..PREFETCH * size as usize];
        // `kvm_vcpu_read_guest_atomic`
        if host.try_read(hpa, bytes) != MemoryStatus::READY {
            return None;
        }
        let mut gptes = [Pte::new(); PREFETCH];
        for (gpte, chunk) in gptes.iter_mut().zip(bytes.chunks_exact(size as usize)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            *gpte = Pte::from_bits(u64::from_le_bytes(word));
        }
        Some(gptes)
    }

    /// `FNAME(prefetch_gpte)`. False: stop prefetching.
    fn prefetch_gpte(
        &mut self,
        vcpu: u32,
        sptep: u64,
        role: PageRole,
        gpte: Pte,
        host: &mut dyn Host,
    ) -> bool {
        if !self.prefetchable(vcpu, gpte) {
            self.drop_leaf(sptep);
            return false;
        }
        let (gfn, acc) = self.gpte_parts(vcpu, role, gpte);
        let Some(slot) = self.slots.find(gfn << 12).copied() else { return false };
        if slot.readonly() || acc.write() && slot.logs_dirty() {
            return false;
        }
        // Nobody waits for a page that is only prefetched. See: KVM kvm_main.c gfn_to_pfn_memslot_atomic()
        let hpa = slot.hpa(gfn << 12);
        if host.resident(hpa, PAGE_SIZE) == 0 {
            return false;
        }
        self.set_leaf(vcpu, sptep, acc, gfn, hpa >> 12, None, host);
        true
    }

    /// `FNAME(prefetch_invalid_gpte)`, inverted: present, accessed, and nothing reserved by the guest's width.
    pub(crate) fn prefetchable(&mut self, vcpu: u32, gpte: Pte) -> bool {
        let paging = self.guest_format(vcpu);
        let (a, _) = paging.accessed_dirty();
        paging.is_present(gpte) && Paging::has_all(gpte.into_bits(), a) && !paging.is_reserved(gpte, 1)
    }

    /// The format of the tables that the vCPU's context shadows, by the role that it was set up with.
    fn guest_format(&self, vcpu: u32) -> Paging {
        let mmu = self.context(vcpu);
        let mode = match mmu.tables {
            GuestTables::Ept { eptp, execute_only } => Mode::ept(eptp, execute_only),
            _ => mmu.cpu_role.mode(),
        };
        Paging {
            mode,
            maxphyaddr: mmu.width.maxphyaddr,
            nx: mmu.cpu_role.base.efer_nx(),
            gbpages: mmu.width.gbpages,
            bit8_reserved: mmu.width.amd,
            ..Paging::BARE
        }
    }

    /// Frame and rights that a level-1 entry of the guest gives below a page with this role.
    pub(crate) fn gpte_parts(&self, vcpu: u32, role: PageRole, gpte: Pte) -> (u64, Acc) {
        let paging = self.guest_format(vcpu);
        let narrow = role.has_4_byte_gpte();
        let mut own = paging.entry_access(gpte);
        own.set_write(own.write() && Paging::has_all(gpte.into_bits(), paging.accessed_dirty().1));
        let address = if narrow { gpte.into_bits() & bits(12, 31) } else { gpte.address() };
        (address >> 12, Acc::from(role).and(own))
    }
}
