//! Notes: what a backend did between an exit and the next entry, in the words of KVM's tracepoints.
//!
//! A note crosses the ABI as [`RawNote`]; everything else works with [`Note`]. Kinds are append-only.

mod raw;

use crate::{
    exception::Vector,
    layout,
    level::{Level, Place},
    memory_type::MemoryType,
    msr::{MsrAccess, ReachedPat},
    open_enum,
    vcpu::{VcpuState, seg},
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

open_enum! {
    /// The kind of a note: the tracepoint that it corresponds to, where there is one.
    pub struct NoteKind(u32) {
        PAGE_FAULT = 1 => "kvm_page_fault",
        CPUID = 2 => "kvm_cpuid",
        MSR = 3 => "kvm_msr",
        CR = 4 => "kvm_cr",
        PIO = 5 => "kvm_pio",
        MMIO = 6 => "kvm_mmio",
        INJ_EXCEPTION = 7 => "kvm_inj_exception",
        INJ_VIRQ = 8 => "kvm_inj_virq",
        EMULATE_INSN = 9 => "kvm_emulate_insn",
        USERSPACE_EXIT = 10 => "kvm_userspace_exit",
        SPTE_REQUESTED = 11 => "kvm_mmu_spte_requested",
        SET_SPTE = 12 => "kvm_mmu_set_spte",
        PAGETABLE_WALK = 13 => "kvm_mmu_pagetable_walk",
        PAGING_ELEMENT = 14 => "kvm_mmu_paging_element",
        WALKER_ERROR = 15 => "kvm_mmu_walker_error",
        SET_ACCESSED = 16 => "kvm_mmu_set_accessed_bit",
        SET_DIRTY = 17 => "kvm_mmu_set_dirty_bit",
        GET_PAGE = 18 => "kvm_mmu_get_page",
        SYNC_PAGE = 19 => "kvm_mmu_sync_page",
        UNSYNC_PAGE = 20 => "kvm_mmu_unsync_page",
        ZAP_PAGE = 21 => "kvm_mmu_prepare_zap_page",
        MARK_MMIO_SPTE = 22 => "mark_mmio_spte",
        HANDLE_MMIO_PAGE_FAULT = 23 => "handle_mmio_page_fault",
        FAST_PAGE_FAULT = 24 => "fast_page_fault",
        APIC = 25 => "kvm_apic",
        HYPERCALL = 26 => "kvm_hypercall",
        NESTED_VMENTER = 27 => "kvm_nested_vmenter",
        NESTED_VMEXIT = 28 => "kvm_nested_vmexit",
        FAST_MMIO = 29 => "kvm_fast_mmio",
        /// Put on the tape by the host: `enter` let the vCPU into the guest.
        ENTRY = 30 => "kvm_entry",
        TDP_SPTE_CHANGED = 31 => "kvm_tdp_mmu_spte_changed",
        MATCH_MMIO = 32 => "vcpu_match_mmio",
        NESTED_VMRUN = 33 => "kvm_nested_vmrun",
        NESTED_VMEXIT_INJECT = 34 => "kvm_nested_vmexit_inject",
        NESTED_INTERCEPTS = 35 => "kvm_nested_intercepts",
        NESTED_INTR_VMEXIT = 36 => "kvm_nested_intr_vmexit",
        NESTED_VMENTER_FAILED = 37 => "kvm_nested_vmenter_failed",
        INVLPGA = 38 => "kvm_invlpga",
        SKINIT = 39 => "kvm_skinit",
        /// Put on the tape by the host, whose local APICs they are.
        APIC_IPI = 40 => "kvm_apic_ipi",
        APIC_ACCEPT_IRQ = 41 => "kvm_apic_accept_irq",
        ENTER_SMM = 42 => "kvm_enter_smm",
        SMM_TRANSITION = 43 => "kvm_smm_transition",
        // From here on: not tracepoints of KVM.
        /// One step of the silicon's own walk: entry gpa, value before, value after, level.
        SILICON_STEP = 64 => "silicon_step",
        /// A rule of the backend's table decided the outcome.
        RULE = 65 => "rule",
        /// KVM_EXIT_MEMORY_FAULT or another named end that carries words.
        WARNING = 66 => "warning",
        /// Put on the tape by the host: from this access on the page has another memory type than the tape's reader knows. A page
        /// of which nothing is told is write-back.
        MEMORY_TYPE = 67 => "memory_type",
    }
}

/// A note as it crosses the ABI. The meaning of `args` per kind is that of [`Note`]'s fields, in order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawNote {
    pub kind: NoteKind,
    pub place: Place,
    pub pad: u16,
    pub args: [u64; 6],
}

layout!(RawNote: 56, place: 4, args: 8);

