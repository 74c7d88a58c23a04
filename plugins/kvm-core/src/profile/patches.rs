//! Changes in KVM: merged ones with the releases that have them, and posted ones that no release has.

use super::{Entry, Scope, Switch};

const V1_SERIES: &str = "posted 27 Feb 2020";
const V2_SERIES: &str = "posted 19 Jun 2020";
const PROPOSED_2024: &str = "proposed Jan 2024";

/// A guest whose MAXPHYADDR is smaller than the host's: the series of 2020 in its three versions.
pub const SMALLER_MAXPHYADDR: &[Entry] = &[
    Entry::patch(
        Switch::SMALLER_MAXPHYADDR,
        Scope::ALL,
        "KVM_CAP_SMALLER_MAXPHYADDR and the variable behind it: true on VMX, !npt on SVM",
    )
    .commit(
        "3edd68399dc1",
        "KVM: x86: Add a capability for GUEST_MAXPHYADDR < HOST_MAXPHYADDR support",
    )
    .source("x86.c kvm_vm_ioctl_check_extension(), svm/svm.c svm_hardware_setup()")
    .since("v5.9-rc1"),
    Entry::patch(
        Switch::SMALLER_MAXPHYADDR_DEFAULT_OFF,
        Scope::VMX,
        "allow_smaller_maxphyaddr defaults to off",
    )
    .commit(
        "b96e6506c2ea",
        "KVM: x86: VMX: Make smaller physical guest address space support user-configurable",
    )
    .source("vmx/vmx.c module_param(allow_smaller_maxphyaddr), vmx_hardware_setup()")
    .since("v5.9-rc7"),
    Entry::patch(
        Switch::PF_FIXUP,
        Scope::VMX,
        "An intercepted #PF is walked again with the guest's width, and what that walk says is injected",
    )
    .commit(
        "897861479c06",
        "KVM: x86: Add helper functions for illegal GPA checking and page fault injection",
    )
    .source("x86.c kvm_fixup_and_inject_pf_error()")
    .since("v5.9-rc1"),
    Entry::patch(
        Switch::NEED_PF_INTERCEPT,
        Scope::VMX,
        "#PF is intercepted under EPT too where the guest is narrower than the host",
    )
    .commit("a0c134347baf", "KVM: VMX: introduce vmx_need_pf_intercept")
    .source("vmx/vmx.h vmx_need_pf_intercept()")
    .since("v5.9-rc1"),
    Entry::patch(
        Switch::EPT_VIOLATION_EMULATE,
        Scope::VMX,
        "An EPT violation at an address beyond the guest's width is emulated, which walks with the guest's width",
    )
    .commit("1dbf5d68af6f", "KVM: VMX: Add guest physical address check in EPT violation and misconfig")
    .source("vmx/vmx.c handle_ept_violation()")
    .since("v5.9-rc1"),
    Entry::patch(
        Switch::PFEC_MASK_MATCH,
        Scope::VMX,
        "Only a #PF with P set is intercepted: error-code mask 1, match 1",
    )
    .commit("8c4182bd27ca", "KVM: VMX: optimize #PF injection when MAXPHYADDR does not match")
    .source("vmx/vmx.c init_vmcs() as committed, vmx_update_exception_bitmap() today")
    .since("v5.9-rc1"),
    Entry::patch(
        Switch::PFEC_WITH_INTERCEPT,
        Scope::VMX,
        "That mask is set only while #PF is intercepted; without this it turns the intercept around where there is none, and \
         each #PF with P clear exits",
    )
    .commit("b502e6ecdc3b", "KVM: VMX: update PFEC_MASK/PFEC_MATCH together with PF intercept")
    .source("vmx/vmx.c update_exception_bitmap()")
    .since("v5.9"),
    Entry::patch(
        Switch::PFEC_SKIPS_RSVD,
        Scope::VMX,
        "A #PF that has RSVD already is not intercepted either: error-code mask 9, match 1",
    )
    .commit("5140bc7d6bc8", "KVM: VMX: Skip #PF(RSVD) intercepts when emulating smaller maxphyaddr")
    .source("vmx/vmx.c vmx_update_exception_bitmap()")
    .since("v5.14"),
    Entry::patch(
        Switch::TRANSLATE_GPA_CHECK,
        Scope::ALL,
        "translate_gpa() refuses an address beyond the guest's width with RSVD in the error code",
    )
    .commit("ec7771ab471b", "KVM: x86: mmu: Add guest physical address check in translate_gpa()")
    .source("mmu/mmu.c translate_gpa()")
    .since("v5.9-rc1")
    .until("v5.15", "e7177339d7b5"),
    Entry::patch(
        Switch::DECODE_KEEPS_FAULT,
        Scope::ALL,
        "A page fault while the emulator fetches an instruction is injected; without this the emulation fails and leaves to \
         userspace",
    )
    .commit("c8848cee74ff", "KVM: x86: set ctxt->have_exception in x86_decode_insn()")
    .source("emulate.c x86_decode_insn(), x86.c x86_emulate_instruction(); since v5.4, so in all releases here")
    .since("v5.6"),
    Entry::patch(
        Switch::EMULATION_FAILURE_DATA,
        Scope::ALL,
        "Userspace is told of a failed emulation which bytes were fetched, and the exit's reason and information",
    )
    .commit("e615e355894e", "KVM: x86: On emulation failure, convey the exit reason, etc. to userspace")
    .source("x86.c handle_emulation_failure(), prepare_emulation_failure_exit()")
    .since("v5.16"),
    Entry::patch(
        Switch::V1_RSVD_PF,
        Scope::ALL,
        "The #PF for an address beyond the guest's width has error code 0x8 and the guest physical address in CR2; both \
         are impossible",
    )
    .commit(V1_SERIES, "[PATCH 1/5] KVM: x86: Add function to inject guest page fault with reserved bits set")
    .source("kvm_inject_rsvd_bits_pf() as posted"),
    Entry::patch(
        Switch::V1_EPT_VIOLATION_CHECK,
        Scope::VMX,
        "An EPT violation at an address beyond the guest's width injects that #PF",
    )
    .commit(V1_SERIES, "[PATCH 2/5] KVM: VMX: Add guest physical address check in EPT violation and misconfig")
    .source("handle_ept_violation() as posted"),
    Entry::patch(
        Switch::V1_EPT_MISCONFIG_CHECK,
        Scope::VMX,
        "An EPT misconfiguration at an address beyond the guest's width injects that #PF",
    )
    .commit(V1_SERIES, "[PATCH 2/5] KVM: VMX: Add guest physical address check in EPT violation and misconfig")
    .source("handle_ept_misconfig() as posted"),
    Entry::patch(
        Switch::V1_NPF_CHECK,
        Scope::NPT,
        "A nested page fault at an address beyond the guest's width injects that #PF",
    )
    .commit(V1_SERIES, "[PATCH 3/5] KVM: SVM: Add guest physical address check in NPF interception")
    .source("npf_interception() as posted"),
    Entry::patch(
        Switch::V1_TRANSLATE_GPA_CHECK,
        Scope::ALL,
        "translate_gpa() refuses an address beyond the guest's width with RSVD in the error code",
    )
    .commit(V1_SERIES, "[PATCH 5/5] KVM: x86: mmu: Add guest physical address check in translate_gpa()")
    .source("translate_gpa() as posted"),
    Entry::patch(
        Switch::V2_NPF_EMULATE,
        Scope::NPT,
        "A nested page fault at an address beyond the guest's width is emulated; the guest's accessed bit is set by then",
    )
    .commit(V2_SERIES, "[PATCH v2 10/11] KVM: SVM: Add guest physical address check in NPF/PF interception")
    .source("npf_interception() as posted; dropped from the third version"),
    Entry::patch(
        Switch::V2_SVM_NEED_PF_INTERCEPT,
        Scope::AMD,
        "#PF is intercepted under nested paging too where the guest is narrower than the host",
    )
    .commit(V2_SERIES, "[PATCH v2 09/11] KVM: SVM: introduce svm_need_pf_intercept")
    .source("svm_need_pf_intercept() as posted; dropped from the third version"),
    Entry::patch(
        Switch::V2_SVM_PF_FIXUP,
        Scope::AMD,
        "A #PF intercepted under nested paging is walked again with the guest's width",
    )
    .commit(V2_SERIES, "[PATCH v2 10/11] KVM: SVM: Add guest physical address check in NPF/PF interception")
    .source("pf_interception() as posted; dropped from the third version"),
];

