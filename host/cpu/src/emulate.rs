//! One instruction for KVM's emulator: no TLB, no block cache, exceptions returned.

use crate::{
    block::Blocks,
    core::Core,
    cpu::{Emulation, Step},
    env::Interrupted,
    insn::Insn,
};
use vmtape_arch::{PAGE_SIZE, exception::Vector, vcpu::seg};

const MAX_INSN: usize = 15;

/// Executes the instruction at RIP.
pub(crate) fn step(core: &mut Core<'_>, blocks: &Blocks, given: Option<&[u8]>) -> Emulation {
    let shadow = core.state.interruptibility;
    core.state.interruptibility = shadow.with_sti(false).with_mov_ss(false);
    let emulation = with_instruction(core, blocks, given, |core, insn| match (insn.handler)(core, insn) {
        Ok(()) => retire(core),
        Err(Interrupted::Fault(fault)) if fault.vector == Vector::UD => Step::Unhandleable,
        Err(Interrupted::Fault(fault)) => Step::Fault(fault),
        Err(Interrupted::Exit) => Step::Unhandleable,
    });
    if emulation.step != Step::Executed {
        core.state.interruptibility = shadow;
    }
    emulation
}

/// Goes on behind the instruction at RIP.
pub(crate) fn skip(core: &mut Core<'_>, blocks: &Blocks, given: Option<&[u8]>) -> Emulation {
    with_instruction(core, blocks, given, |core, _| {
        let shadow = core.state.interruptibility;
        core.state.interruptibility = shadow.with_sti(false).with_mov_ss(false);
        retire(core)
    })
}

fn with_instruction(
    core: &mut Core<'_>,
    blocks: &Blocks,
    given: Option<&[u8]>,
    act: impl FnOnce(&mut Core<'_>, &Insn) -> Step,
) -> Emulation {
    let mut emulation = Emulation { step: Step::Unhandleable, len: 0, bytes: [0; MAX_INSN] };
    let insn = match decode(core, blocks, given, &mut emulation.bytes) {
        Ok(Some(insn)) => insn,
        Ok(None) | Err(Interrupted::Exit) => return emulation,
        Err(Interrupted::Fault(fault)) => return Emulation { step: Step::Fault(fault), ..emulation },
    };
    emulation.len = insn.len;
    emulation.bytes[insn.len as usize..].fill(0);
    core.next_rip = core.state.rip.wrapping_add(u64::from(insn.len)) & core.rip_mask;
    emulation.step = act(core, &insn);
    emulation
}

// See: KVM arch/x86/kvm/x86.c x86_emulate_instruction(): the shadow and RF end with the instruction.
fn retire(core: &mut Core<'_>) -> Step {
    core.state.rip = core.next_rip & core.rip_mask;
    if core.repeats {
        // See: KVM arch/x86/kvm/emulate.c x86_emulate_insn(): RF is set while an instruction repeats.
        core.state.rflags = core.flags().with_rf(true).into_bits();
        return Step::Executed;
    }
    core.state.icount += 1;
    core.state.rflags = core.flags().with_rf(false).into_bits();
    Step::Executed
}

/// Decodes from the bytes given, fetching what is missing.
fn decode(
    core: &mut Core<'_>,
    blocks: &Blocks,
    given: Option<&[u8]>,
    bytes: &mut [u8; MAX_INSN],
) -> Result<Option<Insn>, Interrupted> {
    let rip = core.state.rip;
    let given = given.unwrap_or(&[]);
    let mut len = given.len().min(MAX_INSN);
    bytes[..len].copy_from_slice(&given[..len]);
    loop {
        if let Some(insn) = blocks.decode(core, rip, &bytes[..len]) {
            core.check_code_limit(u64::from(insn.len))?;
            return Ok(Some(insn));
        }
        core.check_code_limit(len as u64 + 1)?;
        let base = core.segments[seg::CS].base;
        let gva = rip.wrapping_add(len as u64).wrapping_add(base) & core.linear_mask;
        let room = ((PAGE_SIZE - gva % PAGE_SIZE) as usize).min(MAX_INSN - len);
        match core.fetch(gva)? {
            Some(hpa) if core.ram.read(hpa, &mut bytes[len..len + room]) => len += room,
            _ => return Ok(None),
        }
    }
}
