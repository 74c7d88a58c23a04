//! Far jumps, calls and returns: code-segment checks, call gates, and stack switches.
//!
//! See: SDM vol. 3A 5.8 Privilege Level Checking When Transferring Program Control Between Code Segments

use super::{
    descriptor::{Mode, is_upper_half_valid},
    stack::Stack,
};
use crate::{
    core::Core,
    env::Interrupted,
    insn::{Insn, Kind},
};
use vmtape_arch::{
    descriptor::{Descriptor, Gate, Selector, SystemType, tss16, tss32, tss64},
    exception::Vector,
    vcpu::{Segment, gpr, seg},
};

/// Where a far transfer goes, all checks done but the one of RIP.
pub(super) struct Target {
    pub(super) cs: Segment,
    pub(super) rip: u64,
    pub(super) cpl: u8,
}

/// What lies under the selector of a far pointer.
enum Destination {
    Code(Target),
    /// A call gate: its operand size in bytes, and the parameters to copy.
    Gate {
        target: Target,
        size: u8,
        parameters: u8,
    },
    /// A TSS or task gate.
    Task(Selector),
}

impl Core<'_> {
    /// The far pointer of a JMP or CALL: selector and offset.
    fn far_pointer(&mut self, insn: &Insn, size: u8) -> Result<(u16, u64), Interrupted> {
        if insn.kinds[0] != Kind::Mem {
            return Ok((insn.imm2, insn.imm));
        }
        let at = insn.address(self);
        let offset = self.read_sized(insn.seg, at, size)?;
        let after = at.wrapping_add(size as u64) & insn.address_mask();
        Ok((self.read::<u16>(insn.seg, after)?, offset))
    }

    /// Whether an instruction pointer lies in its segment or is canonical.
    pub(super) fn is_rip_valid(&self, cs: &Segment, rip: u64) -> bool {
        if self.state.efer().lma() && cs.attr.l() { self.is_canonical(rip) } else { rip <= cs.limit as u64 }
    }

    /// The code segment under a selector for JMP and CALL without a gate. See: SDM vol. 3A 5.8.1
    fn direct_code(
        &mut self,
        selector: Selector,
        descriptor: Descriptor,
    ) -> Result<(Segment, u8), Interrupted> {
        let cpl = self.cpl();
        self.require(self.is_code_usable(descriptor), Vector::GP, selector)?;
        let privileged = if descriptor.seg_type().is_conforming_code() {
            descriptor.dpl() <= cpl
        } else {
            selector.rpl() <= cpl && descriptor.dpl() == cpl
        };
        self.require(privileged, Vector::GP, selector)?;
        self.require(descriptor.present(), Vector::NP, selector)?;
        let value = selector.with_rpl(cpl).into_bits();
        Ok((self.mark_accessed(selector, descriptor)?.segment(value), cpl))
    }

    /// Whether a code segment's L and D bits go together.
    pub(super) fn is_code_usable(&self, descriptor: Descriptor) -> bool {
        descriptor.is_code() && !(self.state.efer().lma() && descriptor.l() && descriptor.db())
    }

    fn destination(&mut self, value: u16, offset: u64, is_jump: bool) -> Result<Destination, Interrupted> {
        let selector = Selector::from_bits(value);
        self.require_gp0(!selector.is_null())?;
        let descriptor = self.descriptor(selector, Vector::GP)?;
        if descriptor.s() {
            let (cs, cpl) = self.direct_code(selector, descriptor)?;
            self.require_gp0(self.is_rip_valid(&cs, offset))?;
            return Ok(Destination::Code(Target { cs, rip: offset, cpl }));
        }
        let long = self.state.efer().lma();
        let (cpl, dpl) = (self.cpl(), descriptor.dpl());
        match descriptor.system_type() {
            SystemType::CALL_GATE | SystemType::CALL_GATE16
                if !long || descriptor.system_type() == SystemType::CALL_GATE =>
            {
                self.require(cpl <= dpl && selector.rpl() <= dpl, Vector::GP, selector)?;
                self.through_gate(selector, Gate::from_bits(descriptor.into_bits()), is_jump)
            }
            SystemType::TASK_GATE | SystemType::TSS_AVAILABLE | SystemType::TSS16_AVAILABLE if !long => {
                self.require(cpl <= dpl && selector.rpl() <= dpl, Vector::GP, selector)?;
                self.require(descriptor.present(), Vector::NP, selector)?;
                Ok(Destination::Task(selector))
            }
            _ => self.bad(Vector::GP, selector),
        }
    }

    fn through_gate(
        &mut self,
        selector: Selector,
        gate: Gate,
        is_jump: bool,
    ) -> Result<Destination, Interrupted> {
        let long = self.state.efer().lma();
        let mut rip = gate.offset() as u64;
        if long {
            let high = self.descriptor_high(selector, Vector::GP)?;
            self.require(is_upper_half_valid(high), Vector::GP, selector)?;
            rip |= high << 32;
        }
        self.require(gate.present(), Vector::NP, selector)?;
        let code = Selector::from_bits(gate.selector());
        self.require_gp0(!code.is_null())?;
        let descriptor = self.descriptor(code, Vector::GP)?;
        let (cpl, dpl) = (self.cpl(), descriptor.dpl());
        self.require(descriptor.is_code() && dpl <= cpl, Vector::GP, code)?;
        self.require(!long || (descriptor.l() && !descriptor.db()), Vector::GP, code)?;
        let conforming = descriptor.seg_type().is_conforming_code();
        self.require(!is_jump || conforming || dpl == cpl, Vector::GP, code)?;
        self.require(descriptor.present(), Vector::NP, code)?;
        let cpl = if conforming { cpl } else { dpl };
        let is_16bit = gate.system_type() == SystemType::CALL_GATE16;
        let (size, rip) = match (long, is_16bit) {
            (true, _) => (8, rip),
            (_, true) => (2, rip & 0xffff),
            _ => (4, rip),
        };
        let cs = self.mark_accessed(code, descriptor)?.segment(code.with_rpl(cpl).into_bits());
        let target = Target { cs, rip, cpl };
        Ok(Destination::Gate { target, size, parameters: gate.count_or_ist() })
    }

    /// Takes a far transfer's target over.
    pub(super) fn commit(&mut self, target: Target) {
        self.state.seg[seg::CS] = target.cs;
        self.state.cpl = target.cpl as u32;
        self.next_rip = target.rip;
    }

    /// A stack pointer out of the 64-bit TSS.
    pub(super) fn tss_stack_pointer(&mut self, at: u32) -> Result<u64, Interrupted> {
        let tr = self.state.seg[seg::TR];
        self.require(at + 7 <= tr.limit, Vector::TS, Selector::from_bits(tr.selector))?;
        self.system_read(tr.base.wrapping_add(at as u64))
    }

    /// The stack of an inner privilege level out of the TSS. `Err` is #TS or #SS.
    pub(super) fn inner_stack(&mut self, cpl: u8) -> Result<Stack, Interrupted> {
        let how = self.inner_privilege();
        if self.state.efer().lma() {
            let rsp = self.tss_stack_pointer(tss64::rsp(cpl))?;
            return Ok(Stack::long(rsp, Segment::null(cpl as u16), how));
        }
        let tr = self.state.seg[seg::TR];
        let wide = matches!(SystemType(tr.attr.typ()), SystemType::TSS_AVAILABLE | SystemType::TSS_BUSY);
        let (sp_at, ss_at) =
            if wide { (tss32::esp(cpl), tss32::ss(cpl)) } else { (tss16::sp(cpl), tss16::ss(cpl)) };
        self.require(ss_at < tr.limit, Vector::TS, Selector::from_bits(tr.selector))?;
        let sp = if wide {
            self.system_read::<u32>(tr.base.wrapping_add(sp_at as u64))? as u64
        } else {
            self.system_read::<u16>(tr.base.wrapping_add(sp_at as u64))? as u64
        };
        let ss = self.system_read::<u16>(tr.base.wrapping_add(ss_at as u64))?;
        let segment = self.stack_segment(ss, cpl, Vector::TS)?;
        Ok(Stack::legacy(sp, segment, how))
    }
}

