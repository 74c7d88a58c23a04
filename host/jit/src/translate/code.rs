//! The code of a block while it is made, and its ways out.

use super::state::{Flags, Producer};
use crate::{
    frame::{EXIT, Home, MISS as MISS_AT, MISSED, RIP, SLOTS, TAG, home, host, packed},
    interface::Use,
    links::Slot,
};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use iced_x86::Instruction;

/// What the value means that a block leaves in EAX.
pub(crate) enum Leaving {
    /// Number of the way out.
    Link(u32),
    /// Block and instruction.
    Handler(u32, usize),
    /// The same.
    Miss(u32, usize),
    /// Block.
    Budget(u32),
}

const KIND_BITS: u32 = 2;
const INSN_BITS: u32 = 5;
const LINK: u32 = 0;
const HANDLER: u32 = 1;
const BUDGET: u32 = 2;
const MISS: u32 = 3;

pub(crate) fn leaving(code: u32) -> Leaving {
    let number = code >> KIND_BITS;
    let (block, insn) = (number >> INSN_BITS, number as usize % (1 << INSN_BITS));
    match code % (1 << KIND_BITS) {
        LINK => Leaving::Link(number),
        HANDLER => Leaving::Handler(block, insn),
        MISS => Leaving::Miss(block, insn),
        _ => Leaving::Budget(block),
    }
}

/// A block's code.
pub(crate) struct Translation {
    pub(crate) bytes: Vec<u8>,
    /// Where it goes on with each instruction after the interpreter has executed the one before.
    pub(crate) resume: Vec<Option<usize>>,
    /// Where each instruction is entered again.
    pub(crate) retry: Vec<Option<usize>>,
    /// Ways out that were numbered.
    pub(crate) links: u32,
}

/// Code that is seldom reached, behind the rest.
enum Stub {
    /// An access is the interpreter's; behind it the code goes on at `back`, if at all, with flags loaded if it counts on that.
    Slow { label: DynamicLabel, insn: usize, back: Option<DynamicLabel>, loads_flags: bool },
    /// An access misses its page; what is [`packed`] of it.
    Miss { label: DynamicLabel, insn: usize, packed: u32 },
    /// A branch that was taken.
    Taken { label: DynamicLabel, insn: usize, target: u64, save: Option<Producer> },
}

pub(crate) struct Code {
    pub(super) ops: VecAssembler<X64Relocation>,
    id: u32,
    first_link: u32,
    links: u32,
    /// Address of the block, and its instructions.
    start: u64,
    len: usize,
    entry: DynamicLabel,
    too_long: DynamicLabel,
    stubs: Vec<Stub>,
    pub(super) floats: Vec<Floats>,
    /// It was looked at whether the guest may execute SSE.
    pub(super) knows_sse: bool,
    /// Changes of memory are counted.
    pub(super) counts: bool,
    resume: Vec<Option<DynamicLabel>>,
    retry: Vec<Option<DynamicLabel>>,
    pub(super) flags: Flags,
    /// The current instruction: its number, its address, and whether anybody may want the status flags before and after it.
    insn: usize,
    pub(super) rip: u64,
    pub(super) live_before: bool,
    pub(super) live_after: bool,
}

impl Code {
    pub(super) fn new(id: u32, first_link: u32, start: u64, len: usize, counts: bool) -> Self {
        let mut ops = VecAssembler::new(0);
        let (entry, too_long) = (ops.new_dynamic_label(), ops.new_dynamic_label());
        Self {
            ops,
            id,
            first_link,
            links: 0,
            start,
            len,
            entry,
            too_long,
            stubs: Vec::new(),
            floats: Vec::new(),
            knows_sse: false,
            counts,
            resume: vec![None; len + 1],
            retry: vec![None; len],
            flags: Flags::in_frame(),
            insn: 0,
            rip: start,
            live_before: true,
            live_after: true,
        }
    }

    /// Takes the block's instructions off the budget.
    pub(super) fn enter_block(&mut self) {
        let (entry, too_long, len) = (self.entry, self.too_long, self.len as i32);
        dynasm!(self.ops
            ; .arch x64
            ; =>entry
            ; sub r13, len
            ; jl =>too_long
        );
    }

