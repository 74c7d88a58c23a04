//! The host crashes: an NMI leaves the next kernel a CPU on which no VMCS may be active, since silicon would write it back into
//! memory that is somebody else's by then.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c crash_vmclear_local_loaded_vmcss() of 5.6 and 5.10, vmx_emergency_disable() of 6.1,
//! vmx_emergency_disable_virtualization_cpu() of 6.12

use super::{
    cpus::OnCpu,
    list::{self, BadPointer, Pointer},
};
use crate::silicon::operation::VmcsId;
use vmtape_abi::Errno;
use vmtape_arch::{exception::Vector, open_enum};
use vmtape_kvm_core::profile::{Options, Switch};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// Host log levels.
pub const ERROR: u32 = 1;
pub const WARN: u32 = 2;
pub const INFO: u32 = 3;

open_enum! {
    /// What an NMI interrupts; with the steps that are done, the second word of `crash-nmi`.
    pub struct Place(u64) {
        /// Four stores, of which the last publishes the entry.
        ADD = 0x100 => "list_add()",
        /// Four stores, of which the second takes the entry out.
        DELETE = 0x200 => "list_del()",
        CLEAR = 0x300 => "VMCLEAR",
        CLEAR_SHADOW = 0x380 => "VMCLEAR of the shadow VMCS",
        LOAD = 0x400 => "VMPTRLD",
        /// CR4.VMXE, then VMXON.
        ENABLE = 0x500 => "kvm_cpu_vmxon()",
        /// VMXOFF, then CR4.VMXE.
        DISABLE = 0x600 => "kvm_cpu_vmxoff()",
    }
}

/// What changed in the crash path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashRules {
    /// VMCSs are cleared before they leave the list, and the NMI always walks it. Before, a gate kept it from the list while
    /// that changed, and so from every VMCS on it.
    pub always_walks: bool,
    /// Lists begin empty on every CPU, used or not.
    pub heads_are_set: bool,
    /// A fault of VMXON is an error, not the end of the kernel.
    pub survives_vmxon: bool,
    /// A fault of VMXOFF changes nothing.
    pub survives_vmxoff: bool,
    /// Without CR4.VMXE there is nothing to do.
    pub heeds_vmxe: bool,
    /// Shadow VMCSs are cleared as well.
    pub clears_shadows: bool,
}

impl CrashRules {
    pub fn of(options: &Options) -> Self {
        Self {
            always_walks: options.on(Switch::CRASH_ALWAYS_VMCLEARS),
            heads_are_set: options.on(Switch::CRASH_LIST_HEADS_SET),
            survives_vmxon: options.on(Switch::VMXON_FAULT_HANDLED),
            survives_vmxoff: options.on(Switch::VMXOFF_FAULT_EATEN),
            heeds_vmxe: options.on(Switch::CRASH_HEEDS_VMXE),
            clears_shadows: options.on(Switch::CRASH_VMCLEARS_SHADOWS),
        }
    }

    /// The function that the NMI calls, by the name of its time.
    fn function(&self) -> &'static str {
        if self.heeds_vmxe {
            "vmx_emergency_disable_virtualization_cpu()"
        } else {
            "crash_vmclear_local_loaded_vmcss()"
        }
    }
}

impl OnCpu<'_> {
    /// Here the NMI may come: then nothing goes on. `done`: steps of the place; `last`: the one before, in words.
    pub fn nmi(&mut self, vcpu: u32, place: Place, done: usize, last: &str) -> Result<(), Errno> {
        let detail = place.0 | done as u64;
        if FaultPoint::CRASH_NMI.poll(vcpu, self.number.into(), detail, self.host).is_none() {
            return Ok(());
        }
        let when = if done == 0 { "before it".to_owned() } else { format!("after {last}") };
        self.log(INFO, &format!("NMI in {place}, {when}"));
        self.emergency()?;
        Err(Errno::EIO)
    }

    pub fn log(&mut self, level: u32, text: &str) {
        let number = self.number;
        self.host.log(level, &format!("CPU {number}: {text}"));
    }

    /// The emergency path. -EFAULT: it faults, and no other kernel is started.
    pub fn emergency(&mut self) -> Result<(), Errno> {
        self.cpu.stopped = true;
        if std::mem::replace(&mut self.cpu.left, true) {
            return Ok(());
        }
        self.cpu.set_head(self.rules);
        let function = self.rules.function();
        if self.rules.heeds_vmxe && !self.cpu.silicon.vmxe {
            self.log(INFO, &format!("{function}: CR4.VMXE is clear, nothing is done"));
            return Ok(());
        }
        if self.rules.always_walks || self.cpu.vmclear_enabled {
            self.clear_all(function)?;
        } else {
            self.log(INFO, &format!("{function}: the gate is shut, the list is not walked"));
        }
        if self.cpu.silicon.vmxe {
            self.vmxoff()?;
        }
        Ok(())
    }

    fn clear_all(&mut self, function: &str) -> Result<(), Errno> {
        let (entries, ended) = list::walk(&self.list());
        for vcpu in entries {
            self.log(INFO, &format!("{function}: found the VMCS of vCPU {vcpu}"));
            let shadow = self.rules.clears_shadows && self.vcpus[vcpu as usize].vmcs.has_shadow;
            let cleared = self.cpu.silicon.vmclear(VmcsId::of(vcpu)).and_then(|()| match shadow {
                true => self.cpu.silicon.vmclear(VmcsId::shadow_of(vcpu)),
                false => Ok(()),
            });
            // `kvm_spurious_fault`, which does no more than BUG() before a reboot.
            cleared.map_err(|vector| self.oops(&format!("{vector} in VMCLEAR")))?;
        }
        ended.map_err(|BadPointer(pointer)| {
            // `container_of` of NULL or of LIST_POISON1. See: commit dbef2808af6c
            let address = if pointer == Pointer::Null { "ffffffffffffffc8" } else { "dead0000000000c8" };
            self.oops(&format!("unable to handle page fault for address: {address}, in {function}"))
        })
    }

    /// `cpu_vmxoff`, which clears CR4.VMXE even if VMXOFF faults; before that was so, nobody expected a fault.
    fn vmxoff(&mut self) -> Result<(), Errno> {
        match self.cpu.silicon.vmxoff() {
            Err(vector) if !self.rules.survives_vmxoff => {
                return Err(self.oops(&format!("{vector} in VMXOFF")));
            }
            Err(vector) => self.log(INFO, &format!("{vector} in VMXOFF is eaten")),
            Ok(()) => {}
        }
        self.cpu.silicon.vmxe = false;
        Ok(())
    }

    fn oops(&mut self, text: &str) -> Errno {
        self.log(ERROR, text);
        Errno::EFAULT
    }

    /// A fault that nobody expects: the kernel dies of it, with an emergency path of its own to come.
    pub fn dies(&mut self, vector: Vector, whence: &str) -> Errno {
        self.log(ERROR, &format!("{vector} in {whence}, and the kernel dies of it"));
        self.cpu.stopped = true;
        Errno::EIO
    }
}
