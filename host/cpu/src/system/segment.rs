//! Instructions on segment registers: MOV, PUSH, POP, LDS and kin, the probing instructions, SWAPGS, FS and GS bases.
//!
//! See: SDM vol. 2A LAR, LDS/LES/LFS/LGS/LSS, MOV; vol. 2B LSL, SWAPGS, VERR/VERW

use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::{Insn, Kind},
};
use iced_x86::Code;
use vmtape_arch::{
    descriptor::{Descriptor, Selector, SystemType},
    vcpu::{Interruptibility, seg},
};

/// MOV r/m, Sreg. A register takes the selector zero-extended, memory 16 bits.
pub(super) fn mov_from(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let selector = core.state.seg[(insn.regs[1] & 7) as usize].selector;
    match (insn.kinds[0], insn.code) {
        (Kind::Mem, _) | (_, Code::Mov_rm16_Sreg) => core.put(insn, 0, selector),
        (_, Code::Mov_r32m16_Sreg) => core.put(insn, 0, selector as u32),
        _ => core.put(insn, 0, selector as u64),
    }
}

/// MOV Sreg, r/m.
pub(super) fn mov_to(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let n = insn.regs[0] as usize;
    if n == seg::CS || n > seg::GS {
        return ud();
    }
    let selector: u16 = core.get(insn, 1)?;
    core.load_segment(n, selector)?;
    hold_after_ss(core, n);
    Ok(())
}

/// Interrupts, and most debug exceptions, wait for the instruction after a load of SS by MOV or POP.
/// See: SDM vol. 3A 6.8.3 Masking Exceptions and Interrupts When Switching Stacks
fn hold_after_ss(core: &mut Core<'_>, n: usize) {
    if n == seg::SS {
        core.single_step = false;
        core.block_interrupts(Interruptibility::new().with_mov_ss(true));
    }
}

fn push_size(insn: &Insn) -> u8 {
    use Code::*;
    match insn.code {
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => 2,
        Popw_ES | Popw_CS | Popw_SS | Popw_DS | Popw_FS | Popw_GS => 2,
        Pushq_FS | Pushq_GS | Popq_FS | Popq_GS => 8,
        _ => 4,
    }
}

pub(super) fn push(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let selector = core.state.seg[(insn.regs[0] & 7) as usize].selector;
    let mut stack = core.stack();
    let size = push_size(insn);
    if size == 4 && core.model.rules.push_segment_writes_16_bits {
        stack.reserve(2);
        core.stack_push(&mut stack, 2, selector as u64)?;
    } else {
        core.stack_push(&mut stack, size, selector as u64)?;
    }
    core.switch_to(stack);
    Ok(())
}

