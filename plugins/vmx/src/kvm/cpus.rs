//! Physical CPUs: VMX operation on and off, and which VMCSs each CPU has loaded.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_hardware_enable(), vmx_vcpu_load_vmcs(), __loaded_vmcs_clear(), of 5.6 and 6.12

use super::{
    crash::{CrashRules, Place, WARN},
    list::{self, List, ListHead, Pointer},
};
use crate::{
    silicon::operation::{Processor, VmcsId},
    vm::VmxVcpu,
};
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, Errno, Host};
use vmtape_arch::exception::Vector;
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// IA32_FEATURE_CONTROL of a host that runs KVM: locked, VMX outside SMX.
const FEAT_CTL: u64 = 1 << 0 | 1 << 2;

/// A physical CPU, and what `kvm_intel` keeps for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    pub silicon: Processor,
    /// `current_vmcs`, by vCPU.
    pub current: Option<u32>,
    /// `loaded_vmcss_on_cpu`, newest first: VMCSs that may be active here.
    pub loaded: ListHead,
    /// Its bit in `crash_vmclear_bitmap`, up to v5.6: the gate is open.
    pub vmclear_enabled: bool,
    /// The host has crashed: nothing runs here any more.
    pub stopped: bool,
    /// The emergency path has been here.
    pub left: bool,
}

impl Cpu {
    /// `vmx_init` sets up the heads of all CPUs, where it does.
    pub fn set_head(&mut self, rules: CrashRules) {
        if rules.heads_are_set && !self.loaded.is_initialized() {
            self.loaded = ListHead::EMPTY;
        }
    }
}

/// `struct loaded_vmcs` of a vCPU, as far as CPUs are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedVmcs {
    /// The CPU on whose list it is.
    pub cpu: Option<u32>,
    /// VMLAUNCH has been executed since the last VMCLEAR: the next entry is a VMRESUME.
    pub launched: bool,
    /// There is a shadow VMCS: the guest is a hypervisor that has executed VMXON.
    pub has_shadow: bool,
    /// `loaded_vmcss_on_cpu_link`.
    pub link: ListHead,
}

/// KVM at work on a physical CPU.
pub struct OnCpu<'a> {
    pub number: u32,
    pub cpu: &'a mut Cpu,
    pub vcpus: &'a mut [VmxVcpu],
    pub rules: CrashRules,
    pub host: &'a mut dyn Host,
}

/// The list of a CPU, whose links are in the vCPUs.
pub struct Loaded<'a> {
    head: &'a mut ListHead,
    vcpus: &'a mut [VmxVcpu],
}

impl List for Loaded<'_> {
    fn at(&self, node: Pointer) -> ListHead {
        match node {
            Pointer::Entry(vcpu) => self.vcpus[vcpu as usize].vmcs.link,
            _ => *self.head,
        }
    }

    fn at_mut(&mut self, node: Pointer) -> &mut ListHead {
        match node {
            Pointer::Entry(vcpu) => &mut self.vcpus[vcpu as usize].vmcs.link,
            _ => self.head,
        }
    }
}

