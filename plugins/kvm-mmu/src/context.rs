//! The contexts of a vCPU's MMU: whose tables are walked, by which rules, and what shadows or maps them.
//!
//! See: KVM arch/x86/include/asm/kvm_host.h struct kvm_mmu, struct kvm_vcpu_arch; arch/x86/kvm/mmu/mmu.c, as of 6.12

use crate::{
    config::{GuestWidth, NptRules},
    epoch::Epoch,
    fault::WalkFault,
    memory_type::GuestTypes,
    mmio_cache::MmioCache,
    role::{CpuRole, PageRole},
    walk::{Acc, Mode, Paging},
};
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    level::Level,
    paging::{Eptp, bits},
    regs::Cr0,
    vcpu::VcpuState,
};

/// A root that a vCPU uses or used: its page, and the CR3 (nCR3, EPTP) it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub hpa: u64,
    pub pgd: u64,
}

/// One of a vCPU's contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContextId {
    /// `root_mmu`: L1, and L2 where L1 gives it no nested tables.
    Root,
    /// `guest_mmu`: L1's nested tables, shadowed for L2.
    Guest,
    /// `nested_mmu`: L2's own tables. It is only walked; silicon reads these tables itself.
    Nested,
}

/// Where a context finds the tables that it walks (`get_guest_pgd`), and their format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestTables {
    /// CR3, in the mode of the vCPU's registers.
    #[default]
    Registers,
    /// The nested page table at L1's nCR3, in the mode that L1 had at VMRUN.
    Npt { ncr3: u64 },
    /// The extended page tables at L1's EPTP.
    Ept { eptp: u64, execute_only: bool },
}

/// One context (`struct kvm_mmu`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub tables: GuestTables,
    /// What decides which bits of the walked entries are reserved.
    pub width: GuestWidth,
    pub cpu_role: CpuRole,
    pub root_role: PageRole,
    pub root: Option<Root>,
    /// Roots of page directories in PAE mode (`pae_root`), as PDPTEs.
    pub pae_root: [u64; 4],
    /// The tables above them where silicon has more levels than that (`pml5_root`, `pml4_root`, `pae_root`), top down.
    pub(crate) upper: Vec<u64>,
    /// Most recent first.
    pub prev_roots: Vec<Root>,
}

impl Context {
    /// The paging that a software walk of this context's tables follows.
    pub fn paging(&self, state: &VcpuState) -> Paging {
        let GuestWidth { maxphyaddr, gbpages, amd } = self.width;
        let nested = Paging { maxphyaddr, gbpages, bit8_reserved: amd, ..Paging::BARE };
        match self.tables {
            GuestTables::Registers => {
                let paging = Paging::of(state, maxphyaddr, gbpages, amd);
                // The walk of 4-byte entries assumes PSE-36, and EFER.NX alone makes fetches reported.
                // See: KVM mmu.c is_cpuid_PSE36(), paging_tmpl.h walk_addr_generic()
                Paging { pse36: 36, reports_fetch: state.efer().nxe() || state.cr4().smep(), ..paging }
            }
            // See: KVM mmu.c kvm_init_shadow_npt_mmu(): CR0.WP, SMEP and SMAP are as the role says.
            GuestTables::Npt { ncr3 } => Paging {
                mode: self.cpu_role.mode(),
                // Releases that do not check nCR3 look for memory where all of its bits say.
                root: ncr3 & bits(12, 63),
                nx: self.cpu_role.base.efer_nx(),
                wp: self.cpu_role.base.cr0_wp(),
                smep: self.cpu_role.smep,
                smap: self.cpu_role.smap,
                pse36: 36,
                reports_fetch: self.cpu_role.base.efer_nx() || self.cpu_role.smep,
                ..nested
            },
            // See: KVM mmu.c kvm_init_shadow_ept_mmu()
            GuestTables::Ept { eptp, execute_only } => {
                Paging { mode: Mode::ept(eptp, execute_only), root: eptp & bits(12, 51), wp: true, ..nested }
            }
        }
    }

    /// `get_guest_pgd`.
    pub fn pgd(&self, state: &VcpuState) -> u64 {
        match self.tables {
            GuestTables::Registers => state.cr3,
            GuestTables::Npt { ncr3 } => ncr3,
            GuestTables::Ept { eptp, .. } => eptp,
        }
    }

