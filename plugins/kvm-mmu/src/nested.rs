//! L2's memory: how a vCPU's contexts follow it into L2 and back, and what L1 hears of L2's nested faults.
//!
//! Whoever emulates VMRUN and #VMEXIT calls this, with registers that are already checked:
//!
//! * VMRUN, or KVM_SET_NESTED_STATE into guest mode: [`Mmu::enter_npt`] where L1 has NP_ENABLE, else [`Mmu::enter_shared`].
//!   `l1` are L1's registers (vmcb01's CR4 and EFER), `l2` those that L2 starts with. CR3 is checked before, and where paging
//!   is PAE and NP_ENABLE is off, the PDPTEs are read into `l2.pdptr`.
//! * #VMEXIT, a failure after the MMU was entered, leaving L2 by force: [`Mmu::leave_guest_mode`].
//! * Both call [`Mmu::request_transition_flush`] themselves: L1's `tlb_ctl` and ASIDs have no effect, and L1 may forget flushes.
//!   What is asked for is done by the next [`Mmu::load`]; nothing happens if an entry is taken back before.
//! * While L2 runs, all else is as for L1: `page_fault` for NPF (`npt=1`) or #PF (`npt=0`), `invlpg`, `init`, `new_pgd`,
//!   `reset_context` and `flush_*` for what L2 or L0's emulator does to control registers.
//! * After each handled exit of L2: [`Mmu::take_nested_fault`]. If there is one, L1 takes a nested page fault
//!   ([`WalkFault::npf_exit_info`]) in place of what L2 would do next; nothing was injected into L2.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_init_mmu_context(), nested_svm_load_cr3(), nested_svm_transition_tlb_flush(),
//! as of 6.12

use crate::{context::ContextId, fault::WalkFault, mmu::Mmu};
use vmtape_abi::{FlushScope, Host};
use vmtape_arch::vcpu::VcpuState;

impl Mmu {
    /// L2 is about to run under L1's nested page table: `nested_svm_init_mmu_context`, and `nested_svm_load_cr3` with
    /// nested paging. `l1` has the registers that L1 had at VMRUN, `l2` those that L2 starts with.
    pub fn enter_npt(&mut self, vcpu: u32, l1: &VcpuState, ncr3: u64, l2: &VcpuState, host: &mut dyn Host) {
        let (level, rules) = (self.tdp_level(vcpu), self.config.npt_rules);
        self.vcpu(vcpu).guest_mmu.init_shadow_npt(rules, l1, l2, ncr3, level);
        self.enter_nested(vcpu, l2, host);
    }

    /// L2 is about to run under L1's EPT (`nested_ept_init_mmu_context`).
    pub fn enter_ept(
        &mut self,
        vcpu: u32,
        eptp: u64,
        execute_only: bool,
        l2: &VcpuState,
        host: &mut dyn Host,
    ) {
        self.vcpu(vcpu).guest_mmu.init_shadow_ept(eptp, execute_only);
        self.enter_nested(vcpu, l2, host);
    }

    fn enter_nested(&mut self, vcpu: u32, l2: &VcpuState, host: &mut dyn Host) {
        self.enter_guest_mode(vcpu);
        let mmu = self.vcpu(vcpu);
        (mmu.mmu, mmu.walk_mmu) = (ContextId::Guest, ContextId::Nested);
        self.init(vcpu, l2);
        self.new_pgd(vcpu, l2, host);
    }

    /// L2 is about to run without nested tables of L1's: its physical addresses are L1's. Under two-dimensional paging they go
    /// through a root of L2's own; without it L2's tables are shadowed, apart from L1's even where both have the same CR3.
    pub fn enter_shared(&mut self, vcpu: u32, l2: &VcpuState, host: &mut dyn Host) {
        self.enter_guest_mode(vcpu);
        self.load_cr3(vcpu, l2, host);
    }

    fn enter_guest_mode(&mut self, vcpu: u32) {
        let mmu = self.vcpu(vcpu);
        (mmu.guest_mode, mmu.nested_fault) = (true, None);
        self.request_transition_flush(vcpu);
    }

    /// L1 runs again, with these registers: `leave_guest_mode`, `nested_svm_uninit_mmu_context`, `nested_svm_load_cr3`. The
    /// roots of L1's nested tables are kept for the next entry.
    pub fn leave_guest_mode(&mut self, vcpu: u32, l1: &VcpuState, host: &mut dyn Host) {
        let mmu = self.vcpu(vcpu);
        (mmu.mmu, mmu.walk_mmu) = (ContextId::Root, ContextId::Root);
        (mmu.guest_mode, mmu.nested_fault) = (false, None);
        self.request_transition_flush(vcpu);
        self.load_cr3(vcpu, l1, host);
    }

    /// The end of `nested_svm_load_cr3` where no nested tables are in use.
    fn load_cr3(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        self.init(vcpu, state);
        self.new_pgd(vcpu, state, host);
    }

    /// `nested_svm_transition_tlb_flush`: KVM_REQ_MMU_SYNC and KVM_REQ_TLB_FLUSH_CURRENT.
    pub fn request_transition_flush(&mut self, vcpu: u32) {
        self.vcpu(vcpu).transition = true;
    }

    /// Serves that request before an entry. See: KVM x86.c vcpu_enter_guest()
    pub(crate) fn finish_transition(&mut self, vcpu: u32, host: &mut dyn Host) {
        if std::mem::take(&mut self.vcpu(vcpu).transition) {
            self.sync_roots(vcpu, host);
            self.flush_tlb(vcpu, FlushScope::ALL, 0, host);
        }
    }

    /// A fault of L1's nested tables waits until someone asks for it.
    pub fn report_nested_fault(&mut self, vcpu: u32, fault: WalkFault) {
        self.vcpu(vcpu).nested_fault = Some(fault);
    }

    /// The nested fault that L1 has to hear of: found by the last `page_fault`, or by a walk for the emulator.
    /// See: KVM x86.c kvm_inject_emulated_page_fault(), svm/nested.c nested_svm_inject_npf_exit()
    pub fn take_nested_fault(&mut self, vcpu: u32) -> Option<WalkFault> {
        self.vcpu(vcpu).nested_fault.take()
    }
}
