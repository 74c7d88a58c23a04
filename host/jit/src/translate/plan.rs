//! Instructions that become themselves, with other registers.

use super::{
    code::Code,
    effect::{Effect, has_memory},
    state::Producer,
};
use crate::{
    frame::{Home, OVERFLOW, RAX_HOME, home, host},
    interface::Use,
};
use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{ConditionCode, Encoder, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

const RAX: u8 = 0;

/// How an instruction is done.
pub(super) struct Plan {
    bytes: Vec<u8>,
    /// Guest registers that are not at home in what is executed: the guest's number, the host's, and whether it is changed.
    moved: Vec<(u8, u8, bool)>,
    /// The host register that a shift changes.
    destination: Option<(u8, usize)>,
}

/// The plan of an instruction; `None`: it has none.
pub(super) fn make(encoder: &mut Encoder, i: &Instruction) -> Option<Plan> {
    if matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64) {
        return Some(Plan { bytes: Vec::new(), moved: Vec::new(), destination: None });
    }
    if has_memory(i) && !super::memory::is_plain(i) {
        return None;
    }
    if i.mnemonic() == Mnemonic::Lea && !super::memory::is_plain(i) {
        return None;
    }
    with_accumulator(encoder, i, false).or_else(|| with_accumulator(encoder, i, true))
}

/// `accumulator`: the encoding names RAX, which is no home.
fn with_accumulator(encoder: &mut Encoder, i: &Instruction, accumulator: bool) -> Option<Plan> {
    let mut renaming = Renaming { moved: Vec::new(), scratch: Vec::new(), accumulator };
    let memory = has_memory(i);
    // In the order of their use. The address is in the first.
    renaming.scratch =
        if memory { vec![host::RAX, host::SCRATCH] } else { vec![host::RAX, host::ADDRESS, host::SCRATCH] };
    let implied = accumulates(i);
    if implied || accumulator {
        renaming.scratch.retain(|register| *register != host::RAX);
        renaming.moved.push((RAX, host::RAX, true));
    }
    let mut new = *i;
    new.set_has_lock_prefix(false);
    new.set_has_xacquire_prefix(false);
    new.set_has_xrelease_prefix(false);
    new.set_has_rep_prefix(false);
    new.set_has_repne_prefix(false);
    new.set_segment_prefix(Register::None);
    let mut destination = None;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let changed = changes(i, n);
                let register = renaming.register(i.op_register(n), changed)?;
                if n == 0 {
                    let (_, full) = number(register)?;
                    destination = Some((full, register.size()));
                }
                new.set_op_register(n, register);
            }
            OpKind::Memory if i.mnemonic() == Mnemonic::Lea => {
                let (base, index) = (i.memory_base(), i.memory_index());
                if base == Register::RIP || base == Register::None {
                    return None;
                }
                new.set_memory_base(renaming.register(base, false)?);
                if index != Register::None {
                    new.set_memory_index(renaming.register(index, false)?);
                }
            }
            OpKind::Memory => {
                let address = MemoryOperand::with_base(Register::R14);
                new.set_memory_base(address.base);
                new.set_memory_index(Register::None);
                new.set_memory_index_scale(1);
                new.set_memory_displacement64(0);
                new.set_memory_displ_size(0);
            }
            kind if is_immediate(kind) => {}
            _ => return None,
        }
    }
    let done = encoder.encode(&new, 0).is_ok();
    let bytes = encoder.take_buffer();
    done.then_some(Plan { bytes, moved: renaming.moved, destination })
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// RAX is an operand that the encoding does not name.
fn accumulates(i: &Instruction) -> bool {
    use Mnemonic::*;
    match i.mnemonic() {
        Mul | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => true,
        Imul => i.op_count() == 1,
        _ => false,
    }
}

/// Whether an operand is changed.
fn changes(i: &Instruction, n: u32) -> bool {
    use Mnemonic::*;
    match i.mnemonic() {
        Cmp | Test | Bt | Mul => false,
        Imul if i.op_count() == 1 => false,
        Xchg => true,
        _ => n == 0,
    }
}

/// SETcc.
fn is_set(i: &Instruction) -> bool {
    i.condition_code() != ConditionCode::None
}

