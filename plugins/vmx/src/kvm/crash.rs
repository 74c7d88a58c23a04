//! The host crashes: an NMI leaves the kdump kernel a CPU on which no VMCS may be active, since silicon would write it back
//! into memory that is somebody else's by then.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c crash_vmclear_local_loaded_vmcss() of 5.6, vmx_emergency_disable() of 6.1

use super::cpus::Cpu;
use vmtape_abi::{Errno, Host};
use vmtape_arch::open_enum;
use vmtape_kvm_core::profile::{Options, Switch};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// Host log level of an error.
const ERROR: u32 = 1;

open_enum! {
    /// Where in the handling of a CPU's list of loaded VMCSs an NMI comes; with the steps that are done, the second word of
    /// `crash-nmi`.
    pub struct Place(u64) {
        /// Four stores, of which the last publishes the entry. See: include/linux/list.h __list_add()
        ADD = 0x100 => "list_add",
        /// Two stores, of which the last takes the entry out. See: include/linux/list.h __list_del()
        DELETE = 0x200 => "list_del",
        /// VMCLEAR of the VMCS that leaves.
        CLEAR = 0x300 => "VMCLEAR",
    }
}

/// What changed in the crash path. All of it came with v5.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashRules {
    /// VMCSs are cleared before they leave the list, and the NMI always walks it. Before, a gate kept it from the list while
    /// that changed, and so from every VMCS on it.
    pub always_walks: bool,
    /// Lists begin empty on every CPU, used or not.
    pub heads_are_set: bool,
    /// A fault of VMXON is an error, not the end of the kernel.
    pub survives_vmxon: bool,
}

impl CrashRules {
    pub fn of(options: &Options) -> Self {
        Self {
            always_walks: options.on(Switch::CRASH_ALWAYS_VMCLEARS),
            heads_are_set: options.on(Switch::CRASH_LIST_HEADS_SET),
            survives_vmxon: options.on(Switch::VMXON_FAULT_HANDLED),
        }
    }
}

/// The NMI that may come to a CPU while its list changes.
pub struct Nmi<'a> {
    pub rules: CrashRules,
    pub host: &'a mut dyn Host,
}

impl Nmi<'_> {
    /// It may come here: then nothing goes on.
    pub fn at(
        &mut self,
        number: u32,
        cpu: &mut Cpu,
        vcpu: u32,
        place: Place,
        done: u64,
    ) -> Result<(), Errno> {
        if FaultPoint::CRASH_NMI.poll(vcpu, number.into(), place.0 | done, self.host).is_none() {
            return Ok(());
        }
        let gate = self.rules.always_walks;
        self.crash(cpu, gate)?;
        Err(Errno::EIO)
    }

    /// `crash_vmclear_local_loaded_vmcss`, then VMXOFF. `gate`: the list may be walked.
    pub fn crash(&mut self, cpu: &mut Cpu, gate: bool) -> Result<(), Errno> {
        if std::mem::replace(&mut cpu.crashed, true) {
            return Ok(());
        }
        if !cpu.has_list && self.rules.always_walks && !self.rules.heads_are_set {
            // The walk of a head of zeroes, which faults, and again in the crash that follows. See: commit dbef2808af6c
            let function = "crash_vmclear_local_loaded_vmcss";
            self.host.log(
                ERROR,
                &format!("unable to handle page fault for address: ffffffffffffffc8, in {function}"),
            );
            return Err(Errno::EFAULT);
        }
        if gate {
            let Cpu { active, loaded, .. } = cpu;
            active.retain(|vcpu| !loaded.contains(vcpu));
        }
        (cpu.vmxe, cpu.vmxon) = (false, false);
        Ok(())
    }
}
