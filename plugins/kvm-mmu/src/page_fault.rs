//! Page faults on their way through the MMU, and the vCPU's cache of its last MMIO access.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c, x86.h vcpu_cache_mmio_info(), as of 6.12

use crate::{
    config::Unmappable,
    fault::{Alias, FaultCode, Handled, PFN_NOSLOT, PageFault, RetPf, WalkFault},
    fault_points::FaultPoint,
    large::round_gfn,
    mmio_cache::MmioCache,
    mmu::Mmu,
    slots::{PRIVATE_SLOT, Slot},
    spte::MMIO_GENERATION_MASK,
    walk::Acc,
};
use vmtape_abi::{Errno, Host, MemoryRegion, MemoryStatus};
use vmtape_arch::{PAGE_SIZE, level::Stage, note::Note, vcpu::VcpuState};

/// `kvm_handle_error_pfn`, for what a wait for a page ends with: a signal (`is_sigpending_pfn`), or no page. Where the wait knows no
/// signals only one that kills ends it, with an error like any other.
fn error_pfn(status: MemoryStatus, interruptible: bool) -> Option<Errno> {
    match status {
        MemoryStatus::READY => None,
        MemoryStatus::MISSING if interruptible => Some(Errno::EINTR),
        _ => Some(Errno::EFAULT),
    }
}

/// See: Linux include/uapi/asm-generic/errno.h
const EHWPOISON: u64 = 133;

impl Mmu {
    // --- the vCPU's MMIO cache ---

    fn mmio_generation(&self) -> u64 {
        self.generation
    }

    /// `vcpu_cache_mmio_info`.
    pub(crate) fn cache_mmio(&mut self, vcpu: u32, gva: u64, gfn: u64, acc: Acc) {
        let generation = self.mmio_generation();
        let acc = self.config.format.mmio_rights(acc).into_bits();
        let mmu = self.vcpu(vcpu);
        // The linear addresses of L2 are never cached.
        let gva = if mmu.is_nested() { 0 } else { gva & !0xfff };
        mmu.mmio = MmioCache { gva, gfn, acc, generation };
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
        if let Some(answer) = self.fault(vcpu, FaultPoint::MMU_CACHE_ENOMEM, address, code.into_bits(), host)
        {
            return Handled::Errno(FaultPoint::errno(answer).0);
        }
        if let Err(errno) = self.refuse_astray(vcpu, address, host) {
            return Handled::Errno(errno.0);
        }
        self.vcpu(vcpu).types.cache_disable = state.cr0().cd();
        let mut result = RetPf::Invalid;
        if code.rsvd() {
            match self.handle_mmio_page_fault(vcpu, address, host) {
                Ok(found) => result = found,
                Err(errno) => return Handled::Errno(errno.0),
            }
        }
        if result == RetPf::Invalid {
            let mut fault = PageFault::new(address, code);
            result = if self.is_tdp_mmu(vcpu) {
                self.tdp_page_fault(vcpu, &mut fault, host)
            } else if self.context(vcpu).root_role.direct() {
                self.direct_page_fault(vcpu, &mut fault, host)
            } else {
                match self.paging_page_fault(vcpu, state, &mut fault, host) {
                    Ok(result) => result,
                    Err(fault) => {
                        self.invalidate_fault(vcpu, &fault, host);
                        if !fault.is_nested() {
                            return Handled::Inject(fault.exception());
                        }
                        // Which of L2's accesses it was is what silicon says, not what KVM's walk can know.
                        let stage = if code.guest_page() { Stage::NESTED_TABLE } else { fault.stage };
                        return Handled::InjectNested(WalkFault { stage, ..fault });
                    }
                }
            };
        }
        match result {
            RetPf::Emulate => Handled::Emulate,
            RetPf::Failed(errno) => Handled::Errno(errno.0),
            RetPf::WriteProtected => self.write_protect_fault(vcpu, state, address, code, host),
            _ => Handled::Resume,
        }
    }

