//! Flag instructions, XLAT, BOUND, RDPID, fences, hints, and what does nothing.

use crate::{
    core::{Core, fault},
    dispatch,
    env::Interrupted,
    flags::{AF, CF, DF, PF, SF, ZF},
    insn::{HIGH_BYTE, Handler, Insn},
    integer::operand_size,
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};
use vmtape_arch::{
    exception::Vector,
    vcpu::gpr::{RAX, RBX},
};

type Done = Result<(), Interrupted>;

const AL: u8 = RAX as u8;
const AH: u8 = HIGH_BYTE + RAX as u8;
/// The flags that LAHF and SAHF move.
const LOW_STATUS: u64 = CF | PF | AF | ZF | SF;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Nop | Mnemonic::Reservednop | Mnemonic::Endbr32 | Mnemonic::Endbr64 => nop,
        Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 | Mnemonic::Prefetchnta => nop,
        Mnemonic::Prefetch | Mnemonic::Prefetchw | Mnemonic::Prefetchwt1 => nop,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => nop,
        Mnemonic::Clc => |core, _| set(core, CF, 0),
        Mnemonic::Stc => |core, _| set(core, CF, CF),
        Mnemonic::Cmc => |core, _| set(core, CF, !core.state.rflags & CF),
        Mnemonic::Cld => |core, _| set(core, DF, 0),
        Mnemonic::Std => |core, _| set(core, DF, DF),
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Xlatb => xlat,
        Mnemonic::Bound if operand_size(i, 0) == 2 => bound::<u16>,
        Mnemonic::Bound => bound::<u32>,
        Mnemonic::Movnti if operand_size(i, 1) == 4 => movnti::<u32>,
        Mnemonic::Movnti => movnti::<u64>,
        Mnemonic::Rdpid => rdpid,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => dispatch::undefined,
        _ => return None,
    })
}

fn nop(_: &mut Core<'_>, _: &Insn) -> Done {
    Ok(())
}

fn set(core: &mut Core<'_>, mask: u64, value: u64) -> Done {
    core.set_flags(mask, value);
    Ok(())
}

fn lahf(core: &mut Core<'_>, _: &Insn) -> Done {
    ((core.state.rflags & LOW_STATUS) as u8 | 2).set(core, AH);
    Ok(())
}

fn sahf(core: &mut Core<'_>, _: &Insn) -> Done {
    let flags = u64::from(u8::get(core, AH));
    set(core, LOW_STATUS, flags & LOW_STATUS)
}

fn salc(core: &mut Core<'_>, _: &Insn) -> Done {
    let value: u8 = if core.carry() { 0xff } else { 0 };
    value.set(core, AL);
    Ok(())
}

fn xlat(core: &mut Core<'_>, insn: &Insn) -> Done {
    let table = core.state.gpr[RBX].wrapping_add(u64::from(u8::get(core, AL)));
    let value = core.read::<u8>(insn.seg, table & insn.address_mask())?;
    value.set(core, AL);
    Ok(())
}

fn bound<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let address = insn.address(core);
    let index = T::get(core, insn.regs[0]).to_i64();
    let low = core.read::<T>(insn.seg, address)?.to_i64();
    let high = core.read::<T>(insn.seg, address.wrapping_add(T::BYTES) & insn.address_mask())?.to_i64();
    if index < low || index > high { fault(Vector::BR) } else { Ok(()) }
}

fn movnti<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.write(insn.seg, insn.address(core), T::get(core, insn.regs[1]))
}

fn rdpid(core: &mut Core<'_>, insn: &Insn) -> Done {
    (core.state.tsc_aux & 0xffff_ffff).set(core, insn.regs[0]);
    Ok(())
}