/// Guest physical addresses that the level below cannot map.
pub const MAPPABLE_WIDTH: &[Entry] = &[
    Entry::patch(
        Switch::GFN_WITHIN_HOST,
        Scope::ALL,
        "A memory slot beyond the host's width is refused, and MMIO up there gets no entry; without this both are taken",
    )
    .commit("86931ff7207b", "KVM: x86/mmu: Do not create SPTEs for GFNs that exceed host.MAXPHYADDR")
    .source("x86.c kvm_arch_prepare_memory_region(), mmu/mmu.c handle_abnormal_pfn(); stable kernels have it too")
    .since("v5.18"),
    Entry::patch(
        Switch::SUPPRESS_VE,
        Scope::ALL,
        "EPT entries, and all that are not present, have the suppress-#VE bit (63), as traces of them show",
    )
    .commit("7f01cab84928", "KVM: x86/mmu: Allow non-zero value for non-present SPTE and removed SPTE")
    .source("mmu/spte.h SHADOW_NONPRESENT_VALUE; not in 6.1, there in 6.12; of May 2024, its first release by that date")
    .since("v6.10"),
    Entry::patch(
        Switch::GUEST_PHYS_BITS,
        Scope::ALL,
        "KVM_GET_SUPPORTED_CPUID says in 0x80000008 EAX[23:16] how wide an address the level below can map",
    )
    .commit("b628cb523c65", "KVM: x86: Advertise max mappable GPA in CPUID.0x80000008.GuestPhysBits")
    .source("cpuid.c __do_cpuid_func()")
    .since("v6.10"),
    Entry::patch(
        Switch::MAXPHYADDR_NOT_GUEST_PHYS_BITS,
        Scope::ALL,
        "KVM_GET_SUPPORTED_CPUID takes the host's MAXPHYADDR for the guest's, not the GuestPhysBits of the level below",
    )
    .commit("6f5c9600621b", "KVM: x86: Don't advertise guest.MAXPHYADDR as host.MAXPHYADDR in CPUID")
    .source("cpuid.c __do_cpuid_func(); stable kernels have it too")
    .since("v6.10"),
    Entry::patch(
        Switch::EPT_5LEVEL_FLAG,
        Scope::VMX,
        "/proc/cpuinfo has ept_5level among the vmx flags where silicon has five-level EPT",
    )
    .commit("b1a3c366cbc7", "x86/cpu: Add a VMX flag to enumerate 5-level EPT support to userspace")
    .source("arch/x86/kernel/cpu/feat_ctl.c init_vmx_capabilities()")
    .since("v6.9"),
    Entry::patch(
        Switch::MEMORY_FAULT_INFO,
        Scope::ALL,
        "KVM_EXIT_MEMORY_FAULT and its capability 232; for private memory only, which is not modelled",
    )
    .commit("16f95f3b95ca", "KVM: Add KVM_EXIT_MEMORY_FAULT exit to report faults to userspace")
    .source("include/linux/kvm_host.h kvm_prepare_memory_fault_exit()")
    .since("v6.8"),
    Entry::patch(
        Switch::EARLY_INTERNAL_ERROR_EXIT,
        Scope::TDP,
        "Memory at an address that the level below cannot map leaves with KVM_EXIT_INTERNAL_ERROR",
    )
    .commit(PROPOSED_2024, "exit to userspace when a GPA cannot be mapped, with KVM_EXIT_INTERNAL_ERROR")
    .source("the discussion of 5-level EPT on the kvm list"),
    Entry::patch(
        Switch::EARLY_MEMORY_FAULT_EXIT,
        Scope::TDP,
        "Memory at an address that the level below cannot map leaves with KVM_EXIT_MEMORY_FAULT and -EFAULT",
    )
    .commit(PROPOSED_2024, "exit to userspace when a GPA cannot be mapped, with KVM_EXIT_MEMORY_FAULT")
    .source("the discussion of 5-level EPT on the kvm list"),
    Entry::patch(
        Switch::CAP_ADVERTISED_GPA,
        Scope::TDP,
        "KVM_GET_SUPPORTED_CPUID tells no more bits than the level below maps; what EPT cannot translate is emulated",
    )
    .commit(
        "posted 18 Dec 2023",
        "x86: KVM: Limit guest physical bits when 5-level EPT is unsupported",
    )
    .source("the series as posted; refused, since KVM would tell guests what silicon does not do"),
    Entry::patch(
        Switch::MAX_USABLE_GPA_IOCTL,
        Scope::ALL,
        "An ioctl tells the largest guest physical address that can be mapped",
    )
    .commit(PROPOSED_2024, "tell userspace the largest usable GPA")
    .source("the discussion of 5-level EPT on the kvm list"),
];

