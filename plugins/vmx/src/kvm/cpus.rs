//! Physical CPUs: VMX operation on and off, and which VMCSs each CPU has loaded.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_hardware_enable(), vmx_vcpu_load_vmcs(), __loaded_vmcs_clear(), as of 6.12

use crate::vm::VmxVcpu;
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, Errno, Host};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// IA32_FEATURE_CONTROL of a host that runs KVM: locked, VMX outside SMX.
const FEAT_CTL: u64 = 1 << 0 | 1 << 2;
/// Host log level of a warning.
const WARN: u32 = 2;

/// What `kvm_intel` keeps for a physical CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// CR4.VMXE.
    pub vmxe: bool,
    /// In VMX root operation.
    pub vmxon: bool,
    /// `current_vmcs`: the vCPU whose VMCS VMPTRLD made current.
    pub current: Option<u32>,
    /// `loaded_vmcss_on_cpu`, newest first: VMCSs that may be active here, by vCPU.
    pub loaded: Vec<u32>,
}

/// `struct loaded_vmcs` of a vCPU, as far as CPUs are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedVmcs {
    /// The CPU on whose list it is.
    pub cpu: Option<u32>,
    /// VMLAUNCH has been executed since the last VMCLEAR: the next entry is a VMRESUME.
    pub launched: bool,
}

/// `hardware_enable`, `kvm_cpu_vmxon`.
pub fn enable(number: u32, cpu: &mut Cpu, host: &mut dyn Host) -> Result<(), Errno> {
    let busy = FaultPoint::ENABLE_BUSY.poll(ALL_VCPUS, number.into(), 0, host).is_some();
    if busy || cpu.vmxe {
        return Err(Errno::EBUSY);
    }
    if let Some(vector) = FaultPoint::VMXON_FAULT.poll(ALL_VCPUS, number.into(), FEAT_CTL, host) {
        // CR4.VMXE is clear again. See: commit 4f6ea0a87608
        let text = format!("VMXON faulted (vector {vector}), MSR_IA32_FEAT_CTL (0x3a) = {FEAT_CTL:#x}");
        host.log(WARN, &text);
        return Err(Errno::EFAULT);
    }
    (cpu.vmxe, cpu.vmxon) = (true, true);
    Ok(())
}

/// `hardware_disable`: `vmclear_local_loaded_vmcss`, then VMXOFF.
pub fn disable(cpu: &mut Cpu, vcpus: &mut [VmxVcpu]) -> Result<(), Errno> {
    for vcpu in std::mem::take(&mut cpu.loaded) {
        vmclear(&mut vcpus[vcpu as usize]);
    }
    // VMXOFF faults outside VMX operation; CR4.VMXE is cleared all the same.
    let left = if cpu.vmxon { Ok(()) } else { Err(Errno::EIO) };
    *cpu = Cpu::default();
    left
}

/// `vmx_vcpu_load_vmcs`. True: the VMCS was not on this CPU.
pub fn load(vcpu: &mut VmxVcpu, cpus: &mut [Cpu], number: u32) -> bool {
    let id = vcpu.core.id;
    let already = vcpu.vmcs.cpu == Some(number);
    if !already {
        clear(vcpu, cpus);
        cpus[number as usize].loaded.insert(0, id);
        vcpu.vmcs.cpu = Some(number);
    }
    cpus[number as usize].current = Some(id);
    !already
}

/// `loaded_vmcs_clear`: VMCLEAR on the CPU that has it, which is told by an interrupt, and off its list.
fn clear(vcpu: &mut VmxVcpu, cpus: &mut [Cpu]) {
    let Some(cpu) = vcpu.vmcs.cpu.and_then(|number| cpus.get_mut(number as usize)) else { return };
    if cpu.current == Some(vcpu.core.id) {
        cpu.current = None;
    }
    cpu.loaded.retain(|id| *id != vcpu.core.id);
    vmclear(vcpu);
}

/// VMCLEAR, and `loaded_vmcs_init`.
fn vmclear(vcpu: &mut VmxVcpu) {
    vcpu.vmcs01.launched = false;
    vcpu.vmcs = LoadedVmcs::default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Vm, testing};
    use vmtape_abi::{Backend, VmConfig};
    use vmtape_arch::vcpu::VcpuState;
    use vmtape_testing::TestHost;

    fn vm(vcpus: u32, cpus: u32) -> (Vm, TestHost) {
        let config = VmConfig { silicon: testing::silicon(46), options: Vec::new() };
        let mut vm = Vm::of(crate::vm::Shared::new(&config).unwrap());
        let mut host = TestHost::new(0x1000);
        (0..vcpus).for_each(|vcpu| vm.create_vcpu(vcpu).unwrap());
        (0..cpus).for_each(|cpu| vm.enable_cpu(cpu, &mut host).unwrap());
        (vm, host)
    }

    #[test]
    fn a_vmcs_is_on_one_list_and_cleared_where_it_leaves() {
        let (mut vm, mut host) = vm(3, 2);
        for vcpu in 0..3 {
            vm.vcpu_load(vcpu, 0, &mut host).unwrap();
        }
        assert_eq!((&vm.cpus[0].loaded[..], vm.cpus[0].current), (&[2, 1, 0][..], Some(2)));
        let mut state = VcpuState::reset();
        vm.enter(1, &mut state, &mut host);
        assert!(vm.vcpus[1].vmcs.launched);
        // Again on the same CPU: nothing is cleared.
        vm.vcpu_load(1, 0, &mut host).unwrap();
        assert!(vm.vcpus[1].vmcs.launched && vm.cpus[0].current == Some(1));
        vm.vcpu_load(1, 1, &mut host).unwrap();
        assert_eq!(vm.vcpus[1].vmcs, LoadedVmcs { cpu: Some(1), launched: false });
        assert_eq!((&vm.cpus[0].loaded[..], vm.cpus[0].current), (&[2, 0][..], None));
        assert_eq!((&vm.cpus[1].loaded[..], vm.cpus[1].current), (&[1][..], Some(1)));
    }

    #[test]
    fn vmxoff_clears_all() {
        let (mut vm, mut host) = vm(2, 1);
        (0..2).for_each(|vcpu| vm.vcpu_load(vcpu, 0, &mut host).unwrap());
        assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EBUSY));
        assert_eq!(vm.disable_cpu(0, &mut host), Ok(()));
        assert_eq!((vm.cpus[0].clone(), vm.vcpus[1].vmcs), (Cpu::default(), LoadedVmcs::default()));
        assert_eq!(vm.disable_cpu(0, &mut host), Err(Errno::EIO));
    }

    #[test]
    fn vmxon_may_fault() {
        let (mut vm, mut host) = vm(1, 0);
        host.faults = vec![(FaultPoint::VMXON_FAULT.0, 13)];
        assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EFAULT));
        assert!(!vm.cpus[0].vmxe && host.logged.iter().any(|line| line.contains("VMXON faulted")));
        assert_eq!(vm.enable_cpu(0, &mut host), Ok(()));
    }

    #[test]
    fn what_cpus_hold_is_saved() {
        let (mut saved, mut host) = vm(2, 2);
        saved.vcpu_load(1, 1, &mut host).unwrap();
        let (mut other, _) = vm(2, 2);
        other.restore(&saved.save()).unwrap();
        assert_eq!((&other.cpus, other.vcpus[1].vmcs), (&saved.cpus, saved.vcpus[1].vmcs));
    }
}
