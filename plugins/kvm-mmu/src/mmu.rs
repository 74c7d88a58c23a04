//! The MMU of a VM: what shadow paging and two-dimensional paging have in common.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c, as of 6.12

use crate::{
    dirty::DirtyLog,
    fault_points::FaultPoint,
    large::LargePages,
    memory_type::{EptType, EptTypes},
    mtrr::Mtrrs,
    pages::Pages,
    shadow::Shadow,
    slots::{SlotChange, Slots},
    tdp::Tdp,
};
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, Errno, FlushScope, Host, MemoryRegion};
use vmtape_arch::{
    level::{Dimension, Place},
    paging::bits,
};

pub use crate::{
    config::{Config, GuestWidth, NptRules, Unmappable},
    context::{Context, ContextId, GuestTables, Root, VcpuMmu},
    fault::Alias,
    large::{frames_shift, round_gfn},
    mmio_cache::MmioCache,
};

/// Addresses spaces that a memslot update counts for (one for SMM).
const GENERATION_STEP: u64 = 2;

/// The MMU of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mmu {
    pub config: Config,
    pub slots: Slots,
    /// Generation of the memslots, which MMIO entries carry.
    pub(crate) generation: u64,
    pub(crate) pages: Pages,
    pub(crate) large: LargePages,
    /// Which pages were written, where slots ask for it.
    pub dirty: DirtyLog,
    pub(crate) tdp: Tdp,
    pub(crate) shadow: Shadow,
    pub vcpus: Vec<VcpuMmu>,
    /// The last collision of aliased frames, until someone asks.
    pub(crate) alias: Option<Alias>,
    /// Fault points may answer in this run.
    #[serde(skip)]
    pub armed: bool,
}

impl Mmu {
    /// An MMU without memory.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            slots: Slots::default(),
            generation: 0,
            pages: Pages::default(),
            large: LargePages::default(),
            dirty: DirtyLog::default(),
            tdp: Tdp::default(),
            shadow: Shadow::default(),
            vcpus: Vec::new(),
            alias: None,
            armed: false,
        }
    }

    /// KVM_CREATE_VCPU.
    pub fn create_vcpu(&mut self, vcpu: u32) {
        let len = (vcpu as usize + 1).max(self.vcpus.len());
        self.vcpus.resize_with(len, VcpuMmu::default);
        self.dirty.create_vcpu(vcpu, self.config.pml);
        if self.config.tdp {
            self.vcpu(vcpu).root_mmu.root_role = self.tdp_role(vcpu);
        }
    }

    /// The context whose root silicon uses (`vcpu->arch.mmu`).
    pub fn context(&self, vcpu: u32) -> &Context {
        let vcpu = &self.vcpus[vcpu as usize];
        vcpu.context(vcpu.mmu)
    }

    /// The same, to change.
    pub(crate) fn context_mut(&mut self, vcpu: u32) -> &mut Context {
        let vcpu = self.vcpu(vcpu);
        vcpu.context_mut(vcpu.mmu)
    }

    /// The MMU state of a vCPU.
    pub fn vcpu(&mut self, vcpu: u32) -> &mut VcpuMmu {
        &mut self.vcpus[vcpu as usize]
    }

    /// Where the notes of a vCPU belong that are no steps of a walk.
    pub(crate) fn place(&self, vcpu: u32) -> Place {
        Place { level: self.vcpus[vcpu as usize].level(), dimension: Dimension::GUEST }
    }

    /// `kvm_mmu_max_gfn`, or no limit before there was one.
    pub fn max_gfn(&self) -> u64 {
        if !self.config.gfn_within_host {
            return u64::MAX;
        }
        let width = if self.config.tdp { self.config.host_width } else { 52 };
        bits(0, u32::from(width) - 13)
    }

    /// KVM_SET_USER_MEMORY_REGION.
    pub fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        self.armed = host.wants_faults();
        let (slot, gpa) = (region.slot.into(), region.gpa);
        if let Some(answer) = self.fault(ALL_VCPUS, FaultPoint::SLOT_UPDATE_ENOMEM, slot, gpa, host) {
            return Err(FaultPoint::errno(answer));
        }
        self.change_slot(region, host)
    }

    /// `__kvm_set_memory_region`.
    pub(crate) fn change_slot(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        let change = self.slots.set(region, self.max_gfn())?;
        self.dirty.follow(&self.slots);
        match change {
            SlotChange::Nothing => return Ok(()),
            SlotChange::Created(_) => self.generation += GENERATION_STEP,
            // The slot is first made invalid, then removed or moved; both count.
            SlotChange::Removed(_) => {
                self.generation += 2 * GENERATION_STEP;
                self.zap_all(host);
            }
            SlotChange::Flags(old, new) => {
                self.generation += GENERATION_STEP;
                self.apply_log_flag(&old, &new, host);
            }
        }
        Ok(())
    }

    /// A private slot, such as the APIC-access page.
    pub fn set_private_slot(&mut self, id: u32, gpa: u64, size: u64, hpa: u64) {
        self.slots.set_private(id, gpa, size, hpa);
        self.generation += GENERATION_STEP;
    }

    /// `kvm_mmu_zap_all_fast`: no entry survives, and every vCPU loads a new root.
    pub fn zap_all(&mut self, host: &mut dyn Host) {
        self.tdp_zap_all();
        self.shadow_zap_all();
        self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
    }

    /// `vmx_get_mt_mask`: the memory type of an EPT entry.
    pub(crate) fn ept_type(&self, vcpu: u32, gfn: u64) -> EptType {
        self.config.ept_types.of(gfn, &self.vcpus[vcpu as usize].types)
    }

    /// The guest has changed its MTRRs. KVM zaps only what lies in the changed range. See: KVM mtrr.c update_mtrr(), as of 6.1
    pub fn set_mtrrs(&mut self, vcpu: u32, mtrrs: Mtrrs, host: &mut dyn Host) {
        let types = &mut self.vcpu(vcpu).types;
        let changed = types.mtrrs != mtrrs;
        types.mtrrs = mtrrs;
        if changed && self.config.ept_types == EptTypes::GuestMtrrs {
            self.zap_all(host);
        }
    }

    /// Asks the host for a flush, which silicon may lose.
    pub fn flush_tlb(&self, vcpu: u32, scope: FlushScope, address: u64, host: &mut dyn Host) {
        if self.fault(vcpu, FaultPoint::LOST_FLUSH, scope.0.into(), address, host).is_none() {
            host.flush_tlb(vcpu, scope, address);
        }
    }

    /// `is_tdp_mmu_active`: the vCPU's tables are those of the TDP MMU.
    pub(crate) fn is_tdp_mmu(&self, vcpu: u32) -> bool {
        self.config.tdp && self.config.tdp_mmu && self.context(vcpu).root_role.direct()
    }

    /// Addresses go to silicon's tables as they are: the page fault handler is the one of two-dimensional paging.
    pub(crate) fn is_tdp(&self, vcpu: u32) -> bool {
        self.config.tdp && self.context(vcpu).root_role.direct()
    }
}
