//! One instruction for KVM's emulator: no TLB, no block cache, exceptions returned.

use crate::{
    block::Blocks,
    core::Core,
    cpu::{Emulation, Step},
    env::Interrupted,
    insn::Insn,
};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};
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

/// What KVM's decoder makes of bytes: a near branch in 64-bit code is cut by an operand-size prefix, and a far one has all of
/// its operand, whatever the vendor.
/// See: KVM emulate.c x86_decode_insn(), assign_eip_near(), the flags NearBranch and SrcMemFAddr
pub fn decode_as_kvm(bits: u32, bytes: &[u8], rip: u64, options: u32) -> (Instruction, DecoderError) {
    let with = |vendor| {
        let mut decoder = Decoder::with_ip(bits, bytes, rip, options | vendor);
        (decoder.decode(), decoder.last_error())
    };
    let plain = with(DecoderOptions::NONE);
    if bits != 64 || !bytes.contains(&OPERAND_SIZE) {
        return plain;
    }
    let (cut, error) = with(DecoderOptions::AMD);
    if error == DecoderError::None && is_near_branch(&cut) { (cut, error) } else { plain }
}

const OPERAND_SIZE: u8 = 0x66;

fn is_near_branch(insn: &Instruction) -> bool {
    insn.is_jcc_short_or_near()
        || insn.is_jmp_short_or_near()
        || insn.is_jmp_near_indirect()
        || insn.is_call_near()
        || insn.is_call_near_indirect()
        || insn.mnemonic() == Mnemonic::Ret
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
        if len > 0
            && let Some(insn) = blocks.decode(core, rip, &bytes[..len])
        {
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

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Code;

    /// As `emulator` of kvm-unit-tests has them: KVM decodes for no vendor.
    #[test]
    fn decoding_has_no_vendor() {
        for (bytes, code, len) in [
            (&[0x48, 0xff, 0x2f][..], Code::Jmp_m1664, 3),
            (&[0x48, 0x0f, 0xb2, 0x07], Code::Lss_r64_m1664, 4),
            (&[0x66, 0xe9, 1, 0, 2, 0], Code::Jmp_rel16, 4),
            (&[0x66, 0xff, 0x27], Code::Jmp_rm16, 3),
            (&[0xe9, 1, 0, 2, 0], Code::Jmp_rel32_64, 5),
            (&[0x66, 0x89, 0x07], Code::Mov_rm16_r16, 3),
        ] {
            let (insn, error) = decode_as_kvm(64, bytes, 0, DecoderOptions::NONE);
            assert_eq!((insn.code(), insn.len(), error), (code, len, DecoderError::None), "{bytes:x?}");
        }
        assert_eq!(decode_as_kvm(64, &[0xe9, 1], 0, DecoderOptions::NONE).1, DecoderError::NoMoreBytes);
    }
}
