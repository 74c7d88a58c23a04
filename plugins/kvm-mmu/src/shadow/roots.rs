//! Roots: loaded, kept for a return to the same CR3, and freed; and what control registers and INVLPG ask for.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_load(), kvm_mmu_new_pgd(), kvm_mmu_sync_roots(), kvm_mmu_invalidate_addr()

use super::{sync::Synced, table_of};
use crate::{
    context::{ContextId, Root},
    fault::WalkFault,
    fault_points::FaultPoint,
    mmu::Mmu,
    pages::entry_address,
    role::CpuRole,
    spte::NONPRESENT,
};
use vmtape_abi::{Errno, FlushScope, Host};
use vmtape_arch::vcpu::VcpuState;

/// KVM_MMU_NUM_PREV_ROOTS.
const PREV_ROOTS: usize = 3;
/// `Root::hpa` of the four page directories of PAE mode, which `pae_root` holds.
const PAE: u64 = 0;
/// `Root::hpa` where the guest's CR3 points to no memory (`kvm_mmu_get_dummy_root`): nothing is mapped.
const DUMMY: u64 = 0x1000;

impl Mmu {
    /// `kvm_init_mmu`: roles after a change of paging mode.
    pub fn init(&mut self, vcpu: u32, state: &VcpuState) {
        let mut cpu_role = CpuRole::of(state);
        cpu_role.base.set_guest_mode(self.vcpu(vcpu).guest_mode);
        cpu_role.base.set_smm(self.vcpu(vcpu).smm.into());
        if self.vcpu(vcpu).is_nested() {
            // See: mmu.c init_kvm_nested_mmu()
            self.vcpu(vcpu).nested_mmu.cpu_role = cpu_role;
            return;
        }
        let root_role = if self.config.tdp { self.tdp_role(vcpu) } else { cpu_role.shadow_root() };
        let mmu = &mut self.vcpu(vcpu).root_mmu;
        (mmu.cpu_role, mmu.root_role) = (cpu_role, root_role);
    }

    /// `kvm_mmu_reset_context`.
    pub fn reset_context(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        self.unload(vcpu, host);
        self.init(vcpu, state);
    }

    /// `kvm_mmu_unload`.
    pub fn unload(&mut self, vcpu: u32, host: &mut dyn Host) {
        for id in [ContextId::Root, ContextId::Guest] {
            let mmu = self.vcpu(vcpu).context_mut(id);
            let roots: Vec<Root> =
                mmu.root.take().into_iter().chain(std::mem::take(&mut mmu.prev_roots)).collect();
            for root in roots {
                self.free_root(vcpu, id, root, host);
            }
        }
    }

    /// `mmu_free_root_page`, for every page that the root stands for.
    fn free_root(&mut self, vcpu: u32, of: ContextId, root: Root, host: &mut dyn Host) {
        let mmu = self.vcpu(vcpu).context_mut(of);
        let pae_root = if root.hpa == PAE { std::mem::take(&mut mmu.pae_root) } else { [0; 4] };
        let direct = mmu.root_role.direct();
        if direct && self.config.tdp && self.config.tdp_mmu {
            return;
        }
        let tables = match root.hpa {
            PAE => pae_root.map(|pdpte| pdpte & !0xfff).to_vec(),
            DUMMY => Vec::new(),
            table => vec![table],
        };
        for table in tables.into_iter().filter(|table| *table != 0) {
            let Some(sp) = self.shadow.get_mut(table) else { continue };
            sp.root_count -= 1;
            if sp.root_count == 0 && sp.role.invalid() {
                self.prepare_zap(vcpu, table, host);
            }
        }
        self.shadow_flush(host);
    }