/// Dirty logging.
pub const DIRTY_LOGGING: &[Entry] = &[
    Entry::patch(
        Switch::TDP_SPLITS_ON_FAULT,
        Scope::TDP,
        "A fault that needs a small page where the TDP MMU has a large one splits it; before, the large page goes, and each of its \
         small ones faults again",
    )
    .commit("c4b33d28ea51", "KVM: x86/mmu: Split huge pages mapped by the TDP MMU on fault")
    .source("mmu/tdp_mmu.c kvm_tdp_mmu_map()")
    .since("v6.2"),
    Entry::patch(
        Switch::PML_IN_WRITE_ORDER,
        Scope::VMX,
        "The log of page modifications is drained in the order in which silicon wrote it, instead of newest first",
    )
    .commit("37c3ddfe5238", "KVM: VMX: read the PML log in the same order as it was written")
    .source("vmx/vmx.c vmx_flush_pml_buffer()")
    .since("v6.14"),
    Entry::patch(
        Switch::DIRTY_LOG_INITIALLY_SET,
        Scope::ALL,
        "A dirty log may begin with every page set, so that nothing is protected when logging begins",
    )
    .commit("3c9bd4006bfc", "KVM: x86: enable dirty log gradually in small chunks")
    .source("kvm_main.c kvm_vm_ioctl_enable_cap_generic()")
    .since("v5.7"),
    Entry::patch(Switch::DIRTY_LOG_RING, Scope::ALL, "Dirty pages are told in a ring of each vCPU")
        .commit("fb04a1eddb1a", "KVM: X86: Implement ring-based dirty memory tracking")
        .source("dirty_ring.c, kvm_main.c kvm_vm_ioctl_enable_dirty_log_ring()")
        .since("v5.11"),
    Entry::patch(
        Switch::DIRTY_LOG_RING_ACQ_REL,
        Scope::ALL,
        "The ring has a second capability, for userspace that orders its accesses itself",
    )
    .commit("17601bfed909", "KVM: Add KVM_CAP_DIRTY_LOG_RING_ACQ_REL capability and config option")
    .source("kvm_main.c kvm_vm_ioctl_check_extension_generic()")
    .since("v6.1"),
    Entry::patch(
        Switch::RECOVER_HUGE_PAGES,
        Scope::TDP,
        "When logging ends small pages become large ones at once, with the rights of the first; without this they are dropped, \
         and the next fault maps a large one",
    )
    .commit("c59de1413391", "KVM x86 MMU changes for 6.13")
    .source("mmu/tdp_mmu.c recover_huge_pages_range(), tdp_mmu_make_huge_spte(); in 6.12 zap_collapsible_spte_range()")
    .since("v6.13"),
    Entry::patch(
        Switch::SPLIT_TO_LAST_PAGE,
        Scope::TDP,
        "KVM_CLEAR_DIRTY_LOG of an initially set log splits large pages up to its last page; without this one page that begins a large one does not split it",
    )
    .commit("7f26fea9bc08", "KVM x86 MMU changes for 6.8")
    .source("mmu/mmu.c kvm_arch_mmu_enable_log_dirty_pt_masked(): `end` in 6.1, `end + 1` in 6.12")
    .since("v6.8"),
    Entry::patch(
        Switch::CMPXCHG_BY_UACCESS,
        Scope::ALL,
        "A locked instruction that KVM emulates exchanges memory through the VMM's mapping, which marks no page",
    )
    .commit("1c2361f667f3", "KVM: x86: Use __try_cmpxchg_user() to emulate atomic accesses")
    .source("x86.c emulator_cmpxchg_emulated(); 5.10 maps the page, and marks it when it unmaps it")
    .since("v5.19"),
    Entry::patch(
        Switch::CMPXCHG_MARKS_DIRTY,
        Scope::ALL,
        "... and marks it: without this the write is in no dirty log",
    )
    .commit("910c57dfa4d1", "KVM: x86: Mark target gfn of emulated atomic instruction as dirty")
    .source("x86.c emulator_cmpxchg_emulated(); of February 2024, its first release by that date")
    .since("v6.8"),
    Entry::patch(
        Switch::CLEAR_LOG_TO_SLOT_END,
        Scope::ALL,
        "KVM_CLEAR_DIRTY_LOG may end with its slot; without this the last pages of a slot of another size than a multiple \
         of 64 pages can never be cleared",
    )
    .commit("76d58e0f07ec", "KVM: fix KVM_CLEAR_DIRTY_LOG for memory slots of unaligned size")
    .source("kvm_main.c kvm_clear_dirty_log_protect(), with 65c4189de8c1; since v5.2, so in all releases here")
    .since("v5.6"),
    Entry::patch(
        Switch::DROP_READ_ONLY_LARGE,
        Scope::ALL,
        "A large shadow page that may not be written gives way to small ones; without this a write in a slot that logs faults \
         for ever",
    )
    .commit("404381c5839d", "KVM: MMU: drop read-only large sptes when creating lower level sptes")
    .source("mmu/mmu.c __link_shadow_page(); of 2013, so in all releases here")
    .since("v5.6"),
    Entry::patch(
        Switch::WP_BEFORE_SHADOW_PAGE,
        Scope::ALL,
        "The rights that CR0.WP=0 adds are those of the shadow page too; without this a read-only page gets an entry that can \
         be written, by which another guest entry's dirty bit is missed",
    )
    .commit("c22885050e65", "KVM: MMU: fix Dirty bit missed if CR0.WP = 0")
    .source("mmu/paging_tmpl.h page_fault(); of 2013, so in all releases here")
    .since("v5.6"),
    Entry::patch(
        Switch::WRITE_PROTECT_FOR_L2,
        Scope::VMX,
        "What maps memory for L2 is write-protected for dirty logging; without this silicon logs L2's addresses as if they \
         were L1's, as long as it logs while L2 runs (no guest has L2 under vmx yet)",
    )
    .commit("1f4e5fc83a42", "KVM: x86: fix nested guest live migration with PML")
    .source("mmu/mmu_internal.h kvm_mmu_page_ad_need_write_protect(); since v5.4, so in all releases here")
    .since("v5.6"),
    Entry::patch(
        Switch::PML_OFF_FOR_L2,
        Scope::VMX,
        "Silicon logs no page modifications while L2 runs (no guest has L2 under vmx yet)",
    )
    .commit("c3bb9a20834f", "KVM: nVMX: Disable PML in hardware when running L2")
    .source("vmx/nested.c prepare_vmcs02_early()")
    .since("v5.12"),
];

