//! Exits that KVM handles without its emulator: port I/O, HLT.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_fast_pio(), kvm_emulate_halt()

use crate::vcpu::Vcpu;
use vmtape_abi::{BusOp, BusSpace, Host};
use vmtape_arch::{
    exit::{Resume, ResumeKind},
    note::Note,
    vcpu::{Activity, VcpuState, gpr},
};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// A port access as both vendors' exits describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pio {
    pub port: u16,
    pub size: u8,
    pub input: bool,
    pub insn_len: u8,
}

/// `kvm_fast_pio`: IN or OUT with RAX, first in the kernel's devices, then in userspace.
pub fn fast_pio(vcpu: &mut Vcpu, state: &mut VcpuState, pio: &Pio, host: &mut dyn Host) -> Resume {
    let Pio { port, size, input, insn_len } = *pio;
    let mask = u64::MAX >> (64 - 8 * u32::from(size));
    let value = state.gpr[gpr::RAX] & mask;
    let note = |value| Note::Pio { write: !input, port, size, count: 1, value };
    if !input {
        vcpu.note(note(value), host);
    }
    let mut op = BusOp {
        space: BusSpace::KERNEL_PIO,
        write: (!input).into(),
        size,
        address: port.into(),
        data: value,
        pad: 0,
    };
    if input {
        op.data = 0;
    }
    if !host.bus(vcpu.id, &mut op) {
        vcpu.note(Note::UserspaceExit { reason: ResumeKind::IO.0, errno: 0 }, host);
        op.space = BusSpace::USER_PIO;
        host.bus(vcpu.id, &mut op);
        if input {
            let stale = FaultPoint::USER_IO_STALE.poll(vcpu.id, port.into(), op.data & mask, host);
            op.data = stale.unwrap_or(op.data);
        }
    }
    if input {
        let data = op.data & mask;
        vcpu.note(note(data), host);
        let kept = if size < 4 { state.gpr[gpr::RAX] & !mask } else { 0 };
        state.gpr[gpr::RAX] = kept | data;
    }
    vcpu.skip(state, insn_len);
    Resume::GUEST
}

/// `kvm_emulate_halt` with the interrupt controllers in the kernel: the vCPU blocks until an event is pending.
pub fn halt(vcpu: &mut Vcpu, state: &mut VcpuState, insn_len: u8) -> Resume {
    vcpu.skip(state, insn_len);
    block(vcpu, state)
}

/// `kvm_vcpu_halt`, once the instruction is skipped.
pub fn block(vcpu: &Vcpu, state: &mut VcpuState) -> Resume {
    if vcpu.events.any() {
        return Resume::GUEST;
    }
    state.activity = Activity::HLT;
    Resume::new(ResumeKind::BLOCKED)
}
