//! Module parameters and quirks, and what is known of silicon only by observation.

use super::{Entry, Scope, Switch};

/// The parameters of `kvm`, `kvm_intel` and `kvm_amd` that are modelled, with their defaults; and a quirk, which the VMM sets
/// for each VM.
pub const PARAMETERS: &[Entry] = &[
    Entry::parameter(Switch::EPT, Scope::VMX, true, "Extended page tables; off: shadow paging")
        .source("vmx/vmx.c"),
    Entry::parameter(Switch::EPTAD, Scope::VMX, true, "Accessed and dirty bits in EPT entries")
        .source("vmx/vmx.c"),
    Entry::parameter(
        Switch::ENABLE_APICV,
        Scope::VMX,
        true,
        "APIC-register virtualization and virtual-interrupt delivery",
    )
    .source("vmx/vmx.c"),
    Entry::parameter(
        Switch::UNRESTRICTED_GUEST,
        Scope::VMX,
        true,
        "Real mode without emulation; needs EPT (off: not modelled, real mode runs in silicon either way)",
    )
    .source("vmx/vmx.c"),
    Entry::parameter(
        Switch::ALLOW_SMALLER_MAXPHYADDR,
        Scope::VMX,
        false,
        "A guest narrower than its host gets exact reserved bits; always on without EPT. Releases before the parameter \
         ignore it: there the variable is a constant, or is not there",
    )
    .source("vmx/vmx.c vmx_hardware_setup(), commits 3edd68399dc1 and b96e6506c2ea")
    .since("v5.9-rc7"),
    Entry::parameter(Switch::FLEXPRIORITY, Scope::VMX, true, "APIC-access page and TPR shadow")
        .source("vmx/vmx.c"),
    Entry::parameter(
        Switch::TDP_MMU,
        Scope::ALL,
        true,
        "The two-dimensional MMU of its own (off: the same mappings)",
    )
    .source("mmu/mmu.c"),
    Entry::parameter(
        Switch::MMIO_CACHING,
        Scope::ALL,
        true,
        "Map MMIO with entries that fault in a recognizable way",
    )
    .source("mmu/spte.c kvm_mmu_spte_module_init()"),
    Entry::parameter(Switch::FASTEOI, Scope::VMX, true, "EOI writes of the APIC page without decoding")
        .source("vmx/vmx.c"),
    Entry::parameter(
        Switch::PML,
        Scope::VMX,
        true,
        "Page-modification logging for dirty logging; off, or without EPT's accessed and dirty bits: write protection",
    )
    .source("vmx/vmx.c vmx_hardware_setup()"),
    Entry::parameter(
        Switch::EAGER_PAGE_SPLIT,
        Scope::TDP,
        true,
        "Large pages of a slot are split when its dirty logging begins, or is cleared for the first time; off, without the \
         two-dimensional MMU of its own, and before v5.18: each is split by the first write to it",
    )
    .commit("a3fe5dbda0a4", "KVM: x86/mmu: Split huge pages mapped by the TDP MMU when dirty logging is enabled")
    .source("x86.c kvm_mmu_slot_apply_flags(), mmu/mmu.c kvm_mmu_slot_try_split_huge_pages(); not in 5.10, there in 6.1")
    .since("v5.18"),
    Entry::parameter(Switch::NPT, Scope::SVM, false, "Nested paging; the backend implies it")
        .source("svm/svm.c"),
    Entry::parameter(Switch::NPT, Scope::NPT, true, "Nested paging; the backend implies it")
        .source("svm/svm.c"),
    Entry::parameter(
        Switch::FIX_HYPERCALL_INSN,
        Scope::ALL,
        true,
        "The other vendor's hypercall instruction, which raises #UD, is overwritten with this vendor's; off: the guest takes the \
         #UD. A quirk of the VM (KVM_CAP_DISABLE_QUIRKS2); releases before it always overwrite",
    )
    .commit("f1a9761fbb00", "KVM: x86: Allow userspace to opt out of hypercall patching")
    .source("x86.c emulator_fix_hypercall(), emulate.c em_hypercall()")
    .since("v5.19"),
    Entry::parameter(
        Switch::NESTED_SVM_SHARED_PAT,
        Scope::AMD,
        true,
        "L1 and L2 share one PAT under nested paging too; off: L2 has its own. A quirk of the VM (KVM_CAP_DISABLE_QUIRKS2); \
         releases before it always share, whatever is asked",
    )
    .commit("822790ab0149", "KVM: x86: Define KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT")
    .source("svm/nested.h l2_has_separate_pat()")
    .since("v7.2"),
    Entry::parameter(Switch::NESTED, Scope::AMD, true, "SVM for guests: L1 hypervisors run")
        .source("svm/svm.c svm_set_cpu_caps()"),
    Entry::parameter(Switch::VLS, Scope::NPT, true, "Virtual VMLOAD and VMSAVE").source("svm/svm.c"),
    Entry::parameter(Switch::VGIF, Scope::AMD, true, "Virtual GIF").source("svm/svm.c"),
    Entry::parameter(Switch::LBRV, Scope::AMD, true, "LBR virtualization").source("svm/svm.c"),
    Entry::parameter(Switch::TSC_SCALING, Scope::AMD, true, "TSC scaling").source("svm/svm.c"),
    Entry::parameter(Switch::VNMI, Scope::AMD, true, "Virtual NMI; needs vgif").source("svm/svm.c"),
    Entry::parameter(Switch::INTERCEPT_SMI, Scope::AMD, true, "SMIs exit; off: L1's wish for them is ignored too")
        .source("svm/nested.c recalc_intercepts()"),
    Entry::parameter(
        Switch::IGNORE_GUEST_PAT,
        Scope::VMX,
        true,
        "Without non-coherent DMA guest memory is write-back whatever the guest's PAT says; off: the guest's PAT counts. A quirk of \
         the VM (KVM_CAP_DISABLE_QUIRKS2); releases before it always ignore the PAT",
    )
    .commit("c9c1e20b4c7d", "KVM: x86: Introduce Intel specific quirk KVM_X86_QUIRK_IGNORE_GUEST_PAT")
    .source("vmx/vmx.c vmx_get_mt_mask()")
    .since("v6.16"),
    Entry::parameter(
        Switch::NONCOHERENT_DMA,
        Scope::VMX,
        false,
        "A device is assigned whose DMA does not snoop the caches (kvm_arch_register_noncoherent_dma)",
    )
    .source("x86.c, vmx/vmx.c vmx_get_mt_mask()"),
    Entry::parameter(
        Switch::SHADOW_VMCS,
        Scope::VMX,
        false,
        "Each guest is taken to be a hypervisor that has executed VMXON, so that its vCPUs have shadow VMCSs, which each VM entry \
         makes active. What it would do with them is not modelled",
    )
    .source("vmx/nested.c alloc_shadow_vmcs(), vmx/vmx.c __loaded_vmcs_clear(), commit 355f4fb1405e"),
    Entry::parameter(
        Switch::FORCE_EMULATION_PREFIX,
        Scope::ALL,
        false,
        "`ud2; .ascii \"kvm\"` asks for the emulation of the instruction behind it; bit 1 of the value (2, 3) is fep_clear_rflags_rf",
    )
    .source("x86.c handle_ud()"),
    Entry::parameter(
        Switch::FEP_CLEAR_RFLAGS_RF,
        Scope::ALL,
        false,
        "And clears RFLAGS.RF, so that its code breakpoints strike: force_emulation_prefix=2. Before, that is no value of the parameter",
    )
    .commit("d500e1ed3dc8", "KVM: x86: Allow clearing RFLAGS.RF on forced emulation to test code #DBs")
    .source("x86.c handle_ud(), KVM_FEP_CLEAR_RFLAGS_RF; merged with v6.1")
    .since("v6.1"),
    Entry::parameter(
        Switch::ENABLE_VMWARE_BACKDOOR,
        Scope::ALL,
        false,
        "VMware's backdoor: ports 0x5658 and 0x5659 and the counters 0x10000 to 0x10002 of RDPMC are open at every CPL, for which #GP \
         is intercepted",
    )
    .source("x86.c is_vmware_backdoor_opcode(), emulate.c emulator_io_port_access_allowed(), check_rdpmc()"),
    Entry::parameter(
        Switch::CONFIG_KVM_SMM,
        Scope::ALL,
        true,
        "KVM is built with SMM; off: SMIs are dropped, and state that says otherwise is refused. Releases before the option always \
         are",
    )
    .commit("4b8e1b32017c", "KVM: x86: compile out vendor-specific code if SMM is disabled")
    .source("Kconfig KVM_SMM, smm.h kvm_inject_smi(); not in 6.1, there in 6.12")
    .since("v6.2"),
    Entry::parameter(Switch::NRIPS, Scope::AMD, true, "Use next-RIP save where silicon has it")
        .source("svm/svm.c"),
];

