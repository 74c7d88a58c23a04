//! BMI1, BMI2, ADX, CRC32.

use crate::{
    core::{Core, ud},
    env::Interrupted,
    flags::{self, CF, OF, SF, STATUS, ZF},
    insn::{Handler, Insn},
    integer::operand_size,
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};
use vmtape_arch::vcpu::gpr::RDX;

type Done = Result<(), Interrupted>;

/// Picks the 32- or 64-bit instance.
macro_rules! wide {
    ($i:expr, $handler:ident $(, $arg:tt)*) => {
        if operand_size($i, 0) == 8 { $handler::<u64 $(, $arg)*> } else { $handler::<u32 $(, $arg)*> }
    };
}

const SARX: u8 = 0;
const SHLX: u8 = 1;
const SHRX: u8 = 2;

const BLSI: u8 = 0;
const BLSMSK: u8 = 1;
const BLSR: u8 = 2;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Andn => wide!(i, andn),
        Mnemonic::Bextr => wide!(i, bextr),
        Mnemonic::Blsi => wide!(i, lowest, BLSI),
        Mnemonic::Blsmsk => wide!(i, lowest, BLSMSK),
        Mnemonic::Blsr => wide!(i, lowest, BLSR),
        Mnemonic::Bzhi => wide!(i, bzhi),
        Mnemonic::Pdep => wide!(i, pdep),
        Mnemonic::Pext => wide!(i, pext),
        Mnemonic::Mulx => wide!(i, mulx),
        Mnemonic::Rorx => wide!(i, rorx),
        Mnemonic::Sarx => wide!(i, shift, SARX),
        Mnemonic::Shlx => wide!(i, shift, SHLX),
        Mnemonic::Shrx => wide!(i, shift, SHRX),
        Mnemonic::Adcx => wide!(i, add_with, CF),
        Mnemonic::Adox => wide!(i, add_with, OF),
        Mnemonic::Crc32 => match operand_size(i, 1) {
            1 => crc32::<u8>,
            2 => crc32::<u16>,
            4 => crc32::<u32>,
            _ => crc32::<u64>,
        },
        _ => return None,
    })
}

/// VEX prefixes do not exist in real and virtual-8086 mode.
fn check_vex(core: &Core<'_>) -> Done {
    if core.in_real_mode() { ud() } else { Ok(()) }
}

/// SF and ZF of the result, and CF as given; OF is cleared, AF and PF are undefined.
fn set_bmi_flags<T: Int>(core: &mut Core<'_>, result: T, carry: bool) {
    let status = flags::szp(result) & (SF | ZF);
    core.set_flags(STATUS, status | u64::from(carry));
}

fn andn<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let b = core.get::<T>(insn, 2)?.to_u64();
    let result = T::from_u64(!T::get(core, insn.regs[1]).to_u64() & b);
    result.set(core, insn.regs[0]);
    set_bmi_flags(core, result, false);
    Ok(())
}

fn bextr<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let source = core.get::<T>(insn, 1)?.to_u64();
    let control = T::get(core, insn.regs[2]).to_u64();
    let (start, len) = (control as u32 & 0xff, (control >> 8) as u32 & 0xff);
    let moved = source.checked_shr(start).unwrap_or(0);
    let result = T::from_u64(moved & low_bits(len));
    result.set(core, insn.regs[0]);
    core.set_flags(STATUS, if result.to_u64() == 0 { ZF } else { 0 });
    Ok(())
}

/// `count` ones.
fn low_bits(count: u32) -> u64 {
    1u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1)
}

fn lowest<T: Int, const OP: u8>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let x = core.get::<T>(insn, 1)?.to_u64();
    let result = T::from_u64(match OP {
        BLSI => x & x.wrapping_neg(),
        BLSMSK => x ^ x.wrapping_sub(1),
        _ => x & x.wrapping_sub(1),
    });
    result.set(core, insn.regs[0]);
    set_bmi_flags(core, result, (x == 0) != (OP == BLSI));
    Ok(())
}

fn bzhi<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let x = core.get::<T>(insn, 1)?.to_u64();
    let index = T::get(core, insn.regs[2]).to_u64() as u32 & 0xff;
    let result = T::from_u64(x & low_bits(index));
    result.set(core, insn.regs[0]);
    set_bmi_flags(core, result, index >= T::BITS);
    Ok(())
}

fn pdep<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let mut mask = core.get::<T>(insn, 2)?.to_u64();
    let mut source = T::get(core, insn.regs[1]).to_u64();
    let mut result = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if source & 1 != 0 { lowest } else { 0 };
        source >>= 1;
        mask ^= lowest;
    }
    T::from_u64(result).set(core, insn.regs[0]);
    Ok(())
}

fn pext<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let mut mask = core.get::<T>(insn, 2)?.to_u64();
    let source = T::get(core, insn.regs[1]).to_u64();
    let (mut result, mut place) = (0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(source & lowest != 0) << place;
        place += 1;
        mask ^= lowest;
    }
    T::from_u64(result).set(core, insn.regs[0]);
    Ok(())
}

/// With both destinations the same, the high half wins.
fn mulx<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let b = core.get::<T>(insn, 2)?.to_u64();
    let product = u128::from(T::get(core, RDX as u8).to_u64()) * u128::from(b);
    T::from_u64(product as u64).set(core, insn.regs[1]);
    T::from_u64((product >> T::BITS) as u64).set(core, insn.regs[0]);
    Ok(())
}

fn rorx<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let x = core.get::<T>(insn, 1)?.to_u64();
    let count = insn.imm as u32 % T::BITS;
    let result = if count == 0 { x } else { x >> count | x << (T::BITS - count) };
    T::from_u64(result).set(core, insn.regs[0]);
    Ok(())
}

fn shift<T: Int, const OP: u8>(core: &mut Core<'_>, insn: &Insn) -> Done {
    check_vex(core)?;
    let x = core.get::<T>(insn, 1)?;
    let count = T::get(core, insn.regs[2]).to_u64() as u32 % T::BITS;
    let result = match OP {
        SARX => (x.to_i64() >> count) as u64,
        SHLX => x.to_u64() << count,
        _ => x.to_u64() >> count,
    };
    T::from_u64(result).set(core, insn.regs[0]);
    Ok(())
}

/// ADCX carries in and out through CF, ADOX through OF; no other flag changes.
fn add_with<T: Int, const FLAG: u64>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = core.get::<T>(insn, 1)?;
    let carry = core.state.rflags & FLAG != 0;
    let (sum, status) = flags::add(T::get(core, insn.regs[0]), b, carry);
    sum.set(core, insn.regs[0]);
    core.set_flags(FLAG, if status & CF != 0 { FLAG } else { 0 });
    Ok(())
}

/// CRC-32C, reflected: the polynomial 0x11EDC6F41 with its bits turned round.
const POLYNOMIAL: u32 = 0x82f6_3b78;

fn crc32<S: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let data = core.get::<S>(insn, 1)?.to_u64();
    let mut crc = u32::get(core, insn.regs[0]);
    for byte in &data.to_le_bytes()[..S::BYTES as usize] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    crc.set(core, insn.regs[0]);
    Ok(())
}
