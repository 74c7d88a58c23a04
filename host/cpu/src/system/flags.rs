//! PUSHF, POPF, CLI, STI, CLAC and STAC, with IOPL and the virtual interrupt flag.
//!
//! See: SDM vol. 3B 21.4 Protected-Mode Virtual Interrupts, vol. 2B POPF/POPFD/POPFQ

use super::descriptor::Mode;
use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::Insn,
};
use iced_x86::Code;
use vmtape_arch::{regs::Rflags, sensitive::SensitiveKind, vcpu::Interruptibility};

/// Who replaces RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// POPF. `level0`: IOPL may change.
    Popf {
        level0: bool,
        intr: bool,
    },
    IretAtLevel0,
    Iret {
        intr: bool,
    },
}

/// Flags that every program may change.
const PLAIN: Rflags = Rflags::new()
    .with_cf(true)
    .with_pf(true)
    .with_af(true)
    .with_zf(true)
    .with_sf(true)
    .with_tf(true)
    .with_df(true)
    .with_of(true)
    .with_nt(true);

/// RFLAGS after `new` was popped with an operand size.
pub(super) fn merge(old: Rflags, new: Rflags, size: u8, change: Change) -> u64 {
    let mut mask = PLAIN;
    let (level0, intr) = match change {
        Change::Popf { level0, intr } => (level0, intr),
        Change::IretAtLevel0 => (true, true),
        Change::Iret { intr } => (false, intr),
    };
    if intr {
        mask.set_intr(true);
    }
    if level0 {
        mask.set_iopl(3);
    }
    let is_iret = !matches!(change, Change::Popf { .. });
    if size > 2 {
        mask = mask.with_ac(true).with_id(true).with_rf(is_iret);
        if change == Change::IretAtLevel0 {
            mask = mask.with_vif(true).with_vip(true);
        }
    }
    let old = if is_iret { old } else { old.with_rf(false) };
    let merged = (old.into_bits() & !mask.into_bits()) | (new.into_bits() & mask.into_bits());
    Rflags::from_bits(merged).with_always_one(true).into_bits()
}

/// Virtual-8086 mode with IOPL below 3: the flags instructions either work on VIF or fault.
fn is_virtualized(core: &Core<'_>) -> bool {
    core.mode() == Mode::Virtual8086 && core.flags().iopl() < 3
}

fn operand_size(insn: &Insn) -> u8 {
    match insn.code {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    }
}

pub(super) fn pushf(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.offer(insn, SensitiveKind::PUSHF)?;
    let size = operand_size(insn);
    let mut image = core.flags().with_rf(false).with_vm(false);
    if is_virtualized(core) {
        core.require_gp0(core.state.cr4().vme() && size == 2)?;
        image = image.with_intr(image.vif()).with_iopl(3);
    }
    let mut stack = core.stack();
    core.stack_push(&mut stack, size, image.into_bits())?;
    core.switch_to(stack);
    Ok(())
}

pub(super) fn popf(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.offer(insn, SensitiveKind::POPF)?;
    let size = operand_size(insn);
    let old = core.flags();
    let virtualized = is_virtualized(core);
    core.require_gp0(!virtualized || (core.state.cr4().vme() && size == 2))?;
    let mut stack = core.stack();
    let new = Rflags::from_bits(core.stack_pop(&mut stack, size)?);
    if virtualized {
        core.require_gp0(!(new.tf() || (new.intr() && old.vip())))?;
    }
    core.switch_to(stack);
    let real = core.mode() == Mode::Real;
    // In virtual-8086 mode the CPL is 3, so that IOPL stays.
    let change = Change::Popf {
        level0: real || core.cpl() == 0,
        intr: !virtualized && (real || core.cpl() <= old.iopl()),
    };
    let merged = Rflags::from_bits(merge(old, new, size, change));
    core.state.rflags = if virtualized { merged.with_vif(new.intr()) } else { merged }.into_bits();
    Ok(())
}

/// What CLI and STI work on.
enum Target {
    If,
    Vif,
}

fn interrupt_flag(core: &Core<'_>) -> Result<Target, Interrupted> {
    let flags = core.flags();
    if core.mode() == Mode::Real || core.cpl() <= flags.iopl() {
        return Ok(Target::If);
    }
    let cr4 = core.state.cr4();
    let virtual_flag =
        if core.mode() == Mode::Virtual8086 { cr4.vme() } else { cr4.pvi() && core.cpl() == 3 };
    core.require_gp0(virtual_flag)?;
    Ok(Target::Vif)
}

pub(super) fn cli(core: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    let flags = core.flags();
    let flags = match interrupt_flag(core)? {
        Target::If => flags.with_intr(false),
        Target::Vif => flags.with_vif(false),
    };
    core.state.rflags = flags.into_bits();
    Ok(())
}

pub(super) fn sti(core: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    let flags = core.flags();
    match interrupt_flag(core)? {
        Target::If => {
            core.state.rflags = flags.with_intr(true).into_bits();
            if !flags.intr() {
                core.block_interrupts(Interruptibility::new().with_sti(true));
            }
        }
        Target::Vif => {
            core.require_gp0(!flags.vip())?;
            core.state.rflags = flags.with_vif(true).into_bits();
        }
    }
    Ok(())
}

/// CLAC and STAC.
pub(super) fn set_ac(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.cpl() != 0 || core.mode() == Mode::Virtual8086 {
        return ud();
    }
    core.state.rflags = core.flags().with_ac(insn.code == Code::Stac).into_bits();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_cannot_change_what_is_not_its_own() {
        let old = Rflags::new().with_always_one(true).with_intr(true);
        let all = Rflags::from_bits(u64::MAX);
        let popf = Rflags::from_bits(merge(old, all, 8, Change::Popf { level0: false, intr: false }));
        assert!(popf.intr() && popf.iopl() == 0 && !popf.rf() && !popf.vm() && !popf.vif());
        assert!(popf.ac() && popf.id() && popf.nt() && popf.tf());
        let iret = Rflags::from_bits(merge(old, Rflags::new(), 8, Change::IretAtLevel0));
        assert_eq!(iret, Rflags::new().with_always_one(true));
    }

    #[test]
    fn sixteen_bits_keep_the_upper_flags() {
        let old = Rflags::new().with_ac(true).with_rf(true);
        let iret = Rflags::from_bits(merge(old, Rflags::new(), 2, Change::IretAtLevel0));
        assert!(iret.ac() && iret.rf());
    }
}
