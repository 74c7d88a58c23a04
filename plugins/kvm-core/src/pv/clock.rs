//! kvmclock, the time of day, and stolen time.
//!
//! The host's clock is virtual time, which begins with the VM: `kvmclock_offset` makes kvmclock begin there too, and the master clock
//! is taken when the first vCPU runs, at zero.
//!
//! See: KVM x86.c kvm_guest_time_update(), kvm_write_wall_clock(), kvm_pv_clock_pairing(), record_steal_time(); include/asm/pvclock-abi.h

use crate::{Kvm, hypercall};
use vmtape_abi::Host;
use vmtape_arch::{
    time::{EPOCH_SECONDS, NS_PER_SECOND, NS_PER_TICK},
    vcpu::VcpuState,
};

/// PVCLOCK_TSC_STABLE_BIT: all vCPUs' clocks go alike.
const TSC_STABLE: u8 = 1;
/// PVCLOCK_GUEST_STOPPED, which the guest clears.
const GUEST_STOPPED: u8 = 2;
/// KVM_CLOCK_PAIRING_WALLCLOCK.
const WALLCLOCK: u64 = 0;

/// `boot_vcpu_runs_old_kvmclock`: the boot processor's clock is set up by MSR_KVM_SYSTEM_TIME, so there is no master clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldClock(pub bool);

/// `struct pvclock_vcpu_time_info`, behind its version.
struct TimeInfo {
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
}

impl TimeInfo {
    const SIZE: usize = 32;
    const FLAGS: usize = 29;

    fn bytes(&self, version: u32) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tsc_timestamp.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.system_time.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.tsc_to_system_mul.to_le_bytes());
        bytes[28] = self.tsc_shift as u8;
        bytes[Self::FLAGS] = self.flags;
        bytes
    }
}

/// The version of a structure after an update: it is odd while one goes on.
fn next_version(old: u32) -> u32 {
    old.wrapping_add(old & 1).wrapping_add(2)
}

/// `kvm_guest_time_update` with the page behind MSR_KVM_SYSTEM_TIME.
pub(super) fn update(
    kvm: &mut Kvm,
    vcpu: u32,
    gpa: u64,
    state: &VcpuState,
    boot: OldClock,
    host: &mut dyn Host,
) {
    let Some(old) = kvm.read_guest::<{ TimeInfo::SIZE }>(gpa, host) else { return };
    let host_tsc = if boot.0 { state.tsc } else { 0 };
    let (tsc_to_system_mul, tsc_shift) = time_scale(NS_PER_SECOND, NS_PER_SECOND / NS_PER_TICK);
    let info = TimeInfo {
        tsc_timestamp: host_tsc.wrapping_add(state.tsc_offset),
        system_time: host_tsc.wrapping_mul(NS_PER_TICK),
        tsc_to_system_mul,
        tsc_shift,
        flags: if boot.0 { 0 } else { TSC_STABLE } | old[TimeInfo::FLAGS] & GUEST_STOPPED,
    };
    let version = u32::from_le_bytes([old[0], old[1], old[2], old[3]]);
    kvm.write_guest(vcpu, gpa, &info.bytes(next_version(version)), host);
}

/// `kvm_get_time_scale`: multiplier and shift that turn ticks of `base_hz` into those of `scaled_hz`.
fn time_scale(scaled_hz: u64, base_hz: u64) -> (u32, i8) {
    let (mut scaled, mut ticks, mut shift) = (scaled_hz, base_hz, 0);
    while ticks > scaled * 2 || ticks >> 32 != 0 {
        ticks >>= 1;
        shift -= 1;
    }
    while ticks <= scaled || scaled >> 32 != 0 {
        if scaled >> 32 != 0 || ticks >> 31 & 1 != 0 {
            scaled >>= 1;
        } else {
            ticks <<= 1;
        }
        shift += 1;
    }
    (((scaled << 32) / ticks) as u32, shift)
}

/// `kvm_write_wall_clock`: the time of day at which kvmclock was zero.
pub(super) fn write_wall_clock(kvm: &mut Kvm, vcpu: u32, gpa: u64, host: &mut dyn Host) {
    if gpa == 0 {
        return;
    }
    let Some(version) = kvm.read_guest(gpa, host).map(u32::from_le_bytes) else { return };
    let words = [next_version(version), EPOCH_SECONDS as u32, 0];
    kvm.write_guest(vcpu, gpa, &words.map(u32::to_le_bytes).concat(), host);
}

/// `kvm_pv_clock_pairing`: the time of day now, and the guest's TSC at the same moment.
pub fn pair(kvm: &mut Kvm, vcpu: u32, state: &VcpuState, gpa: u64, kind: u64, host: &mut dyn Host) -> i64 {
    if kind != WALLCLOCK {
        return hypercall::KVM_EOPNOTSUPP;
    }
    let now = state.tsc.wrapping_mul(NS_PER_TICK);
    let words =
        [EPOCH_SECONDS + now / NS_PER_SECOND, now % NS_PER_SECOND, state.tsc.wrapping_add(state.tsc_offset)];
    // Flags and padding are zero.
    let mut pairing = [0; 64];
    pairing[..24].copy_from_slice(&words.map(u64::to_le_bytes).concat());
    if kvm.write_guest(vcpu, gpa, &pairing, host) { 0 } else { hypercall::KVM_EFAULT }
}

/// `record_steal_time`: nobody takes time from a vCPU here, so the steal time stays; the vCPU is not preempted.
pub(super) fn record_steal_time(kvm: &mut Kvm, vcpu: u32, gpa: u64, host: &mut dyn Host) {
    const VERSION: usize = 8;
    const PREEMPTED: usize = 16;
    let Some(mut time) = kvm.read_guest::<{ PREEMPTED + 1 }>(gpa, host) else { return };
    let version =
        u32::from_le_bytes([time[VERSION], time[VERSION + 1], time[VERSION + 2], time[VERSION + 3]]);
    time[VERSION..VERSION + 4].copy_from_slice(&next_version(version).to_le_bytes());
    time[PREEMPTED] = 0;
    kvm.write_guest(vcpu, gpa, &time, host);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the function itself: a nanosecond is a tick of 1 GHz, ten are one of 100 MHz.
    #[test]
    fn scales() {
        for (hz, nanoseconds) in [(1_000_000_000, 1_u64 << 20), (100_000_000, 10 << 20)] {
            let (mul, shift) = time_scale(NS_PER_SECOND, hz);
            let ticks = 1_u128 << 20;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            assert_eq!(((shifted * u128::from(mul)) >> 32) as u64, nanoseconds, "{hz}: {mul:#x} {shift}");
        }
        assert_eq!([0, 1, 2, 3].map(next_version), [2, 4, 4, 6]);
    }
}