impl OnCpu<'_> {
    /// `loaded_vmcss_on_cpu`.
    pub fn list(&mut self) -> Loaded<'_> {
        Loaded { head: &mut self.cpu.loaded, vcpus: self.vcpus }
    }

    /// `vmx_hardware_enable`, `kvm_cpu_vmxon`.
    pub fn enable(&mut self) -> Result<(), Errno> {
        let number = self.number.into();
        let busy = FaultPoint::ENABLE_BUSY.poll(ALL_VCPUS, number, 0, self.host).is_some();
        if busy || self.cpu.silicon.vmxe {
            return Err(Errno::EBUSY);
        }
        if !self.cpu.loaded.is_initialized() {
            self.cpu.loaded = ListHead::EMPTY;
        }
        self.cpu.vmclear_enabled = !self.rules.always_walks;
        self.nmi(ALL_VCPUS, Place::ENABLE, 0, "")?;
        self.cpu.silicon.vmxe = true;
        self.nmi(ALL_VCPUS, Place::ENABLE, 1, "CR4.VMXE")?;
        let injected = FaultPoint::VMXON_FAULT.poll(ALL_VCPUS, number, FEAT_CTL, self.host);
        let done = match injected {
            Some(vector) => Err(Vector(vector as u8)),
            None => self.cpu.silicon.vmxon(),
        };
        if let Err(vector) = done {
            if !self.rules.survives_vmxon {
                // With CR4.VMXE set.
                return Err(self.dies(vector, "hardware_enable(): VMXON faulted"));
            }
            self.cpu.silicon.vmxe = false;
            // See: commit 4f6ea0a87608
            let text = format!("VMXON faulted ({vector}), MSR_IA32_FEAT_CTL (0x3a) = {FEAT_CTL:#x}");
            self.log(WARN, &text);
            return Err(Errno::EFAULT);
        }
        self.nmi(ALL_VCPUS, Place::ENABLE, 2, "VMXON")
    }

    /// `vmx_hardware_disable`: `vmclear_local_loaded_vmcss`, then VMXOFF. -EIO: VMXOFF faults outside VMX operation; CR4.VMXE is
    /// cleared all the same.
    pub fn disable(&mut self) -> Result<(), Errno> {
        let (entries, _) = list::walk(&self.list());
        for vcpu in entries {
            self.loaded_vmcs_clear(vcpu)?;
        }
        self.nmi(ALL_VCPUS, Place::DISABLE, 0, "")?;
        let left = self.cpu.silicon.vmxoff().map_err(|_| Errno::EIO);
        self.nmi(ALL_VCPUS, Place::DISABLE, 1, "VMXOFF")?;
        self.cpu.silicon.vmxe = false;
        self.cpu.current = None;
        self.nmi(ALL_VCPUS, Place::DISABLE, 2, "CR4.VMXE")?;
        left
    }

    /// `vmx_vcpu_load_vmcs`, the list's part.
    fn add(&mut self, vcpu: u32) -> Result<(), Errno> {
        let stores = list::add(&self.list(), vcpu);
        self.vcpus[vcpu as usize].vmcs.cpu = Some(self.number);
        self.gated(|on| on.store_all(vcpu, Place::ADD, &stores))
    }

    /// `vmx_vcpu_load_vmcs`, silicon's part.
    fn make_current(&mut self, vcpu: u32) -> Result<(), Errno> {
        if self.cpu.current.replace(vcpu) == Some(vcpu) {
            return Ok(());
        }
        self.nmi(vcpu, Place::LOAD, 0, "")?;
        let loaded = self.cpu.silicon.vmptrld(VmcsId::of(vcpu));
        loaded.map_err(|vector| self.dies(vector, "VMPTRLD"))?;
        self.nmi(vcpu, Place::LOAD, 1, "VMPTRLD")
    }

    /// `__loaded_vmcs_clear`. Before v5.7 the VMCS left the list before it was cleared, under a gate.
    fn loaded_vmcs_clear(&mut self, vcpu: u32) -> Result<(), Errno> {
        if self.cpu.current == Some(vcpu) {
            self.cpu.current = None;
        }
        let stores = list::delete(&self.list(), vcpu);
        if self.rules.always_walks {
            self.vmclear(vcpu)?;
            self.store_all(vcpu, Place::DELETE, &stores)?;
        } else {
            self.gated(|on| {
                on.store_all(vcpu, Place::DELETE, &stores)?;
                on.vmclear(vcpu)
            })?;
        }
        let vmcs = &mut self.vcpus[vcpu as usize].vmcs;
        *vmcs = LoadedVmcs { has_shadow: vmcs.has_shadow, link: vmcs.link, ..LoadedVmcs::default() };
        Ok(())
    }

    /// `crash_disable_local_vmclear`, `crash_enable_local_vmclear`, up to v5.6.
    fn gated(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Errno>) -> Result<(), Errno> {
        self.cpu.vmclear_enabled = false;
        work(self)?;
        self.cpu.vmclear_enabled = !self.rules.always_walks;
        Ok(())
    }

    fn store_all(&mut self, vcpu: u32, place: Place, stores: &[list::Store]) -> Result<(), Errno> {
        self.nmi(vcpu, place, 0, "")?;
        for (done, store) in (1..).zip(stores) {
            self.list().store(*store);
            self.nmi(vcpu, place, done, store.text)?;
        }
        Ok(())
    }

    /// `vmcs_clear`, of the shadow VMCS too if the VMCS was launched: VM entry made that one active.
    fn vmclear(&mut self, vcpu: u32) -> Result<(), Errno> {
        self.nmi(vcpu, Place::CLEAR, 0, "")?;
        let cleared = self.cpu.silicon.vmclear(VmcsId::of(vcpu));
        cleared.map_err(|vector| self.dies(vector, "VMCLEAR"))?;
        self.vcpus[vcpu as usize].vmcs01.launched = false;
        self.nmi(vcpu, Place::CLEAR, 1, "VMCLEAR")?;
        let vmcs = self.vcpus[vcpu as usize].vmcs;
        if vmcs.has_shadow && vmcs.launched {
            let cleared = self.cpu.silicon.vmclear(VmcsId::shadow_of(vcpu));
            cleared.map_err(|vector| self.dies(vector, "VMCLEAR"))?;
            self.nmi(vcpu, Place::CLEAR_SHADOW, 1, "VMCLEAR")?;
        }
        Ok(())
    }
}

/// `vmx_vcpu_load_vmcs`. True: the VMCS was not on this CPU. -EIO: the host has crashed meanwhile.
pub fn load(
    vcpu: u32,
    vcpus: &mut [VmxVcpu],
    cpus: &mut [Cpu],
    number: u32,
    rules: CrashRules,
    host: &mut dyn Host,
) -> Result<bool, Errno> {
    if cpus.iter().any(|cpu| cpu.stopped) {
        return Err(Errno::EIO);
    }
    let old = vcpus[vcpu as usize].vmcs.cpu;
    if let Some(old) = old.filter(|old| *old != number) {
        // Where it is, which is told by an interrupt.
        let cpu = &mut cpus[old as usize];
        OnCpu { number: old, cpu, vcpus, rules, host }.loaded_vmcs_clear(vcpu)?;
    }
    let mut on = OnCpu { number, cpu: &mut cpus[number as usize], vcpus, rules, host };
    if old != Some(number) {
        on.add(vcpu)?;
    }
    on.make_current(vcpu)?;
    Ok(old != Some(number))
}

/// The CPU on which a VMCS is active.
pub fn active_on(cpus: &[Cpu], vmcs: VmcsId) -> Result<u64, Errno> {
    let on = cpus.iter().position(|cpu| cpu.silicon.active.contains(&vmcs));
    on.map(|number| number as u64).ok_or(Errno::ENOENT)
}
