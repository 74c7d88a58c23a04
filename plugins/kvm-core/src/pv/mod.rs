//! KVM's paravirtual interfaces: what a guest that knows of KVM sets up by MSRs, and what KVM then does for it at an entry. The calls
//! that such a guest makes are in [`crate::hypercall`].
//!
//! `guest_pv_has` is true of every feature, whatever the guest's CPUID says: that is enforced for a VMM that asks for it
//! (KVM_CAP_ENFORCE_PV_FEATURE_CPUID), and none here does.
//!
//! See: KVM arch/x86/include/uapi/asm/kvm_para.h; x86.c kvm_set_msr_common(), kvm_get_msr_common(); Documentation/virt/kvm/x86/msr.rst

mod async_pf;
mod clock;
mod memory;

pub use clock::{OldClock, pair};

use crate::{
    Kvm, Vcpu,
    profile::{Options, Switch},
};
use async_pf::AsyncPf;
use serde::{Deserialize, Serialize};
use vmtape_abi::Host;
use vmtape_arch::{open_enum, vcpu::VcpuState};

open_enum! {
    /// Registers of KVM's own, and the two that it took from elsewhere first.
    pub struct PvMsr(u32) {
        WALL_CLOCK = 0x11 => "MSR_KVM_WALL_CLOCK",
        SYSTEM_TIME = 0x12 => "MSR_KVM_SYSTEM_TIME",
        WALL_CLOCK_NEW = 0x4b56_4d00 => "MSR_KVM_WALL_CLOCK_NEW",
        SYSTEM_TIME_NEW = 0x4b56_4d01 => "MSR_KVM_SYSTEM_TIME_NEW",
        ASYNC_PF_EN = 0x4b56_4d02 => "MSR_KVM_ASYNC_PF_EN",
        STEAL_TIME = 0x4b56_4d03 => "MSR_KVM_STEAL_TIME",
        PV_EOI_EN = 0x4b56_4d04 => "MSR_KVM_PV_EOI_EN",
        POLL_CONTROL = 0x4b56_4d05 => "MSR_KVM_POLL_CONTROL",
        ASYNC_PF_INT = 0x4b56_4d06 => "MSR_KVM_ASYNC_PF_INT",
        ASYNC_PF_ACK = 0x4b56_4d07 => "MSR_KVM_ASYNC_PF_ACK",
    }
}

/// KVM_MSR_ENABLED.
const ENABLED: u64 = 1;
/// KVM_STEAL_RESERVED_MASK.
const STEAL_RESERVED: u64 = 0x3e;

/// What a vCPU's guest has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paravirtual {
    /// Where the guest wants the time of day at its start. KVM keeps the last one of the VM, here it is the vCPU's.
    wall_clock: u64,
    /// Where it wants the vCPU's clock, and whether by the old register.
    time: u64,
    old_clock: bool,
    async_pf: AsyncPf,
    steal_time: u64,
    eoi: u64,
    poll: u64,
    requests: Requests,
}

/// What is to be done before the next entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Requests {
    wall_clock: bool,
    /// KVM_REQ_CLOCK_UPDATE.
    clock: bool,
    /// KVM_REQ_STEAL_UPDATE.
    steal_time: bool,
    /// KVM_REQ_APF_READY.
    async_pf: bool,
}

impl Default for Paravirtual {
    fn default() -> Self {
        Self {
            wall_clock: 0,
            time: 0,
            old_clock: false,
            async_pf: AsyncPf::default(),
            steal_time: 0,
            eoi: 0,
            // A host may poll before it lets a halted vCPU sleep. See: KVM x86.c kvm_arch_vcpu_postcreate()
            poll: 1,
            requests: Requests::default(),
        }
    }
}

impl Paravirtual {
    /// What a new vCPU has.
    pub fn new(options: &Options) -> Self {
        let async_pf = AsyncPf::new(options.on(Switch::ASYNC_PF_INT));
        Self { async_pf, ..Self::default() }
    }

