//! Descriptor-table and task registers.
//!
//! See: SDM vol. 2A LGDT/LIDT, LLDT, LTR; vol. 2B SGDT, SIDT, SLDT, STR

use super::descriptor::is_upper_half_valid;
use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::{Insn, Kind},
};
use iced_x86::Code;
use vmtape_arch::{
    descriptor::{Descriptor, Selector, SystemType},
    exception::Vector,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Segment, TableReg, seg},
};

/// Bytes of a table's base in memory.
fn base_size(insn: &Insn) -> u8 {
    use Code::*;
    match insn.code {
        Lgdt_m1664 | Lidt_m1664 | Sgdt_m1664 | Sidt_m1664 => 8,
        _ => 4,
    }
}

fn is_idt(insn: &Insn) -> bool {
    use Code::*;
    matches!(insn.code, Lidt_m1632_16 | Lidt_m1632 | Lidt_m1664 | Sidt_m1632_16 | Sidt_m1632 | Sidt_m1664)
}

/// What an exit tells of an access to GDTR or IDTR.
fn describe(core: &Core<'_>, insn: &Insn, load: bool) -> Sensitive {
    let number = is_idt(insn) as u32;
    Sensitive { number, value: load as u64, ..core.describe(insn, SensitiveKind::GDTR_IDTR) }
}

/// LGDT and LIDT.
pub(super) fn load_table(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    core.sensitive(&describe(core, insn, true))?;
    let size = base_size(insn);
    let at = insn.address(core);
    let limit: u16 = core.read(insn.seg, at)?;
    let mut base = core.read_sized(insn.seg, at.wrapping_add(2) & insn.address_mask(), size)?;
    // With an operand size of 16 bits the base has 24.
    if matches!(insn.code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0x00ff_ffff;
    }
    core.require_gp0(core.model.canonical(base))?;
    let table = TableReg { base, limit, ..TableReg::default() };
    if is_idt(insn) {
        core.state.idtr = table;
    } else {
        core.state.gdtr = table;
    }
    Ok(())
}

/// SGDT and SIDT.
pub(super) fn store_table(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.check_umip()?;
    core.sensitive(&describe(core, insn, false))?;
    let table = if is_idt(insn) { core.state.idtr } else { core.state.gdtr };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = 2 + base_size(insn) as usize;
    core.write_bytes(insn.seg, insn.address(core), &bytes[..len])
}

/// Which register LLDT, LTR, SLDT and STR access.
fn register(insn: &Insn) -> usize {
    use Code::*;
    match insn.code {
        Lldt_rm16 | Lldt_r32m16 | Lldt_r64m16 | Sldt_rm16 | Sldt_r32m16 | Sldt_r64m16 => seg::LDTR,
        _ => seg::TR,
    }
}

fn describe_system(core: &Core<'_>, insn: &Insn, load: bool) -> Sensitive {
    let number = (register(insn) == seg::TR) as u32;
    let what = core.describe(insn, SensitiveKind::LDTR_TR);
    Sensitive { number, value: load as u64, gpr: insn.regs[0], ..what }
}

/// SLDT and STR.
pub(super) fn store_system(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.is_real_or_v86() {
        return ud();
    }
    core.check_umip()?;
    core.sensitive(&describe_system(core, insn, false))?;
    let selector = core.state.seg[register(insn)].selector;
    match (insn.kinds[0], insn.code) {
        (Kind::Mem, _) | (_, Code::Sldt_rm16 | Code::Str_rm16) => core.put(insn, 0, selector),
        (_, Code::Sldt_r32m16 | Code::Str_r32m16) => core.put(insn, 0, selector as u32),
        _ => core.put(insn, 0, selector as u64),
    }
}

/// LLDT and LTR.
pub(super) fn load_system(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.is_real_or_v86() {
        return ud();
    }
    core.require_cpl0()?;
    core.sensitive(&describe_system(core, insn, true))?;
    let selector: u16 = core.get(insn, 0)?;
    let n = register(insn);
    core.state.seg[n] = if n == seg::LDTR { core.fetch_ldt(selector)? } else { core.fetch_tss(selector)? };
    Ok(())
}

impl Core<'_> {
    /// #GP(0) for the instructions that CR4.UMIP reserves for level 0.
    pub(super) fn check_umip(&self) -> Result<(), Interrupted> {
        self.require_gp0(self.cpl() == 0 || !self.state.cr4().umip())
    }

    /// A system descriptor's segment with its 64-bit base.
    fn system_segment(&mut self, selector: Selector, descriptor: Descriptor) -> Result<Segment, Interrupted> {
        let mut segment = descriptor.segment(selector.into_bits());
        if self.state.efer().lma() {
            let high = self.descriptor_high(selector, Vector::GP)?;
            segment.base |= high << 32;
            self.require(
                is_upper_half_valid(high) && self.model.canonical(segment.base),
                Vector::GP,
                selector,
            )?;
        }
        Ok(segment)
    }

    fn fetch_ldt(&mut self, value: u16) -> Result<Segment, Interrupted> {
        let selector = Selector::from_bits(value);
        if selector.is_null() {
            return Ok(Segment::null(value));
        }
        self.require(!selector.ti(), Vector::GP, selector)?;
        let descriptor = self.descriptor(selector, Vector::GP)?;
        self.require(descriptor.is_system(SystemType::LDT), Vector::GP, selector)?;
        self.require(descriptor.present(), Vector::NP, selector)?;
        self.system_segment(selector, descriptor)
    }

    /// Marks the TSS busy in memory.
    fn fetch_tss(&mut self, value: u16) -> Result<Segment, Interrupted> {
        let selector = Selector::from_bits(value);
        self.require_gp0(!selector.is_null())?;
        self.require(!selector.ti(), Vector::GP, selector)?;
        let descriptor = self.descriptor(selector, Vector::GP)?;
        let busy = match descriptor.system_type() {
            _ if descriptor.s() => None,
            SystemType::TSS_AVAILABLE => Some(SystemType::TSS_BUSY),
            SystemType::TSS16_AVAILABLE if !self.state.efer().lma() => Some(SystemType::TSS16_BUSY),
            _ => None,
        };
        let Some(busy) = busy else { return self.bad(Vector::GP, selector) };
        self.require(descriptor.present(), Vector::NP, selector)?;
        let descriptor = descriptor.with_typ(busy.0);
        let segment = self.system_segment(selector, descriptor)?;
        if let Some(gva) = self.descriptor_address(selector, 8) {
            self.system_write(gva, descriptor.into_bits())?;
        }
        Ok(segment)
    }
}
