//! IRET in all modes.
//!
//! See: SDM vol. 2A IRET/IRETD/IRETQ

use super::{
    descriptor::Mode,
    flags::{Change, merge},
    stack::Stack,
    transfer::Target,
};
use crate::{core::Core, env::Interrupted, insn::Insn};
use iced_x86::Code;
use vmtape_arch::{
    descriptor::Selector,
    regs::Rflags,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Segment, seg},
};

pub(super) fn iret(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let size = match insn.code {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    core.sensitive(&Sensitive { size, ..core.describe(insn, SensitiveKind::IRET) })?;
    match core.mode() {
        Mode::Real => core.iret_real(size)?,
        Mode::Virtual8086 => core.iret_v86(size)?,
        _ => core.iret_protected(size)?,
    }
    core.state.interruptibility = core.state.interruptibility.with_nmi(false);
    Ok(())
}

impl Core<'_> {
    fn iret_real(&mut self, size: u8) -> Result<(), Interrupted> {
        let mut stack = self.stack();
        let (rip, cs, flags) = self.pop_frame(&mut stack, size)?;
        let segment = self.real_cs(cs);
        self.require_gp0(rip <= segment.limit as u64)?;
        self.switch_to(stack);
        self.state.seg[seg::CS] = segment;
        self.next_rip = rip;
        self.state.rflags = merge(self.flags(), flags, size, Change::IretAtLevel0);
        Ok(())
    }

    fn iret_v86(&mut self, size: u8) -> Result<(), Interrupted> {
        let old = self.flags();
        let virtual_if = old.iopl() < 3;
        self.require_gp0(!virtual_if || (self.state.cr4().vme() && size == 2))?;
        let mut stack = self.stack();
        let (rip, cs, flags) = self.pop_frame(&mut stack, size)?;
        if virtual_if {
            self.require_gp0(!(flags.tf() || (flags.intr() && old.vip())))?;
        }
        let segment = Segment { base: (cs as u64) << 4, selector: cs, ..self.state.seg[seg::CS] };
        self.require_gp0(rip <= segment.limit as u64)?;
        self.switch_to(stack);
        self.state.seg[seg::CS] = segment;
        self.next_rip = rip;
        let new = merge(old, flags, size, Change::Iret { intr: !virtual_if });
        self.state.rflags =
            if virtual_if { Rflags::from_bits(new).with_vif(flags.intr()).into_bits() } else { new };
        Ok(())
    }

    fn pop_frame(&mut self, stack: &mut Stack, size: u8) -> Result<(u64, u16, Rflags), Interrupted> {
        let rip = self.stack_pop(stack, size)?;
        let cs = self.stack_pop(stack, size)? as u16;
        Ok((rip, cs, Rflags::from_bits(self.stack_pop(stack, size)?)))
    }

    fn iret_protected(&mut self, size: u8) -> Result<(), Interrupted> {
        let old = self.flags();
        let long = self.state.efer().lma();
        if old.nt() {
            return self.return_to_task();
        }
        let mut stack = self.stack();
        let (rip, cs, flags) = self.pop_frame(&mut stack, size)?;
        if flags.vm() && self.cpl() == 0 && size == 4 && !long {
            return self.enter_v86(&mut stack, rip, cs, flags);
        }
        let old_cpl = self.cpl();
        let cpl = Selector::from_bits(cs).rpl();
        let cs = self.return_segment(cs)?;
        // 64-bit code always gives a stack; others only to an outer level.
        let outer = if self.state.is_64bit_code() || cpl > old_cpl {
            let sp = self.stack_pop(&mut stack, size)?;
            let ss = self.stack_pop(&mut stack, size)? as u16;
            Some((sp, self.return_stack_segment(ss, &cs, cpl)?))
        } else {
            None
        };
        self.require_gp0(self.is_rip_valid(&cs, rip))?;
        let change = match old_cpl {
            0 => Change::IretAtLevel0,
            _ => Change::Iret { intr: old_cpl <= old.iopl() },
        };
        self.state.rflags = merge(old, flags, size, change);
        self.commit(Target { cs, rip, cpl });
        match outer {
            Some((sp, ss)) => self.switch_to(Stack::outer(sp, ss, self.state.is_64bit_code())),
            None => self.switch_to(stack),
        }
        if cpl > old_cpl {
            self.drop_inner_segments(cpl);
        }
        Ok(())
    }

    fn enter_v86(&mut self, stack: &mut Stack, rip: u64, cs: u16, flags: Rflags) -> Result<(), Interrupted> {
        let sp = self.stack_pop(stack, 4)?;
        let mut selectors = [0; 5];
        for selector in &mut selectors {
            *selector = self.stack_pop(stack, 4)? as u16;
        }
        let load = |selector| Segment::real(selector, 3);
        for (n, selector) in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS].into_iter().zip(selectors) {
            self.state.seg[n] = load(selector);
        }
        self.state.rflags =
            merge(self.flags(), flags, 4, Change::IretAtLevel0) | Rflags::new().with_vm(true).into_bits();
        self.state.gpr[vmtape_arch::vcpu::gpr::RSP] = sp;
        self.commit(Target { cs: load(cs), rip: rip & 0xffff, cpl: 3 });
        Ok(())
    }
}
