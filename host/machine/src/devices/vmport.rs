//! VMware's backdoor port as QEMU has it: a call with its magic and number in EAX and ECX, and answers in registers too.
//!
//! See: QEMU 10 hw/i386/vmport.c

use vmtape_arch::{
    open_enum,
    vcpu::{VcpuState, gpr},
    vmware,
};

open_enum! {
    /// Calls that are answered; QEMU has more where its mouse is VMware's too.
    pub struct Command(u8) {
        GET_VERSION = 0x0a => "VMPORT_CMD_GETVERSION",
        GET_RAM_SIZE = 0x14 => "VMPORT_CMD_GETRAMSIZE",
    }
}

/// Version 6 of a VMX of type 2 (ESX server).
const VERSION: u32 = 6;
const VMX_TYPE: u64 = 2;
/// What EBX has beside the size of RAM.
const RAM_SIZE_EBX: u64 = 0x1177;

/// The port. Nothing of a call stays behind.
#[derive(Default)]
pub struct VmPort {
    ram: u64,
    /// EAX and ECX of the vCPU whose exit is being handled.
    caller: [u64; 2],
    /// What the registers get that the access does not write: RBX, RCX.
    answer: [Option<u64>; 2],
}

impl VmPort {
    pub fn new(ram: u64) -> Self {
        Self { ram, ..Self::default() }
    }

    /// An exit of a vCPU is handled.
    pub fn begin_exit(&mut self, state: &VcpuState) {
        self.caller = [state.gpr[gpr::RAX], state.gpr[gpr::RCX]];
    }

    /// The access; gives EAX.
    pub fn call(&mut self) -> u32 {
        let [eax, ecx] = self.caller.map(|register| register as u32);
        if eax != vmware::MAGIC {
            return u32::MAX;
        }
        match Command(ecx as u8) {
            Command::GET_VERSION => {
                self.answer = [Some(vmware::MAGIC.into()), Some(VMX_TYPE)];
                VERSION
            }
            Command::GET_RAM_SIZE => {
                self.answer = [Some(RAM_SIZE_EBX), None];
                self.ram as u32
            }
            _ => u32::MAX,
        }
    }

    /// Writes the answer's other registers, if a call was answered.
    pub fn end_exit(&mut self, state: &mut VcpuState) {
        for (register, value) in [gpr::RBX, gpr::RCX].into_iter().zip(std::mem::take(&mut self.answer)) {
            state.gpr[register] = value.unwrap_or(state.gpr[register]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(eax: u32, ecx: u64) -> (u32, VcpuState) {
        let mut state = VcpuState::reset();
        (state.gpr[gpr::RAX], state.gpr[gpr::RCX], state.gpr[gpr::RBX]) = (eax.into(), ecx, 7);
        let mut port = VmPort::new(5 << 30);
        port.begin_exit(&state);
        let answer = port.call();
        port.end_exit(&mut state);
        (answer, state)
    }

    #[test]
    fn calls_are_answered_in_registers() {
        let (version, state) = called(vmware::MAGIC, 0x0a);
        assert_eq!((version, state.gpr[gpr::RBX], state.gpr[gpr::RCX]), (6, vmware::MAGIC.into(), 2));
        let (size, state) = called(vmware::MAGIC, 0xdead_0014);
        assert_eq!((size, state.gpr[gpr::RBX], state.gpr[gpr::RCX]), (1 << 30, 0x1177, 0xdead_0014));
    }

    #[test]
    fn what_is_no_call_changes_nothing() {
        for (eax, ecx) in [(vmware::MAGIC, 0xfff), (0, 0x0a), (vmware::MAGIC, 0)] {
            let (answer, state) = called(eax, ecx);
            assert_eq!((answer, state.gpr[gpr::RBX], state.gpr[gpr::RCX]), (u32::MAX, 7, ecx));
        }
    }
}
