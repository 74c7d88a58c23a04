//! The MMU of a VM: what shadow paging and two-dimensional paging have in common.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c, as of 6.12

use crate::{
    fault::{FaultCode, Handled, PFN_NOSLOT, PageFault, RetPf},
    pages::Pages,
    role::{CpuRole, PageRole},
    shadow::Shadow,
    slots::{Slot, SlotChange, Slots},
    spte::{Format, MMIO_GENERATION_MASK},
    tdp::Tdp,
    walk::Acc,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_abi::{ALL_VCPUS, Errno, FlushScope, Host, MemoryRegion};
use vmtape_arch::{note::Note, paging::bits, vcpu::VcpuState};

/// Addresses spaces that a memslot update counts for (one for SMM).
const GENERATION_STEP: u64 = 2;

/// What the MMU is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Two-dimensional paging; otherwise shadow paging.
    pub tdp: bool,
    /// kvm.tdp_mmu: two-dimensional tables have an MMU of their own, otherwise they are shadow pages.
    pub tdp_mmu: bool,
    /// The format of the entries that silicon reads.
    pub format: Format,
    /// The host's MAXPHYADDR.
    pub host_width: u8,
    /// The host has 1 GiB pages.
    pub gbpages: bool,
    /// log2 of the largest page with which the host backs guest memory.
    pub backing_shift: u8,
    /// Most levels that TDP offers.
    pub max_tdp_level: u8,
    /// TDP has the host's paging mode and no choice (AMD).
    pub forced_tdp_level: bool,
    /// kvm.mmio_caching
    pub mmio_caching: bool,
    /// Silicon is AMD's.
    pub amd: bool,
    /// With 4 levels, address bits 51:48 fault instead of being ignored.
    pub wide_gpa_faults: bool,
    /// AMD's accessed bit comes before the final nested fault.
    pub accessed_before_nested_fault: bool,
    /// ... and the dirty bit with it.
    pub dirty_before_nested_fault: bool,
    /// vCPUs share a shadow page only if their CPUIDs give its entries the same meaning. No release does that.
    pub role_has_cpuid: bool,
    /// The counters of write tracking are allocated with the first shadow page instead of with each slot.
    pub gfn_track_on_demand: bool,
    /// KVM's software walk refuses addresses beyond the guest's width even where no entry has a reserved bit.
    pub translate_gpa_check: bool,
    /// What becomes of memory that the nested tables have too few levels for.
    pub unmappable: Unmappable,
}

/// What KVM does about a fault in a memory slot whose address the nested tables cannot translate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unmappable {
    /// It maps the page, and the guest faults again: for ever.
    #[default]
    Map,
    /// It leaves to userspace at once with KVM_EXIT_INTERNAL_ERROR.
    InternalError,
    /// ... or with KVM_EXIT_MEMORY_FAULT.
    MemoryFault,
}

/// Two guest frames that meet in one entry, because the tables have too few levels to tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// What the entry was before.
    pub old: u64,
    /// The frame that now claims it.
    pub gfn: u64,
    /// The claim is MMIO's, which takes the entry away; a page of memory leaves it as it is.
    pub mmio: bool,
}

impl Config {
    /// The bits of an address in KVM's own tables that silicon takes, all others being reserved.
    pub fn table_width(&self) -> u8 {
        match self.format {
            Format::X86 { width } => width,
            Format::Ept { .. } => self.host_width,
        }
    }
}

/// What a guest's CPUID says about its page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestWidth {
    pub maxphyaddr: u8,
    pub gbpages: bool,
    /// Bit 8 of upper entries is reserved.
    pub amd: bool,
}

impl Default for GuestWidth {
    fn default() -> Self {
        Self { maxphyaddr: 36, gbpages: false, amd: false }
    }
}

/// The last MMIO access of a vCPU (`vcpu_cache_mmio_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioCache {
    gva: u64,
    gfn: u64,
    pub(crate) acc: u8,
    generation: u64,
}

/// A root that a vCPU uses or used: its page, and the CR3 it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub hpa: u64,
    pub pgd: u64,
}