/// Memory types of guests with EPT.
pub const MEMORY_TYPES: &[Entry] = &[Entry::patch(
    Switch::NO_GUEST_MTRRS,
    Scope::VMX,
    "Under non-coherent DMA EPT entries are write-back with the guest's PAT, whatever its MTRRs say and CR0.CD is; off: they have \
     the type of the guest's MTRRs, and no say of the guest's while it disables its caches",
)
.commit("0a7b73559b39", "KVM: x86: Remove VMX support for virtualizing guest MTRR memtypes")
.source("vmx/vmx.c vmx_get_mt_mask(), mtrr.c")
.since("v6.11")];

/// Memory of the guest's that is not there.
pub const MISSING_MEMORY: &[Entry] = &[Entry::patch(
    Switch::SLOW_PF_INTERRUPTIBLE,
    Scope::ALL,
    "A signal ends KVM's wait for a page that is not there: KVM_RUN gives -EINTR; without this only one that kills does, as -EFAULT",
)
.commit("766576874b97", "kvm: x86: Allow to respond to generic signals during slow PF")
.source("mmu/mmu.c kvm_handle_error_pfn(), kvm_main.c hva_to_pfn(); not in 6.1, there in 6.12; which release between is unverified")
.since("v6.2")];

/// What KVM offers to guests that know of it. All but this came before the first profile, the last of them in v5.3
/// (KVM_FEATURE_PV_SCHED_YIELD), and stayed. See: KVM cpuid.c __do_cpuid_func() of 5.10, 6.1 and 6.12
pub const PARAVIRTUAL: &[Entry] = &[Entry::patch(
    Switch::ASYNC_PF_INT,
    Scope::ALL,
    "A guest hears by an interrupt that a page has come which its host did not have (KVM_FEATURE_ASYNC_PF_INT, with two registers of its \
     own); before, by a #PF, which is not modelled: no asynchronous page faults are offered then",
)
.commit("2635b5c4a0e4", "KVM: x86: interrupt based APF 'page ready' event delivery")
.source("x86.c kvm_pv_enable_async_pf_int(), cpuid.c __do_cpuid_func(), commit 72de5fa4c161")
.since("v5.8")];

