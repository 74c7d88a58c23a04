//! The places where a fault plan may make silicon or KVM fail: their numbers, and how one is asked.
//!
//! A number means the same in all three plugins; [`rows`] is the table that a plugin exports, of the points that its model
//! reaches.

mod table;

pub use table::{Reach, rows};

use vmtape_abi::Host;
use vmtape_arch::open_enum;

open_enum! {
    /// A fault point by number.
    pub struct FaultPoint(u32) {
        // --- silicon ---
        GUEST_ENTRY_FLIP = 1 => "guest-entry-flip",
        NESTED_ENTRY_FLIP = 2 => "nested-entry-flip",
        SHADOW_ENTRY_FLIP = 3 => "shadow-entry-flip",
        LOST_ACCESSED = 4 => "lost-accessed",
        LOST_DIRTY = 5 => "lost-dirty",
        NESTED_LOST_ACCESSED = 6 => "nested-lost-accessed",
        NESTED_LOST_DIRTY = 7 => "nested-lost-dirty",
        SPURIOUS_FAULT = 8 => "spurious-fault",
        EXIT_INFO_CLEARED = 9 => "exit-info-cleared",
        MACHINE_CHECK = 10 => "machine-check",
        ITLB_MULTIHIT = 11 => "itlb-multihit",
        // --- KVM's MMU ---
        LOST_FLUSH = 20 => "lost-flush",
        KVM_ENTRY_FLIP = 21 => "kvm-entry-flip",
        SPTE_FLIP = 22 => "spte-flip",
        MMU_CACHE_ENOMEM = 23 => "mmu-cache-enomem",
        ROOT_ENOMEM = 24 => "root-enomem",
        PAGE_FAULT_RETRY = 25 => "page-fault-retry",
        SLOT_INVALID = 26 => "slot-invalid",
        SLOT_UPDATE_ENOMEM = 27 => "slot-update-enomem",
        PFN_ERROR = 28 => "pfn-error",
        MMU_PAGES_ENOSPC = 29 => "mmu-pages-enospc",
        LINK_FLIP = 30 => "link-flip",
        // --- dirty logging ---
        DIRTY_MARK_LOST = 40 => "dirty-mark-lost",
        RING_ENTRY_LOST = 41 => "ring-entry-lost",
        PML_NOT_DRAINED = 42 => "pml-not-drained",
        PROTECT_BEFORE_SNAPSHOT = 43 => "protect-before-snapshot",
        PROTECT_FLUSH_SKIPPED = 44 => "protect-flush-skipped",
        DIRTY_WORD_DROPPED = 45 => "dirty-word-dropped",
        GET_DIRTY_LOG_EFAULT = 46 => "get-dirty-log-efault",
        RING_SLOT_GONE = 47 => "ring-slot-gone",
        SPTE_UPDATE_RACE = 48 => "spte-update-race",
        FAST_PF_ABA = 49 => "fast-pf-aba",
        // --- the rest of KVM ---
        FAILED_ENTRY = 60 => "failed-entry",
        RDMSR_REFUSED = 61 => "rdmsr-refused",
        WRMSR_REFUSED = 62 => "wrmsr-refused",
        GET_MSR_REFUSED = 63 => "get-msr-refused",
        SET_MSR_REFUSED = 64 => "set-msr-refused",
        SET_CPUID_REFUSED = 65 => "set-cpuid-refused",
        INSN_BYTES_LOST = 66 => "insn-bytes-lost",
        GET_STATE_REFUSED = 67 => "get-state-refused",
        SET_STATE_REFUSED = 68 => "set-state-refused",
        USER_IO_STALE = 69 => "user-io-stale",
        VM_BUGGED = 70 => "vm-bugged",
        NESTED_STATE_PAGES = 71 => "nested-state-pages",
        // --- physical CPUs ---
        VMXON_FAULT = 80 => "vmxon-fault",
        ENABLE_BUSY = 81 => "enable-busy",
        CRASH_NMI = 82 => "crash-nmi",
        CRASH_IN_CLGI = 83 => "crash-in-clgi",
    }
}

impl FaultPoint {
    /// Asks the host, which counts the occurrence.
    pub fn ask(self, vcpu: u32, a: u64, b: u64, host: &mut dyn Host) -> Option<u64> {
        host.fault_point(vcpu, self.0, a, b)
    }

    /// Asks the host where no MMU is at hand to know whether anybody would answer.
    pub fn poll(self, vcpu: u32, a: u64, b: u64, host: &mut dyn Host) -> Option<u64> {
        if host.wants_faults() { self.ask(vcpu, a, b, host) } else { None }
    }

    /// The errno that an answer names: a positive number, as in errno.h.
    pub fn errno(answer: u64) -> vmtape_abi::Errno {
        const LARGEST: u64 = 4095;
        vmtape_abi::Errno(-(answer.clamp(1, LARGEST) as i32))
    }
}
