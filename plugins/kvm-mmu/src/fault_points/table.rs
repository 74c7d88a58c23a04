//! What each fault point is: its two words, what an answer means, and where it comes from.

use super::FaultPoint as P;
use vmtape_abi::TableRow;

/// What of the model a plugin has, and so which points it reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Two-dimensional paging.
    pub tdp: bool,
    /// Shadow paging.
    pub shadow: bool,
    /// EPT with page-modification logging, and VMX operation.
    pub vmx: bool,
    /// Silicon hands over the bytes of an instruction.
    pub insn_bytes: bool,
    /// Where a VM has either two-dimensional or shadow paging: the parameter that says so.
    pub either: Option<&'static str>,
}

/// A row: the point, who reaches it, what happens, the words and answers, the source.
type Row = (P, fn(&Reach) -> bool, &'static str, &'static str, &'static str);

fn all(_: &Reach) -> bool {
    true
}

fn tdp(reach: &Reach) -> bool {
    reach.tdp
}

fn shadow(reach: &Reach) -> bool {
    reach.shadow
}

const ROWS: &[Row] = &[
    (
        P::GUEST_ENTRY_FLIP,
        tdp,
        "Silicon's walk reads other bits than a guest's paging entry has in memory",
        "a: the entry's guest physical address; b: the entry; answer: the bits that are inverted",
        "a fault of the model: no CPU documents it",
    ),
    (
        P::NESTED_ENTRY_FLIP,
        tdp,
        "Silicon's nested walk reads other bits than the EPT or NPT entry has: a reserved one gives a misconfiguration or RSVD",
        "a: the guest physical address that is translated; b: the entry; answer: the bits that are inverted",
        "SDM vol. 3C 29.3.3.1 EPT Misconfigurations; APM vol. 2 15.25.6 Nested versus Guest Page Faults, Fault Ordering",
    ),
    (
        P::SHADOW_ENTRY_FLIP,
        shadow,
        "Silicon's walk reads other bits than KVM's shadow entry has",
        "a: the linear address that is translated; b: the entry; answer: the bits that are inverted",
        "a fault of the model: no CPU documents it",
    ),
    (
        P::LOST_ACCESSED,
        tdp,
        "Silicon uses a guest's paging entry without setting its accessed bit",
        "a: the entry's guest physical address; b: the entry; answer: any",
        "SDM vol. 3A 4.8 Accessed and Dirty Flags, broken",
    ),
    (
        P::LOST_DIRTY,
        tdp,
        "Silicon lets a guest write through an entry without setting its dirty bit",
        "a: the entry's guest physical address; b: the entry; answer: any",
        "SDM vol. 3A 4.8 Accessed and Dirty Flags, broken",
    ),
    (
        P::NESTED_LOST_DIRTY,
        |reach| reach.vmx && reach.tdp,
        "Silicon lets a guest write through an entry of EPT without setting its dirty bit, and so does not log the page",
        "a: the guest physical address that is translated; b: the entry; answer: any",
        "SDM vol. 3C 29.3.5 Accessed and Dirty Flags for EPT, 29.3.6 Page-Modification Logging, broken",
    ),
    (
        P::SPURIOUS_FAULT,
        all,
        "Silicon faults on an access that the tables allow: an EPT violation, a nested page fault, or a page fault under \
         shadow paging",
        "a: the address that is translated; b: the access (0 read, 1 write, 2 fetch); answer: any",
        "KVM mmu/mmu_internal.h RET_PF_SPURIOUS; SDM vol. 3A 4.10.4.3 Optional Invalidation",
    ),
    (
        P::EXIT_INFO_CLEARED,
        all,
        "Bits are missing in the exit qualification or EXITINFO1 of a memory exit",
        "a: the qualification or EXITINFO1; b: the address; answer: the bits that are cleared",
        "errata AAK134 and BY25 (bit 12 of an EPT violation's qualification), AMD 1218 (bit 2 of EXITINFO1)",
    ),
    (
        P::MACHINE_CHECK,
        all,
        "A machine check while the guest runs, which exits",
        "a: the linear address of the access; b: instructions retired; answer: MCi_STATUS, of which KVM knows AMD's \
         erratum 383 (0xb600000000010015)",
        "KVM svm/svm.c is_erratum_383(), vmx/vmx.c handle_exception_nmi()",
    ),
    (
        P::ITLB_MULTIHIT,
        |reach| reach.vmx && reach.tdp,
        "A fetch through a large page of EPT meets entries of smaller pages in the instruction TLB, which were not flushed: a machine \
         check. KVM's way around it, small pages wherever the guest executes (nx_huge_pages), is off",
        "a: the linear address; b: the guest physical address; answer: MCi_STATUS",
        "Linux Documentation/admin-guide/hw-vuln/multihit.rst; KVM mmu/mmu_internal.h disallowed_hugepage_adjust()",
    ),
    (
        P::LOST_FLUSH,
        all,
        "A flush of the TLB that KVM asks for does not happen",
        "a: the scope (0 all, 1 non-global, 2 one linear, 3 one guest physical address); b: the address; answer: any",
        "erratum of AMD's Genoa and Turin, KVM svm/svm.c svm_flush_tlb_gva()",
    ),
    (
        P::KVM_ENTRY_FLIP,
        all,
        "KVM's software walk reads other bits than a guest's paging entry has in memory",
        "a: the entry's guest physical address; b: the entry; answer: the bits that are inverted",
        "KVM mmu/paging_tmpl.h walk_addr_generic()",
    ),
    (
        P::SPTE_FLIP,
        all,
        "A leaf of KVM's tables for silicon is stored wrongly, for as long as it stands: with a reserved bit KVM_RUN gives -EINVAL",
        "a: the guest frame; b: the entry; answer: the bits that are inverted",
        "KVM mmu/mmu.c handle_mmio_page_fault(), get_mmio_spte()",
    ),
    (
        P::LINK_FLIP,
        all,
        "An entry of KVM's tables that links to another one is stored wrongly, for as long as it stands: where it leads to no table of \
         KVM's, KVM takes what is there for one and dies of it, KVM_RUN gives -EIO",
        "a: the first guest frame of what it links to; b: the entry; answer: the bits that are inverted",
        "KVM mmu/spte.h spte_to_child_sp(), mmu/mmu.c pte_list_remove(), KVM_BUG_ON_DATA_CORRUPTION()",
    ),
    (
        P::MMU_CACHE_ENOMEM,
        all,
        "There is no memory for the MMU's caches: KVM_RUN fails, and the guest is as it was",
        "a: the address of the page fault; b: its error code; answer: the errno (12 is ENOMEM)",
        "KVM mmu/mmu.c mmu_topup_memory_caches()",
    ),
    (
        P::ROOT_ENOMEM,
        all,
        "There is no memory for a root before an entry: KVM_RUN fails",
        "a: the guest's CR3; b: 0; answer: the errno (12 is ENOMEM)",
        "KVM mmu/mmu.c kvm_mmu_load()",
    ),
    (
        P::PAGE_FAULT_RETRY,
        all,
        "Somebody else changes the tables meanwhile: the page fault is dropped, and the guest faults again",
        "a: the guest frame; b: the error code; answer: any",
        "KVM mmu/mmu.c is_page_fault_stale(), mmu/tdp_mmu.c kvm_tdp_mmu_map()",
    ),
    (
        P::SLOT_INVALID,
        all,
        "The memory slot of a page fault is being deleted or moved under the running guest",
        "a: the guest frame; b: the slot; answer: 0 not done yet, the guest tries again; 1 done, the slot is gone; 2 done, the slot \
         begins where it ended",
        "KVM mmu/mmu.c kvm_mmu_faultin_pfn(), KVM_MEMSLOT_INVALID",
    ),
    (
        P::PFN_ERROR,
        all,
        "The host has no frame for a page of the guest's",
        "a: the guest frame; b: the error code; answer: 133 (EHWPOISON) SIGBUS, and the guest tries again; else the errno of KVM_RUN \
         (14 EFAULT; 4 EINTR where a signal can end the wait)",
        "KVM mmu/mmu.c kvm_handle_error_pfn()",
    ),
    (
        P::MMU_PAGES_ENOSPC,
        shadow,
        "The quota of shadow pages is used up, and no page can be freed: KVM_RUN fails",
        "a: the address of the page fault; b: its error code; answer: the errno (28 is ENOSPC)",
        "KVM mmu/mmu.c make_mmu_pages_available()",
    ),
    (
        P::SLOT_UPDATE_ENOMEM,
        all,
        "KVM_SET_USER_MEMORY_REGION has no memory: the slot stays as it was",
        "a: the slot; b: its guest physical address; answer: the errno (12 is ENOMEM)",
        "KVM virt/kvm/kvm_main.c kvm_prepare_memory_region()",
    ),
    (
        P::DIRTY_MARK_LOST,
        all,
        "A page of a slot that logs is written, and KVM does not mark it",
        "a: the guest frame; b: by which way (0 a new entry, 1 the fast page fault, 2 silicon's log, 3 the emulator, 4 KVM's \
         update of accessed and dirty bits, 5 a VMCB of L1's); answer: any",
        "KVM kvm_main.c mark_page_dirty_in_slot(); commit 910c57dfa4d1 for one such way",
    ),
    (
        P::RING_ENTRY_LOST,
        all,
        "An entry of a dirty ring is overwritten before userspace has seen it",
        "a: the slot; b: the page in it; answer: any",
        "KVM dirty_ring.c kvm_dirty_ring_push(), which warns of a full ring",
    ),
    (
        P::RING_SLOT_GONE,
        all,
        "KVM_RESET_DIRTY_RINGS finds no slot for an entry: the page is not protected, and its next writes are not told",
        "a: 0; b: 0; answer: which entry of those that are reset, from 0 on",
        "KVM dirty_ring.c kvm_reset_dirty_gfn()",
    ),
    (
        P::PML_NOT_DRAINED,
        |reach| reach.vmx && reach.tdp,
        "What silicon logged is not read on an exit",
        "a: 0; b: 0; answer: 0 later, else never",
        "KVM vmx/vmx.c vmx_flush_pml_buffer()",
    ),
    (
        P::PROTECT_BEFORE_SNAPSHOT,
        all,
        "KVM_GET_DIRTY_LOG protects before it takes the snapshot, and a vCPU writes a page in between: this round tells of it, \
         but never again",
        "a: the slot; b: 0; answer: the page in the slot",
        "KVM kvm_main.c kvm_get_dirty_log_protect(), its comment on the order of the steps",
    ),
    (
        P::PROTECT_FLUSH_SKIPPED,
        all,
        "The TLBs are not flushed after pages were protected for the next round",
        "a: the slot; b: the first page of the range; answer: any",
        "KVM kvm_main.c kvm_get_dirty_log_protect(), kvm_clear_dirty_log_protect()",
    ),
    (
        P::SPTE_UPDATE_RACE,
        all,
        "Silicon changes an entry between KVM's read and its plain write, which puts the old one back: the page stays writable, and its \
         next writes are not told",
        "a: the slot; b: the guest frame; answer: any",
        "KVM mmu/spte.c spte_has_volatile_bits(), mmu/mmu.c mmu_spte_update(), which exchange such entries atomically",
    ),
    (
        P::FAST_PF_ABA,
        tdp,
        "Between read and exchange of the fast page fault an entry becomes another frame's and looks as before: the wrong page is marked",
        "a: the guest frame; b: the slot; answer: the guest frame that is marked instead",
        "Linux Documentation/virt/kvm/locking.rst, fast page fault",
    ),
    (
        P::DIRTY_WORD_DROPPED,
        all,
        "64 pages are missing in what KVM_GET_DIRTY_LOG tells",
        "a: the slot; b: the word of the bitmap; answer: any",
        "a fault of the model",
    ),
    (
        P::GET_DIRTY_LOG_EFAULT,
        all,
        "KVM_GET_DIRTY_LOG cannot write the bitmap, which is cleared already: what it told is lost",
        "a: the slot; b: words of the bitmap; answer: the errno (14 is EFAULT)",
        "KVM kvm_main.c kvm_get_dirty_log_protect(), copy_to_user()",
    ),
    (
        P::FAILED_ENTRY,
        all,
        "The entry fails: KVM_EXIT_FAIL_ENTRY",
        "a: RIP; b: 0; answer: hardware_entry_failure_reason (0x80000021 on Intel, all ones on AMD)",
        "SDM vol. 3C 27.8 VM-Entry Failures During or After Loading Guest State; KVM vmx/vmx.c __vmx_handle_exit(), \
         svm/svm.c svm_handle_exit()",
    ),
    (
        P::RDMSR_REFUSED,
        all,
        "The guest's RDMSR is #GP",
        "a: the MSR; b: 0; answer: any",
        "KVM x86.c kvm_emulate_rdmsr()",
    ),
    (
        P::WRMSR_REFUSED,
        all,
        "The guest's WRMSR is #GP",
        "a: the MSR; b: the value; answer: any",
        "KVM x86.c kvm_emulate_wrmsr()",
    ),
    (
        P::GET_MSR_REFUSED,
        all,
        "KVM_GET_MSRS stops at a register",
        "a: the MSR; b: 0; answer: any",
        "KVM x86.c do_get_msr()",
    ),
    (
        P::SET_MSR_REFUSED,
        all,
        "KVM_SET_MSRS stops at a register",
        "a: the MSR; b: the value; answer: any",
        "KVM x86.c do_set_msr()",
    ),
    (
        P::SET_CPUID_REFUSED,
        all,
        "KVM_SET_CPUID2 fails before it looks at the table",
        "a: the number of entries; b: 1 if the vCPU has run; answer: the errno (22 is EINVAL)",
        "KVM x86.c kvm_arch_vcpu_ioctl(), commit feb627e8d6f6",
    ),
    (
        P::GET_STATE_REFUSED,
        all,
        "KVM_GET_* of one kind of a vCPU's state fails",
        "a: the kind; b: 0; answer: the errno (22 is EINVAL)",
        "KVM x86.c kvm_arch_vcpu_ioctl()",
    ),
    (
        P::SET_STATE_REFUSED,
        all,
        "KVM_SET_* of one kind of a vCPU's state fails, and nothing is changed",
        "a: the kind; b: how many bytes; answer: the errno (22 is EINVAL)",
        "KVM x86.c kvm_arch_vcpu_ioctl()",
    ),
    (
        P::USER_IO_STALE,
        all,
        "Userspace completes the read of a port without giving data: what stands in the page is taken",
        "a: the port; b: the data that were due; answer: what stands there",
        "KVM x86.c complete_fast_pio_in(), kvm_fast_pio_in()",
    ),
    (
        P::VM_BUGGED,
        all,
        "KVM_BUG_ON: the VM is dead, KVM_RUN and what changes a vCPU give -EIO from here on",
        "a: RIP; b: 0; answer: any",
        "KVM include/linux/kvm_host.h KVM_BUG_ON(), kvm_main.c kvm_vcpu_ioctl()",
    ),
    (
        P::NESTED_STATE_PAGES,
        |reach| !reach.vmx,
        "Nested state was restored, and the guest's memory that it needs cannot be read at the next KVM_RUN: an internal error",
        "a: the guest physical address of vmcb12; b: 0; answer: any",
        "KVM svm/nested.c svm_get_nested_state_pages(), x86.c vcpu_enter_guest()",
    ),
    (
        P::INSN_BYTES_LOST,
        |reach| reach.insn_bytes,
        "Silicon hands over no bytes of the instruction that faulted: KVM fetches it itself",
        "a: RIP; b: the address of the page fault; answer: any",
        "AMD erratum 1096; KVM svm/svm.c svm_check_emulate_instruction()",
    ),
    (
        P::VMXON_FAULT,
        |reach| reach.vmx,
        "VMXON faults where a physical CPU is to be enabled: -EFAULT, and the CPU stays out of use",
        "a: the CPU; b: IA32_FEATURE_CONTROL; answer: the vector (13 is #GP)",
        "KVM vmx/vmx.c kvm_cpu_vmxon(), commit 4f6ea0a87608",
    ),
    (
        P::CRASH_NMI,
        |reach| reach.vmx,
        "The host crashes while KVM is at work on a CPU's VMCSs: an NMI stops the CPU, and no vCPU is loaded anywhere any more",
        "a: the CPU; b: what it interrupts (0x100 list_add, 0x200 list_del, 0x300 VMCLEAR, 0x380 that of a shadow VMCS, 0x400 VMPTRLD, \
         0x500 VMXON, 0x600 VMXOFF), and how many of its steps are done; answer: any",
        "KVM vmx/vmx.c crash_vmclear_local_loaded_vmcss(), commit 31603d4fc2bb; which VMCSs stay active: `vmtape host crash`",
    ),
    (
        P::CRASH_IN_CLGI,
        |reach| !reach.vmx,
        "The host crashes between CLGI and STGI, where no interrupt and no NMI reaches it: KVM_RUN gives -EIO",
        "a: the CPU; b: RIP; answer: any",
        "KVM svm/svm.c svm_vcpu_run(), kvm_cpu_svm_disable(), commit d81f952aa657",
    ),
    (
        P::ENABLE_BUSY,
        all,
        "Somebody else has virtualization enabled on a physical CPU (CR4.VMXE, EFER.SVME): -EBUSY",
        "a: the CPU; b: 0; answer: any",
        "KVM vmx/vmx.c vmx_hardware_enable(), svm/svm.c svm_hardware_enable()",
    ),
];

/// With which options of a VM its model does not come to a row's point.
fn unreached((point, reaches, ..): &Row, reach: &Reach) -> String {
    let mut options = Vec::new();
    if let Some(parameter) = reach.either {
        options.extend((!reaches(&Reach { tdp: false, ..*reach })).then(|| format!("{parameter}=off")));
        options.extend((!reaches(&Reach { shadow: false, ..*reach })).then(|| format!("{parameter}=on")));
    }
    if [P::PML_NOT_DRAINED, P::NESTED_LOST_DIRTY].contains(point) {
        options.extend(["eptad=off".to_owned(), "pml=off".to_owned()]);
    }
    options.join(" ")
}

/// The table of a plugin that reaches so much.
pub fn rows(reach: &Reach) -> Vec<TableRow> {
    let mine = ROWS.iter().filter(|(_, reaches, ..)| reaches(reach));
    mine.map(|row @ (point, _, text, value, source)| TableRow {
        id: point.0,
        name: point.name().unwrap_or_default().into(),
        text: (*text).into(),
        value: (*value).into(),
        source: (*source).into(),
        undone_by: unreached(row, reach),
        ..Default::default()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_says_with_which_options_it_is_not_reached() {
        let both = Reach { tdp: true, shadow: true, vmx: true, insn_bytes: false, either: Some("paging") };
        let unreached = |reach: &Reach, point: P| {
            rows(reach).into_iter().find(|row| row.id == point.0).map(|row| row.undone_by)
        };
        assert_eq!(unreached(&both, P::LOST_DIRTY).as_deref(), Some("paging=off"));
        assert_eq!(unreached(&both, P::SHADOW_ENTRY_FLIP).as_deref(), Some("paging=on"));
        assert_eq!(unreached(&both, P::LOST_FLUSH).as_deref(), Some(""));
        assert_eq!(unreached(&both, P::PML_NOT_DRAINED).as_deref(), Some("paging=off eptad=off pml=off"));
        let shadow = Reach { shadow: true, ..Reach::default() };
        assert_eq!(unreached(&shadow, P::LOST_DIRTY), None);
        assert_eq!(unreached(&shadow, P::SHADOW_ENTRY_FLIP).as_deref(), Some(""));
    }
}