/// A crash of the host under kexec, and VMXON.
pub const CRASH: &[Entry] = &[
    Entry::patch(
        Switch::CRASH_ALWAYS_VMCLEARS,
        Scope::VMX,
        "A VMCS is cleared before it leaves its CPU's list, and a crash always walks that list; without this a crash while the list \
         changes leaves every VMCS on it active",
    )
    .commit("31603d4fc2bb", "KVM: VMX: Always VMCLEAR in-use VMCSes during crash with kexec support")
    .source("vmx/vmx.c crash_vmclear_local_loaded_vmcss(), __loaded_vmcs_clear()")
    .since("v5.7"),
    Entry::patch(
        Switch::CRASH_LIST_HEADS_SET,
        Scope::VMX,
        "The lists begin empty on every CPU; without this a crash on one where no VM ever was faults again",
    )
    .commit("dbef2808af6c", "KVM: VMX: fix crash cleanup when KVM wasn't used")
    .source("vmx/vmx.c vmx_init()")
    .since("v5.7"),
    Entry::patch(
        Switch::VMXON_FAULT_HANDLED,
        Scope::VMX,
        "A fault of VMXON is -EFAULT and a warning, and CR4.VMXE is clear again; without this it is the end of the kernel",
    )
    .commit("4f6ea0a87608", "KVM: VMX: Gracefully handle faults on VMXON")
    .source("vmx/vmx.c kvm_cpu_vmxon()")
    .since("v5.7"),
    Entry::patch(
        Switch::VMXOFF_FAULT_EATEN,
        Scope::VMX,
        "A fault of VMXOFF in a crash changes nothing: CR4.VMXE was set before VMXON was executed; without this the crash faults again",
    )
    .commit("aec511ad1535", "x86/virt: Eat faults on VMXOFF in reboot flows")
    .source("asm/virtext.h cpu_vmxoff(), vmx/vmx.c kvm_cpu_vmxoff(); in stable 5.10 too")
    .since("v5.10"),
    Entry::patch(
        Switch::CRASH_HEEDS_VMXE,
        Scope::VMX,
        "A crash does nothing on a CPU whose CR4.VMXE is clear; without this it walks the CPU's list there too",
    )
    .commit("119b5cb4ffd0", "x86/reboot: KVM: Handle VMXOFF in KVM's reboot callback")
    .source("vmx/vmx.c vmx_emergency_disable_virtualization_cpu(); merged for 6.6")
    .since("v6.6"),
    Entry::patch(
        Switch::CRASH_VMCLEARS_SHADOWS,
        Scope::VMX,
        "A crash clears shadow VMCSs as well; without this those of guests that are hypervisors stay active",
    )
    .commit("a0ee1d5faff1", "KVM: VMX: Flush shadow VMCS on emergency reboot")
    .source("vmx/vmx.c vmx_emergency_disable(); in stable 6.1 and 6.12 too, not in 5.10")
    .since("v6.1"),
    Entry::patch(
        Switch::SVM_DISABLE_SETS_GIF,
        Scope::AMD,
        "SVM is turned off with GIF set; without this a CPU that crashed between CLGI and STGI never hears an INIT again",
    )
    .commit("6a3236580b0b", "x86/virt: Force GIF=1 prior to disabling SVM (for reboot flows)")
    .source("asm/virtext.h cpu_svm_disable(), svm/svm.c kvm_cpu_svm_disable(); in stable 5.10 too")
    .since("v5.10"),
];