    /// Begins an instruction.
    pub(super) fn begin(&mut self, insn: usize, rip: u64, live_before: bool, live_after: bool) {
        (self.insn, self.rip) = (insn, rip);
        (self.live_before, self.live_after) = (live_before, live_after);
    }

    /// The code goes on here once the interpreter has executed the current instruction.
    pub(super) fn resume_behind(&mut self) {
        let label = self.ops.new_dynamic_label();
        dynasm!(self.ops ; .arch x64 ; =>label);
        self.resume[self.insn + 1] = Some(label);
        self.forget_flags();
    }

    /// The current instruction is entered again here, with its flags in the frame.
    pub(super) fn retry_here(&mut self) {
        let label = self.ops.new_dynamic_label();
        dynasm!(self.ops ; .arch x64 ; =>label);
        self.retry[self.insn] = Some(label);
    }

    /// A label for where an access misses the page of the linear address in R14.
    pub(super) fn miss(&mut self, size: u8, to: Use, exact: bool) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Miss { label, insn: self.insn, packed: packed(size, to, exact) });
        label
    }

    /// Instructions from the current one on, which the budget has less already.
    pub(super) fn to_come(&self) -> i32 {
        (self.len - self.insn) as i32
    }

    /// Address of the instruction after the current one.
    pub(super) fn next_rip(&self, insn: &Instruction) -> u64 {
        self.rip.wrapping_add(insn.len() as u64)
    }

    pub(super) fn emit(&mut self, bytes: &[u8]) {
        self.ops.extend(bytes);
    }

    /// The host register that has a guest register's value: its home, or `scratch`.
    pub(super) fn load(&mut self, register: u8, scratch: u8) -> u8 {
        match home(register) {
            Home::Host(host) => host,
            Home::Frame(at) => {
                dynasm!(self.ops ; .arch x64 ; mov Rq(scratch), [BYTE rbp + at]);
                scratch
            }
        }
    }

    /// Gives all of a guest register a host register's value.
    pub(super) fn store(&mut self, register: u8, from: u8) {
        match home(register) {
            Home::Host(host) if host == from => {}
            Home::Host(host) => dynasm!(self.ops ; .arch x64 ; mov Rq(host), Rq(from)),
            Home::Frame(at) => dynasm!(self.ops ; .arch x64 ; mov [BYTE rbp + at], Rq(from)),
        }
    }

    /// Loads a constant and leaves flags alone.
    pub(super) fn constant(&mut self, to: u8, value: u64) {
        match (i32::try_from(value as i64), u32::try_from(value)) {
            (_, Ok(low)) => dynasm!(self.ops ; .arch x64 ; mov Rd(to), DWORD low as i32),
            (Ok(extended), _) => dynasm!(self.ops ; .arch x64 ; mov Rq(to), DWORD extended),
            _ => dynasm!(self.ops ; .arch x64 ; mov Rq(to), QWORD value as i64),
        }
    }

    /// A label for where the interpreter takes the current instruction over. Flags are in the frame there.
    pub(super) fn slow_path(&mut self) -> SlowPath {
        SlowPath { label: self.ops.new_dynamic_label(), insn: self.insn }
    }

    /// The code goes on here after the instruction, whoever has executed it.
    pub(super) fn rejoin(&mut self, slow: SlowPath) {
        let back = self.ops.new_dynamic_label();
        dynasm!(self.ops ; .arch x64 ; =>back);
        let loads_flags = self.flags.are_in_host();
        self.stubs.push(Stub::Slow { label: slow.label, insn: slow.insn, back: Some(back), loads_flags });
    }

    /// As [`Code::rejoin`], for an instruction that ends its block.
    pub(super) fn never_rejoin(&mut self, slow: SlowPath) {
        let SlowPath { label, insn } = slow;
        self.stubs.push(Stub::Slow { label, insn, back: None, loads_flags: false });
    }

    /// The interpreter has the current instruction.
    pub(super) fn leave_to_handler(&mut self) {
        self.save_flags();
        self.leave_with(HANDLER, self.id << INSN_BITS | self.insn as u32);
    }

    fn leave_with(&mut self, kind: u32, number: u32) {
        let value = (number << KIND_BITS | kind) as i32;
        dynasm!(self.ops
            ; .arch x64
            ; mov eax, value
            ; jmp QWORD [BYTE rbp + EXIT]
        );
    }

    /// Gives back what the block has taken off the budget for instructions behind the current one.
    pub(super) fn return_budget(&mut self) {
        let rest = self.len as i32 - self.insn as i32 - 1;
        if rest > 0 {
            dynasm!(self.ops ; .arch x64 ; add r13, rest);
        }
    }

    /// Leaves the block for a known address, with flags saved and the budget exact.
    pub(super) fn leave_to(&mut self, target: u64) {
        self.save_flags();
        self.return_budget();
        self.follow(target);
    }

    pub(super) fn follow(&mut self, target: u64) {
        // Nothing can have changed the chains since this block was entered.
        if target == self.start {
            let entry = self.entry;
            dynasm!(self.ops ; .arch x64 ; jmp =>entry);
            return;
        }
        let link = self.first_link + self.links;
        self.links += 1;
        let slot = (link as usize * size_of::<Slot>()) as i32;
        dynasm!(self.ops
            ; .arch x64
            ; mov rax, [BYTE rbp + TAG]
            ; mov r14, [BYTE rbp + SLOTS]
            ; cmp [r14 + slot], rax
            ; jne >unknown
            ; jmp QWORD [r14 + slot + 8]
            ; unknown:
        );
        self.constant(host::RAX, target);
        dynasm!(self.ops ; .arch x64 ; mov [BYTE rbp + RIP], rax);
        self.leave_with(LINK, link);
    }

    /// A label that a taken branch jumps to; the flags are as they are here.
    pub(super) fn taken(&mut self, target: u64) -> DynamicLabel {
        let label = self.ops.new_dynamic_label();
        self.stubs.push(Stub::Taken { label, insn: self.insn, target, save: self.flags.unsaved() });
        label
    }

    /// Everything behind the last instruction.
    pub(super) fn finish(mut self) -> Option<Translation> {
        for stub in std::mem::take(&mut self.stubs) {
            self.stub(stub);
        }
        for floats in std::mem::take(&mut self.floats) {
            self.emit_floats(&floats);
        }
        let (too_long, len) = (self.too_long, self.len as i32);
        dynasm!(self.ops
            ; .arch x64
            ; =>too_long
            ; add r13, len
        );
        self.leave_with(BUDGET, self.id << INSN_BITS);
        let labels = self.ops.labels();
        let offset = |label: &Option<DynamicLabel>| {
            label.and_then(|label| labels.resolve_dynamic(label).ok()).map(|offset| offset.0)
        };
        let resume = self.resume.iter().map(offset).collect();
        let retry = self.retry.iter().map(offset).collect();
        let bytes = self.ops.finalize().ok()?;
        Some(Translation { bytes, resume, retry, links: self.links })
    }

    fn stub(&mut self, stub: Stub) {
        match stub {
            Stub::Slow { label, insn, back, loads_flags } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                self.leave_with(HANDLER, self.id << INSN_BITS | insn as u32);
                if let Some(back) = back {
                    let resume = self.ops.new_dynamic_label();
                    dynasm!(self.ops ; .arch x64 ; =>resume);
                    if loads_flags {
                        self.emit_load_flags();
                    }
                    dynasm!(self.ops ; .arch x64 ; jmp =>back);
                    self.resume[insn + 1] = Some(resume);
                }
            }
            Stub::Miss { label, insn, packed } => {
                dynasm!(self.ops
                    ; .arch x64
                    ; =>label
                    ; mov [rbp + MISSED], r14
                    ; mov DWORD [rbp + MISS_AT], packed as i32
                );
                self.leave_with(MISS, self.id << INSN_BITS | insn as u32);
            }
            Stub::Taken { label, insn, target, save } => {
                dynasm!(self.ops ; .arch x64 ; =>label);
                if let Some(producer) = save {
                    self.emit_save_flags(producer);
                }
                self.insn = insn;
                self.return_budget();
                self.follow(target);
            }
        }
    }
}

/// An instruction that the interpreter may have to take over.
pub(super) struct SlowPath {
    pub(super) label: DynamicLabel,
    insn: usize,
}

/// The host's MXCSR becomes the guest's, behind the rest of a block.
pub(super) struct Floats {
    pub(super) label: DynamicLabel,
    pub(super) ready: DynamicLabel,
    pub(super) slow: DynamicLabel,
}
