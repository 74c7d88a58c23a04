//! SSE: the guest's XMM registers stay in its state, and each instruction is executed on the host's first two.
//!
//! Integer instructions are the same on every processor. So are floating-point results and flags as far as they are compiled, once
//! the host's MXCSR is the guest's, which it becomes with the first instruction that needs it; where an exception is not masked
//! the interpreter has the instruction. Approximations, and sums whose NaN each vendor chooses itself, are always the interpreter's.
//!
//! See: SDM vol. 1 11.5 SSE and SSE2 Exceptions, 4.8.4 Rounding; vol. 2 for each instruction.

use super::{
    code::{Code, Floats, SlowPath},
    plan::Renaming,
    sse_forms::{self, Class},
    state::Producer,
};
use crate::{
    frame::{FLOATS, HOST_MXCSR, Home, MXCSR, SSE, XMM, home, host},
    interface::Use,
};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Encoder, Instruction, MemoryOperand, OpKind, Register};

/// Bytes of a register.
const WIDTH: usize = 16;

/// How an instruction is done.
pub(super) struct Sse {
    /// On XMM0, XMM1, general registers of the host and what R14 points to.
    bytes: Vec<u8>,
    /// The guest's registers that XMM0 and XMM1 have before it.
    sources: [Option<u8>; 2],
    /// The one that XMM0 becomes.
    result: Option<u8>,
    memory: Memory,
    /// General registers, as in [`Renaming`].
    moved: Vec<(u8, u8, bool)>,
    class: Class,
}

/// The memory operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    None,
    /// Is part of the instruction.
    Inside {
        size: u8,
        writes: bool,
    },
    /// All of XMM1 is loaded from it before the instruction, or all of XMM0 is stored to it after that.
    Whole {
        aligned: bool,
        writes: bool,
    },
}

/// The plan of an instruction; `None`: it has none.
pub(super) fn of(encoder: &mut Encoder, i: &Instruction) -> Option<Sse> {
    let class = sse_forms::class(i)?;
    let memory = memory(i)?;
    let scratch = vec![host::ADDRESS, host::SCRATCH];
    let mut renaming = Renaming { moved: Vec::new(), scratch, accumulator: false };
    let mut new = *i;
    new.set_segment_prefix(Register::None);
    if let Some(form) = sse_forms::with_register(i.code()) {
        new.set_code(form);
    }
    let mut sources = [None; 2];
    let mut result = None;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register if i.op_register(n).is_xmm() && n < 2 => {
                let number = i.op_register(n).number() as u8;
                sources[n as usize] = Some(number);
                result = result.or((n == 0 && class.writes()).then_some(number));
                new.set_op_register(n, Register::XMM0 + n);
            }
            OpKind::Register if i.op_register(n).is_gpr() => {
                let register = renaming.register(i.op_register(n), n == 0)?;
                new.set_op_register(n, register);
            }
            OpKind::Memory if matches!(memory, Memory::Whole { .. }) => {
                new.set_op_kind(n, OpKind::Register);
                new.set_op_register(n, Register::XMM0 + n);
            }
            OpKind::Memory => {
                new.set_memory_base(MemoryOperand::with_base(Register::R14).base);
                new.set_memory_index(Register::None);
                new.set_memory_index_scale(1);
                new.set_memory_displacement64(0);
                new.set_memory_displ_size(0);
            }
            OpKind::Immediate8 => {}
            _ => return None,
        }
    }
    let moves = sse_forms::replaces_all(i);
    let clears = sse_forms::is_zero(i);
    if moves || clears {
        sources[0] = None;
    }
    if clears {
        sources[1] = None;
        new.set_op1_register(Register::XMM0);
    }
    let done = encoder.encode(&new, 0).is_ok();
    let bytes = encoder.take_buffer();
    done.then_some(Sse { bytes, sources, result, memory, moved: renaming.moved, class })
}

/// What the memory operand is; `None`: there is one that is not compiled.
fn memory(i: &Instruction) -> Option<Memory> {
    let Some(n) = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory) else {
        return Some(Memory::None);
    };
    if !super::memory::is_plain(i) {
        return None;
    }
    let writes = n == 0;
    match i.memory_size().size() {
        WIDTH => Some(Memory::Whole { aligned: !sse_forms::is_unaligned(i), writes }),
        size @ (1 | 2 | 4 | 8) => Some(Memory::Inside { size: size as u8, writes }),
        _ => None,
    }
}

