//! Physical CPUs, and crashes at single moments. `vmtape host crash` tries all moments.

use crate::{
    Vm,
    kvm::{
        cpus::{Cpu, LoadedVmcs},
        crash::Place,
        list,
        list::ListHead,
    },
    silicon::operation::{Processor, VmcsId},
    testing,
};
use vmtape_abi::{Backend, Errno, Query, VmConfig};
use vmtape_arch::vcpu::VcpuState;
use vmtape_kvm_mmu::fault_points::FaultPoint;
use vmtape_testing::TestHost;

fn vm(options: &[(&str, &str)], vcpus: u32, cpus: u32) -> (Vm, TestHost) {
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let config = VmConfig { silicon: testing::silicon(46), options };
    let mut vm = Vm::of(crate::vm::Shared::new(&config).unwrap());
    let mut host = TestHost::new(0x1000);
    (0..vcpus).for_each(|vcpu| vm.create_vcpu(vcpu).unwrap());
    (0..cpus).for_each(|cpu| vm.enable_cpu(cpu, &mut host).unwrap());
    (vm, host)
}

/// The vCPUs on a CPU's list.
fn loaded(vm: &mut Vm, number: u32) -> Vec<u32> {
    let rules = crate::kvm::crash::CrashRules::of(&vm.shared.kvm.options);
    let (cpu, vcpus) = (&mut vm.cpus[number as usize], &mut vm.vcpus[..]);
    let host = &mut TestHost::new(0);
    list::walk(&crate::kvm::cpus::OnCpu { number, cpu, vcpus, rules, host }.list()).0
}

fn active(vm: &Vm, cpu: usize) -> Vec<u32> {
    let mut active: Vec<_> = vm.cpus[cpu].silicon.active.iter().map(|vmcs| vmcs.vcpu).collect();
    active.sort_unstable();
    active
}

#[test]
fn a_vmcs_is_on_one_list_and_cleared_where_it_leaves() {
    let (mut vm, mut host) = vm(&[], 3, 2);
    for vcpu in 0..3 {
        vm.vcpu_load(vcpu, 0, &mut host).unwrap();
    }
    assert_eq!((loaded(&mut vm, 0), vm.cpus[0].current), (vec![2, 1, 0], Some(2)));
    let mut state = VcpuState::reset();
    vm.enter(1, &mut state, &mut host);
    assert!(vm.vcpus[1].vmcs.launched);
    // Again on the same CPU: nothing is cleared.
    vm.vcpu_load(1, 0, &mut host).unwrap();
    assert!(vm.vcpus[1].vmcs.launched && vm.cpus[0].silicon.current == Some(VmcsId::of(1)));
    vm.vcpu_load(1, 1, &mut host).unwrap();
    let LoadedVmcs { cpu, launched, .. } = vm.vcpus[1].vmcs;
    assert_eq!((cpu, launched, vm.vcpus[1].vmcs01.launched), (Some(1), false, false));
    assert_eq!((loaded(&mut vm, 0), vm.cpus[0].current), (vec![2, 0], None));
    assert_eq!((loaded(&mut vm, 1), vm.cpus[1].current), (vec![1], Some(1)));
    assert_eq!((active(&vm, 0), active(&vm, 1)), (vec![0, 2], vec![1]));
}

#[test]
fn vmxoff_clears_all() {
    for kvm in ["v5.6", "v6.12"] {
        let (mut vm, mut host) = vm(&[("kvm", kvm)], 2, 1);
        (0..2).for_each(|vcpu| vm.vcpu_load(vcpu, 0, &mut host).unwrap());
        assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EBUSY));
        assert_eq!(vm.disable_cpu(0, &mut host), Ok(()));
        // The gate, where there is one, stays open.
        let disabled = Cpu { loaded: ListHead::EMPTY, vmclear_enabled: kvm == "v5.6", ..Cpu::default() };
        assert_eq!((&vm.cpus[0], &vm.cpus[0].silicon), (&disabled, &Processor::default()));
        assert_eq!(vm.disable_cpu(0, &mut host), Err(Errno::EIO));
    }
}

#[test]
fn vmxon_may_fault() {
    let (mut vm, mut host) = vm(&[], 1, 0);
    host.faults = vec![(FaultPoint::VMXON_FAULT.0, 13)];
    assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EFAULT));
    let warned = "CPU 0: VMXON faulted (#GP), MSR_IA32_FEAT_CTL (0x3a) = 0x5";
    assert!(!vm.cpus[0].silicon.vmxe && host.logged == [warned], "{:?}", host.logged);
    assert_eq!(vm.enable_cpu(0, &mut host), Ok(()));
}

/// See: KVM commit 4f6ea0a87608
#[test]
fn a_fault_of_vmxon_was_the_end_of_the_kernel() {
    let (mut vm, mut host) = vm(&[("kvm", "v5.6")], 1, 0);
    host.faults = vec![(FaultPoint::VMXON_FAULT.0, 13)];
    assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EIO));
    assert!(vm.cpus[0].silicon.vmxe && vm.cpus[0].stopped);
    assert_eq!(vm.enable_cpu(0, &mut host), Err(Errno::EBUSY));
    assert_eq!(vm.vcpu_load(0, 0, &mut host), Err(Errno::EIO));
}