open_enum! {
    /// The processor mode in `kvm_emulate_insn`: the tracepoint's flags CR0.PE, EFLAGS.VM, CS.D and CS.L.
    /// See: KVM arch/x86/kvm/trace.h kei_decode_mode()
    pub struct EmulateMode(u8) {
        REAL = 0 => "real",
        PROT16 = 1 => "prot16",
        VM16 = 3 => "vm16",
        PROT32 = 5 => "prot32",
        PROT64 = 9 => "prot64",
    }
}

impl EmulateMode {
    /// That of a processor in this state.
    pub fn of(state: &VcpuState) -> Self {
        match () {
            () if !state.cr0().pe() => Self::REAL,
            () if state.rflags().vm() => Self::VM16,
            () if state.is_64bit_code() => Self::PROT64,
            () if state.seg[seg::CS].attr.db() => Self::PROT32,
            () => Self::PROT16,
        }
    }
}

/// What makes two shadow pages of the same frame different.
/// See: KVM arch/x86/include/asm/kvm_host.h union kvm_mmu_page_role (6.12)
#[bitfield(u32)]
#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageRole {
    #[bits(4)]
    pub level: u8,
    pub has_4_byte_gpte: bool,
    #[bits(2)]
    pub quadrant: u8,
    pub direct: bool,
    /// Bit 0 execute, bit 1 write, bit 2 user.
    #[bits(3)]
    pub access: u8,
    pub invalid: bool,
    pub efer_nx: bool,
    pub cr0_wp: bool,
    pub smep_andnot_wp: bool,
    pub smap_andnot_wp: bool,
    pub ad_disabled: bool,
    pub guest_mode: bool,
    pub passthrough: bool,
    pub is_mirror: bool,
    #[bits(4)]
    __: u8,
    pub smm: u8,
}

impl PageRole {
    /// The role as far as the kernel's tracepoints print it, to be compared with an imported one.
    pub const fn printed(self) -> Self {
        Self::new()
            .with_level(self.level())
            .with_has_4_byte_gpte(self.has_4_byte_gpte())
            .with_quadrant(self.quadrant())
            .with_direct(self.direct())
            .with_access(self.access())
            .with_invalid(self.invalid())
            .with_efer_nx(self.efer_nx())
            .with_ad_disabled(self.ad_disabled())
    }
}

impl Note {
    /// The access to an MSR that a note with this level tells of.
    pub fn msr_access(&self, level: Level) -> Option<MsrAccess> {
        match *self {
            Self::Msr { write, index, data: value, exception, host_initiated, passed, pat } => {
                Some(MsrAccess {
                    value,
                    index,
                    write,
                    exception,
                    host_initiated,
                    passed,
                    level,
                    pat,
                    pad: [0; 6],
                })
            }
            _ => None,
        }
    }
}

