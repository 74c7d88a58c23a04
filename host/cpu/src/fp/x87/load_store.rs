//! Loads, stores, exchanges and conditional moves.

use super::super::{
    Done,
    soft::{Class, Context, F32, F64, F80, Format, Number, Rounding},
};
use super::HANDLED;
use crate::{
    core::Core,
    env::Interrupted,
    flags,
    insn::{Handler, Insn},
};
use iced_x86::{Code, Instruction, Mnemonic::*};

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Fld if i.code() == Code::Fld_sti => load_register,
        Fld => load,
        Fild => load_integer,
        Fld1 | Fldl2t | Fldl2e | Fldpi | Fldlg2 | Fldln2 | Fldz => load_constant,
        Fst | Fstp | Fstpnce if i.op_register(0) != iced_x86::Register::None => store_register,
        Fst | Fstp => store,
        Fist | Fistp | Fisttp => store_integer,
        Fbld => load_decimal,
        Fbstp => store_decimal,
        Fxch => exchange,
        Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe | Fcmovnu => conditional_move,
        _ => return None,
    })
}

impl Core<'_> {
    /// Reads ten bytes.
    fn read_extended(&mut self, insn: &Insn) -> Result<u128, Interrupted> {
        let mut bytes = [0; 16];
        self.read_bytes(insn.seg, insn.address(self), &mut bytes[..10])?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// A floating-point memory operand of single or double precision.
    pub(super) fn read_real(&mut self, insn: &Insn, format: Format) -> Result<Number, Interrupted> {
        let at = insn.address(self);
        let bits = match format {
            F32 => u128::from(self.read::<u32>(insn.seg, at)?),
            _ => u128::from(self.read::<u64>(insn.seg, at)?),
        };
        Ok(Number::unpack(format, bits))
    }

    /// A signed integer memory operand of `bits` bits.
    pub(super) fn read_integer(&mut self, insn: &Insn, bits: u32) -> Result<i64, Interrupted> {
        let at = insn.address(self);
        Ok(match bits {
            16 => i64::from(self.read::<u16>(insn.seg, at)? as i16),
            32 => i64::from(self.read::<u32>(insn.seg, at)? as i32),
            _ => self.read::<u64>(insn.seg, at)? as i64,
        })
    }

    /// The status word before a store. Its memory operand is checked now, unless exceptions come first here.
    fn begin_store(&mut self, insn: &Insn, len: u64) -> Result<u16, Interrupted> {
        if !self.model.rules.x87_exception_before_store {
            self.probe_write(insn.seg, insn.address(self), len)?;
        }
        Ok(self.state.fpu.fsw)
    }

    /// Writes the low `bits` bits. A fault leaves the status word as it was `before`.
    fn end_store(&mut self, insn: &Insn, bits: u32, value: u128, before: u16) -> Done {
        let bytes = value.to_le_bytes();
        self.write_bytes(insn.seg, insn.address(self), &bytes[..bits as usize / 8])
            .inspect_err(|_| self.state.fpu.fsw = before)
    }
}

fn load(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let format = match insn.code {
        Code::Fld_m32fp => F32,
        Code::Fld_m64fp => F64,
        _ => {
            let value = core.read_extended(insn)?;
            clear_c1(core);
            core.push_st(value);
            return Ok(());
        }
    };
    let number = core.read_real(insn, format)?;
    clear_c1(core);
    if !core.is_empty(7) {
        core.push_st(0);
        return HANDLED;
    }
    let mut cx = core.x87_context(false);
    let value = match number.class {
        Class::Signaling => {
            cx.flags.set_invalid(true);
            number.quiet(F80)
        }
        _ => {
            cx.note_denormals(&[number]);
            cx.repack(F80, number)
        }
    };
    // A denormal is loaded even if that exception is not masked.
    if core.raise_x87(&cx) || !cx.flags.invalid() {
        core.push_st(value);
    }
    Ok(())
}

fn clear_c1(core: &mut Core<'_>) {
    let status = core.status();
    core.set_status_word(status.with_c1(false));
}

fn load_register(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    clear_c1(core);
    if core.is_empty(insn.regs[0]) {
        // An empty source is an underflow, also where the push would overflow.
        if core.stack_fault(false) {
            core.turn(7);
            core.set_st(0, F80.indefinite());
        }
        return HANDLED;
    }
    let value = core.st(insn.regs[0]);
    core.push_st(value);
    Ok(())
}

fn load_integer(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let bits = match insn.code {
        Code::Fild_m16int => 16,
        Code::Fild_m32int => 32,
        _ => 64,
    };
    let value = core.read_integer(insn, bits)?;
    clear_c1(core);
    core.push_st(Context::exact_integer(F80, value));
    Ok(())
}

/// Constants are rounded from more precise ones as RC says.
fn load_constant(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let rounding = core.x87_context(false).rounding;
    let up = rounding == Rounding::Up;
    let nearest_or_up = matches!(rounding, Rounding::Nearest | Rounding::Up);
    // Sign and exponent, significand cut off, and when one unit is added.
    let (exponent, significand, add) = match insn.code.mnemonic() {
        Fld1 => (0x3fff, 1 << 63, false),
        Fldl2t => (0x4000, 0xd49a_784b_cd1b_8afe, up),
        Fldl2e => (0x3fff, 0xb8aa_3b29_5c17_f0bb, nearest_or_up),
        Fldpi => (0x4000, 0xc90f_daa2_2168_c234, nearest_or_up),
        Fldlg2 => (0x3ffd, 0x9a20_9a84_fbcf_f798, nearest_or_up),
        Fldln2 => (0x3ffe, 0xb172_17f7_d1cf_79ab, nearest_or_up),
        _ => (0, 0u64, false),
    };
    clear_c1(core);
    core.push_st(u128::from(significand + u64::from(add)) | exponent << 64);
    Ok(())
}

