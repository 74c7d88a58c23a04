//! Physical CPUs: VMX operation on and off, and which VMCSs each CPU has loaded.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_hardware_enable(), vmx_vcpu_load_vmcs(), __loaded_vmcs_clear(), as of 6.12

use super::crash::{CrashRules, Nmi, Place};
use crate::vm::VmxVcpu;
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, Errno, Host};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// IA32_FEATURE_CONTROL of a host that runs KVM: locked, VMX outside SMX.
const FEAT_CTL: u64 = 1 << 0 | 1 << 2;
/// Host log level of a warning.
const WARN: u32 = 2;
/// ... and of an error.
const ERROR: u32 = 1;

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
    /// Those that are, in silicon: VMPTRLD was executed and VMCLEAR was not.
    pub active: Vec<u32>,
    /// The list's head has been set up by `hardware_enable`.
    pub has_list: bool,
    /// The host has crashed: nothing runs here any more.
    pub crashed: bool,
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
pub fn enable(number: u32, cpu: &mut Cpu, rules: CrashRules, host: &mut dyn Host) -> Result<(), Errno> {
    let busy = FaultPoint::ENABLE_BUSY.poll(ALL_VCPUS, number.into(), 0, host).is_some();
    if busy || cpu.vmxe {
        return Err(Errno::EBUSY);
    }
    cpu.has_list = true;
    if let Some(vector) = FaultPoint::VMXON_FAULT.poll(ALL_VCPUS, number.into(), FEAT_CTL, host) {
        if !rules.survives_vmxon {
            // Nobody expects a fault there: the kernel dies with CR4.VMXE set.
            host.log(
                ERROR,
                &format!("exception {vector} in hardware_enable(): VMXON faulted, and the kernel with it"),
            );
            (cpu.vmxe, cpu.crashed) = (true, true);
            return Err(Errno::EIO);
        }
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
        cleared(&mut vcpus[vcpu as usize]);
    }
    // VMXOFF faults outside VMX operation; CR4.VMXE is cleared all the same.
    let left = if cpu.vmxon { Ok(()) } else { Err(Errno::EIO) };
    *cpu = Cpu { has_list: cpu.has_list, ..Cpu::default() };
    left
}

/// `vmx_vcpu_load_vmcs`. True: the VMCS was not on this CPU. -EIO: the host has crashed meanwhile.
pub fn load(vcpu: &mut VmxVcpu, cpus: &mut [Cpu], number: u32, nmi: &mut Nmi<'_>) -> Result<bool, Errno> {
    let id = vcpu.core.id;
    let already = vcpu.vmcs.cpu == Some(number);
    if cpus.iter().any(|cpu| cpu.crashed) {
        return Err(Errno::EIO);
    }
    if !already {
        clear(vcpu, cpus, nmi)?;
        let cpu = &mut cpus[number as usize];
        add(id, number, cpu, nmi)?;
        vcpu.vmcs.cpu = Some(number);
    }
    let cpu = &mut cpus[number as usize];
    cpu.current = Some(id);
    if !cpu.active.contains(&id) {
        cpu.active.push(id);
    }
    Ok(!already)
}

/// `list_add`, as the NMI sees it: only its last store makes the entry one of the list.
fn add(id: u32, number: u32, cpu: &mut Cpu, nmi: &mut Nmi<'_>) -> Result<(), Errno> {
    const STORES: u64 = 4;
    (0..STORES).try_for_each(|done| nmi.at(number, cpu, id, Place::ADD, done))?;
    cpu.loaded.insert(0, id);
    nmi.at(number, cpu, id, Place::ADD, STORES)
}

/// `list_del`, of which the last store counts.
fn delete(id: u32, number: u32, cpu: &mut Cpu, nmi: &mut Nmi<'_>) -> Result<(), Errno> {
    const STORES: u64 = 2;
    (0..STORES).try_for_each(|done| nmi.at(number, cpu, id, Place::DELETE, done))?;
    cpu.loaded.retain(|loaded| *loaded != id);
    nmi.at(number, cpu, id, Place::DELETE, STORES)
}

fn vmclear(id: u32, number: u32, cpu: &mut Cpu, nmi: &mut Nmi<'_>) -> Result<(), Errno> {
    nmi.at(number, cpu, id, Place::CLEAR, 0)?;
    cpu.active.retain(|active| *active != id);
    if cpu.current == Some(id) {
        cpu.current = None;
    }
    nmi.at(number, cpu, id, Place::CLEAR, 1)
}

/// `loaded_vmcs_clear`: VMCLEAR on the CPU that has it, which is told by an interrupt, and off its list. What is off the
/// list is cleared; before v5.7 that was the other way round, under a gate.
fn clear(vcpu: &mut VmxVcpu, cpus: &mut [Cpu], nmi: &mut Nmi<'_>) -> Result<(), Errno> {
    let id = vcpu.core.id;
    let Some(number) = vcpu.vmcs.cpu else { return Ok(()) };
    let Some(cpu) = cpus.get_mut(number as usize) else { return Ok(()) };
    if nmi.rules.always_walks {
        vmclear(id, number, cpu, nmi)?;
        delete(id, number, cpu, nmi)?;
    } else {
        delete(id, number, cpu, nmi)?;
        vmclear(id, number, cpu, nmi)?;
    }
    cleared(vcpu);
    Ok(())
}

/// What VMCLEAR leaves in the VMCS, and `loaded_vmcs_init`.
fn cleared(vcpu: &mut VmxVcpu) {
    vcpu.vmcs01.launched = false;
    vcpu.vmcs = LoadedVmcs::default();
}