pub(super) fn emit(code: &mut Code, i: &Instruction, sse: &Sse) {
    code.give_up_flags();
    code.retry_here();
    let slow = code.slow_path();
    code.need_sse(&slow);
    if sse.memory != Memory::None {
        code.address(i);
    }
    match sse.memory {
        Memory::None => {}
        Memory::Inside { size, writes } => translate(code, &slow, size, writes),
        Memory::Whole { aligned, writes } => {
            if aligned {
                let label = slow.label;
                dynasm!(code.ops ; .arch x64 ; test r14d, (WIDTH - 1) as i32 ; jne =>label);
            }
            translate(code, &slow, WIDTH as u8, writes);
        }
    }
    if sse.class.is_float() {
        code.need_floats(&slow);
    }
    operate(code, sse);
    match sse.memory {
        Memory::Inside { size, writes: true } => code.count_after(size),
        Memory::Whole { writes: true, .. } => code.count_after(WIDTH as u8),
        _ => {}
    }
    match sse.class.sets_flags() {
        true => code.flags_set(Producer::Exact),
        false => code.forget_flags(),
    }
    code.rejoin(slow);
}

/// The handlers of some access their operand in pieces.
fn translate(code: &mut Code, slow: &SlowPath, size: u8, writes: bool) {
    let miss = code.miss(size, if writes { Use::Write } else { Use::Read }, false);
    code.translate_to(slow, miss, size, writes);
}

/// The instruction between the registers that it reads and writes. Flags are those that it sets.
fn operate(code: &mut Code, sse: &Sse) {
    dynasm!(code.ops ; .arch x64 ; mov rax, [rbp + XMM]);
    if let Some(number) = sse.sources[0] {
        dynasm!(code.ops ; .arch x64 ; movups xmm0, [rax + at(number)]);
    }
    if let Some(number) = sse.sources[1] {
        dynasm!(code.ops ; .arch x64 ; movups xmm1, [rax + at(number)]);
    }
    if matches!(sse.memory, Memory::Whole { writes: false, .. }) {
        dynasm!(code.ops ; .arch x64 ; movups xmm1, [r14]);
    }
    for (guest, host, _) in &sse.moved {
        match home(*guest) {
            Home::Host(from) => dynasm!(code.ops ; .arch x64 ; mov Rq(*host), Rq(from)),
            Home::Frame(at) => dynasm!(code.ops ; .arch x64 ; mov Rq(*host), [BYTE rbp + at]),
        }
    }
    code.emit(&sse.bytes);
    for (guest, host, changed) in &sse.moved {
        if *changed {
            code.store(*guest, *host);
        }
    }
    if let Some(number) = sse.result {
        dynasm!(code.ops ; .arch x64 ; movups [rax + at(number)], xmm0);
    }
    if matches!(sse.memory, Memory::Whole { writes: true, .. }) {
        dynasm!(code.ops ; .arch x64 ; movups [r14], xmm0);
    }
}

/// Displacement of a register.
fn at(number: u8) -> i32 {
    i32::from(number) * WIDTH as i32
}

impl Code {
    /// Leaves the instruction to the interpreter where the guest may not execute SSE. That does not change within a block.
    fn need_sse(&mut self, slow: &SlowPath) {
        if !std::mem::replace(&mut self.knows_sse, true) {
            let label = slow.label;
            dynasm!(self.ops ; .arch x64 ; cmp DWORD [rbp + SSE], 0 ; je =>label);
        }
    }

    /// Has the guest's MXCSR in the host's.
    fn need_floats(&mut self, slow: &SlowPath) {
        let (label, ready) = (self.ops.new_dynamic_label(), self.ops.new_dynamic_label());
        dynasm!(self.ops
            ; .arch x64
            ; cmp DWORD [rbp + FLOATS], 0
            ; je =>label
            ; =>ready
        );
        self.floats.push(Floats { label, ready, slow: slow.label });
    }

    pub(super) fn emit_floats(&mut self, floats: &Floats) {
        /// The masks of all exceptions. See: SDM vol. 1 Figure 10-3. MXCSR Control/Status Register
        const MASKS: i32 = 0x3f << 7;
        let Floats { label, ready, slow } = *floats;
        dynasm!(self.ops
            ; .arch x64
            ; =>label
            ; mov eax, [rbp + MXCSR]
            ; not eax
            ; test eax, MASKS
            ; jne =>slow
            ; stmxcsr [rbp + HOST_MXCSR]
            ; ldmxcsr [rbp + MXCSR]
            ; mov DWORD [rbp + FLOATS], 1
            ; jmp =>ready
        );
    }
}
