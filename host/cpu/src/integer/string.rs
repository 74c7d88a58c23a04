//! MOVS, CMPS, STOS, LODS, SCAS, with their repetitions.
//!
//! An instruction that repeats is one retired instruction. A fault leaves the registers at the iteration that faulted,
//! so that it restarts there; under single-stepping it is left after each iteration.

use crate::{
    core::{Core, Leave},
    env::Interrupted,
    flags::{self, DF, TF, ZF},
    insn::{Handler, Insn, prefix},
    integer::sized,
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};
use vmtape_arch::{
    PAGE_SIZE,
    access::AccessKind,
    vcpu::{
        gpr::{RAX, RCX, RDI, RSI},
        seg,
    },
};

type Done = Result<(), Interrupted>;

const ES: u8 = seg::ES as u8;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    if !i.is_string_instruction() {
        return None;
    }
    let size = i.memory_size().size();
    Some(match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => sized!(size, T => movs::<T>),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => sized!(size, T => cmps::<T>),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => sized!(size, T => stos::<T>),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => sized!(size, T => lods::<T>),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => sized!(size, T => scas::<T>),
        _ => return None,
    })
}

impl Core<'_> {
    /// Moves an index register by `count` elements in the direction that DF says.
    #[inline(always)]
    pub fn advance(&mut self, register: usize, mask: u64, bytes: u64) {
        let back = self.state.rflags & DF != 0;
        let step = if back { bytes.wrapping_neg() } else { bytes };
        self.set_address(register, self.state.gpr[register].wrapping_add(step), mask);
    }

    /// Runs `iteration` once, or as often as a REP prefix and the counter say. It gives the number of iterations that
    /// it did (at least one) and whether to go on.
    #[inline(always)]
    pub fn repeat(
        &mut self,
        insn: &Insn,
        mut iteration: impl FnMut(&mut Self, u64) -> Result<(u64, bool), Interrupted>,
    ) -> Done {
        if !insn.has(prefix::REP | prefix::REPNE) {
            return iteration(self, 1).map(|_| ());
        }
        let mask = insn.address_mask();
        loop {
            let count = self.state.gpr[RCX] & mask;
            if count == 0 {
                self.cut_registers(insn, mask);
                return Ok(());
            }
            let limit = if self.must_stop_early() { 1 } else { count };
            let (done, go_on) = iteration(self, limit)?;
            self.set_address(RCX, count - done, mask);
            if !go_on || self.leaves_repeat(count - done, None) {
                return Ok(());
            }
            if done < count && self.must_stop_early() {
                self.next_rip = self.state.rip;
                return Ok(());
            }
        }
    }

    /// Whether KVM's emulator leaves the rest of an instruction that repeats to the guest, which is at it still.
    pub fn leaves_repeat(&mut self, left: u64, read_ahead: Option<u64>) -> bool {
        self.repeats = self.emulating && self.env.leaves_repeat(left, read_ahead);
        if self.repeats {
            self.next_rip = self.state.rip;
        }
        self.repeats
    }

    /// As [`Core::repeat`] for CMPS and SCAS, whose flags a fault may bring back.
    #[inline(always)]
    fn repeat_compare(
        &mut self,
        insn: &Insn,
        iteration: impl FnMut(&mut Self, u64) -> Result<(u64, bool), Interrupted>,
    ) -> Done {
        let flags = self.state.rflags;
        let done = self.repeat(insn, iteration);
        if done.is_err() && self.model.rules.repeated_compare_restores_flags {
            self.state.rflags = flags;
        }
        done
    }

    /// A count of zero: see [`crate::Rules::empty_repeat_cuts_registers`].
    fn cut_registers(&mut self, insn: &Insn, mask: u64) {
        let cuts = self.model.rules.empty_repeat_cuts_registers && insn.is_64bit();
        if mask != u64::from(u32::MAX) || !cuts || !insn.code.is_string_instruction() {
            return;
        }
        use Mnemonic::{Movsb, Movsd, Movsq, Movsw, Stosb, Stosd, Stosq, Stosw};
        let op = insn.code.mnemonic();
        let moves = matches!(op, Movsb | Movsw | Movsd | Movsq);
        let stores = matches!(op, Stosb | Stosw | Stosd | Stosq);
        let gpr = &mut self.state.gpr;
        gpr[RCX] = 0;
        if moves {
            gpr[RSI] &= mask;
        }
        if moves || stores {
            gpr[RDI] &= mask;
        }
    }

    /// Single steps, breakpoints that were met, and exits that follow an access come between iterations.
    fn must_stop_early(&self) -> bool {
        self.state.rflags & TF != 0 || self.leave == Leave::Exit || self.debug_traps != 0
    }

    /// How many elements from `offset` on, counting upwards, lie on its page and before the offset wraps: at least one.
    fn on_page(&self, segment: u8, offset: u64, mask: u64, bytes: u64, limit: u64) -> u64 {
        let gva = offset.wrapping_add(self.segment_base(segment)) & self.linear_mask;
        let room = (PAGE_SIZE - gva % PAGE_SIZE) / bytes;
        room.min((mask - offset) / bytes).clamp(1, limit)
    }
}

