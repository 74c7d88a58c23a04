//! What each instruction does to the status flags, if there is a template for it.

use super::state::Producer;
use iced_x86::{Code, ConditionCode, EncodingKind, Instruction, Mnemonic, OpKind, Register};

/// The flags of an instruction that becomes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// There is no template of this kind.
    Unknown,
    /// None are read and none are changed.
    Nothing,
    /// Some are read (OF among them, perhaps) and none are changed.
    Reads { overflow: bool },
    /// All are set.
    Sets(Producer),
    /// CF is read, and all are set.
    ReadsAndSets,
    /// Some are set, and the host keeps the others.
    Keeps,
    /// Those of the mask, in the frame's form, are set, and the others stay, whatever the host does.
    Merges(u16),
    /// Some are destroyed, and nobody wants them.
    Destroys,
}

/// CF and OF in the frame's form.
const CF: u16 = 0x100;
const CF_OF: u16 = 0x101;

impl Effect {
    /// Whether the flags before such an instruction may be wanted, if it cannot be interrupted.
    pub(super) fn wants_flags(self, live_after: bool) -> bool {
        match self {
            Self::Nothing | Self::Destroys | Self::Keeps | Self::Merges(_) => live_after,
            Self::Sets(_) => false,
            Self::Reads { .. } | Self::ReadsAndSets | Self::Unknown => true,
        }
    }
}

/// Whether it accesses memory through its operand.
pub(super) fn has_memory(i: &Instruction) -> bool {
    let operand = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    operand && !matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
}

pub(super) fn of(i: &Instruction, live_after: bool) -> Effect {
    use Mnemonic::*;
    // Every host has those of the legacy encoding. Among the others some have a condition too (CMPccXADD), and raise #UD on most.
    if i.encoding() != EncodingKind::Legacy {
        return Effect::Unknown;
    }
    if i.op_count() > 0 && i.op_kind(0) == OpKind::Register && !i.op_register(0).is_gpr() {
        return Effect::Unknown;
    }
    match i.mnemonic() {
        Mov | Movzx | Movsx | Lea | Not | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo | Nop | Endbr64 => {
            Effect::Nothing
        }
        Movsxd if i.code() == Code::Movsxd_r64_rm32 => Effect::Nothing,
        Bswap if i.code() != Code::Bswap_r16 => Effect::Nothing,
        Xchg => Effect::Nothing,
        Add | Sub | Cmp | Neg => Effect::Sets(Producer::Exact),
        And | Or | Xor | Test => Effect::Sets(Producer::Logic),
        Adc | Sbb => Effect::ReadsAndSets,
        Inc | Dec => Effect::Keeps,
        Mul | Imul => Effect::Merges(CF_OF),
        Bt | Bts | Btr | Btc if i.op1_kind() == OpKind::Immediate8 || i.op0_kind() == OpKind::Register => {
            Effect::Merges(CF)
        }
        Shl | Sal | Shr | Sar | Rol | Ror => shift(i, live_after),
        _ => conditional(i),
    }
}

/// SETcc and CMOVcc.
fn conditional(i: &Instruction) -> Effect {
    use ConditionCode::*;
    let moves = i.flow_control() == iced_x86::FlowControl::Next;
    match i.condition_code() {
        None => Effect::Unknown,
        _ if !moves => Effect::Unknown,
        condition => Effect::Reads { overflow: matches!(condition, o | no | l | ge | le | g) },
    }
}

/// By an immediate, or by CL.
fn shift(i: &Instruction, live_after: bool) -> Effect {
    use Mnemonic::*;
    let bits = match i.op0_kind() {
        OpKind::Register => i.op0_register().size() * 8,
        _ => i.memory_size().size() * 8,
    };
    let rotates = matches!(i.mnemonic(), Rol | Ror);
    if i.op1_kind() == OpKind::Register && i.op1_register() == Register::CL {
        return if live_after { Effect::Unknown } else { Effect::Destroys };
    }
    let count = i.immediate8() as usize & if bits == 64 { 63 } else { 31 };
    match (count, rotates) {
        (0, _) => Effect::Unknown,
        (1, true) => Effect::Keeps,
        (1, false) => Effect::Sets(Producer::Logic),
        _ if !live_after => Effect::Destroys,
        (_, true) => Effect::Unknown,
        // CF is undefined there, and a memory operand has no place where OF could be looked at before.
        _ if count >= bits || i.op0_kind() != OpKind::Register => Effect::Unknown,
        _ => Effect::Sets(match i.mnemonic() {
            Shr => Producer::ShiftRight,
            Sar => Producer::ShiftArithmetic,
            _ => Producer::ShiftLeft,
        }),
    }
}