/// The instruction emulator, where it meets more than an instruction.
pub const EMULATION: &[Entry] = &[
Entry::patch(
    Switch::CODE_BREAKPOINTS_INHIBITED,
    Scope::VMX,
    "The shadow of MOV SS holds back the code breakpoint of an instruction whose emulation a prefix asks for",
)
.commit("baf67ca8e545", "KVM: x86: Suppress code #DBs on Intel if MOV/POP SS blocking is active")
.source("x86.c kvm_is_code_breakpoint_inhibited(); merged with v6.1")
.since("v6.1"),
Entry::patch(
    Switch::APIC_PAGE_NEEDS_APICV,
    Scope::VMX,
    "The APIC-access page is mapped only while APICv is active: without it each access to the local APIC's page is an EPT \
     violation that is emulated, and no APIC_ACCESS exit",
)
.commit("36222b117e36", "KVM: x86: don't disable APICv memslot when inhibited")
.source("mmu/mmu.c kvm_faultin_pfn(); not in 5.10, in 6.1 and 6.12, the release between is unverified")
.since("v5.16"),
Entry::patch(
    Switch::UNPROTECT_FOR_REINJECTION,
    Scope::AMD,
    "Under shadow paging a page fault in the delivery of an event unprotects the page only where it is write-protected; before, \
     each such fault walks the guest's tables for it first",
)
.commit("b299c273c06f", "KVM: x86/mmu: Move event re-injection unprotect+retry into common path")
.source("mmu/mmu.c kvm_mmu_write_protect_fault(), kvm_handle_page_fault(); not in 6.1, there in 6.12")
.since("v6.12"),
Entry::patch(
    Switch::FULL_FAULT_CODE,
    Scope::ALL,
    "The MMU has all 64 bits of a fault's code, which fast_page_fault tells; before, their lower half",
)
.commit("c9710130ccae", "KVM: x86/mmu: Pass full 64-bit error code when handling page faults")
.source("mmu/mmu.c kvm_mmu_page_fault(), mmu/mmu_internal.h kvm_mmu_do_page_fault(); not in 6.1, there in 6.12")
.since("v6.10"),
Entry::patch(
    Switch::EVENT_VECTORING_CHECKED,
    Scope::ALL,
    "MMIO in the delivery of an event leaves to userspace at once (suberror 3); before, VMX did so from the first \
     EPT_MISCONFIG on, and SVM emulated the instruction at RIP instead, for ever where that raises the event again",
)
.commit("47ef3ef843c0", "KVM: VMX: Handle event vectoring error in check_emulate_instruction()")
.source("x86.c x86_emulate_instruction(), vmx/vmx.c vmx_check_emulate_instruction(); svm/svm.c: commit 7bd7ff99110a")
.since("v6.14"),
];