    /// `kvm_mmu_reload`, which may find no memory for a root.
    pub fn load(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> Result<(), Errno> {
        if self.context(vcpu).root.is_none()
            && let Some(answer) = self.fault(vcpu, FaultPoint::ROOT_ENOMEM, state.cr3, 0, host)
        {
            return Err(FaultPoint::errno(answer));
        }
        self.reload(vcpu, state, host);
        Ok(())
    }

    /// Before an entry: drops roots that were zapped (`kvm_mmu_free_obsolete_roots`) and loads one if there is none
    /// (`kvm_mmu_reload`).
    pub fn reload(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        if self.shadow.obsolete_roots {
            self.shadow.obsolete_roots = false;
            for vcpu in 0..self.vcpus.len() as u32 {
                self.free_obsolete_roots(vcpu, host);
            }
        }
        self.finish_transition(vcpu, host);
        if self.context(vcpu).root.is_some() {
            return;
        }
        if self.is_tdp_mmu(vcpu) {
            self.tdp_load(vcpu, host);
        } else {
            if self.is_tdp(vcpu) {
                let role = self.tdp_role(vcpu);
                self.context_mut(vcpu).root_role = role;
            }
            self.make_pages_available(vcpu, host);
            let root = self.alloc_roots(vcpu, state, host);
            self.context_mut(vcpu).root = Some(root);
            self.sync_roots(vcpu, host);
        }
        self.flush_tlb(vcpu, FlushScope::ALL, 0, host);
    }

    fn is_obsolete(&self, vcpu: u32, of: ContextId, root: &Root) -> bool {
        let invalid = |table: u64| self.shadow.get(table).is_some_and(|sp| sp.role.invalid());
        match root.hpa {
            PAE => self.vcpus[vcpu as usize]
                .context(of)
                .pae_root
                .iter()
                .any(|pdpte| *pdpte != 0 && invalid(pdpte & !0xfff)),
            table => invalid(table),
        }
    }

    fn free_obsolete_roots(&mut self, vcpu: u32, host: &mut dyn Host) {
        for id in [ContextId::Root, ContextId::Guest] {
            let context = self.vcpu(vcpu).context(id);
            let (root, prev_roots) = (context.root, context.prev_roots.clone());
            if let Some(root) = root.filter(|root| self.is_obsolete(vcpu, id, root)) {
                self.vcpu(vcpu).context_mut(id).root = None;
                self.free_root(vcpu, id, root, host);
            }
            for root in prev_roots {
                if self.is_obsolete(vcpu, id, &root) {
                    self.vcpu(vcpu).context_mut(id).prev_roots.retain(|other| *other != root);
                    self.free_root(vcpu, id, root, host);
                }
            }
        }
    }

    /// `mmu_alloc_direct_roots`, `mmu_alloc_shadow_roots`.
    fn alloc_roots(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> Root {
        let role = self.context(vcpu).root_role;
        let guest_level = self.context(vcpu).cpu_role.base.level();
        let paging = self.tables(vcpu, self.vcpus[vcpu as usize].mmu, state, host);
        let pgd = self.context(vcpu).pgd(state);
        let visible = |gfn: u64| self.slots.find(gfn << 12).is_some();
        if !role.direct() && !visible(paging.root >> 12) {
            return Root { hpa: DUMMY, pgd };
        }
        if role.level() >= 4 && (role.direct() || guest_level >= 4) {
            let gfn = if role.direct() { 0 } else { paging.root >> 12 };
            return Root { hpa: self.alloc_root(vcpu, gfn, 0, role.level(), host), pgd };
        }
        // One page directory per GiB: of the guest's own, of a quarter of its 32-bit directory, or of the identity.
        let gfns: [Option<u64>; 4] = std::array::from_fn(|i| match guest_level {
            3 => {
                let pdpte = vmtape_arch::paging::Pte::from_bits(paging.pdptr[i]);
                (pdpte.p() && visible(pdpte.frame())).then_some(pdpte.frame())
            }
            2 => Some(paging.root >> 12),
            _ => Some((i as u64) << 18),
        });
        for (i, gfn) in gfns.into_iter().enumerate() {
            let quadrant = if guest_level == 2 { i as u8 } else { 0 };
            let pdpte = gfn.map_or(0, |gfn| self.alloc_root(vcpu, gfn, quadrant, 2, host) | 1);
            self.context_mut(vcpu).pae_root[i] = pdpte;
        }
        if role.level() >= 4 {
            self.build_upper(vcpu, role.level());
        }
        Root { hpa: PAE, pgd }
    }

    /// The tables above the page directories, where an L1 without long mode has a nested table of fewer levels than silicon.
    fn build_upper(&mut self, vcpu: u32, level: u8) {
        let mut upper = std::mem::take(&mut self.context_mut(vcpu).upper);
        upper.resize_with(usize::from(level) - 2, || self.pages.alloc(NONPRESENT));
        let format = self.config.format;
        for tables in upper.windows(2) {
            self.pages.write(tables[0], format.nonleaf(tables[1]));
        }
        let context = self.context_mut(vcpu);
        context.upper = upper;
        let (pdpt, directories) = (context.upper.last().copied(), context.pae_root);
        for (i, directory) in (0..).zip(directories) {
            let entry = if directory == 0 { NONPRESENT } else { format.nonleaf(directory & !0xfff) };
            self.pages.write(entry_address(pdpt.expect("there are levels above"), i), entry);
        }
    }

    /// `mmu_alloc_root`.
    fn alloc_root(&mut self, vcpu: u32, gfn: u64, quadrant: u8, level: u8, host: &mut dyn Host) -> u64 {
        let role = self.context(vcpu).root_role.with_level(level).with_quadrant(quadrant);
        let table = self.get_page(vcpu, gfn, role, host);
        self.shadow.sp_mut(table).root_count += 1;
        table
    }

    /// `kvm_mmu_new_pgd`: CR3 changed; a root that was used for it before is taken again.
    pub fn new_pgd(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        if self.is_tdp(vcpu) && self.has_root_of_its_role(vcpu) {
            return;
        }
        if self.is_tdp_mmu(vcpu) {
            // The VM keeps these roots, and the next entry finds the one with the new role.
            self.context_mut(vcpu).root = None;
            return;
        }
        let id = self.vcpu(vcpu).mmu;
        let pgd = self.context(vcpu).pgd(state);
        let mmu = self.context_mut(vcpu);
        if let Some(root) = mmu.root.filter(|root| root.hpa == PAE || root.hpa == DUMMY) {
            mmu.root = None;
            self.free_root(vcpu, id, root, host);
        }
        if !self.take_cached_root(vcpu, pgd, host) {
            return;
        }
        self.flush_tlb(vcpu, FlushScope::ALL, 0, host);
        self.clear_mmio(vcpu, None);
        if let Some(root) = self.context(vcpu).root
            && !self.context(vcpu).root_role.direct()
        {
            self.shadow.sp_mut(root.hpa).write_flooding = 0;
        }
    }

    /// Whether the root of a direct context, if it has one, is of the role that the context has now.
    fn has_root_of_its_role(&self, vcpu: u32) -> bool {
        let context = self.context(vcpu);
        let role = |root: Root| {
            let shadow = self.shadow.get(root.hpa).map(|sp| sp.role);
            shadow.or_else(|| self.tdp.role_of(root.hpa))
        };
        context.root.is_none_or(|root| role(root) == Some(context.root_role))
    }

    /// `cached_root_find_and_keep_current`, `cached_root_find_without_current`.
    fn take_cached_root(&mut self, vcpu: u32, pgd: u64, host: &mut dyn Host) -> bool {
        let role = self.context(vcpu).root_role;
        let cpuid = self.cpuid_role(vcpu);
        let usable = |mmu: &Self, root: &Root| {
            let same_role = mmu.shadow.get(root.hpa).is_some_and(|sp| sp.role == role && sp.cpuid == cpuid);
            (role.direct() || root.pgd == pgd) && same_role
        };
        let current = self.context(vcpu).root;
        if let Some(root) = current
            && usable(self, &root)
        {
            return true;
        }
        let found = self.context(vcpu).prev_roots.iter().position(|root| usable(self, root));
        let id = self.vcpu(vcpu).mmu;
        let mmu = self.context_mut(vcpu);
        let next = found.map(|at| mmu.prev_roots.remove(at));
        if let Some(current) = current {
            mmu.prev_roots.insert(0, current);
        }
        mmu.root = next;
        let oldest = (mmu.prev_roots.len() > PREV_ROOTS).then(|| mmu.prev_roots.pop()).flatten();
        if let Some(oldest) = oldest {
            self.free_root(vcpu, id, oldest, host);
        }
        found.is_some()
    }

    /// `kvm_mmu_sync_roots`.
    pub fn sync_roots(&mut self, vcpu: u32, host: &mut dyn Host) {
        if self.context(vcpu).root_role.direct() {
            return;
        }
        let Some(root) = self.context(vcpu).root else { return };
        self.clear_mmio(vcpu, None);
        let tables = match root.hpa {
            PAE => self.context(vcpu).pae_root.map(|pdpte| pdpte & !0xfff).to_vec(),
            table => vec![table],
        };
        for table in tables {
            if self.shadow.get(table).is_some() {
                self.sync_children(vcpu, table, host);
            }
        }
    }

    /// `kvm_mmu_sync_prev_roots`: cached roots with something unsync below them are freed, the next use builds them anew.
    fn free_unsync_prev_roots(&mut self, vcpu: u32, host: &mut dyn Host) {
        let unsync =
            |root: &Root| self.shadow.get(root.hpa).is_none_or(|sp| sp.unsync || sp.has_unsync_children());
        let prev_roots = &self.context(vcpu).prev_roots;
        let (freed, kept): (Vec<Root>, Vec<Root>) = prev_roots.iter().partition(|root| unsync(root));
        let id = self.vcpu(vcpu).mmu;
        self.context_mut(vcpu).prev_roots = kept;
        for root in freed {
            self.free_root(vcpu, id, root, host);
        }
    }

    /// KVM_REQ_TLB_FLUSH_CURRENT after a change of CR3 or CR4, with KVM_REQ_MMU_SYNC under shadow paging.
    pub fn flush_current(&mut self, vcpu: u32, host: &mut dyn Host) {
        self.sync_roots(vcpu, host);
        self.flush_tlb(
            vcpu,
            if self.is_tdp(vcpu) { FlushScope::NON_GLOBAL } else { FlushScope::ALL },
            0,
            host,
        );
    }

    /// KVM_REQ_TLB_FLUSH_GUEST (`kvm_vcpu_flush_tlb_guest`).
    pub fn flush_guest(&mut self, vcpu: u32, host: &mut dyn Host) {
        if !self.config.tdp {
            self.sync_roots(vcpu, host);
            self.free_unsync_prev_roots(vcpu, host);
        }
        self.flush_tlb(vcpu, FlushScope::ALL, 0, host);
    }

    /// `kvm_invalidate_pcid`, without the flush of the current one: cached roots of the PCID are freed.
    pub fn free_roots_of_pcid(&mut self, vcpu: u32, pcid: u64, host: &mut dyn Host) {
        let (freed, kept) = std::mem::take(&mut self.context_mut(vcpu).prev_roots)
            .into_iter()
            .partition(|root| root.pgd & 0xfff == pcid);
        let id = self.vcpu(vcpu).mmu;
        self.context_mut(vcpu).prev_roots = kept;
        let freed: Vec<Root> = freed;
        for root in freed {
            self.free_root(vcpu, id, root, host);
        }
    }

    /// `kvm_mmu_invlpg`.
    pub fn invlpg(&mut self, vcpu: u32, gva: u64, host: &mut dyn Host) {
        self.flush_tlb(vcpu, FlushScope::GVA, gva, host);
        // L2's own tables under nested ones are shadowed by nobody.
        if self.context(vcpu).root_role.direct() || self.vcpu(vcpu).is_nested() {
            return;
        }
        let mmu = self.context(vcpu);
        let roots: Vec<u64> = mmu.root.iter().chain(&mmu.prev_roots).map(|root| root.hpa).collect();
        for root in roots {
            self.invalidate_addr(vcpu, root, gva, host);
        }
        self.shadow_flush(host);
    }

    /// What `kvm_inject_emulated_page_fault` does first: an entry that would have allowed the access goes, "else the access will
    /// fault indefinitely".
    pub(crate) fn invalidate_fault(&mut self, vcpu: u32, fault: &WalkFault, host: &mut dyn Host) {
        if !fault.error.p() || fault.error.rsvd() {
            return;
        }
        if !fault.is_nested() {
            self.flush_tlb(vcpu, FlushScope::GVA, fault.address, host);
        }
        let shadowed = fault.is_nested() == self.vcpu(vcpu).is_nested();
        let root = self.context(vcpu).root.filter(|_| shadowed && !self.context(vcpu).root_role.direct());
        if let Some(root) = root {
            self.invalidate_addr(vcpu, root.hpa, fault.address, host);
            self.shadow_flush(host);
        }
    }

    /// `__kvm_mmu_invalidate_addr`.
    fn invalidate_addr(&mut self, vcpu: u32, root: u64, gva: u64, host: &mut dyn Host) {
        self.clear_mmio(vcpu, Some(gva));
        let mut at = self.shadow_start_at(vcpu, root, gva);
        while let Some(position) = at {
            if self.shadow.sp(position.table).unsync {
                let index = table_of(position.sptep).1;
                match self.sync_entry(vcpu, position.table, index, host) {
                    Synced::Same => {}
                    Synced::Flush => self.shadow.flush = true,
                    Synced::Failed => {
                        self.zap_entry(position.sptep);
                        self.shadow.flush = true;
                    }
                }
            }
            if !self.shadow.sp(position.table).has_unsync_children() {
                break;
            }
            at = self.shadow_next(position, gva);
        }
    }

    /// The top of the table that silicon walks: an address, or four PDPTEs.
    pub(crate) fn shadow_root(&self, vcpu: u32) -> (u64, [u64; 4]) {
        let mmu = self.context(vcpu);
        let root = mmu.root.map_or(DUMMY, |root| root.hpa);
        let top = mmu.upper.first().filter(|_| root == PAE && mmu.root_role.level() > 3);
        (top.copied().unwrap_or(root), mmu.pae_root)
    }

    /// Whether L1's nested page table is at an address without memory, so that it maps nothing.
    pub fn has_invisible_nested_root(&self, vcpu: u32) -> bool {
        let nested = self.vcpus[vcpu as usize].is_nested();
        nested && self.context(vcpu).root.is_some_and(|root| root.hpa == DUMMY)
    }
}
