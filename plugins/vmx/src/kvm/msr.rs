//! MSRs of `kvm_intel`; what is not here is [`msr::get_common`]'s.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_get_msr(), vmx_set_msr()

use super::setup;
use crate::vm::{Shared, VmxVcpu};
use vmtape_abi::Host;
use vmtape_arch::{msr::Msr, paging::bits, vcpu::VcpuState};
use vmtape_kvm_core::{
    Vcpu,
    cpuid::feature,
    msr::{self, Refused, Written},
};

/// `microcode_version` of a new vCPU.
pub const UCODE_REV: u64 = 0x1_0000_0000;

const IA32_UMWAIT_CONTROL: Msr = Msr(0xe1);
/// IA32_UMWAIT_CONTROL: bit 1 and the upper half are reserved.
const UMWAIT_RESERVED: u64 = bits(32, 63) | 1 << 1;
/// FEAT_CTL_LOCKED.
const LOCKED: u64 = 1 << 0;
/// DEBUGCTLMSR_LBR, _BTF and _BUS_LOCK_DETECT.
const LBR_BTF: u64 = 3;
const BUS_LOCK: u64 = 1 << 2;

/// `vmx_get_msr`.
pub fn get(
    vcpu: &mut VmxVcpu,
    state: &VcpuState,
    index: u32,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Result<u64, Refused> {
    Ok(match Msr(index) {
        Msr::IA32_FEAT_CTL => vcpu.msrs.feature_control,
        Msr::IA32_DEBUGCTL => state.debugctl,
        IA32_UMWAIT_CONTROL if host_initiated || vcpu.core.cpuid.has(feature::WAITPKG) => {
            vcpu.msrs.umwait_control
        }
        IA32_UMWAIT_CONTROL => return Err(Refused),
        _ => msr::get_common(&mut vcpu.core, state, index, host_initiated, host)?,
    })
}

/// `vmx_set_msr`.
pub fn set(
    shared: &Shared,
    vcpu: &mut VmxVcpu,
    state: &mut VcpuState,
    index: u32,
    data: u64,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Written {
    let allow = |legal: bool| if legal { Ok(()) } else { Err(Refused) };
    match Msr(index) {
        Msr::IA32_FEAT_CTL => {
            // Nested VMX and SGX are off: only the lock bit is valid.
            let locked = vcpu.msrs.feature_control & LOCKED != 0;
            allow(data & !LOCKED == 0 && (!locked || host_initiated))?;
            vcpu.msrs.feature_control = data;
        }
        Msr::IA32_DEBUGCTL => set_debugctl(&vcpu.core, state, data)?,
        IA32_UMWAIT_CONTROL => {
            allow(host_initiated || vcpu.core.cpuid.has(feature::WAITPKG))?;
            allow(data & UMWAIT_RESERVED == 0)?;
            vcpu.msrs.umwait_control = data;
        }
        Msr::IA32_APIC_BASE => {
            let written = msr::set_common(&mut vcpu.core, state, index, data, host_initiated, host)?;
            setup::update_apic_mode(shared, vcpu);
            return Ok(written);
        }
        Msr::IA32_SPEC_CTRL => {
            let written = msr::set_common(&mut vcpu.core, state, index, data, host_initiated, host)?;
            // From the first value that is not zero on, the guest has the register to itself.
            vcpu.owns_spec_ctrl |= data != 0;
            return Ok(written);
        }
        _ => return msr::set_common(&mut vcpu.core, state, index, data, host_initiated, host),
    }
    Ok(Default::default())
}

/// DEBUGCTL.BTF and LBR are dropped, since KVM does not virtualize them here; other bits are refused.
fn set_debugctl(vcpu: &Vcpu, state: &mut VcpuState, data: u64) -> Result<(), Refused> {
    let bus_lock = if vcpu.cpuid.has(feature::BUS_LOCK_DETECT) { BUS_LOCK } else { 0 };
    let data = data & !LBR_BTF;
    if data & !bus_lock != 0 {
        return Err(Refused);
    }
    state.debugctl = data;
    Ok(())
}