/// KVM_GET_MSR_INDEX_LIST. What lies between 6.1 and 6.12 was read in these two only.
pub const MSR_LISTS: &[Entry] = &[
    Entry::patch(
        Switch::NESTED_TSC_SCALING,
        Scope::AMD,
        "MSR_AMD64_TSC_RATIO is among the registers that a VMM is told to save",
    )
    .commit("5228eb96a487", "KVM: x86: nSVM: implement nested TSC scaling")
    .source("x86.c emulated_msrs_all[]; not in 5.10, there in 6.1")
    .since("v5.16"),
    Entry::patch(
        Switch::PMU_MSRS_APART,
        Scope::ALL,
        "Performance counters are listed only where KVM virtualizes them, which it does not here",
    )
    .commit("2374b7310b66", "KVM: x86/pmu: Use separate array for defining \"PMU MSRs to save\"")
    .source("x86.c msrs_to_save_pmu[], kvm_init_msr_lists()")
    .since("v6.3"),
    Entry::patch(
        Switch::LBR_MSRS_LISTED,
        Scope::ALL,
        "IA32_DEBUGCTL and the last branch are among the registers that a VMM is told to save",
    )
    .commit("between 6.1 and 6.12", "list MSR_IA32_DEBUGCTLMSR and the MSRs of the last branch")
    .source("x86.c msrs_to_save_base[]; not in 6.1, there in 6.12; which release between is unverified")
    .since("v6.12"),
];

