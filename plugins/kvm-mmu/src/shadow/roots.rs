//! Roots: loaded, kept for a return to the same CR3, and freed; and what control registers and INVLPG ask for.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_load(), kvm_mmu_new_pgd(), kvm_mmu_sync_roots(), kvm_mmu_invalidate_addr()

use super::sync::Synced;
use crate::{
    mmu::{Mmu, Root},
    role::CpuRole,
    walk::Paging,
};
use vmtape_abi::{FlushScope, Host};
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
        let tdp = self.config.tdp;
        let mmu = self.vcpu(vcpu);
        mmu.cpu_role = CpuRole::of(state);
        if !tdp {
            mmu.root_role = mmu.cpu_role.shadow_root();
        }
    }

    /// `kvm_mmu_reset_context`.
    pub fn reset_context(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        self.unload(vcpu, host);
        self.init(vcpu, state);
    }

    /// `kvm_mmu_unload`.
    pub fn unload(&mut self, vcpu: u32, host: &mut dyn Host) {
        let mmu = self.vcpu(vcpu);
        let roots: Vec<Root> =
            mmu.root.take().into_iter().chain(std::mem::take(&mut mmu.prev_roots)).collect();
        for root in roots {
            self.free_root(vcpu, root, host);
        }
    }

    /// `mmu_free_root_page`, for every page that the root stands for.
    fn free_root(&mut self, vcpu: u32, root: Root, host: &mut dyn Host) {
        if self.has_tdp_mmu() {
            return;
        }
        let tables = match root.hpa {
            PAE => std::mem::take(&mut self.vcpu(vcpu).pae_root).map(|pdpte| pdpte & !0xfff).to_vec(),
            DUMMY => Vec::new(),
            table => vec![table],
        };
        for table in tables.into_iter().filter(|table| *table != 0) {
            let sp = self.shadow.sp_mut(table);
            sp.root_count -= 1;
            if sp.root_count == 0 && sp.role.invalid() {
                self.prepare_zap(vcpu, table, host);
            }
        }
        self.shadow_flush(host);
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
        if self.vcpu(vcpu).root.is_some() {
            return;
        }
        if self.has_tdp_mmu() {
            self.tdp_load(vcpu, host);
        } else {
            if self.config.tdp {
                let role = self.tdp_role(vcpu);
                self.vcpu(vcpu).root_role = role;
            }
            self.make_pages_available(vcpu, host);
            let root = self.alloc_roots(vcpu, state, host);
            self.vcpu(vcpu).root = Some(root);
            self.sync_roots(vcpu, host);
        }
        host.flush_tlb(vcpu, FlushScope::ALL, 0);
    }

    fn is_obsolete(&self, vcpu: u32, root: &Root) -> bool {
        let invalid = |table: u64| self.shadow.get(table).is_some_and(|sp| sp.role.invalid());
        match root.hpa {
            PAE => {
                self.vcpus[vcpu as usize].pae_root.iter().any(|pdpte| *pdpte != 0 && invalid(pdpte & !0xfff))
            }
            table => invalid(table),
        }
    }

    fn free_obsolete_roots(&mut self, vcpu: u32, host: &mut dyn Host) {
        if let Some(root) = self.vcpu(vcpu).root
            && self.is_obsolete(vcpu, &root)
        {
            self.vcpu(vcpu).root = None;
            self.free_root(vcpu, root, host);
        }
        for root in self.vcpu(vcpu).prev_roots.clone() {
            if self.is_obsolete(vcpu, &root) {
                self.vcpu(vcpu).prev_roots.retain(|other| *other != root);
                self.free_root(vcpu, root, host);
            }
        }
    }

    /// `mmu_alloc_direct_roots`, `mmu_alloc_shadow_roots`.
    fn alloc_roots(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) -> Root {
        let role = self.vcpu(vcpu).root_role;
        let guest_level = self.vcpu(vcpu).cpu_role.base.level();
        let paging = Paging::of(state, 52, true, false);
        let pgd = state.cr3;
        let visible = |gfn: u64| self.slots.find(gfn << 12).is_some();
        if !role.direct() && !visible(paging.root >> 12) {
            return Root { hpa: DUMMY, pgd };
        }
        if role.level() >= 4 {
            let gfn = if role.direct() { 0 } else { paging.root >> 12 };
            return Root { hpa: self.alloc_root(vcpu, gfn, 0, role.level(), host), pgd };
        }
        // One page directory per GiB: of the guest's own, of a quarter of its 32-bit directory, or of the identity.
        let gfns: [Option<u64>; 4] = std::array::from_fn(|i| match guest_level {
            3 => {
                let pdpte = vmtape_arch::paging::Pte::from_bits(state.pdptr[i]);
                (pdpte.p() && visible(pdpte.frame())).then_some(pdpte.frame())
            }
            2 => Some(paging.root >> 12),
            _ => Some((i as u64) << 18),
        });
        for (i, gfn) in gfns.into_iter().enumerate() {
            let quadrant = if guest_level == 2 { i as u8 } else { 0 };
            let pdpte = gfn.map_or(0, |gfn| self.alloc_root(vcpu, gfn, quadrant, 2, host) | 1);
            self.vcpu(vcpu).pae_root[i] = pdpte;
        }
        Root { hpa: PAE, pgd }
    }

    /// `mmu_alloc_root`.
    fn alloc_root(&mut self, vcpu: u32, gfn: u64, quadrant: u8, level: u8, host: &mut dyn Host) -> u64 {
        let role = self.vcpu(vcpu).root_role.with_level(level).with_quadrant(quadrant);
        let table = self.get_page(vcpu, gfn, role, host);
        self.shadow.sp_mut(table).root_count += 1;
        table
    }

    /// `kvm_mmu_new_pgd`: CR3 changed; a root that was used for it before is taken again.
    pub fn new_pgd(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        if self.config.tdp {
            return;
        }
        let mmu = self.vcpu(vcpu);
        if let Some(root) = mmu.root.filter(|root| root.hpa == PAE || root.hpa == DUMMY) {
            mmu.root = None;
            self.free_root(vcpu, root, host);
        }
        if !self.take_cached_root(vcpu, state.cr3, host) {
            return;
        }
        host.flush_tlb(vcpu, FlushScope::ALL, 0);
        self.clear_mmio(vcpu, None);
        if let Some(root) = self.vcpu(vcpu).root
            && !self.vcpu(vcpu).root_role.direct()
        {
            self.shadow.sp_mut(root.hpa).write_flooding = 0;
        }
    }

    /// `cached_root_find_and_keep_current`, `cached_root_find_without_current`.
    fn take_cached_root(&mut self, vcpu: u32, pgd: u64, host: &mut dyn Host) -> bool {
        let role = self.vcpus[vcpu as usize].root_role;
        let cpuid = self.cpuid_role(vcpu);
        let usable = |mmu: &Self, root: &Root| {
            let same_role = mmu.shadow.get(root.hpa).is_some_and(|sp| sp.role == role && sp.cpuid == cpuid);
            (role.direct() || root.pgd == pgd) && same_role
        };
        let current = self.vcpu(vcpu).root;
        if let Some(root) = current
            && usable(self, &root)
        {
            return true;
        }
        let found = self.vcpus[vcpu as usize].prev_roots.iter().position(|root| usable(self, root));
        let mmu = self.vcpu(vcpu);
        let next = found.map(|at| mmu.prev_roots.remove(at));
        if let Some(current) = current {
            mmu.prev_roots.insert(0, current);
        }
        mmu.root = next;
        let oldest = (mmu.prev_roots.len() > PREV_ROOTS).then(|| mmu.prev_roots.pop()).flatten();
        if let Some(oldest) = oldest {
            self.free_root(vcpu, oldest, host);
        }
        found.is_some()
    }

    /// `kvm_mmu_sync_roots`.
    pub fn sync_roots(&mut self, vcpu: u32, host: &mut dyn Host) {
        if self.config.tdp || self.vcpu(vcpu).root_role.direct() {
            return;
        }
        let Some(root) = self.vcpu(vcpu).root else { return };
        self.clear_mmio(vcpu, None);
        let tables = match root.hpa {
            PAE => self.vcpu(vcpu).pae_root.map(|pdpte| pdpte & !0xfff).to_vec(),
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
        let prev_roots = &self.vcpus[vcpu as usize].prev_roots;
        let (freed, kept): (Vec<Root>, Vec<Root>) = prev_roots.iter().partition(|root| unsync(root));
        self.vcpu(vcpu).prev_roots = kept;
        for root in freed {
            self.free_root(vcpu, root, host);
        }
    }

    /// KVM_REQ_TLB_FLUSH_CURRENT after a change of CR3 or CR4, with KVM_REQ_MMU_SYNC under shadow paging.
    pub fn flush_current(&mut self, vcpu: u32, host: &mut dyn Host) {
        self.sync_roots(vcpu, host);
        host.flush_tlb(vcpu, if self.config.tdp { FlushScope::NON_GLOBAL } else { FlushScope::ALL }, 0);
    }

    /// KVM_REQ_TLB_FLUSH_GUEST (`kvm_vcpu_flush_tlb_guest`).
    pub fn flush_guest(&mut self, vcpu: u32, host: &mut dyn Host) {
        self.sync_roots(vcpu, host);
        if !self.config.tdp {
            self.free_unsync_prev_roots(vcpu, host);
        }
        host.flush_tlb(vcpu, FlushScope::ALL, 0);
    }

    /// `kvm_invalidate_pcid`, without the flush of the current one: cached roots of the PCID are freed.
    pub fn free_roots_of_pcid(&mut self, vcpu: u32, pcid: u64, host: &mut dyn Host) {
        let (freed, kept) = std::mem::take(&mut self.vcpu(vcpu).prev_roots)
            .into_iter()
            .partition(|root| root.pgd & 0xfff == pcid);
        self.vcpu(vcpu).prev_roots = kept;
        let freed: Vec<Root> = freed;
        for root in freed {
            self.free_root(vcpu, root, host);
        }
    }

    /// `kvm_mmu_invlpg`.
    pub fn invlpg(&mut self, vcpu: u32, gva: u64, host: &mut dyn Host) {
        host.flush_tlb(vcpu, FlushScope::GVA, gva);
        if self.config.tdp || self.vcpu(vcpu).root_role.direct() {
            return;
        }
        let mmu = self.vcpu(vcpu);
        let roots: Vec<u64> = mmu.root.iter().chain(&mmu.prev_roots).map(|root| root.hpa).collect();
        for root in roots {
            self.invalidate_addr(vcpu, root, gva, host);
        }
        self.shadow_flush(host);
    }

    /// `__kvm_mmu_invalidate_addr`.
    fn invalidate_addr(&mut self, vcpu: u32, root: u64, gva: u64, host: &mut dyn Host) {
        self.clear_mmio(vcpu, Some(gva));
        let mut at = self.shadow_start_at(vcpu, root, gva);
        while let Some(position) = at {
            if self.shadow.sp(position.table).unsync {
                let index = super::table_of(position.sptep).1;
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
        let mmu = &self.vcpus[vcpu as usize];
        (mmu.root.map_or(DUMMY, |root| root.hpa), mmu.pae_root)
    }
}
