//! What can be asked of a backend that no ioctl shows.

use crate::open_enum;

open_enum! {
    /// Values that KVM or silicon hold and that no other call shows.
    pub struct Query(u32) {
        /// IA32_VMX_EPT_VPID_CAP as silicon shows it.
        EPT_VPID_CAP = 0 => "ept-vpid-cap",
        /// The largest guest physical address that can be mapped, from an ioctl that was proposed and never merged.
        MAX_USABLE_GPA = 1 => "max-usable-gpa",
        /// The vCPU's EPT pointer; -ENOENT before its first entry.
        EPTP = 2 => "eptp",
        /// Shadow pages in use.
        SHADOW_PAGES = 3 => "shadow-pages",
        /// Bytes of `gfn_track`: the counts of shadow pages per guest page.
        GFN_TRACK_BYTES = 4 => "gfn-track-bytes",
        /// `last_vmentry_cpu` of the vCPU, an int in two's complement.
        LAST_VMENTRY_CPU = 5 => "last-vmentry-cpu",
        /// The CPU on which the vCPU's VMCS is active: from there silicon may write to its memory at any time. -ENOENT: on none.
        VMCS_ACTIVE_ON = 6 => "vmcs-active-on",
        /// The same for the vCPU's shadow VMCS.
        SHADOW_VMCS_ACTIVE_ON = 7 => "shadow-vmcs-active-on",
        /// Where in the host's memory the vCPU's VMCS lies.
        VMCS_REGION = 8 => "vmcs-region",
        /// The same for its shadow VMCS; -ENOENT: it has none.
        SHADOW_VMCS_REGION = 9 => "shadow-vmcs-region",
        /// Of the CPU with the number that `vcpu` says: 1 while CR4.VMXE or EFER.SVME is set.
        CPU_VIRTUALIZES = 10 => "cpu-virtualizes",
        /// Of such a CPU: 1 while it hears no INIT, in VMX operation or with GIF clear; nobody can start it anew.
        CPU_BLOCKS_INIT = 11 => "cpu-blocks-init",
        /// 1 if there are tables below the guest's, as /sys/module says; else 0.
        TWO_DIMENSIONAL = 12 => "two-dimensional",
        /// 1 if /proc/cpuinfo has a flag for five-level EPT where silicon has that; 0: this kernel knows no such flag.
        PROCFS_TELLS_LEVELS = 13 => "procfs-tells-levels",
    }
}
