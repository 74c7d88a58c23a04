//! Physical CPUs: EFER.SVME on and off, which VMCB each CPU ran last, and its ASIDs.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_hardware_enable(), svm_vcpu_load(), pre_svm_run(), as of 6.12

use crate::vm::SvmVcpu;
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, Errno, Host};
use vmtape_kvm_core::profile::{Options, Switch};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// Host log level.
const INFO: u32 = 3;

/// What `kvm_amd` keeps for a physical CPU (`struct svm_cpu_data`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// EFER.SVME.
    pub svme: bool,
    /// GIF is clear: from CLGI to STGI, around each VMRUN.
    pub gif_clear: bool,
    /// `current_vmcb`, by vCPU.
    pub current: Option<u32>,
    /// The host has crashed: nothing runs here any more.
    pub stopped: bool,
}

/// `hardware_enable`.
pub fn enable(number: u32, cpu: &mut Cpu, host: &mut dyn Host) -> Result<(), Errno> {
    let busy = FaultPoint::ENABLE_BUSY.poll(ALL_VCPUS, number.into(), 0, host).is_some();
    if busy || cpu.svme {
        return Err(Errno::EBUSY);
    }
    *cpu = Cpu { svme: true, ..Cpu::default() };
    Ok(())
}

/// `kvm_cpu_svm_disable`, for `hardware_disable` and in an emergency.
pub fn disable(cpu: &mut Cpu, options: &Options) -> Result<(), Errno> {
    let gif_clear = cpu.gif_clear && !options.on(Switch::SVM_DISABLE_SETS_GIF);
    *cpu = Cpu { gif_clear, stopped: cpu.stopped, ..Cpu::default() };
    Ok(())
}

/// `svm_vcpu_load`. True: the VMCB ran on another CPU last, so that `pre_svm_run` gives it a new ASID here. -EIO: the host has
/// crashed meanwhile.
pub fn load(vcpu: &mut SvmVcpu, cpus: &mut [Cpu], number: u32) -> Result<bool, Errno> {
    if cpus.iter().any(|cpu| cpu.stopped) {
        return Err(Errno::EIO);
    }
    cpus[number as usize].current = Some(vcpu.core.id);
    Ok(vcpu.core.cpu != Some(number))
}

/// `svm_vcpu_run` between CLGI and STGI, where the kernel may die of something.
pub fn in_clgi(number: u32, cpu: &mut Cpu, rip: u64, vcpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
    if FaultPoint::CRASH_IN_CLGI.poll(vcpu, number.into(), rip, host).is_none() {
        return Ok(());
    }
    host.log(INFO, &format!("CPU {number}: crash between CLGI and STGI"));
    (cpu.gif_clear, cpu.stopped) = (true, true);
    Err(Errno::EIO)
}