/// Operand size of a far transfer in bytes.
fn operand_size(insn: &Insn) -> u8 {
    use iced_x86::Code::*;
    match insn.code {
        Jmp_ptr1616 | Jmp_m1616 | Call_ptr1616 | Call_m1616 | Retfw | Retfw_imm16 | Iretw => 2,
        Jmp_m1664 | Call_m1664 | Retfq | Retfq_imm16 | Iretq => 8,
        _ => 4,
    }
}

/// JMP far.
pub(super) fn jmp_far(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let (selector, offset) = core.far_pointer(insn, operand_size(insn))?;
    if core.is_real_or_v86() {
        let cs = core.real_cs(selector);
        core.require_gp0(offset <= cs.limit as u64)?;
        core.state.seg[seg::CS] = cs;
        core.next_rip = offset;
        return Ok(());
    }
    match core.destination(selector, offset, true)? {
        Destination::Code(target) => core.commit(target),
        Destination::Gate { target, .. } => {
            core.require_gp0(core.is_rip_valid(&target.cs, target.rip))?;
            core.commit(target);
        }
        Destination::Task(selector) => return core.task_switch(selector, insn),
    }
    Ok(())
}

/// CALL far.
pub(super) fn call_far(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let size = operand_size(insn);
    let (selector, offset) = core.far_pointer(insn, size)?;
    let old_cs = core.state.seg[seg::CS].selector as u64;
    let back = core.next_rip;
    if core.is_real_or_v86() {
        let cs = core.real_cs(selector);
        core.require_gp0(offset <= cs.limit as u64)?;
        let mut stack = core.stack();
        core.stack_push(&mut stack, size, old_cs)?;
        core.stack_push(&mut stack, size, back)?;
        core.switch_to(stack);
        core.state.seg[seg::CS] = cs;
        core.next_rip = offset;
        return Ok(());
    }
    match core.destination(selector, offset, false)? {
        Destination::Code(target) => {
            let mut stack = core.stack();
            core.stack_push(&mut stack, size, old_cs)?;
            core.stack_push(&mut stack, size, back)?;
            core.switch_to(stack);
            core.commit(target);
            Ok(())
        }
        Destination::Gate { target, size, parameters } => core.call_gate(target, size, parameters),
        Destination::Task(selector) => core.task_switch(selector, insn),
    }
}

