//! Control, environment and state of the x87 FPU.

use super::super::{
    Done,
    soft::{Class, F80, Flags, Number},
};
use super::ControlWord;
use crate::{
    core::{Core, fault},
    insn::{Handler, Insn},
    operand::Int,
};
use iced_x86::{Code, Instruction, Mnemonic::*};
use vmtape_arch::{exception::Vector, fpu::Fpu};

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Fninit | Finit => initialize,
        Fnclex | Fclex => clear_exceptions,
        Fnstcw | Fstcw => store_control,
        Fldcw => load_control,
        Fnstsw | Fstsw if i.code() == Code::Fnstsw_AX || i.code() == Code::Fstsw_AX => status_to_ax,
        Fnstsw | Fstsw => store_status,
        Fnstenv | Fstenv => store_environment,
        Fldenv => load_environment,
        Fnsave | Fsave => save,
        Frstor => restore,
        Wait => wait,
        Fnop => nop,
        Emms => empty_mmx,
        Fincstp => increment_top,
        Fdecstp => decrement_top,
        Ffree | Ffreep => free,
        Fneni | Feni | Fndisi | Fdisi | Fnsetpm | Fsetpm => nop,
        _ => return None,
    })
}

/// The state after FNINIT. See: SDM vol. 3A Table 9-1
pub fn fninit(fpu: &mut Fpu) {
    fpu.fcw = 0x37f;
    fpu.fsw = 0;
    fpu.ftw = 0;
    fpu.fop = 0;
    fpu.fip = 0;
    fpu.fdp = 0;
}

fn initialize(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87_control()?;
    fninit(&mut core.state.fpu);
    Ok(())
}

fn clear_exceptions(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87_control()?;
    let status = core.status();
    core.set_status_word(
        status.with_flags(0).with_stack_fault(false).with_error_summary(false).with_busy(false),
    );
    Ok(())
}

fn store_control(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87_control()?;
    core.write(insn.seg, insn.address(core), core.state.fpu.fcw)
}

fn load_control(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let value: u16 = core.read(insn.seg, insn.address(core))?;
    core.set_control_word(value);
    Ok(())
}

fn status_to_ax(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87_control()?;
    core.state.fpu.fsw.set(core, 0);
    Ok(())
}

fn store_status(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87_control()?;
    core.write(insn.seg, insn.address(core), core.state.fpu.fsw)
}

fn wait(core: &mut Core<'_>, _: &Insn) -> Done {
    let cr0 = core.state.cr0();
    if cr0.mp() && cr0.ts() {
        return fault(Vector::NM);
    }
    if core.status().error_summary() { fault(Vector::MF) } else { Ok(()) }
}

fn nop(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()
}

fn empty_mmx(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_mmx()?;
    core.state.fpu.ftw = 0;
    core.state.fpu.fsw &= !super::TOP;
    Ok(())
}

fn increment_top(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()?;
    core.turn(1);
    clear_c1(core)
}

fn decrement_top(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()?;
    core.turn(7);
    clear_c1(core)
}

fn clear_c1(core: &mut Core<'_>) -> Done {
    let status = core.status();
    core.set_status_word(status.with_c1(false));
    Ok(())
}

fn free(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let n = core.physical(insn.regs[0]);
    core.state.fpu.ftw &= !(1 << n);
    if insn.code.mnemonic() == Ffreep {
        core.pop_st();
    }
    Ok(())
}