/// What the MMU keeps for a vCPU (`struct kvm_mmu`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuMmu {
    pub width: GuestWidth,
    pub cpu_role: CpuRole,
    pub root_role: PageRole,
    pub root: Option<Root>,
    /// Roots of page directories in PAE mode (`pae_root`), as PDPTEs.
    pub pae_root: [u64; 4],
    /// Most recent first.
    pub prev_roots: Vec<Root>,
    pub mmio: MmioCache,
    /// RIP and address for which a page was last unprotected.
    pub last_retry: Option<(u64, u64)>,
}

/// Where large pages are not allowed (`kvm_lpage_info`), beside what the slots' edges forbid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargePages(BTreeMap<(u8, u64), u32>);

/// log2 of the frames that an entry at `level` maps.
pub const fn frames_shift(level: u8) -> u32 {
    9 * (level as u32 - 1)
}

/// `gfn_round_for_level`.
pub const fn round_gfn(gfn: u64, level: u8) -> u64 {
    gfn >> frames_shift(level) << frames_shift(level)
}

impl LargePages {
    /// `kvm_mmu_gfn_disallow_lpage`.
    pub fn disallow(&mut self, gfn: u64) {
        for level in 2..=3 {
            *self.0.entry((level, gfn >> frames_shift(level))).or_default() += 1;
        }
    }