impl Core<'_> {
    fn call_gate(&mut self, target: Target, size: u8, parameters: u8) -> Result<(), Interrupted> {
        let (old_cs, back) = (self.state.seg[seg::CS].selector as u64, self.next_rip);
        let old = self.stack();
        let mut stack = old;
        if target.cpl < self.cpl() {
            stack = self.inner_stack(target.cpl)?;
            self.stack_push(&mut stack, size, self.state.seg[seg::SS].selector as u64)?;
            self.stack_push(&mut stack, size, self.state.gpr[gpr::RSP])?;
            let count = if size == 8 { 0 } else { parameters };
            for n in (0..count).rev() {
                let parameter = self.stack_peek(&old, size, n as u64 * size as u64)?;
                self.stack_push(&mut stack, size, parameter)?;
            }
        }
        self.stack_push(&mut stack, size, old_cs)?;
        self.stack_push(&mut stack, size, back)?;
        self.require_gp0(self.is_rip_valid(&target.cs, target.rip))?;
        self.switch_to(stack);
        self.commit(target);
        Ok(())
    }

    /// CS as real and virtual-8086 mode load it.
    pub(super) fn real_cs(&self, selector: u16) -> Segment {
        Segment { base: (selector as u64) << 4, selector, ..self.state.seg[seg::CS] }
    }

    /// The code segment to which RET and IRET return. See: SDM vol. 2 RET, PROTECTED-MODE-RETURN
    pub(super) fn return_segment(&mut self, value: u16) -> Result<Segment, Interrupted> {
        let selector = Selector::from_bits(value);
        self.require_gp0(!selector.is_null())?;
        let descriptor = self.descriptor(selector, Vector::GP)?;
        let (rpl, dpl) = (selector.rpl(), descriptor.dpl());
        let privileged = if descriptor.seg_type().is_conforming_code() { dpl <= rpl } else { dpl == rpl };
        let fine = self.is_code_usable(descriptor) && rpl >= self.cpl() && privileged;
        self.require(fine, Vector::GP, selector)?;
        self.require(descriptor.present(), Vector::NP, selector)?;
        Ok(self.mark_accessed(selector, descriptor)?.segment(value))
    }

    /// SS for a return to `cpl` with code segment `cs`; unlike a load, 64-bit code may return with a null one.
    pub(super) fn return_stack_segment(
        &mut self,
        value: u16,
        cs: &Segment,
        cpl: u8,
    ) -> Result<Segment, Interrupted> {
        let selector = Selector::from_bits(value);
        if selector.is_null() {
            let fine = self.state.efer().lma() && cs.attr.l() && cpl < 3 && selector.rpl() == cpl;
            self.require_gp0(fine)?;
            return Ok(Segment::null(value));
        }
        self.stack_segment(value, cpl, Vector::GP)
    }
}

/// RET far.
pub(super) fn ret_far(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let size = operand_size(insn);
    let release = insn.imm & 0xffff;
    let mut stack = core.stack();
    let rip = core.stack_pop(&mut stack, size)?;
    let selector = core.stack_pop(&mut stack, size)? as u16;
    if matches!(core.mode(), Mode::Real | Mode::Virtual8086) {
        let cs = core.real_cs(selector);
        core.require_gp0(rip <= cs.limit as u64)?;
        stack.advance(release);
        core.switch_to(stack);
        core.state.seg[seg::CS] = cs;
        core.next_rip = rip;
        return Ok(());
    }
    let cs = core.return_segment(selector)?;
    let cpl = Selector::from_bits(selector).rpl();
    stack.advance(release);
    if cpl == core.cpl() {
        core.require_gp0(core.is_rip_valid(&cs, rip))?;
        core.switch_to(stack);
        core.commit(Target { cs, rip, cpl });
        return Ok(());
    }
    let sp = core.stack_pop(&mut stack, size)?;
    let ss = core.stack_pop(&mut stack, size)? as u16;
    let ss = core.return_stack_segment(ss, &cs, cpl)?;
    core.require_gp0(core.is_rip_valid(&cs, rip))?;
    core.commit(Target { cs, rip, cpl });
    let mut outer = Stack::outer(sp, ss, core.state.is_64bit_code());
    outer.advance(release);
    core.switch_to(outer);
    core.drop_inner_segments(cpl);
    Ok(())
}