fn store_register(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    clear_c1(core);
    let pops = insn.code.mnemonic() != Fst;
    let value = if core.is_empty(0) {
        if !core.stack_fault(false) {
            return HANDLED;
        }
        F80.indefinite()
    } else {
        core.st(0)
    };
    core.set_st(insn.regs[0], value);
    if pops {
        core.pop_st();
    }
    Ok(())
}

fn store(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let (format, bits) = match insn.code {
        Code::Fst_m32fp | Code::Fstp_m32fp => (F32, 32),
        Code::Fst_m64fp | Code::Fstp_m64fp => (F64, 64),
        _ => (F80, 80),
    };
    let before = core.begin_store(insn, u64::from(bits) / 8)?;
    clear_c1(core);
    let value = if core.is_empty(0) {
        if !core.stack_fault(false) {
            return HANDLED;
        }
        format.indefinite()
    } else if format == F80 {
        core.st(0)
    } else {
        let mut cx = core.x87_context(false);
        let number = core.st_number(0);
        let value = match number.class {
            Class::Unsupported => cx.invalid(format),
            Class::Signaling => {
                cx.flags.set_invalid(true);
                number.quiet(format)
            }
            _ => cx.repack(format, number),
        };
        if !core.raise_store(&cx) {
            return HANDLED;
        }
        value
    };
    core.end_store(insn, bits, value, before)?;
    if insn.code.mnemonic() == Fstp {
        core.pop_st();
    }
    Ok(())
}

fn store_integer(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let bits = match insn.code {
        Code::Fist_m16int | Code::Fistp_m16int | Code::Fisttp_m16int => 16,
        Code::Fist_m32int | Code::Fistp_m32int | Code::Fisttp_m32int => 32,
        _ => 64,
    };
    let before = core.begin_store(insn, u64::from(bits) / 8)?;
    clear_c1(core);
    let indefinite = 1i64 << (bits - 1);
    let value = if core.is_empty(0) {
        if !core.stack_fault(false) {
            return HANDLED;
        }
        indefinite
    } else {
        let mut cx = core.x87_context(false);
        if insn.code.mnemonic() == Fisttp {
            cx.rounding = Rounding::Zero;
        }
        let value = cx.integer(core.st_number(0), bits).unwrap_or(indefinite);
        if cx.flags.invalid() {
            cx.rounded_up = false;
        }
        if !core.raise_store(&cx) {
            return HANDLED;
        }
        value
    };
    core.end_store(insn, bits, value as u128, before)?;
    if insn.code.mnemonic() != Fist {
        core.pop_st();
    }
    Ok(())
}

/// See: SDM vol. 1 Figure 4-4. Packed BCD Data Types
fn load_decimal(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let packed = core.read_extended(insn)?;
    let magnitude = (0..18)
        .rev()
        .fold(0u64, |sum, digit| sum.wrapping_mul(10).wrapping_add((packed >> (4 * digit)) as u64 & 0xf));
    let sign = packed >> 79 & 1 != 0;
    let mut value = Context::exact_integer(F80, magnitude as i64);
    if sign {
        value |= 1 << 79;
    }
    clear_c1(core);
    core.push_st(value);
    Ok(())
}

fn store_decimal(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
    const LIMIT: u64 = 1_000_000_000_000_000_000;
    let before = core.begin_store(insn, 10)?;
    clear_c1(core);
    let packed = if core.is_empty(0) {
        if !core.stack_fault(false) {
            return HANDLED;
        }
        INDEFINITE
    } else {
        let mut cx = core.x87_context(false);
        let number = core.st_number(0);
        let packed = match cx.integer(number, 64) {
            Some(value) if value.unsigned_abs() < LIMIT => {
                let mut rest = value.unsigned_abs();
                let digits = (0..18).fold(0u128, |packed, n| {
                    let digit = rest % 10;
                    rest /= 10;
                    packed | u128::from(digit) << (4 * n)
                });
                digits | u128::from(number.sign) << 79
            }
            _ => {
                cx.flags = super::Flags::INVALID;
                cx.rounded_up = false;
                INDEFINITE
            }
        };
        if !core.raise_store(&cx) {
            return HANDLED;
        }
        packed
    };
    core.end_store(insn, 80, packed, before)?;
    core.pop_st();
    Ok(())
}

fn exchange(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    clear_c1(core);
    let other = if insn.regs[0] != 0 { insn.regs[0] } else { insn.regs[1] };
    for i in [0, other] {
        if core.is_empty(i) {
            if !core.stack_fault(false) {
                return HANDLED;
            }
            core.set_st(i, F80.indefinite());
        }
    }
    let (a, b) = (core.st(0), core.st(other));
    core.set_st(0, b);
    core.set_st(other, a);
    Ok(())
}

fn conditional_move(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    clear_c1(core);
    let other = insn.regs[1];
    if core.is_empty(0) || core.is_empty(other) {
        if core.stack_fault(false) {
            core.set_st(0, F80.indefinite());
        }
        return HANDLED;
    }
    let set = |mask: u64| core.state.rflags & mask != 0;
    let moves = match insn.code.mnemonic() {
        Fcmovb => set(flags::CF),
        Fcmove => set(flags::ZF),
        Fcmovbe => set(flags::CF | flags::ZF),
        Fcmovu => set(flags::PF),
        Fcmovnb => !set(flags::CF),
        Fcmovne => !set(flags::ZF),
        Fcmovnbe => !set(flags::CF | flags::ZF),
        _ => !set(flags::PF),
    };
    if moves {
        let value = core.st(other);
        core.set_st(0, value);
    }
    Ok(())
}
