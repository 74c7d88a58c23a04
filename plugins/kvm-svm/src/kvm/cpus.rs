//! Physical CPUs: EFER.SVME on and off, which VMCB each CPU ran last, and its ASIDs.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_hardware_enable(), svm_vcpu_load(), pre_svm_run(), as of 6.12

use crate::vm::SvmVcpu;
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, Errno, Host};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// What `kvm_amd` keeps for a physical CPU (`struct svm_cpu_data`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// EFER.SVME.
    pub svme: bool,
    /// `current_vmcb`, by vCPU.
    pub current: Option<u32>,
}

/// `hardware_enable`.
pub fn enable(number: u32, cpu: &mut Cpu, host: &mut dyn Host) -> Result<(), Errno> {
    let busy = FaultPoint::ENABLE_BUSY.poll(ALL_VCPUS, number.into(), 0, host).is_some();
    if busy || cpu.svme {
        return Err(Errno::EBUSY);
    }
    *cpu = Cpu { svme: true, current: None };
    Ok(())
}

/// `hardware_disable`.
pub fn disable(cpu: &mut Cpu) -> Result<(), Errno> {
    *cpu = Cpu::default();
    Ok(())
}

/// `svm_vcpu_load`. True: the VMCB ran on another CPU last, so that `pre_svm_run` gives it a new ASID here.
pub fn load(vcpu: &mut SvmVcpu, cpus: &mut [Cpu], number: u32) -> bool {
    cpus[number as usize].current = Some(vcpu.core.id);
    vcpu.core.cpu != Some(number)
}