pub(super) fn pop(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let n = (insn.regs[0] & 7) as usize;
    let mut stack = core.stack();
    let selector = core.stack_pop(&mut stack, push_size(insn))? as u16;
    let segment = core.fetch_segment(n, selector)?;
    core.switch_to(stack);
    core.state.seg[n] = segment;
    hold_after_ss(core, n);
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: offset, then selector, in memory.
pub(super) fn load_far_pointer(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    use Code::*;
    let (n, size) = match insn.code {
        Les_r16_m1616 => (seg::ES, 2),
        Les_r32_m1632 => (seg::ES, 4),
        Lds_r16_m1616 => (seg::DS, 2),
        Lds_r32_m1632 => (seg::DS, 4),
        Lss_r16_m1616 => (seg::SS, 2),
        Lss_r32_m1632 => (seg::SS, 4),
        Lss_r64_m1664 => (seg::SS, 8),
        Lfs_r16_m1616 => (seg::FS, 2),
        Lfs_r32_m1632 => (seg::FS, 4),
        Lfs_r64_m1664 => (seg::FS, 8),
        Lgs_r16_m1616 => (seg::GS, 2),
        Lgs_r32_m1632 => (seg::GS, 4),
        _ => (seg::GS, 8),
    };
    let at = insn.address(core);
    let offset = core.read_sized(insn.seg, at, size)?;
    let after = at.wrapping_add(size as u64) & insn.address_mask();
    let selector = core.read::<u16>(insn.seg, after)?;
    core.load_segment(n, selector)?;
    match size {
        2 => core.put(insn, 0, offset as u16),
        4 => core.put(insn, 0, offset as u32),
        _ => core.put(insn, 0, offset),
    }
}

/// Whether a descriptor is visible from the current level and the selector's.
fn is_visible(core: &Core<'_>, selector: Selector, descriptor: Descriptor) -> bool {
    let conforming = descriptor.s() && descriptor.seg_type().is_conforming_code();
    conforming || (core.cpl() <= descriptor.dpl() && selector.rpl() <= descriptor.dpl())
}

/// The descriptor for LAR, LSL, VERR and VERW if it exists and is visible.
fn probe(core: &mut Core<'_>, insn: &Insn, operand: usize) -> Result<Option<Descriptor>, Interrupted> {
    if core.is_real_or_v86() {
        return ud();
    }
    let value: u16 = core.get(insn, operand)?;
    let selector = Selector::from_bits(value);
    let descriptor = core.probe_descriptor(selector)?;
    Ok(descriptor.filter(|d| is_visible(core, selector, *d)))
}

fn set_zf(core: &mut Core<'_>, zf: bool) {
    core.state.rflags = core.flags().with_zf(zf).into_bits();
}

/// LAR and LSL.
pub(super) fn lar_lsl(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    use Code::*;
    let is_lar = matches!(insn.code, Lar_r16_rm16 | Lar_r32_r32m16 | Lar_r64_r64m16);
    let long = core.state.efer().lma();
    let found = probe(core, insn, 1)?.filter(|d| {
        d.s()
            || match d.system_type() {
                SystemType::LDT | SystemType::TSS_AVAILABLE | SystemType::TSS_BUSY => true,
                SystemType::CALL_GATE => is_lar,
                SystemType::TSS16_AVAILABLE | SystemType::TSS16_BUSY => !long,
                SystemType::CALL_GATE16 | SystemType::TASK_GATE => is_lar && !long,
                _ => false,
            }
    });
    set_zf(core, found.is_some());
    let Some(descriptor) = found else { return Ok(()) };
    // The second doubleword of the descriptor without its parts of base and limit.
    let rights = descriptor.with_base_low(0).with_base_high(0).with_limit_high(0).into_bits() >> 32;
    let value = if is_lar { rights } else { descriptor.limit() as u64 };
    match insn.code {
        Lar_r16_rm16 | Lsl_r16_rm16 => core.put(insn, 0, value as u16),
        Lar_r32_r32m16 | Lsl_r32_r32m16 => core.put(insn, 0, value as u32),
        _ => core.put(insn, 0, value),
    }
}

/// VERR and VERW.
pub(super) fn verify(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let write = matches!(insn.code, Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16);
    let found = probe(core, insn, 0)?.is_some_and(|d| {
        let typ = d.seg_type();
        d.s() && if write { typ.is_writable() } else { typ.is_readable() }
    });
    set_zf(core, found);
    Ok(())
}

pub(super) fn arpl(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.is_real_or_v86() {
        return ud();
    }
    let source: u16 = core.get(insn, 1)?;
    let rpl = Selector::from_bits(source).rpl();
    let changed = core.modify(insn, 0, |old: u16| {
        let selector = Selector::from_bits(old);
        let changed = selector.rpl() < rpl;
        (if changed { selector.with_rpl(rpl).into_bits() } else { old }, changed)
    })?;
    set_zf(core, changed);
    Ok(())
}

pub(super) fn swapgs(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if !insn.is_64bit() {
        return ud();
    }
    core.require_cpl0()?;
    let state = &mut *core.state;
    std::mem::swap(&mut state.seg[seg::GS].base, &mut state.kernel_gs_base);
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
pub(super) fn fsgs_base(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    use Code::*;
    if !insn.is_64bit() || !core.state.cr4().fsgsbase() {
        return ud();
    }
    let n = match insn.code {
        Rdfsbase_r32 | Rdfsbase_r64 | Wrfsbase_r32 | Wrfsbase_r64 => seg::FS,
        _ => seg::GS,
    };
    let base = core.state.seg[n].base;
    match insn.code {
        Rdfsbase_r32 | Rdgsbase_r32 => core.put(insn, 0, base as u32),
        Rdfsbase_r64 | Rdgsbase_r64 => core.put(insn, 0, base),
        Wrfsbase_r32 | Wrgsbase_r32 => {
            core.state.seg[n].base = core.get::<u32>(insn, 0)? as u64;
            Ok(())
        }
        _ => {
            let base = core.get::<u64>(insn, 0)?;
            core.require_gp0(core.model.canonical(base))?;
            core.state.seg[n].base = base;
            Ok(())
        }
    }
}