    /// A register's value; `None`: it is not one of these.
    pub fn get(&self, index: u32) -> Option<u64> {
        Some(match PvMsr(index) {
            PvMsr::WALL_CLOCK | PvMsr::WALL_CLOCK_NEW => self.wall_clock,
            PvMsr::SYSTEM_TIME | PvMsr::SYSTEM_TIME_NEW => self.time,
            PvMsr::ASYNC_PF_EN => self.async_pf.enable,
            PvMsr::ASYNC_PF_INT if self.async_pf.with_interrupt => self.async_pf.vector,
            PvMsr::ASYNC_PF_ACK if self.async_pf.with_interrupt => 0,
            PvMsr::STEAL_TIME => self.steal_time,
            PvMsr::PV_EOI_EN => self.eoi,
            PvMsr::POLL_CONTROL => self.poll,
            _ => return None,
        })
    }

    /// Writes a register. `None`: it is not one of these; false: KVM refuses the value.
    pub fn set(&mut self, index: u32, data: u64) -> Option<bool> {
        let msr = PvMsr(index);
        match msr {
            PvMsr::WALL_CLOCK | PvMsr::WALL_CLOCK_NEW => {
                self.wall_clock = data;
                self.requests.wall_clock = true;
            }
            PvMsr::SYSTEM_TIME | PvMsr::SYSTEM_TIME_NEW => {
                self.time = data;
                self.old_clock = msr == PvMsr::SYSTEM_TIME;
                self.requests.clock = true;
            }
            PvMsr::ASYNC_PF_EN => {
                let legal = self.async_pf.set_enable(data);
                self.requests.async_pf = self.async_pf.is_done();
                return Some(legal);
            }
            PvMsr::ASYNC_PF_INT => return Some(self.async_pf.set_vector(data)),
            PvMsr::ASYNC_PF_ACK if !self.async_pf.with_interrupt => return Some(false),
            PvMsr::ASYNC_PF_ACK => self.requests.async_pf |= data & 1 != 0 && self.async_pf.is_done(),
            PvMsr::STEAL_TIME if data & STEAL_RESERVED != 0 => return Some(false),
            PvMsr::STEAL_TIME => {
                self.steal_time = data;
                self.requests.steal_time |= data & ENABLED != 0;
            }
            // A byte in a word of its own. See: KVM lapic.c kvm_lapic_set_pv_eoi()
            PvMsr::PV_EOI_EN if data & !ENABLED & 3 != 0 => return Some(false),
            PvMsr::PV_EOI_EN => self.eoi = data,
            PvMsr::POLL_CONTROL if data & !ENABLED != 0 => return Some(false),
            PvMsr::POLL_CONTROL => self.poll = data,
            _ => return None,
        }
        Some(true)
    }

    /// Whether the vCPU's clock is set up by the register of old.
    pub fn old_clock(&self) -> OldClock {
        OldClock(self.old_clock)
    }
}

/// What `vcpu_enter_guest` does about requests. `boot`: which clock the boot processor has.
pub fn requests(kvm: &mut Kvm, vcpu: &mut Vcpu, state: &VcpuState, boot: OldClock, host: &mut dyn Host) {
    let requests = std::mem::take(&mut vcpu.pv.requests);
    if requests.wall_clock {
        clock::write_wall_clock(kvm, vcpu.id, vcpu.pv.wall_clock, host);
    }
    if requests.clock && vcpu.pv.time & ENABLED != 0 {
        clock::update(kvm, vcpu.id, vcpu.pv.time & !ENABLED, state, boot, host);
    }
    if requests.async_pf {
        async_pf::complete(kvm, vcpu, host);
    }
    if requests.steal_time {
        clock::record_steal_time(kvm, vcpu.id, vcpu.pv.steal_time & !(STEAL_RESERVED | ENABLED), host);
    }
}

impl Vcpu {
    /// Whether [`requests`] has anything to do.
    pub fn has_pv_requests(&self) -> bool {
        self.pv.requests != Requests::default()
    }
}