    /// `kvm_mmu_gfn_allow_lpage`.
    pub fn allow(&mut self, gfn: u64) {
        for level in 2..=3 {
            let key = (level, gfn >> frames_shift(level));
            if let Some(count) = self.0.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// Whether a large page at `level` may map the frame. See: KVM x86.c kvm_alloc_memslot_metadata()
    fn allowed(&self, slot: &Slot, gfn: u64, level: u8) -> bool {
        let first = round_gfn(gfn, level) << 12;
        let size = 1u64 << (frames_shift(level) + 12);
        let aligned = (slot.gpa ^ slot.hpa) & (size - 1) == 0;
        let inside = first >= slot.gpa && first + size <= slot.gpa + slot.size;
        aligned && inside && !self.0.contains_key(&(level, gfn >> frames_shift(level)))
    }
}

/// The MMU of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mmu {
    pub config: Config,
    pub slots: Slots,
    /// Generation of the memslots, which MMIO entries carry.
    pub(crate) generation: u64,
    pub(crate) pages: Pages,
    pub(crate) large: LargePages,
    pub(crate) tdp: Tdp,
    pub(crate) shadow: Shadow,
    pub vcpus: Vec<VcpuMmu>,
    /// The last collision of aliased frames, until someone asks.
    pub(crate) alias: Option<Alias>,
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
            tdp: Tdp::default(),
            shadow: Shadow::default(),
            vcpus: Vec::new(),
            alias: None,
        }
    }

    /// KVM_CREATE_VCPU.
    pub fn create_vcpu(&mut self, vcpu: u32) {
        let len = (vcpu as usize + 1).max(self.vcpus.len());
        self.vcpus.resize_with(len, VcpuMmu::default);
    }

    /// The MMU state of a vCPU.
    pub fn vcpu(&mut self, vcpu: u32) -> &mut VcpuMmu {
        &mut self.vcpus[vcpu as usize]
    }

    /// `kvm_mmu_max_gfn`.
    pub fn max_gfn(&self) -> u64 {
        let width = if self.config.tdp { self.config.host_width } else { 52 };
        bits(0, u32::from(width) - 13)
    }

    /// KVM_SET_USER_MEMORY_REGION.
    pub fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        let change = self.slots.set(region, self.max_gfn())?;
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
                if new.logs_dirty() && !old.logs_dirty() {
                    self.zap_all(host);
                }
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
        host.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0);
    }

    /// The tables are those of the TDP MMU.
    pub(crate) fn has_tdp_mmu(&self) -> bool {
        self.config.tdp && self.config.tdp_mmu
    }

    // --- the vCPU's MMIO cache ---

    fn mmio_generation(&self) -> u64 {
        self.generation
    }

    /// `vcpu_cache_mmio_info`.
    pub(crate) fn cache_mmio(&mut self, vcpu: u32, gva: u64, gfn: u64, acc: Acc) {
        let generation = self.mmio_generation();
        // The exec bit is not part of shadow_mmio_access_mask.
        let acc = if matches!(self.config.format, Format::Ept { .. }) {
            0
        } else {
            acc.with_exec(false).into_bits()
        };
        self.vcpu(vcpu).mmio = MmioCache { gva: gva & !0xfff, gfn, acc, generation };
    }

    /// `vcpu_clear_mmio_info`; `None` stands for MMIO_GVA_ANY.
    pub fn clear_mmio(&mut self, vcpu: u32, gva: Option<u64>) {
        let cache = &mut self.vcpu(vcpu).mmio;
        if gva.is_none_or(|gva| cache.gva == gva & !0xfff) {
            cache.gva = 0;
        }
    }

    /// `vcpu_match_mmio_gva`: the guest physical address of a linear one, by the last MMIO access.
    pub(crate) fn match_mmio_gva(&self, vcpu: u32, gva: u64) -> Option<u64> {
        let cache = &self.vcpus[vcpu as usize].mmio;
        let hit = cache.generation == self.mmio_generation() && cache.gva != 0 && cache.gva == gva & !0xfff;
        hit.then_some(cache.gfn << 12 | gva & 0xfff)
    }

    /// `vcpu_match_mmio_gpa`.
    pub(crate) fn match_mmio_gpa(&self, vcpu: u32, gpa: u64) -> bool {
        let cache = &self.vcpus[vcpu as usize].mmio;
        cache.generation == self.mmio_generation() && cache.gfn != 0 && cache.gfn == gpa >> 12
    }

    // --- page faults ---

    /// `kvm_mmu_page_fault`.
    pub fn page_fault(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        address: u64,
        code: FaultCode,
        host: &mut dyn Host,
    ) -> Handled {
        if let Some(handled) = self.refuse_unmappable(vcpu, address) {
            return handled;
        }
        let mut result = RetPf::Invalid;
        if code.rsvd() {
            result = self.handle_mmio_page_fault(vcpu, address, host);
        }
        if result == RetPf::Invalid {
            let mut fault = PageFault::new(address, code);
            result = if self.has_tdp_mmu() {
                self.tdp_page_fault(vcpu, &mut fault, host)
            } else if self.vcpu(vcpu).root_role.direct() {
                self.direct_page_fault(vcpu, &mut fault, host)
            } else {
                match self.paging_page_fault(vcpu, state, &mut fault, host) {
                    Ok(result) => result,
                    Err(exception) => return Handled::Inject(exception),
                }
            };
        }
        match result {
            RetPf::Emulate => Handled::Emulate,
            RetPf::WriteProtected => self.write_protect_fault(vcpu, state, address, code, host),
            _ => Handled::Resume,
        }
    }

    /// Whether the vCPU's nested tables have too few levels for an address: bits 51:48 under four.
    pub fn is_unmappable(&self, vcpu: u32, gpa: u64) -> bool {
        self.config.tdp && self.vcpus[vcpu as usize].root_role.level() == 4 && gpa >> 48 != 0
    }

    /// The two exits to userspace that were proposed for memory that cannot be mapped. MMIO needs no mapping.
    fn refuse_unmappable(&self, vcpu: u32, gpa: u64) -> Option<Handled> {
        let refused = self.config.unmappable != Unmappable::Map
            && self.is_unmappable(vcpu, gpa)
            && self.slots.find(gpa).is_some();
        refused.then_some(Handled::Unmappable(self.config.unmappable))
    }

    /// Whether the last fault met a page of another frame in its entry; asking forgets it.
    pub fn take_alias(&mut self) -> Option<Alias> {
        self.alias.take()
    }

    /// `handle_mmio_page_fault`.
    fn handle_mmio_page_fault(&mut self, vcpu: u32, address: u64, host: &mut dyn Host) -> RetPf {
        let direct = self.vcpu(vcpu).root_role.direct();
        let cached = if direct {
            self.match_mmio_gpa(vcpu, address)
        } else {
            self.match_mmio_gva(vcpu, address).is_some()
        };
        if cached {
            return RetPf::Emulate;
        }
        let spte = if self.config.tdp {
            self.tdp_find(vcpu, address >> 12)
        } else {
            self.shadow_find(vcpu, address)
        };
        let format = self.config.format;
        if !format.is_mmio(spte) {
            return RetPf::Retry;
        }
        let (gfn, acc, generation) = format.mmio_parts(spte);
        if generation != self.mmio_generation() & MMIO_GENERATION_MASK {
            return RetPf::Invalid;
        }
        if direct && gfn != address >> 12 {
            self.alias = Some(Alias { old: spte, gfn: address >> 12, mmio: true });
        }
        let address = if direct { 0 } else { address };
        host.note(vcpu, Note::HandleMmioPageFault { address, gfn, access: acc.into_bits() });
        self.cache_mmio(vcpu, address, gfn, acc);
        RetPf::Emulate
    }

    /// `kvm_mmu_write_protect_fault`.
    fn write_protect_fault(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        address: u64,
        code: FaultCode,
        host: &mut dyn Host,
    ) -> Handled {
        let direct = self.vcpu(vcpu).root_role.direct();
        let mmu = self.vcpu(vcpu);
        if mmu.last_retry == Some((state.rip, address)) {
            return Handled::Emulate;
        }
        mmu.last_retry = None;
        let guest_table = code.guest_page() && code.w() && code.p();
        if direct && guest_table && self.unprotect_and_retry(vcpu, state, address, host) {
            return Handled::Resume;
        }
        Handled::EmulateOrRetry
    }

    /// `kvm_faultin_pfn`, for memory that is always there.
    pub(crate) fn faultin_pfn(&mut self, vcpu: u32, fault: &mut PageFault, acc: Acc) -> RetPf {
        let Some(slot) = fault.slot else { return self.noslot_fault(vcpu, fault, acc) };
        if slot.readonly() && fault.code.w() {
            // See: mmu.c kvm_handle_error_pfn(), KVM_PFN_ERR_RO_FAULT
            return RetPf::Emulate;
        }
        fault.pfn = slot.hpa(fault.gfn << 12) >> 12;
        fault.map_writable = !slot.readonly();
        RetPf::Continue
    }

    /// `kvm_handle_noslot_fault`.
    fn noslot_fault(&mut self, vcpu: u32, fault: &mut PageFault, acc: Acc) -> RetPf {
        let gva = if self.config.tdp { 0 } else { fault.addr };
        self.cache_mmio(vcpu, gva, fault.gfn, acc);
        fault.slot = None;
        fault.pfn = PFN_NOSLOT;
        fault.map_writable = false;
        let caching = self.config.mmio_caching && self.config.format.caches_mmio();
        if !caching || fault.gfn > self.max_gfn() { RetPf::Emulate } else { RetPf::Continue }
    }

    /// `kvm_mmu_hugepage_adjust`: the level at which the fault is mapped.
    pub(crate) fn hugepage_adjust(&self, fault: &mut PageFault) {
        let Some(slot) = fault.slot else { return };
        if fault.max_level == 1 || slot.logs_dirty() {
            return;
        }
        fault.req_level = self.max_mapping_level(&slot, fault.gfn, fault.max_level);
        fault.goal_level = fault.req_level;
        fault.pfn = round_gfn(fault.pfn, fault.goal_level);
    }

    /// `kvm_mmu_max_mapping_level`.
    pub(crate) fn max_mapping_level(&self, slot: &Slot, gfn: u64, max_level: u8) -> u8 {
        let host_level =
            ((self.config.backing_shift - 12) / 9 + 1).min(if self.config.gbpages { 3 } else { 2 });
        (2..=max_level.min(host_level)).rev().find(|level| self.large.allowed(slot, gfn, *level)).unwrap_or(1)
    }

    /// The note `kvm_mmu_spte_requested`.
    pub(crate) fn note_requested(&self, vcpu: u32, fault: &PageFault, host: &mut dyn Host) {
        let offset = fault.gfn ^ round_gfn(fault.gfn, fault.goal_level);
        host.note(
            vcpu,
            Note::SpteRequested { gfn: fault.gfn, pfn: fault.pfn | offset, level: fault.goal_level },
        );
    }
}