fn movs<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let mask = insn.address_mask();
    core.repeat(insn, |core, limit| {
        let (from, to) = (core.state.gpr[RSI] & mask, core.state.gpr[RDI] & mask);
        let mut count = 1;
        match bulk_copy::<T>(core, insn, from, to, limit) {
            Some(copied) => count = copied,
            None => {
                let value = core.read::<T>(insn.seg, from)?;
                core.write(ES, to, value)?;
            }
        }
        core.advance(RSI, mask, count * T::BYTES);
        core.advance(RDI, mask, count * T::BYTES);
        Ok((count, true))
    })
}

/// Copies as many elements as lie on both pages, if both are in the TLB and do not overlap.
fn bulk_copy<T: Int>(core: &Core<'_>, insn: &Insn, from: u64, to: u64, limit: u64) -> Option<u64> {
    if limit == 1 || core.state.rflags & DF != 0 {
        return None;
    }
    let mask = insn.address_mask();
    let count = core.on_page(insn.seg, from, mask, T::BYTES, limit);
    let count = core.on_page(ES, to, mask, T::BYTES, count);
    let len = count * T::BYTES;
    let source = core.fast_range(insn.seg, from, len, AccessKind::READ)?;
    let target = core.fast_range(ES, to, len, AccessKind::WRITE)?;
    if source.abs_diff(target) < len {
        return None;
    }
    core.ram.copy(source, target, len as usize, core.state.icount).then_some(count)
}

fn stos<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let mask = insn.address_mask();
    core.repeat(insn, |core, limit| {
        let value = T::get(core, RAX as u8);
        let to = core.state.gpr[RDI] & mask;
        let mut count = 1;
        match bulk_fill(core, to, mask, value, limit) {
            Some(filled) => count = filled,
            None => core.write(ES, to, value)?,
        }
        core.advance(RDI, mask, count * T::BYTES);
        Ok((count, true))
    })
}

/// Fills as many elements as lie on the page, if it is in the TLB.
fn bulk_fill<T: Int>(core: &Core<'_>, to: u64, mask: u64, value: T, limit: u64) -> Option<u64> {
    if limit == 1 || core.state.rflags & DF != 0 {
        return None;
    }
    let count = core.on_page(ES, to, mask, T::BYTES, limit);
    let len = count * T::BYTES;
    let target = core.fast_range(ES, to, len, AccessKind::WRITE)?;
    let bytes = value.to_slice();
    let repeated = std::array::from_fn(|n| bytes[n % T::BYTES as usize]);
    core.ram.fill(target, len as usize, repeated, core.state.icount).then_some(count)
}

fn lods<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let mask = insn.address_mask();
    core.repeat(insn, |core, _| {
        let value = core.read::<T>(insn.seg, core.state.gpr[RSI] & mask)?;
        value.set(core, RAX as u8);
        core.advance(RSI, mask, T::BYTES);
        Ok((1, true))
    })
}

/// REPE goes on while equal, REPNE while not.
#[inline(always)]
fn goes_on(insn: &Insn, status: u64) -> bool {
    (status & ZF != 0) != insn.has(prefix::REPNE)
}

fn cmps<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let mask = insn.address_mask();
    core.repeat_compare(insn, |core, _| {
        let a = core.read::<T>(insn.seg, core.state.gpr[RSI] & mask)?;
        let b = core.read::<T>(ES, core.state.gpr[RDI] & mask)?;
        let status = flags::sub(a, b, false).1;
        core.set_status(status);
        core.advance(RSI, mask, T::BYTES);
        core.advance(RDI, mask, T::BYTES);
        Ok((1, goes_on(insn, status)))
    })
}

fn scas<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let mask = insn.address_mask();
    core.repeat_compare(insn, |core, _| {
        let b = core.read::<T>(ES, core.state.gpr[RDI] & mask)?;
        let status = flags::sub(T::get(core, RAX as u8), b, false).1;
        core.set_status(status);
        core.advance(RDI, mask, T::BYTES);
        Ok((1, goes_on(insn, status)))
    })
}