#[test]
fn what_cpus_hold_is_saved() {
    let (mut saved, mut host) = vm(&[], 2, 2);
    saved.vcpu_load(1, 1, &mut host).unwrap();
    let (mut other, _) = vm(&[], 2, 2);
    other.restore(&saved.save()).unwrap();
    assert_eq!((&other.cpus, other.vcpus[1].vmcs), (&saved.cpus, saved.vcpus[1].vmcs));
}

/// vCPU 1 of three moves away from CPU 0, or a fourth comes, and the host crashes at some place: which VMCSs are active on
/// CPU 0 in the kernel that follows.
fn left_active(options: &[(&str, &str)], adding: bool, place: u64) -> Vec<u32> {
    let (mut vm, mut host) = vm(options, 4, 2);
    (0..3).for_each(|vcpu| vm.vcpu_load(vcpu, 0, &mut host).unwrap());
    // Asked at each place; the answer comes at the one that is wanted.
    host.faults_at = vec![(FaultPoint::CRASH_NMI.0, place)];
    let moved = if adding { vm.vcpu_load(3, 0, &mut host) } else { vm.vcpu_load(1, 1, &mut host) };
    assert_eq!(moved, Err(Errno::EIO), "{place:#x}");
    assert!(vm.cpus[0].stopped && !vm.cpus[0].silicon.vmxon);
    let active = active(&vm, 0);
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
    let deleting = (0..=4).map(|done| (false, Place::DELETE.0 | done));
    for (adds, place) in adding.chain(clearing).chain(deleting) {
        assert_eq!(left_active(&[], adds, place), [], "{place:#x}");
    }
}

#[test]
fn a_gate_left_all_of_them_active_while_the_list_changed() {
    let old = [("kvm", "v5.6")];
    for done in 0..=4 {
        assert_eq!(left_active(&old, true, Place::ADD.0 | done), [0, 1, 2]);
        assert_eq!(left_active(&old, false, Place::DELETE.0 | done), [0, 1, 2]);
    }
    assert_eq!(left_active(&old, false, Place::CLEAR.0), [0, 1, 2]);
    assert_eq!(left_active(&old, false, Place::CLEAR.0 | 1), [0, 2]);
}

/// A CPU on which nobody ever used VMX. See: KVM commit dbef2808af6c
#[test]
fn a_crash_walks_a_list_without_a_head() {
    let crash = |options: &[(&str, &str)]| {
        let (mut vm, mut host) = vm(options, 0, 0);
        (vm.crash(0, &mut host), host.logged)
    };
    assert_eq!(crash(&[("kvm", "v5.6")]).0, Ok(()), "the gate is shut");
    let (crashed, logged) = crash(&[("kvm", "v5.7"), ("-crash-list-heads-set", "")]);
    assert_eq!(crashed, Err(Errno::EFAULT));
    assert!(logged[0].contains("address: ffffffffffffffc8"), "{logged:?}");
    assert_eq!(crash(&[("kvm", "v5.7")]).0, Ok(()));
    // It is looked at no more where CR4.VMXE is clear.
    assert_eq!(crash(&[("-crash-list-heads-set", "")]).0, Ok(()));
}

/// The NMI comes between CR4.VMXE and VMXON, so that VMXOFF faults. See: commit aec511ad1535
#[test]
fn a_fault_of_vmxoff_is_eaten() {
    for (kvm, answer) in [("v5.9", Errno::EFAULT), ("v5.10", Errno::EIO)] {
        let (mut vm, mut host) = vm(&[("kvm", kvm)], 0, 0);
        host.faults_at = vec![(FaultPoint::CRASH_NMI.0, Place::ENABLE.0 | 1)];
        assert_eq!(vm.enable_cpu(0, &mut host), Err(answer), "{kvm}");
        assert_eq!(vm.query(0, Query::CPU_VIRTUALIZES), Ok((kvm == "v5.9").into()));
    }
}

/// See: commits 355f4fb1405e, a0ee1d5faff1
#[test]
fn shadow_vmcss_are_active_from_vm_entry_on() {
    for (kvm, active) in [("v5.10", Ok(0)), ("v6.1", Err(Errno::ENOENT))] {
        let (mut vm, mut host) = vm(&[("kvm", kvm), ("shadow_vmcs", "on")], 1, 2);
        vm.vcpu_load(0, 0, &mut host).unwrap();
        assert_eq!(vm.query(0, Query::SHADOW_VMCS_ACTIVE_ON), Err(Errno::ENOENT));
        vm.enter(0, &mut VcpuState::reset(), &mut host);
        assert_eq!(vm.query(0, Query::SHADOW_VMCS_ACTIVE_ON), Ok(0));
        vm.vcpu_load(0, 1, &mut host).unwrap();
        assert_eq!(vm.query(0, Query::SHADOW_VMCS_ACTIVE_ON), Err(Errno::ENOENT), "cleared as it left");
        vm.vcpu_load(0, 0, &mut host).unwrap();
        vm.enter(0, &mut VcpuState::reset(), &mut host);
        vm.crash(0, &mut host).unwrap();
        assert_eq!(vm.query(0, Query::SHADOW_VMCS_ACTIVE_ON), active, "{kvm}");
        assert_eq!(vm.query(0, Query::VMCS_ACTIVE_ON), Err(Errno::ENOENT));
    }
}