impl Core<'_> {
    /// Loads the control word; ES follows the new masks.
    fn set_control_word(&mut self, value: u16) {
        let control = ControlWord::from_bits(value);
        self.state.fpu.fcw = value & 0x1f3f | 0x40;
        self.set_summary(control.masks());
    }

    pub(in crate::fp) fn set_summary(&mut self, masks: u8) {
        let status = self.status();
        let pending = Flags::from_bits(status.flags()).unmasked(Flags::from_bits(masks)) != Flags::NONE;
        self.set_status_word(status.with_error_summary(pending).with_busy(pending));
    }

    /// The tag word as FNSTENV writes it. See: SDM vol. 1 Figure 8-7. x87 FPU Tag Word
    fn full_tag_word(&self) -> u16 {
        const ZERO: u16 = 1;
        const SPECIAL: u16 = 2;
        const EMPTY: u16 = 3;
        (0..8).fold(0, |word, n| {
            let register = u128::from_le_bytes(self.state.fpu.st[n]);
            let number = Number::unpack(F80, register & (u128::MAX >> 48));
            let tag = match number.class {
                _ if self.state.fpu.ftw >> n & 1 == 0 => EMPTY,
                Class::Zero => ZERO,
                Class::Finite if !number.denormal => 0,
                _ => SPECIAL,
            };
            word | tag << (2 * n)
        })
    }

    /// The environment in the format of the operand size. See: SDM vol. 1 8.1.10
    fn environment(&self, wide: bool) -> ([u8; 28], usize) {
        let fpu = &self.state.fpu;
        let mut image = [0xff; 28];
        let words = [fpu.fcw, fpu.fsw, self.full_tag_word()];
        if !wide {
            let rest = [fpu.fip as u16, 0, fpu.fdp as u16, 0];
            for (to, word) in image.chunks_exact_mut(2).zip(words.iter().chain(&rest)) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            return (image, 14);
        }
        let [fcw, fsw, tags] = words.map(|word| 0xffff_0000 | u32::from(word));
        let opcode = u32::from(fpu.fop & 0x7ff) << 16;
        let rest = [fcw, fsw, tags, fpu.fip as u32, opcode, fpu.fdp as u32, 0xffff_0000];
        for (to, word) in image.chunks_exact_mut(4).zip(rest) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        (image, 28)
    }

    fn set_environment(&mut self, image: &[u8; 28], wide: bool) {
        let step = if wide { 4 } else { 2 };
        let word = |n: usize| u16::from_le_bytes([image[n * step], image[n * step + 1]]);
        let fpu = &mut self.state.fpu;
        fpu.fsw = word(1);
        fpu.ftw = (0..8).fold(0, |tags, n| tags | u8::from(word(2) >> (2 * n) & 3 != 3) << n);
        fpu.fip = word(3).into();
        fpu.fdp = word(5).into();
        if wide {
            let dword = |n: usize| {
                u32::from(word(n)) | u32::from_le_bytes([0, 0, image[4 * n + 2], image[4 * n + 3]])
            };
            fpu.fip = dword(3).into();
            fpu.fop = (dword(4) >> 16) as u16 & 0x7ff;
            fpu.fdp = dword(5).into();
        }
        self.set_control_word(word(0));
    }
}

/// The operand size: 32-bit unless the code says 16-bit.
fn is_wide(code: Code) -> bool {
    !matches!(
        code,
        Code::Fnstenv_m14byte
            | Code::Fstenv_m14byte
            | Code::Fldenv_m14byte
            | Code::Fnsave_m94byte
            | Code::Fsave_m94byte
            | Code::Frstor_m94byte
    )
}

fn store_environment(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87_control()?;
    let (image, len) = core.environment(is_wide(insn.code));
    core.write_bytes(insn.seg, insn.address(core), &image[..len])?;
    // All exceptions are masked after the store.
    core.state.fpu.fcw |= 0x3f;
    core.set_summary(0x3f);
    Ok(())
}

fn load_environment(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let wide = is_wide(insn.code);
    let mut image = [0; 28];
    let len = if wide { 28 } else { 14 };
    core.read_bytes(insn.seg, insn.address(core), &mut image[..len])?;
    core.set_environment(&image, wide);
    Ok(())
}

fn save(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87_control()?;
    let (environment, len) = core.environment(is_wide(insn.code));
    let mut image = [0; 108];
    image[..len].copy_from_slice(&environment[..len]);
    for i in 0..8 {
        let at = len + 10 * i;
        image[at..at + 10].copy_from_slice(&core.st(i as u8).to_le_bytes()[..10]);
    }
    core.write_bytes(insn.seg, insn.address(core), &image[..len + 80])?;
    fninit(&mut core.state.fpu);
    Ok(())
}

fn restore(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let wide = is_wide(insn.code);
    let len = if wide { 28 } else { 14 };
    let mut image = [0; 108];
    core.read_bytes(insn.seg, insn.address(core), &mut image[..len + 80])?;
    let mut environment = [0; 28];
    environment[..len].copy_from_slice(&image[..len]);
    core.set_environment(&environment, wide);
    for i in 0..8 {
        let at = len + 10 * i;
        let n = core.physical(i as u8);
        let mut register = [0; 16];
        register[..10].copy_from_slice(&image[at..at + 10]);
        core.state.fpu.st[n] = register;
    }
    Ok(())
}