/// KVM_SET_CPUID2 after KVM_RUN, and what it leaves behind when it fails.
pub const CPUID_AFTER_RUN: &[Entry] = &[
    Entry::patch(
        Switch::DROP_REFUSED_CPUID,
        Scope::ALL,
        "A refused table leaves the vCPU without any, instead of being in force all the same",
    )
    .commit("posted 8 Jul 2020", "KVM: X86: Reset vcpu->arch.cpuid_nent to 0 if SET_CPUID* fails")
    .source("cpuid.c kvm_vcpu_ioctl_set_cpuid2()")
    .since("v5.9-rc1"),
    Entry::patch(
        Switch::KEEP_CPUID_ON_ERROR,
        Scope::ALL,
        "A refused table leaves the vCPU with the one that it had: the new one is looked at before it is taken",
    )
    .commit("255cbecfe0c9", "KVM: x86: allocate vcpu->arch.cpuid_entries dynamically")
    .source("cpuid.c kvm_vcpu_ioctl_set_cpuid2()")
    .since("v5.10"),
    Entry::patch(Switch::CPUID_256_ENTRIES, Scope::ALL, "A table may have 256 entries instead of 80")
        .commit("3f4e3eb417b1", "KVM: x86: bump KVM_MAX_CPUID_ENTRIES")
        .source("arch/x86/include/asm/kvm_host.h KVM_MAX_CPUID_ENTRIES")
        .since("v5.10"),
    Entry::patch(
        Switch::IMMUTABLE_FEATURE_MSRS,
        Scope::ALL,
        "KVM_SET_MSRS of a feature MSR after KVM_RUN fails, unless it has that value",
    )
    .commit("0094f62c7eaa", "KVM: x86: Disallow writes to immutable feature MSRs after KVM_RUN")
    .source("x86.c do_set_msr(), kvm_is_immutable_feature_msr()")
    .since("v6.4"),
    Entry::patch(
        Switch::WARN_CPUID_AFTER_RUN,
        Scope::ALL,
        "KVM_SET_CPUID2 after KVM_RUN warns twice; last_vmentry_cpu starts at -1, so that a vCPU that has run is known",
    )
    .commit("63f5a1909f9e", "KVM: x86: Alert userspace that KVM_SET_CPUID{,2} after KVM_RUN is broken")
    .source("mmu/mmu.c kvm_mmu_after_set_cpuid()")
    .since("v5.14")
    .until("v5.16", "feb627e8d6f6"),
    Entry::patch(
        Switch::FORBID_CPUID_AFTER_RUN,
        Scope::ALL,
        "KVM_SET_CPUID2 after KVM_RUN is refused with -EINVAL",
    )
    .commit("feb627e8d6f6", "KVM: x86: Forbid KVM_SET_CPUID{,2} after KVM_RUN")
    .source("x86.c kvm_arch_vcpu_ioctl()")
    .since("v5.16"),
    Entry::patch(
        Switch::ALLOW_SAME_CPUID,
        Scope::ALL,
        "... unless the table is the one that the vCPU has, once the bits that follow its state are patched in",
    )
    .commit("c6617c61e8fe", "KVM: x86: Partially allow KVM_SET_CPUID{,2} after KVM_RUN")
    .source("cpuid.c kvm_cpuid_check_equal(); stable 5.16 has it too")
    .since("v5.17"),
    Entry::patch(
        Switch::FORBID_CPUID_IN_GUEST_MODE,
        Scope::ALL,
        "The same rule while L2 is active, even before KVM_RUN",
    )
    .commit("b47b93c15b12", "KVM: x86: Disallow setting CPUID and/or feature MSRs if L2 is active")
    .source("x86.h kvm_can_set_cpuid_and_feature_msrs()")
    .since("v7.0"),
    Entry::patch(
        Switch::ROLE_HAS_CPUID,
        Scope::ALL,
        "A shadow page's role has the guest's MAXPHYADDR, GBPAGES and vendor, so that no vCPU uses another's pages; its \
         price is more shadow pages, and gfn_track of 32 instead of 16 bits",
    )
    .commit("declined in 2021", "track MAXPHYADDR, GBPAGES and vendor in kvm_mmu_page_role")
    .source("counterfactual: the message of commit 63f5a1909f9e says why it was not done"),
    Entry::patch(
        Switch::ACC_READ_MASK,
        Scope::ALL,
        "Reading is a right of its own, which KVM forgets of the last MMIO page: with shadow paging a read of it walks the \
         guest's tables again, by the width of the vCPU that reads",
    )
    .commit("a8827c196146", "KVM: x86/mmu: introduce ACC_READ_MASK")
    .source("x86.c vcpu_mmio_gva_to_gpa(), mmu/spte.c shadow_mmio_access_mask; v7.3-rc7 does so too")
    .since("v7.2"),
    Entry::patch(
        Switch::GFN_TRACK_ON_DEMAND,
        Scope::ALL,
        "The counters of write tracking, 2 bytes for each frame, are allocated with the first shadow page, not with each slot",
    )
    .commit("deae4a10f166", "KVM: x86: only allocate gfn_track when necessary")
    .source("mmu/page_track.c kvm_page_track_create_memslot(); kernels built with GVT-g allocate them always")
    .since("v5.16"),
];
