//! VMware's backdoor, by which its guests call their hypervisor, and which KVM and QEMU have for them too.
//!
//! See: open-vm-tools lib/include/backdoor_def.h; KVM arch/x86/kvm/emulate.c emulator_io_port_access_allowed(), pmu.h

use crate::open_enum;

/// BDOOR_PORT: IN of it is a call.
pub const PORT: u16 = 0x5658;
/// BDOORHB_PORT, for strings.
pub const RPC_PORT: u16 = 0x5659;
/// BDOOR_MAGIC, which a call has in EAX.
pub const MAGIC: u32 = 0x564d_5868;

open_enum! {
    /// Counters of RDPMC that are clocks.
    pub struct Counter(u32) {
        HOST_TSC = 0x10000 => "VMWARE_BACKDOOR_PMC_HOST_TSC",
        REAL_TIME = 0x10001 => "VMWARE_BACKDOOR_PMC_REAL_TIME",
        APPARENT_TIME = 0x10002 => "VMWARE_BACKDOOR_PMC_APPARENT_TIME",
    }
}

/// Whether a port is one of the backdoor's.
pub const fn is_port(port: u16) -> bool {
    matches!(port, PORT | RPC_PORT)
}

impl Counter {
    /// Whether it is one of the backdoor's.
    pub const fn is_known(self) -> bool {
        matches!(self, Self::HOST_TSC | Self::REAL_TIME | Self::APPARENT_TIME)
    }
}
