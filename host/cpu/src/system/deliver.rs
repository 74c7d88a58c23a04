//! One delivery of an event through the IVT or IDT.
//!
//! See: SDM vol. 3A 6.12 Exception and Interrupt Handling, 6.14 Exception and Interrupt Handling in 64-bit Mode,
//! vol. 3B 21.3 Interrupt and Exception Handling in Virtual-8086 Mode

use super::{descriptor::Mode, stack::Stack, transfer::Target};
use crate::{core::Core, env::Interrupted};
use vmtape_arch::{
    descriptor::{Descriptor, Gate, Selector, SelectorError, SystemType, tss32, tss64},
    event::{Event, EventKind},
    exception::Vector,
    regs::Rflags,
    vcpu::{Segment, seg},
};

/// How an interrupt or trap gate enters its handler.
struct Entry {
    target: Target,
    /// Bytes per item pushed.
    size: u8,
    /// Interrupt gates clear IF.
    masks_interrupts: bool,
    ist: u8,
}

impl Core<'_> {
    /// Delivers an event: pushes the frame and leaves the handler's address in `next_rip`. On an error only memory
    /// below the stack pointer and accessed bits of descriptors may have changed.
    pub(super) fn deliver(&mut self, event: &Event) -> Result<(), Interrupted> {
        let software = event.kind == EventKind::SOFTWARE_INTERRUPT;
        match self.mode() {
            Mode::Real => self.deliver_real(event, self.state.idtr.base),
            Mode::Virtual8086 if software && self.is_redirected(event.vector)? => self.deliver_real(event, 0),
            _ => self.deliver_gate(event),
        }
    }

    /// Where the handler returns to.
    fn return_rip(&self, event: &Event) -> u64 {
        self.state.rip.wrapping_add(event.insn_len as u64) & self.rip_mask
    }

    fn deliver_real(&mut self, event: &Event, ivt: u64) -> Result<(), Interrupted> {
        let offset = event.vector as u64 * 4;
        if self.mode() == Mode::Real && offset + 3 > self.state.idtr.limit as u64 {
            return Err(self.selector_fault(Vector::GP, SelectorError::vector(event.vector)));
        }
        let entry: u32 = self.system_read(ivt.wrapping_add(offset))?;
        let flags = self.flags();
        let cs = self.state.seg[seg::CS].selector as u64;
        let mut stack = self.stack();
        self.stack_push(&mut stack, 2, self.saved_flags_16(flags))?;
        self.stack_push(&mut stack, 2, cs)?;
        self.stack_push(&mut stack, 2, self.return_rip(event))?;
        self.switch_to(stack);
        self.state.seg[seg::CS] = self.real_cs((entry >> 16) as u16);
        self.next_rip = (entry & 0xffff) as u64;
        let mut flags = flags.with_tf(false).with_rf(false).with_ac(false);
        if self.mode() == Mode::Virtual8086 && flags.iopl() < 3 {
            flags.set_vif(false);
        } else {
            flags.set_intr(false);
        }
        self.state.rflags = flags.into_bits();
        Ok(())
    }

    /// With VME and IOPL below 3 the program sees VIF as IF, and IOPL as 3.
    fn saved_flags_16(&self, flags: Rflags) -> u64 {
        if self.mode() == Mode::Virtual8086 && flags.iopl() < 3 {
            return flags.with_intr(flags.vif()).with_iopl(3).into_bits();
        }
        flags.into_bits()
    }

    /// INT n in virtual-8086 mode: whether the TSS's redirection bitmap sends it to the program's own handler. #GP(0) if
    /// it goes to protected mode with IOPL below 3. See: SDM vol. 3B Table 21-2. Software Interrupt Handling Methods
    fn is_redirected(&mut self, vector: u8) -> Result<bool, Interrupted> {
        if self.state.cr4().vme() {
            let tr = self.state.seg[seg::TR];
            let io_map: u16 = self.system_read(tr.base.wrapping_add(tss32::IO_MAP_BASE as u64))?;
            let at = (io_map as u64).wrapping_sub(32).wrapping_add(vector as u64 / 8);
            if at <= tr.limit as u64
                && self.system_read::<u8>(tr.base.wrapping_add(at))? >> (vector % 8) & 1 == 0
            {
                return Ok(true);
            }
        }
        self.require_gp0(self.flags().iopl() == 3)?;
        Ok(false)
    }

    /// Reads and checks the gate and its code segment.
    fn gate(&mut self, event: &Event) -> Result<Option<Entry>, Interrupted> {
        let long = self.state.efer().lma();
        let (vector, index) = (event.vector, SelectorError::vector(event.vector));
        let size = if long { 16 } else { 8 };
        let offset = vector as u64 * size;
        if offset + size - 1 > self.state.idtr.limit as u64 {
            return Err(self.selector_fault(Vector::GP, index));
        }
        let at = self.state.idtr.base.wrapping_add(offset);
        let gate = Gate::from_bits(self.system_read(at)?);
        let (masks_interrupts, width) = match gate.system_type() {
            _ if gate.s() => (false, 0),
            SystemType::INTERRUPT_GATE => (true, 4),
            SystemType::TRAP_GATE => (false, 4),
            SystemType::INTERRUPT_GATE16 if !long => (true, 2),
            SystemType::TRAP_GATE16 if !long => (false, 2),
            SystemType::TASK_GATE if !long => (false, 1),
            _ => (false, 0),
        };
        if width == 0 {
            return Err(self.selector_fault(Vector::GP, index));
        }
        let software = matches!(event.kind, EventKind::SOFTWARE_INTERRUPT | EventKind::SOFTWARE_EXCEPTION);
        if software && gate.dpl() < self.cpl() {
            return Err(self.selector_fault(Vector::GP, index));
        }
        if !gate.present() {
            return Err(self.selector_fault(Vector::NP, index));
        }
        if width == 1 {
            return Ok(None);
        }
        let mut rip = gate.offset() as u64;
        if long {
            rip |= self.system_read::<u32>(at.wrapping_add(8))? as u64 * (1 << 32);
        } else if width == 2 {
            rip &= 0xffff;
        }
        let target = self.handler_segment(gate.selector(), rip)?;
        let ist = if long { gate.ist() } else { 0 };
        Ok(Some(Entry { target, size: if long { 8 } else { width }, masks_interrupts, ist }))
    }

    fn handler_segment(&mut self, value: u16, rip: u64) -> Result<Target, Interrupted> {
        let selector = Selector::from_bits(value);
        self.require_gp0(!selector.is_null())?;
        let descriptor: Descriptor = self.descriptor(selector, Vector::GP)?;
        let long = self.state.efer().lma();
        let fine = descriptor.is_code()
            && descriptor.dpl() <= self.cpl()
            && (!long || (descriptor.l() && !descriptor.db()));
        self.require(fine, Vector::GP, selector)?;
        self.require(descriptor.present(), Vector::NP, selector)?;
        let conforming = descriptor.seg_type().is_conforming_code();
        let cpl = if conforming { self.cpl() } else { descriptor.dpl() };
        // Virtual-8086 mode is left for level 0 only.
        self.require(!self.flags().vm() || cpl == 0, Vector::GP, selector)?;
        let cs = self.mark_accessed(selector, descriptor)?.segment(selector.with_rpl(cpl).into_bits());
        Ok(Target { cs, rip, cpl })
    }

    fn deliver_gate(&mut self, event: &Event) -> Result<(), Interrupted> {
        let Some(entry) = self.gate(event)? else {
            return self.task_gate();
        };
        let flags = self.flags();
        let mut stack = self.handler_stack(&entry)?;
        let inner = entry.target.cpl < self.cpl();
        let size = entry.size;
        if flags.vm() {
            for n in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.stack_push(&mut stack, size, self.state.seg[n].selector as u64)?;
            }
        }
        if inner || size == 8 {
            self.stack_push(&mut stack, size, self.state.seg[seg::SS].selector as u64)?;
            self.stack_push(&mut stack, size, self.current_sp())?;
        }
        self.stack_push(&mut stack, size, flags.into_bits())?;
        self.stack_push(&mut stack, size, self.state.seg[seg::CS].selector as u64)?;
        self.stack_push(&mut stack, size, self.return_rip(event))?;
        if event.has_error_code.is_set() {
            self.stack_push(&mut stack, size, event.error_code as u64)?;
        }
        self.require_gp0(self.is_rip_valid(&entry.target.cs, entry.target.rip))?;
        self.switch_to(stack);
        if flags.vm() {
            for n in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.state.seg[n] = Segment::null(0);
            }
        }
        self.commit(entry.target);
        let intr = flags.intr() && !entry.masks_interrupts;
        self.state.rflags =
            flags.with_tf(false).with_nt(false).with_rf(false).with_vm(false).with_intr(intr).into_bits();
        Ok(())
    }

    /// The stack pointer as a frame saves it.
    fn current_sp(&self) -> u64 {
        self.state.gpr[vmtape_arch::vcpu::gpr::RSP]
    }

    /// The handler's stack: out of the interrupt stack table, of the inner level, or the current one.
    fn handler_stack(&mut self, entry: &Entry) -> Result<Stack, Interrupted> {
        let cpl = entry.target.cpl;
        let long = entry.size == 8;
        let inner = cpl < self.cpl();
        if !long {
            return if inner { self.inner_stack(cpl) } else { Ok(self.stack()) };
        }
        let mut stack = match (entry.ist, inner) {
            (0, false) => {
                let ss = self.state.seg[seg::SS];
                Stack::long(self.current_sp(), ss, crate::mem::Privilege::Current)
            }
            (0, true) => self.inner_stack(cpl)?,
            (ist, _) => {
                let rsp = self.tss_stack_pointer(tss64::ist(ist))?;
                let ss = if inner { Segment::null(cpl as u16) } else { self.state.seg[seg::SS] };
                Stack::long(rsp, ss, self.inner_privilege())
            }
        };
        // Frames of 64-bit mode are 16-byte aligned.
        stack.sp &= !0xf;
        Ok(stack)
    }
}