/// The CPU on which the vCPU's VMCS is active.
pub fn active_on(cpus: &[Cpu], vcpu: u32) -> Result<u64, Errno> {
    let on = cpus.iter().position(|cpu| cpu.active.contains(&vcpu));
    on.map(|number| number as u64).ok_or(Errno::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Vm, testing};
    use vmtape_abi::{Backend, Query, VmConfig};
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
        assert_eq!(
            (vm.cpus[0].clone(), vm.vcpus[1].vmcs),
            (Cpu { has_list: true, ..Cpu::default() }, LoadedVmcs::default())
        );
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

    /// vCPU 1 of three moves away from CPU 0, or a fourth comes, and the host crashes at some place: which VMCSs are active on
    /// CPU 0 in the kernel that follows.
    fn left_active(options: &[(&str, &str)], adding: bool, place: u64) -> Vec<u32> {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = VmConfig { silicon: testing::silicon(46), options };
        let mut vm = Vm::of(crate::vm::Shared::new(&config).unwrap());
        let mut host = TestHost::new(0x1000);
        (0..4).for_each(|vcpu| vm.create_vcpu(vcpu).unwrap());
        (0..2).for_each(|cpu| vm.enable_cpu(cpu, &mut host).unwrap());
        (0..3).for_each(|vcpu| vm.vcpu_load(vcpu, 0, &mut host).unwrap());
        // Asked at each place; the answer comes at the one that is wanted.
        host.faults_at = vec![(FaultPoint::CRASH_NMI.0, place)];
        let moved = if adding { vm.vcpu_load(3, 0, &mut host) } else { vm.vcpu_load(1, 1, &mut host) };
        assert_eq!(moved, Err(Errno::EIO), "{place:#x}");
        assert!(vm.cpus[0].crashed && !vm.cpus[0].vmxon);
        let mut active = vm.cpus[0].active.clone();
        active.sort_unstable();
        for vcpu in 0..4 {
            let answer = if active.contains(&vcpu) { Ok(0) } else { Err(Errno::ENOENT) };
            assert_eq!(vm.query(vcpu, Query::VMCS_ACTIVE_ON), answer);
        }
        active
    }

    /// See: list.h __list_add(), __list_del(); KVM commit 31603d4fc2bb
    #[test]
    fn a_crash_leaves_no_vmcs_active_wherever_its_nmi_comes() {
        let adding = (0..=4).map(|done| (true, Place::ADD.0 | done));
        let clearing = (0..=1).map(|done| (false, Place::CLEAR.0 | done));
        let deleting = (0..=2).map(|done| (false, Place::DELETE.0 | done));
        for (adds, place) in adding.chain(clearing).chain(deleting) {
            assert_eq!(left_active(&[], adds, place), [], "{place:#x}");
        }
    }

    #[test]
    fn a_gate_left_all_of_them_active_while_the_list_changed() {
        let old = [("kvm", "v5.6")];
        for done in 0..=4 {
            assert_eq!(left_active(&old, true, Place::ADD.0 | done), [0, 1, 2]);
        }
        for place in [Place::DELETE.0, Place::DELETE.0 | 2, Place::CLEAR.0] {
            assert_eq!(left_active(&old, false, place), [0, 1, 2], "{place:#x}");
        }
        assert_eq!(left_active(&old, false, Place::CLEAR.0 | 1), [0, 2]);
    }

    #[test]
    fn a_crash_that_nothing_else_is_going_on_in_clears_all() {
        for release in ["v5.6", "v5.7", "v6.12"] {
            let config = VmConfig {
                silicon: testing::silicon(46),
                options: vec![("kvm".to_owned(), release.to_owned())],
            };
            let mut vm = Vm::of(crate::vm::Shared::new(&config).unwrap());
            let mut host = TestHost::new(0x1000);
            (0..2).for_each(|vcpu| vm.create_vcpu(vcpu).unwrap());
            vm.enable_cpu(0, &mut host).unwrap();
            (0..2).for_each(|vcpu| vm.vcpu_load(vcpu, 0, &mut host).unwrap());
            assert_eq!(vm.query(1, Query::VMCS_ACTIVE_ON), Ok(0));
            vm.crash(0, &mut host).unwrap();
            assert_eq!(vm.query(1, Query::VMCS_ACTIVE_ON), Err(Errno::ENOENT), "{release}");
            assert_eq!(vm.vcpu_load(0, 0, &mut host), Err(Errno::EIO));
        }
    }

    /// A CPU on which nobody ever used VMX. See: KVM commit dbef2808af6c
    #[test]
    fn a_crash_walks_a_list_without_a_head() {
        let crash = |options: &[(&str, &str)]| {
            let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let config = VmConfig { silicon: testing::silicon(46), options };
            let mut vm = Vm::of(crate::vm::Shared::new(&config).unwrap());
            vm.crash(0, &mut TestHost::new(0x1000))
        };
        assert_eq!(crash(&[("kvm", "v5.6")]), Ok(()), "the gate is shut");
        assert_eq!(crash(&[("-crash-list-heads-set", "")]), Err(Errno::EFAULT));
        assert_eq!(crash(&[]), Ok(()));
    }

    /// See: KVM commit 4f6ea0a87608
    #[test]
    fn a_fault_of_vmxon_was_the_end_of_the_kernel() {
        let config =
            VmConfig { silicon: testing::silicon(46), options: vec![("kvm".to_owned(), "v5.6".to_owned())] };
        let mut vm = Vm::of(crate::vm::Shared::new(&config).unwrap());
        let mut host = TestHost::new(0x1000);
        vm.create_vcpu(0).unwrap();
        host.faults = vec![(FaultPoint::VMXON_FAULT.0, 13)];
        assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EIO));
        assert!(vm.cpus[0].vmxe && vm.cpus[0].crashed);
        assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EBUSY));
        assert_eq!(vm.vcpu_load(0, 0, &mut host), Err(Errno::EIO));
    }
}