/// What silicon does where no manual that we could read says it.
pub const SILICON: &[Entry] = &[
    Entry::silicon(
        Switch::EPT4_WIDE_GPA_VIOLATION,
        Scope::VMX,
        "4-level EPT and a guest physical address with bits 51:48: always an EPT violation whose qualification bits 6:3 \
         are zero; off: those address bits are ignored",
    )
    .source("Intel, 5-Level Paging and 5-Level EPT; bits 6:3 unverified"),
    Entry::silicon(
        Switch::AMD_ACCESSED_BEFORE_NPF,
        Scope::NPT,
        "The guest's accessed bit is set before the nested fault of the final address",
    )
    .source("KVM svm/svm.c svm_hardware_setup() comment, commit 3edd68399dc1"),
    Entry::silicon(
        Switch::AMD_DIRTY_BEFORE_NPF,
        Scope::NPT,
        "With it, on writes, the guest's dirty bit is set before the nested fault",
    )
    .source("unverified on AMD's silicon; QEMU's, under which kvm_amd was recorded, does so"),
    Entry::silicon(
        Switch::NPT4_WIDE_GPA_FAULT,
        Scope::NPT,
        "4-level NPT and a guest physical address with bits 51:48: not-present nested page fault",
    )
    .source("unverified"),
    Entry::silicon(
        Switch::AMD_VMCB_CLEAN_BITS,
        Scope::AMD,
        "VMRUN does not read what a clean bit of the VMCB covers, even if it was changed; off: it always reads everything",
    )
    .source("APM 15.15 VMCB State Caching: silicon may keep less than the clean bits allow"),
];
