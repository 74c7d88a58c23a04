//! KVM_CHECK_EXTENSION.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_vm_ioctl_check_extension(), include/uapi/linux/kvm.h

use crate::{
    profile::{Options, Switch},
    smm::Smm,
};
use vmtape_abi::TableRow;
use vmtape_arch::open_enum;
use vmtape_kvm_mmu::dirty;

open_enum! {
    /// Capabilities that this model knows.
    pub struct Cap(u32) {
        IRQCHIP = 0 => "KVM_CAP_IRQCHIP",
        HLT = 1 => "KVM_CAP_HLT",
        USER_MEMORY = 3 => "KVM_CAP_USER_MEMORY",
        EXT_CPUID = 7 => "KVM_CAP_EXT_CPUID",
        NR_VCPUS = 9 => "KVM_CAP_NR_VCPUS",
        NR_MEMSLOTS = 10 => "KVM_CAP_NR_MEMSLOTS",
        MP_STATE = 14 => "KVM_CAP_MP_STATE",
        SYNC_MMU = 16 => "KVM_CAP_SYNC_MMU",
        MAX_VCPUS = 66 => "KVM_CAP_MAX_VCPUS",
        READONLY_MEM = 81 => "KVM_CAP_READONLY_MEM",
        ENABLE_CAP_VM = 98 => "KVM_CAP_ENABLE_CAP_VM",
        DISABLE_QUIRKS = 116 => "KVM_CAP_DISABLE_QUIRKS",
        X86_SMM = 117 => "KVM_CAP_X86_SMM",
        MANUAL_DIRTY_LOG_PROTECT2 = 168 => "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        NESTED_STATE = 157 => "KVM_CAP_NESTED_STATE",
        SMALLER_MAXPHYADDR = 185 => "KVM_CAP_SMALLER_MAXPHYADDR",
        DIRTY_LOG_RING = 192 => "KVM_CAP_DIRTY_LOG_RING",
        DISABLE_QUIRKS2 = 213 => "KVM_CAP_DISABLE_QUIRKS2",
        DIRTY_LOG_RING_ACQ_REL = 223 => "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
        MEMORY_FAULT_INFO = 232 => "KVM_CAP_MEMORY_FAULT_INFO",
    }
}

/// The answer for a capability, with or without two-dimensional paging; zero where it is unknown.
pub fn check(cap: u32, options: &Options, tdp: bool) -> i64 {
    match Cap(cap) {
        Cap::SMALLER_MAXPHYADDR => options.allow_smaller_maxphyaddr(tdp).into(),
        Cap::MEMORY_FAULT_INFO => {
            let proposed = options.on(Switch::EARLY_MEMORY_FAULT_EXIT);
            (proposed || options.on(Switch::MEMORY_FAULT_INFO)).into()
        }
        // What may be enabled. See: KVM virt/kvm/kvm_main.c kvm_vm_ioctl_check_extension_generic()
        Cap::MANUAL_DIRTY_LOG_PROTECT2 if options.on(Switch::DIRTY_LOG_INITIALLY_SET) => {
            (dirty::MANUAL_ENABLE | dirty::INITIALLY_SET) as i64
        }
        Cap::MANUAL_DIRTY_LOG_PROTECT2 => dirty::MANUAL_ENABLE as i64,
        Cap::DIRTY_LOG_RING if options.on(Switch::DIRTY_LOG_RING) => dirty::MOST_RING_BYTES as i64,
        Cap::DIRTY_LOG_RING_ACQ_REL if options.on(Switch::DIRTY_LOG_RING_ACQ_REL) => {
            dirty::MOST_RING_BYTES as i64
        }
        Cap::DIRTY_LOG_RING | Cap::DIRTY_LOG_RING_ACQ_REL => 0,
        Cap::X86_SMM => Smm::is_supported(options).into(),
        // Zero in releases before it, which have no quirk that is modelled.
        Cap::DISABLE_QUIRKS2 => options.quirks() as i64,
        // CONFIG_KVM_MAX_NR_VCPUS by default. Real hosts recommend as many as they have CPUs; 5.10 has 288 at most, and 509 slots.
        Cap::NR_VCPUS | Cap::MAX_VCPUS => 1024,
        Cap::NR_MEMSLOTS => 32764,
        known if known.name().is_some() => 1,
        _ => 0,
    }
}

/// The capabilities worth showing.
pub fn rows() -> Vec<TableRow> {
    let row = |(cap, name): &(Cap, &str)| TableRow {
        id: cap.0,
        name: (*name).into(),
        source: "include/uapi/linux/kvm.h".into(),
        ..Default::default()
    };
    Cap::NAMED.iter().map(row).collect()
}
