//! IN, OUT, INS and OUTS, with IOPL and the I/O permission bitmap.
//!
//! See: SDM vol. 1 19.5 Protected-Mode I/O; vol. 3C 26.1.1 Relative Priority of Faults and VM Exits

use super::{debug, descriptor::Mode};
use crate::{
    core::Core,
    env::Interrupted,
    insn::{Insn, Kind, prefix},
};
use iced_x86::Code;
use vmtape_arch::{
    PAGE_SIZE,
    descriptor::tss32,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{gpr, seg},
};

/// Iterations of a repeated instruction that retire together.
const MAX_ITERATIONS: u64 = 4096;

impl Core<'_> {
    /// #GP(0) unless the program may access the port.
    fn check_port(&mut self, port: u16, size: u8) -> Result<(), Interrupted> {
        let (mode, iopl) = (self.mode(), self.flags().iopl());
        if mode == Mode::Real || (mode != Mode::Virtual8086 && self.cpl() <= iopl) {
            return Ok(());
        }
        if self.env.opens_port(port) {
            return Ok(());
        }
        let tr = self.state.seg[seg::TR];
        // 16-bit task-state segments have no bitmap.
        self.require_gp0(tr.attr.typ() & 8 != 0 && tss32::IO_MAP_BASE < tr.limit)?;
        let map: u16 = self.system_read(tr.base.wrapping_add(tss32::IO_MAP_BASE as u64))?;
        let at = map as u32 + port as u32 / 8;
        self.require_gp0(at < tr.limit)?;
        let bits: u16 = self.system_read(tr.base.wrapping_add(at as u64))?;
        let wanted = ((1u32 << size) - 1) << (port % 8);
        self.require_gp0(bits as u32 & wanted == 0)
    }

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        debug::port_access(self, port, size as u64);
        let value = self.env.port(self.state, port, size, None);
        self.after_env();
        value
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        debug::port_access(self, port, size as u64);
        self.env.port(self.state, port, size, Some(value));
        self.after_env();
    }
}

fn size_of(insn: &Insn) -> u8 {
    use Code::*;
    match insn.code {
        In_AL_imm8 | In_AL_DX | Out_imm8_AL | Out_DX_AL | Insb_m8_DX | Outsb_DX_m8 => 1,
        In_AX_imm8 | In_AX_DX | Out_imm8_AX | Out_DX_AX | Insw_m16_DX | Outsw_DX_m16 => 2,
        _ => 4,
    }
}

/// The port, and whether it is an immediate.
fn port_of(core: &Core<'_>, insn: &Insn) -> (u16, bool) {
    let immediate = insn.kinds.contains(&Kind::Imm);
    let port = if immediate { insn.imm as u8 as u16 } else { core.state.gpr[gpr::RDX] as u16 };
    (port, immediate)
}

pub(super) fn input(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let ((port, immediate), size) = (port_of(core, insn), size_of(insn));
    core.check_port(port, size)?;
    let what = core.describe(insn, SensitiveKind::IN);
    core.sensitive(&Sensitive { number: port as u32, size, immediate: immediate.into(), ..what })?;
    let value = core.port_in(port, size);
    match size {
        1 => core.put(insn, 0, value as u8),
        2 => core.put(insn, 0, value as u16),
        _ => core.put(insn, 0, value),
    }
}

pub(super) fn output(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let ((port, immediate), size) = (port_of(core, insn), size_of(insn));
    core.check_port(port, size)?;
    let value = core.state.gpr[gpr::RAX] as u32 & (u32::MAX >> (32 - 8 * size as u32));
    let what = core.describe(insn, SensitiveKind::OUT);
    core.sensitive(&Sensitive {
        number: port as u32,
        size,
        value: value as u64,
        immediate: immediate.into(),
        ..what
    })?;
    core.port_out(port, size, value);
    Ok(())
}

/// INS and OUTS. An exit comes before every check of the memory operand.
pub(super) fn string(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let rep = insn.has(prefix::REP) || insn.has(prefix::REPNE);
    let mask = insn.address_mask();
    let ahead = read_ahead(core, insn, mask);
    if let (true, Some(elements)) = (rep, ahead) {
        core.env.reads_ahead(elements);
    }
    for n in 0..MAX_ITERATIONS {
        if rep && core.state.gpr[gpr::RCX] & mask == 0 {
            return Ok(());
        }
        iteration(core, insn, rep)?;
        if !rep {
            return Ok(());
        }
        let left = (core.state.gpr[gpr::RCX] & mask).wrapping_sub(1);
        set_address(core, gpr::RCX, mask, left);
        if core.leaves_repeat(left, ahead.map(|ahead| ahead.saturating_sub(n + 1))) {
            return Ok(());
        }
        if core.debug_traps != 0 || core.single_step {
            break;
        }
    }
    if core.state.gpr[gpr::RCX] & mask != 0 {
        core.next_rip = core.state.rip;
    }
    Ok(())
}

fn is_input(insn: &Insn) -> bool {
    matches!(insn.code, Code::Insb_m8_DX | Code::Insw_m16_DX | Code::Insd_m32_DX)
}

/// Iterations of INS whose input KVM's emulator reads at once; none for OUTS.
// See: KVM arch/x86/kvm/emulate.c pio_in_emulated(), which takes bytes of the page for iterations
fn read_ahead(core: &Core<'_>, insn: &Insn, mask: u64) -> Option<u64> {
    const BUFFER: u64 = 1024;
    let offset = core.state.gpr[gpr::RDI] % PAGE_SIZE;
    let on_page = if core.flags().df() { offset } else { PAGE_SIZE - offset };
    let count = core.state.gpr[gpr::RCX] & mask;
    is_input(insn).then(|| on_page.min(BUFFER / u64::from(size_of(insn))).min(count).max(1))
}

fn iteration(core: &mut Core<'_>, insn: &Insn, rep: bool) -> Result<(), Interrupted> {
    let input = is_input(insn);
    let (port, size) = (core.state.gpr[gpr::RDX] as u16, size_of(insn));
    core.check_port(port, size)?;
    let (kind, index, segment) = if input {
        (SensitiveKind::INS, gpr::RDI, seg::ES as u8)
    } else {
        (SensitiveKind::OUTS, gpr::RSI, insn.seg)
    };
    let mask = insn.address_mask();
    let offset = core.state.gpr[index] & mask;
    let address = offset.wrapping_add(core.segments[(segment & 7) as usize].base) & core.linear_mask;
    let what = core.describe(insn, kind);
    core.sensitive(&Sensitive { number: port as u32, size, address, rep: rep.into(), segment, ..what })?;
    if input {
        core.probe_write(segment, offset, size as u64)?;
        let value = core.port_in(port, size);
        core.write_bytes(segment, offset, &value.to_le_bytes()[..size as usize])?;
    } else {
        let value = core.read_sized(segment, offset, size)? as u32;
        core.port_out(port, size, value);
    }
    let step = if core.flags().df() { (size as u64).wrapping_neg() } else { size as u64 };
    set_address(core, index, mask, offset.wrapping_add(step));
    Ok(())
}

/// Writes an index or count register with the address size: 32 bits clear the upper half, 16 bits leave it.
fn set_address(core: &mut Core<'_>, register: usize, mask: u64, value: u64) {
    let keep = if mask == 0xffff { !mask } else { 0 };
    let slot = &mut core.state.gpr[register];
    *slot = *slot & keep | value & mask;
}
