//! RDPMC. Counters do not count, and Intel's guests have none (CPUID leaf 0xa): what is left are AMD's, which every guest of its has.
//!
//! See: KVM pmu.c kvm_pmu_rdpmc(), kvm_pmu_rdpmc_vmware(); svm/pmu.c amd_pmu_refresh(), amd_rdpmc_ecx_to_pmc()

use crate::{
    Vcpu,
    cpuid::{Feature, Reg},
};
use vmtape_arch::{
    exception::Exception,
    host::Vendor,
    time::NS_PER_TICK,
    vcpu::{VcpuState, gpr},
    vmware::Counter,
};

/// PERFCTR_CORE: six counters in place of four.
const PERFCTR_CORE: Feature = Feature(0x8000_0001, 0, Reg::Ecx, 23);
const COUNTERS: u32 = 4;
const COUNTERS_CORE: u32 = 6;
/// Bits of RDPMC's number that say how it is read.
const MODE: u32 = 3 << 30;

/// `kvm_emulate_rdpmc`, but for the skip.
pub fn rdpmc(vendor: Vendor, vcpu: &Vcpu, state: &mut VcpuState) -> Result<(), Exception> {
    let number = state.gpr[gpr::RCX] as u32;
    let value = read(vendor, vcpu, state, number).ok_or(Exception::gp(0))?;
    (state.gpr[gpr::RAX], state.gpr[gpr::RDX]) = (value & 0xffff_ffff, value >> 32);
    Ok(())
}

fn read(vendor: Vendor, vcpu: &Vcpu, state: &VcpuState, number: u32) -> Option<u64> {
    // `pmu->version`.
    if vendor != Vendor::AMD {
        return None;
    }
    match Counter(number) {
        Counter::HOST_TSC => return Some(state.tsc),
        // The host booted when the VM was made, and `kvmclock_offset` is nothing.
        Counter::REAL_TIME | Counter::APPARENT_TIME => return Some(state.tsc.wrapping_mul(NS_PER_TICK)),
        _ => {}
    }
    let counters = if vcpu.cpuid.has(PERFCTR_CORE) { COUNTERS_CORE } else { COUNTERS };
    let allowed = state.cr4().pce() || state.cpl == 0 || !state.cr0().pe();
    (number & !MODE < counters && allowed).then_some(0)
}
