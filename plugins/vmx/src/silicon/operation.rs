//! VMX operation of a logical processor, and the VMCSs whose data it holds.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, sections 24.7 Enabling and Entering VMX Operation, 25.11 Software Use of the
//! VMCS and Related Structures, chapter 31 VMX Instruction Reference.

use serde::{Deserialize, Serialize};
use vmtape_arch::exception::Vector;

/// A VMCS by the vCPU that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VmcsId {
    pub vcpu: u32,
    /// The shadow VMCS, which the link pointer of the other one names.
    pub shadow: bool,
}

impl VmcsId {
    pub fn of(vcpu: u32) -> Self {
        Self { vcpu, shadow: false }
    }

    pub fn shadow_of(vcpu: u32) -> Self {
        Self { vcpu, shadow: true }
    }
}

/// A logical processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// CR4.VMXE.
    pub vmxe: bool,
    /// In VMX root operation, which blocks INIT.
    pub vmxon: bool,
    /// The current-VMCS pointer.
    pub current: Option<VmcsId>,
    /// Active VMCSs: their data may be here rather than in memory, and go there at any time.
    pub active: Vec<VmcsId>,
}

impl Processor {
    /// VMXON, of which everything but CR4.VMXE is as it must be.
    pub fn vmxon(&mut self) -> Result<(), Vector> {
        if !self.vmxe {
            return Err(Vector::UD);
        }
        self.vmxon = true;
        Ok(())
    }

    /// VMXOFF. What was active stays so.
    pub fn vmxoff(&mut self) -> Result<(), Vector> {
        self.in_operation()?;
        (self.vmxon, self.current) = (false, None);
        Ok(())
    }

    /// VMPTRLD. See: 25.11.1 Software Use of Virtual-Machine Control Structures
    pub fn vmptrld(&mut self, vmcs: VmcsId) -> Result<(), Vector> {
        self.in_operation()?;
        self.current = Some(vmcs);
        self.activate(vmcs);
        Ok(())
    }

    /// VMCLEAR: the data are in memory. Of a VMCS that is not active it changes no more than its launch state.
    pub fn vmclear(&mut self, vmcs: VmcsId) -> Result<(), Vector> {
        self.in_operation()?;
        self.active.retain(|active| *active != vmcs);
        if self.current == Some(vmcs) {
            self.current = None;
        }
        Ok(())
    }

    /// VMPTRLD makes a VMCS active, and VM entry with VMCS shadowing the one that the link pointer names.
    pub fn activate(&mut self, vmcs: VmcsId) {
        if !self.active.contains(&vmcs) {
            self.active.push(vmcs);
        }
    }

    fn in_operation(&self) -> Result<(), Vector> {
        if self.vmxon { Ok(()) } else { Err(Vector::UD) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_vmx_operation_everything_is_ud() {
        let mut cpu = Processor::default();
        let id = VmcsId::of(0);
        for result in [cpu.vmxon(), cpu.vmxoff(), cpu.vmptrld(id), cpu.vmclear(id)] {
            assert_eq!(result, Err(Vector::UD));
        }
    }

    #[test]
    fn a_vmcs_is_active_from_vmptrld_to_vmclear_and_beyond_vmxoff() {
        let mut cpu = Processor { vmxe: true, ..Default::default() };
        cpu.vmxon().unwrap();
        cpu.vmptrld(VmcsId::of(0)).unwrap();
        cpu.vmptrld(VmcsId::of(1)).unwrap();
        cpu.vmclear(VmcsId::of(0)).unwrap();
        assert_eq!((&cpu.active[..], cpu.current), (&[VmcsId::of(1)][..], Some(VmcsId::of(1))));
        cpu.vmxoff().unwrap();
        assert_eq!((&cpu.active[..], cpu.current), (&[VmcsId::of(1)][..], None));
    }
}