    /// `kvm_init_shadow_npt_mmu`. L1's CR4 and EFER are those that it had at VMRUN; `level` is that of the tables for silicon.
    pub(crate) fn init_shadow_npt(
        &mut self,
        rules: NptRules,
        l1: &VcpuState,
        l2: &VcpuState,
        ncr3: u64,
        level: u8,
    ) {
        self.tables = GuestTables::Npt { ncr3 };
        self.cpu_role = CpuRole::of(&npt_registers(rules, l1, l2));
        self.cpu_role.base.set_guest_mode(rules.guest_mode_first);
        let passthrough = level == 5 && self.cpu_role.base.level() == 4;
        self.root_role = self.cpu_role.base.with_level(level).with_passthrough(passthrough);
    }

    /// `kvm_init_shadow_ept_mmu`, `kvm_calc_shadow_ept_root_page_role`.
    pub(crate) fn init_shadow_ept(&mut self, eptp: u64, execute_only: bool) {
        let parts = Eptp::from_bits(eptp);
        self.tables = GuestTables::Ept { eptp, execute_only };
        let base = PageRole::new()
            .with_level(parts.levels_minus_one() + 1)
            .with_ad_disabled(!parts.ad())
            .with_guest_mode(true)
            .with_access(Acc::ALL.into_bits());
        self.cpu_role = CpuRole { base, ..Default::default() };
        self.root_role = base;
    }
}

/// The registers that the role of L1's nested page table is made from.
fn npt_registers(rules: NptRules, l1: &VcpuState, l2: &VcpuState) -> VcpuState {
    let (mode, pg) = (l1.cr4().with_pke(false), Cr0::new().with_pg(true));
    let (cr0, cr4, efer) = match () {
        () if !rules.of_l1 => {
            let efer = l2.efer().with_lme(l1.efer().lme()).with_lma(l1.efer().lma());
            (l2.cr0().with_pg(true), l2.cr4().with_pae(mode.pae()), efer)
        }
        () if rules.with_wp => (pg.with_wp(true), mode.with_smap(false), l1.efer()),
        () => (pg, mode, l1.efer()),
    };
    VcpuState { cr0: cr0.into_bits(), cr4: cr4.into_bits(), efer: efer.into_bits(), ..*l1 }
}

/// What the MMU keeps for a vCPU (of `struct kvm_vcpu_arch`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuMmu {
    pub root_mmu: Context,
    pub guest_mmu: Context,
    pub nested_mmu: Context,
    /// `mmu`: the context whose root silicon uses.
    pub mmu: ContextId,
    /// `walk_mmu`: the context that translates the linear addresses of whoever runs.
    pub walk_mmu: ContextId,
    /// `is_guest_mode`: L2 runs, or is about to.
    pub guest_mode: bool,
    /// `is_smm`.
    pub smm: bool,
    /// KVM_REQ_MMU_SYNC and KVM_REQ_TLB_FLUSH_CURRENT of a nested transition, for the next entry.
    pub(crate) transition: bool,
    pub mmio: MmioCache,
    pub types: GuestTypes,
    /// RIP and address for which a page was last unprotected.
    pub last_retry: Option<(u64, u64)>,
    /// The last nested fault of a software walk for KVM's emulator, until someone asks.
    pub(crate) nested_fault: Option<WalkFault>,
    #[serde(skip)]
    pub(crate) epoch: Epoch,
}

impl Default for VcpuMmu {
    fn default() -> Self {
        Self {
            root_mmu: Context::default(),
            guest_mmu: Context::default(),
            nested_mmu: Context::default(),
            mmu: ContextId::Root,
            walk_mmu: ContextId::Root,
            guest_mode: false,
            smm: false,
            transition: false,
            mmio: MmioCache::default(),
            types: GuestTypes::default(),
            last_retry: None,
            nested_fault: None,
            epoch: Epoch::default(),
        }
    }
}

impl VcpuMmu {
    /// A context by its name.
    pub fn context(&self, id: ContextId) -> &Context {
        match id {
            ContextId::Root => &self.root_mmu,
            ContextId::Guest => &self.guest_mmu,
            ContextId::Nested => &self.nested_mmu,
        }
    }

    /// A context by its name, to change.
    pub fn context_mut(&mut self, id: ContextId) -> &mut Context {
        match id {
            ContextId::Root => &mut self.root_mmu,
            ContextId::Guest => &mut self.guest_mmu,
            ContextId::Nested => &mut self.nested_mmu,
        }
    }

    /// `mmu_is_nested`: addresses of whoever runs are translated twice.
    pub fn is_nested(&self) -> bool {
        self.walk_mmu == ContextId::Nested
    }

    /// The level that runs, as far as the MMU is concerned.
    pub fn level(&self) -> Level {
        if self.guest_mode { Level::L2 } else { Level::L1 }
    }

    /// The guest's CPUID, which every context reads.
    pub fn set_width(&mut self, width: GuestWidth) {
        for id in [ContextId::Root, ContextId::Guest, ContextId::Nested] {
            self.context_mut(id).width = width;
        }
    }
}