    /// Whether the vCPU's nested tables have too few levels for an address: bits 51:48 under four.
    pub fn is_unmappable(&self, vcpu: u32, gpa: u64) -> bool {
        self.is_tdp(vcpu) && self.context(vcpu).root_role.level() == 4 && gpa >> 48 != 0
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
    fn handle_mmio_page_fault(
        &mut self,
        vcpu: u32,
        address: u64,
        host: &mut dyn Host,
    ) -> Result<RetPf, Errno> {
        let direct = self.context(vcpu).root_role.direct();
        // "A nested guest cannot use the MMIO cache": the fault's address is L2's, the cache holds L1's.
        // See: mmu.c mmio_info_in_cache()
        let cached = if self.vcpu(vcpu).is_nested() {
            false
        } else if direct {
            self.match_mmio_gpa(vcpu, address)
        } else {
            self.match_mmio_gva(vcpu, address).is_some()
        };
        if cached {
            return Ok(RetPf::Emulate);
        }
        let spte = if self.is_tdp(vcpu) {
            self.tdp_find(vcpu, address >> 12)
        } else {
            self.shadow_find(vcpu, address)
        };
        let format = self.config.format;
        // "WARN_ON_ONCE(reserved)": only a damaged entry has reserved bits and is not KVM's own mark.
        let is_mmio = format.is_mmio(spte);
        let damaged = if self.armed || !is_mmio { self.damaged(vcpu, address) } else { None };
        if let Some(spte) = damaged {
            host.log(2, &format!("kvm: reserved bits are set in an entry for {address:#x}: {spte:#x}"));
            return Err(Errno::EINVAL);
        }
        if !is_mmio {
            return Ok(RetPf::Retry);
        }
        let (gfn, acc, generation) = format.mmio_parts(spte);
        if generation != self.mmio_generation() & MMIO_GENERATION_MASK {
            return Ok(RetPf::Invalid);
        }
        if direct && gfn != address >> 12 {
            self.alias = Some(Alias { old: spte, gfn: address >> 12, mmio: true });
        }
        let address = if direct { 0 } else { address };
        let acc = format.mmio_rights(acc);
        host.note_at(
            vcpu,
            self.place(vcpu),
            Note::HandleMmioPageFault { address, gfn, access: acc.into_bits() },
        );
        self.cache_mmio(vcpu, address, gfn, acc);
        Ok(RetPf::Emulate)
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
        let direct = self.context(vcpu).root_role.direct();
        let mmu = self.vcpu(vcpu);
        if mmu.last_retry == Some((state.rip, address)) {
            return Handled::Emulate;
        }
        mmu.last_retry = None;
        let guest_table = code.guest_page() && code.w() && code.p();
        if direct && guest_table && self.unprotect_and_retry(vcpu, state, address, host) {
            return Handled::Resume;
        }
        // "Do not allow retrying an instruction from a nested guest": only L1's tables are shadowed.
        if self.vcpu(vcpu).guest_mode { Handled::Emulate } else { Handled::EmulateOrRetry }
    }

    /// `kvm_faultin_pfn`. Guests have no asynchronous page faults: KVM waits for a page that is not there.
    pub(crate) fn faultin_pfn(
        &mut self,
        vcpu: u32,
        fault: &mut PageFault,
        acc: Acc,
        host: &mut dyn Host,
    ) -> RetPf {
        if self.armed
            && let Some(result) = self.disturbed(vcpu, fault, host)
        {
            return result;
        }
        let Some(slot) = fault.slot else { return self.noslot_fault(vcpu, fault, acc) };
        if slot.readonly() && fault.code.w() {
            // See: mmu.c kvm_handle_error_pfn(), KVM_PFN_ERR_RO_FAULT
            return RetPf::Emulate;
        }
        if slot.id >= PRIVATE_SLOT && self.config.emulates_apic_page {
            // "go directly to emulation without caching the MMIO access": see mmu.c kvm_mmu_faultin_pfn()
            return RetPf::Emulate;
        }
        let hpa = slot.hpa(fault.gfn << 12);
        if slot.id < PRIVATE_SLOT
            && let Some(errno) = error_pfn(host.fault_in(hpa, PAGE_SIZE), self.config.interruptible)
        {
            return RetPf::Failed(errno);
        }
        fault.pfn = hpa >> 12;
        fault.map_writable = !slot.readonly();
        RetPf::Continue
    }

    /// What other threads of the host may do meanwhile.
    fn disturbed(&mut self, vcpu: u32, fault: &mut PageFault, host: &mut dyn Host) -> Option<RetPf> {
        let (gfn, code) = (fault.gfn, fault.code.into_bits());
        if self.fault(vcpu, FaultPoint::PAGE_FAULT_RETRY, gfn, code, host).is_some() {
            return Some(RetPf::Retry);
        }
        let slot = fault.slot.filter(|slot| slot.id < PRIVATE_SLOT)?;
        if let Some(answer) = self.fault(vcpu, FaultPoint::PFN_ERROR, gfn, code, host) {
            return Some(if answer == EHWPOISON {
                RetPf::Retry
            } else {
                RetPf::Failed(FaultPoint::errno(answer))
            });
        }
        let changed = match self.fault(vcpu, FaultPoint::SLOT_INVALID, gfn, slot.id.into(), host)? {
            0 => return Some(RetPf::Retry),
            2 => {
                let Slot { id, gpa, size, hpa, .. } = slot;
                MemoryRegion { slot: id, gpa: gpa + size, size, hpa, flags: slot.flags }
            }
            _ => MemoryRegion { slot: slot.id, ..Default::default() },
        };
        // The slot is there, so it can be deleted; where it cannot be moved it stays.
        let _ = self.change_slot(&changed, host);
        Some(RetPf::Retry)
    }

    /// `kvm_handle_noslot_fault`.
    fn noslot_fault(&mut self, vcpu: u32, fault: &mut PageFault, acc: Acc) -> RetPf {
        let gva = if self.is_tdp(vcpu) { 0 } else { fault.addr };
        self.cache_mmio(vcpu, gva, fault.gfn, acc);
        fault.slot = None;
        fault.pfn = PFN_NOSLOT;
        fault.map_writable = false;
        let caching = self.config.mmio_caching && self.config.format.caches_mmio();
        if !caching || fault.gfn > self.max_gfn() { RetPf::Emulate } else { RetPf::Continue }
    }

    /// A fault's code as `fast_page_fault` tells it.
    pub(crate) fn told_code(&self, code: FaultCode) -> u64 {
        let code = code.into_bits();
        if self.config.full_fault_code { code } else { u64::from(code as u32) }
    }

    /// The note `kvm_mmu_spte_requested`.
    pub(crate) fn note_requested(&self, vcpu: u32, fault: &PageFault, host: &mut dyn Host) {
        let offset = fault.gfn ^ round_gfn(fault.gfn, fault.goal_level);
        host.note_at(
            vcpu,
            self.place(vcpu),
            Note::SpteRequested { gfn: fault.gfn, pfn: fault.pfn | offset, level: fault.goal_level },
        );
    }
}
