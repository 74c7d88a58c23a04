//! The registers of the FPU as the tape numbers them, for instructions that are emulated.

use iced_x86::{CpuidFeature, Instruction, Register};
use vmtape_arch::fpu::Fpu;

/// First numbers: XMM registers from 0 on; x87 registers, which MMX registers are the mantissas of; the high halves of YMM
/// registers.
const ST: usize = 16;
const YMM_HIGH: usize = 32;
/// FCW, FSW, FTW and FOP, 16 bits each, and MXCSR; FIP and FDP.
const CONTROL: usize = 24;
const POINTERS: usize = 25;
/// How many numbers there are.
pub(crate) const COUNT: usize = YMM_HIGH + 16;

/// The registers, or the state, that an instruction uses.
pub(crate) fn used_by(insn: &Instruction) -> Vec<usize> {
    use CpuidFeature as F;
    let features = insn.cpuid_features();
    let is_x87 = |feature: &F| matches!(feature, F::FPU | F::FPU287 | F::FPU387);
    if features.contains(&F::FXSR) {
        return (0..=POINTERS).collect();
    }
    // FISTTP came with SSE3.
    if features.iter().any(is_x87) || insn.fpu_stack_increment_info().increment() != 0 {
        return (ST..=POINTERS).collect();
    }
    let numbers = |register: Register| match register.number() {
        n if register.is_xmm() && n < ST => vec![n],
        n if register.is_ymm() && n < ST => vec![n, YMM_HIGH + n],
        n if register.is_mm() => vec![ST + n],
        _ => Vec::new(),
    };
    (0..insn.op_count()).flat_map(|operand| numbers(insn.op_register(operand))).collect()
}

/// The low and the high half of a register. For numbers that there are not: zeros.
pub(crate) fn get(fpu: &Fpu, number: usize) -> [u64; 2] {
    let words = [fpu.fcw, fpu.fsw, fpu.ftw.into(), fpu.fop];
    match number {
        ..ST => fpu.xmm[number],
        ST..CONTROL => {
            let value = u128::from_le_bytes(fpu.st[number - ST]);
            [value as u64, (value >> 64) as u64]
        }
        CONTROL => [words.iter().rev().fold(0, |all, word| all << 16 | u64::from(*word)), fpu.mxcsr.into()],
        POINTERS => [fpu.fip, fpu.fdp],
        _ => fpu.ymm_hi.get(number.wrapping_sub(YMM_HIGH)).copied().unwrap_or_default(),
    }
}

/// Puts a value into a register, as [`get`] gave it. Of numbers that there are not, which a newer tape may have, nothing.
pub(crate) fn set(fpu: &mut Fpu, number: usize, [low, high]: [u64; 2]) {
    match number {
        ..ST => fpu.xmm[number] = [low, high],
        ST..CONTROL => {
            fpu.st[number - ST] = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
        }
        CONTROL => {
            let [fcw, fsw, ftw, fop] = [0, 16, 32, 48].map(|shift| (low >> shift) as u16);
            (fpu.fcw, fpu.fsw, fpu.ftw, fpu.fop) = (fcw, fsw, ftw as u8, fop);
            fpu.mxcsr = high as u32;
        }
        POINTERS => (fpu.fip, fpu.fdp) = (low, high),
        _ => {
            if let Some(half) = fpu.ymm_hi.get_mut(number.wrapping_sub(YMM_HIGH)) {
                *half = [low, high];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn what_is_got_can_be_set() {
        let mut fpu = Fpu { fcw: 0x37f, fsw: 0x3800, ftw: 0xa5, fop: 0x7ff, fip: 1, fdp: 2, ..Fpu::RESET };
        for (n, (xmm, high)) in fpu.xmm.iter_mut().zip(&mut fpu.ymm_hi).enumerate() {
            (*xmm, *high) = ([n as u64, 1], [2, n as u64]);
        }
        fpu.st.iter_mut().enumerate().for_each(|(n, st)| st[..10].fill(n as u8 + 1));
        let mut copy = Fpu::RESET;
        (0..64).for_each(|number| set(&mut copy, number, get(&fpu, number)));
        assert_eq!(copy, fpu);
    }

    #[test]
    fn operands() {
        let used = |bytes: &[u8]| used_by(&Decoder::new(64, bytes, DecoderOptions::NONE).decode());
        assert_eq!(used(&[0x44, 0x0f, 0x29, 0x00]), [8], "MOVAPS [RAX], XMM8");
        assert_eq!(used(&[0x0f, 0x7f, 0x18]), [ST + 3], "MOVQ [RAX], MM3");
        assert_eq!(used(&[0xc5, 0xfd, 0x7f, 0x10]), [2, YMM_HIGH + 2], "VMOVDQA [RAX], YMM2");
        for x87 in [&[0xd9, 0x38][..], &[0xdd, 0x38], &[0xd9, 0x00], &[0xdb, 0x08]] {
            assert_eq!(used(x87), (ST..=POINTERS).collect::<Vec<_>>(), "{x87:x?}");
        }
        assert_eq!(used(&[0x0f, 0xae, 0x00]).len(), POINTERS + 1, "FXSAVE");
        assert!(used(&[0x48, 0x89, 0x08]).is_empty(), "MOV [RAX], RCX");
    }
}