/// The number of a general register, and that of the whole one. High bytes have none.
fn number(register: Register) -> Option<(u8, u8)> {
    use Register::{AH, BH, CH, DH};
    if !register.is_gpr() || matches!(register, AH | BH | CH | DH) {
        return None;
    }
    let full = register.full_register().number() as u8;
    Some((full, full))
}

/// A register of the same size with another number.
fn sized(number: u8, size: usize) -> Register {
    let number32 = u32::from(number);
    match (size, number) {
        (1, ..4) => Register::AL + number32,
        (1, _) => Register::SPL + (number32 - 4),
        (2, _) => Register::AX + number32,
        (4, _) => Register::EAX + number32,
        _ => Register::RAX + number32,
    }
}

/// Host registers for guest registers.
pub(super) struct Renaming {
    /// Those that are not at home: the guest's number, the host's, and whether it is changed.
    pub(super) moved: Vec<(u8, u8, bool)>,
    /// Free host registers.
    pub(super) scratch: Vec<u8>,
    pub(super) accumulator: bool,
}

impl Renaming {
    /// What stands for a guest register.
    pub(super) fn register(&mut self, guest: Register, changed: bool) -> Option<Register> {
        let (guest_number, _) = number(guest)?;
        let host = match home(guest_number) {
            Home::Host(RAX_HOME) if self.accumulator => host::RAX,
            Home::Host(host) => host,
            Home::Frame(_) => match self.moved.iter_mut().find(|(guest, ..)| *guest == guest_number) {
                Some((_, host, also_changed)) => {
                    *also_changed |= changed;
                    *host
                }
                None => {
                    let scratch = self.scratch.pop()?;
                    self.moved.push((guest_number, scratch, changed));
                    scratch
                }
            },
        };
        Some(sized(host, guest.size()))
    }
}

/// Emits the instruction with what its flags and its memory operand need.
pub(super) fn emit(code: &mut Code, i: &Instruction, plan: &Plan, effect: Effect) {
    let size = i.memory_size().size() as u8;
    let writes = has_memory(i) && i.op0_kind() == OpKind::Memory && changes(i, 0);
    let slow = if has_memory(i) {
        code.give_up_flags();
        code.retry_here();
        code.address(i);
        let to = match (writes, i.mnemonic() == Mnemonic::Mov || i.op_count() == 1 && is_set(i)) {
            (false, _) => Use::Read,
            (true, true) => Use::Write,
            (true, false) => Use::Modify,
        };
        Some(code.translate_address(size, to))
    } else {
        None
    };
    match effect {
        Effect::Reads { overflow } => code.need_flags(overflow),
        Effect::ReadsAndSets => code.need_flags(false),
        Effect::Keeps if code.live_after => code.need_all_flags(),
        Effect::Merges(_) if code.live_after => code.save_flags(),
        _ => {}
    }
    for (guest, host, _) in &plan.moved {
        match home(*guest) {
            Home::Host(from) => dynasm!(code.ops ; .arch x64 ; mov Rq(*host), Rq(from)),
            Home::Frame(at) => dynasm!(code.ops ; .arch x64 ; mov Rq(*host), [BYTE rbp + at]),
        }
    }
    if let (Effect::Sets(Producer::ShiftRight), Some((register, size)), true) =
        (effect, plan.destination, code.live_after)
    {
        let top = size as i8 * 8 - 1;
        dynasm!(code.ops
            ; .arch x64
            ; bt Rq(register), BYTE top
            ; setc BYTE [BYTE rbp + OVERFLOW]
        );
    }
    code.emit(&plan.bytes);
    for (guest, host, changed) in &plan.moved {
        if *changed {
            code.store(*guest, *host);
        }
    }
    match effect {
        Effect::Sets(producer) => code.flags_set(producer),
        Effect::ReadsAndSets => code.flags_set(Producer::Exact),
        Effect::Keeps if code.live_after => code.flags_set(Producer::Exact),
        Effect::Merges(mask) if code.live_after => code.merge_flags(mask),
        Effect::Keeps | Effect::Merges(_) | Effect::Destroys => code.forget_flags(),
        Effect::Nothing | Effect::Reads { .. } | Effect::Unknown => {}
    }
    if writes {
        code.count_after(size);
    }
    if let Some(slow) = slow {
        code.rejoin(slow);
    }
}