/// A note, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// `address` is a gpa under EPT and NPT, a gva under shadow paging; `code` is the raw qualification, EXITINFO1 or
    /// error code.
    PageFault {
        address: u64,
        code: u64,
    },
    Cpuid {
        function: u32,
        index: u32,
        eax: u32,
        ebx: u32,
        ecx: u32,
        edx: u32,
        found: bool,
        used_max_basic: bool,
    },
    /// `kvm_msr`, and what that tracepoint does not show: accesses of the host's and those that silicon passed, which comparisons
    /// with the real KVM leave out, and which PAT was reached. Together with the note's level this is an [`MsrAccess`]. A backend
    /// tells each access of L2's once: where KVM emulates it, where silicon passes it (kvm-core does both), and where a switch
    /// of worlds reads or writes the register in L2's place (`host_initiated`).
    Msr {
        write: bool,
        index: u32,
        data: u64,
        exception: bool,
        /// No guest's instruction: an ioctl, or a switch of worlds.
        host_initiated: bool,
        /// The guest's access was not intercepted: silicon did it.
        passed: bool,
        pat: ReachedPat,
    },
    Cr {
        write: bool,
        number: u8,
        value: u64,
    },
    Pio {
        write: bool,
        port: u16,
        size: u8,
        count: u32,
        value: u64,
    },
    /// `kind` 0 unsatisfied read, 1 read, 2 write.
    Mmio {
        kind: u8,
        len: u8,
        gpa: u64,
        value: u64,
    },
    InjException {
        vector: Vector,
        has_error: bool,
        error_code: u32,
        reinjected: bool,
    },
    InjVirq {
        vector: u8,
        soft: bool,
        reinjected: bool,
    },
    /// `insn` holds up to 15 bytes, low byte first. `mode` is an [`EmulateMode`].
    EmulateInsn {
        rip: u64,
        csbase: u32,
        len: u8,
        insn: u128,
        mode: u8,
        failed: bool,
    },
    UserspaceExit {
        reason: u32,
        errno: i32,
    },
    SpteRequested {
        gfn: u64,
        pfn: u64,
        level: u8,
    },
    SetSpte {
        gfn: u64,
        spte: u64,
        level: u8,
    },
    PagetableWalk {
        address: u64,
        pferr: u32,
    },
    PagingElement {
        pte: u64,
        level: u8,
    },
    WalkerError {
        pferr: u32,
    },
    SetAccessed {
        gpa: u64,
    },
    SetDirty {
        gpa: u64,
    },
    /// `role` is a [`PageRole`].
    GetPage {
        gfn: u64,
        role: u32,
        created: bool,
    },
    SyncPage {
        gfn: u64,
        role: u32,
    },
    UnsyncPage {
        gfn: u64,
        role: u32,
    },
    ZapPage {
        gfn: u64,
        role: u32,
    },
    MarkMmioSpte {
        gfn: u64,
        access: u8,
    },
    HandleMmioPageFault {
        address: u64,
        gfn: u64,
        access: u8,
    },
    FastPageFault {
        address: u64,
        code: u64,
        fixed: bool,
    },
    Apic {
        write: bool,
        register: u32,
        value: u64,
    },
    /// `icr` is the low half of the ICR without the bit that says it is busy; `destination` as an x2APIC has it.
    ApicIpi {
        icr: u32,
        destination: u32,
    },
    /// A local APIC is given an interrupt. `mode` is the delivery mode in the ICR's encoding.
    ApicAcceptIrq {
        apic: u32,
        mode: u8,
        level: bool,
        vector: u8,
    },
    Hypercall {
        nr: u64,
        args: [u64; 4],
    },
    FastMmio {
        gpa: u64,
    },
    /// The guest goes on at `rip`. What is injected (VM-entry interruption information or EVENTINJ) is in the
    /// tracepoint from 7.2 on; zero otherwise.
    Entry {
        rip: u64,
        intr_info: u32,
        error_code: u32,
    },
    SiliconStep {
        gpa: u64,
        before: u64,
        after: u64,
        level: u8,
    },
    Rule {
        id: u32,
    },
    Warning {
        id: u32,
        value: u64,
    },
    TdpSpteChanged {
        gfn: u64,
        level: u8,
        old: u64,
        new: u64,
    },
    /// The page of `gva`, at `gpa`, is accessed at instruction `icount` with this memory type.
    MemoryType {
        gva: u64,
        gpa: u64,
        memory_type: MemoryType,
        /// By the guest's own tables and PAT alone.
        guest: MemoryType,
        icount: u64,
    },
    /// `by_gpa`: the cache matched the guest physical address, not the linear one.
    MatchMmio {
        gva: u64,
        gpa: u64,
        write: bool,
        by_gpa: bool,
    },
    /// L1 enters L2. `pgd` is its nested CR3 with nested paging (`npt`), else its CR3. Before 6.1 (`old`) the event is
    /// `kvm_nested_vmrun`, without `pgd`.
    NestedVmenter {
        rip: u64,
        vmcb: u64,
        nested_rip: u64,
        int_ctl: u32,
        event_inj: u32,
        npt: bool,
        old: bool,
        pgd: u64,
    },
    /// What L1 intercepts: control registers (writes in the upper half), exceptions, and the words of instructions.
    NestedIntercepts {
        cr: u32,
        exceptions: u32,
        words: [u32; 3],
    },
    /// An exit of L2, as `kvm_exit` would tell it, before it is known whose it is.
    NestedVmexit {
        rip: u64,
        reason: u32,
        info1: u64,
        info2: u64,
        intr_info: u32,
        error_code: u32,
    },
    /// The exit that L1 gets.
    NestedVmexitInject {
        code: u32,
        info1: u64,
        info2: u64,
        intr_info: u32,
        error_code: u32,
    },
    /// An interrupt that is L1's takes L2 out.
    NestedIntrVmexit {
        rip: u64,
    },
    /// A check of KVM's that L1's entry does not pass: [`VmrunCheck`](crate::vmrun_check::VmrunCheck).
    NestedVmenterFailed {
        check: u32,
        error: u32,
    },
    Invlpga {
        rip: u64,
        asid: u32,
        address: u64,
    },
    Skinit {
        rip: u64,
        slb: u32,
    },
    /// Into SMM, or out of it. Before 5.14 (`old`) the event is `kvm_enter_smm`.
    SmmTransition {
        smbase: u64,
        entering: bool,
        old: bool,
    },
    /// A kind that this build does not know, or one without a decoded form.
    Other(RawNote),
}
