//! Near branches. Where they lead is checked when they are translated, or by finding a block there.

use super::code::Code;
use crate::{
    frame::{Home, NEXT, RSP_HOME, TAG, TARGETS as TARGETS_AT, home, host},
    interface::Use,
    links::{TARGETS, Target},
};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code as Form, ConditionCode, Instruction, OpKind};

#[derive(Clone, Copy, Debug)]
pub(super) enum Branch {
    /// Jcc.
    If(ConditionCode),
    Jump,
    Call,
    JumpTo,
    CallTo,
    /// Bytes that go with the return address.
    Return(u64),
}

impl Branch {
    /// Whether nothing of the block comes after it.
    pub(super) fn ends(self) -> bool {
        !matches!(self, Self::If(_))
    }
}

pub(super) fn of(i: &Instruction) -> Option<Branch> {
    let direct = i.op_count() == 1 && i.op0_kind() == OpKind::NearBranch64;
    let known = direct && is_canonical(i.near_branch64());
    if i.is_jcc_short_or_near() {
        return known.then(|| Branch::If(i.condition_code()));
    }
    let indirect = || match i.op0_kind() {
        OpKind::Register => true,
        _ => super::memory::is_plain(i),
    };
    match i.code() {
        Form::Jmp_rel8_64 | Form::Jmp_rel32_64 if known => Some(Branch::Jump),
        Form::Call_rel32_64 if known => Some(Branch::Call),
        Form::Jmp_rm64 if indirect() => Some(Branch::JumpTo),
        Form::Call_rm64 if indirect() => Some(Branch::CallTo),
        Form::Retnq => Some(Branch::Return(0)),
        Form::Retnq_imm16 => Some(Branch::Return(i.immediate16().into())),
        _ => None,
    }
}

/// With four levels of paging, and so with five.
fn is_canonical(rip: u64) -> bool {
    const UNUSED: u32 = 64 - 48;
    ((rip << UNUSED) as i64 >> UNUSED) as u64 == rip
}

pub(super) fn emit(code: &mut Code, i: &Instruction, branch: Branch) {
    match branch {
        Branch::If(condition) => conditional(code, condition, i.near_branch64()),
        Branch::Jump => code.leave_to(i.near_branch64()),
        Branch::Call => {
            code.give_up_flags();
            code.retry_here();
            push_return(code, i);
            code.leave_to(i.near_branch64());
        }
        Branch::JumpTo => {
            code.give_up_flags();
            code.retry_here();
            target_operand(code, i);
            find_target(code);
            code.return_budget();
            dynasm!(code.ops ; .arch x64 ; jmp QWORD [BYTE r14 + TARGET_CODE]);
        }
        Branch::CallTo => {
            code.give_up_flags();
            code.retry_here();
            target_operand(code, i);
            find_target(code);
            dynasm!(code.ops
                ; .arch x64
                ; mov rax, [BYTE r14 + TARGET_CODE]
                ; mov [BYTE rbp + NEXT], rax
            );
            push_return(code, i);
            code.return_budget();
            dynasm!(code.ops ; .arch x64 ; jmp QWORD [BYTE rbp + NEXT]);
        }
        Branch::Return(more) => {
            code.give_up_flags();
            code.retry_here();
            dynasm!(code.ops ; .arch x64 ; mov r14, Rq(RSP_HOME));
            let slow = code.translate_address(8, Use::Read);
            dynasm!(code.ops ; .arch x64 ; mov r15, [r14]);
            code.never_rejoin(slow);
            find_target(code);
            code.return_budget();
            let size = 8 + more as i32;
            dynasm!(code.ops
                ; .arch x64
                ; lea Rq(RSP_HOME), [Rq(RSP_HOME) + size]
                ; jmp QWORD [BYTE r14 + TARGET_CODE]
            );
        }
    }
}

/// R15 becomes the target.
fn target_operand(code: &mut Code, i: &Instruction) {
    if i.op0_kind() == OpKind::Register {
        match home(i.op0_register().number() as u8) {
            Home::Host(register) => dynasm!(code.ops ; .arch x64 ; mov r15, Rq(register)),
            Home::Frame(at) => dynasm!(code.ops ; .arch x64 ; mov r15, [BYTE rbp + at]),
        }
        return;
    }
    code.address(i);
    let slow = code.translate_address(8, Use::Read);
    dynasm!(code.ops ; .arch x64 ; mov r15, [r14]);
    code.never_rejoin(slow);
}

const TARGET_TAG: i8 = std::mem::offset_of!(Target, tag) as i8;
const TARGET_CODE: i8 = std::mem::offset_of!(Target, code) as i8;
const TARGET_SHIFT: i8 = size_of::<Target>().trailing_zeros() as i8;
const TARGET_MASK: i32 = TARGETS as i32 - 1;

const _: () = assert!(size_of::<Target>().is_power_of_two() && TARGETS.is_power_of_two());

/// R14 points to what is known of the address in R15; where that is nothing the interpreter branches. Destroys RAX.
fn find_target(code: &mut Code) {
    let slow = code.slow_path();
    let label = slow.label;
    dynasm!(code.ops
        ; .arch x64
        ; mov r14, r15
        ; shr r14, 12
        ; xor r14d, r15d
        ; and r14d, TARGET_MASK
        ; shl r14d, BYTE TARGET_SHIFT
        ; add r14, [BYTE rbp + TARGETS_AT]
        ; cmp [r14], r15
        ; jne =>label
        ; mov rax, [BYTE rbp + TAG]
        ; cmp [BYTE r14 + TARGET_TAG], rax
        ; jne =>label
    );
    code.never_rejoin(slow);
}

/// Pushes the address behind the instruction.
fn push_return(code: &mut Code, i: &Instruction) {
    let back = code.next_rip(i);
    dynasm!(code.ops ; .arch x64 ; lea r14, [Rq(RSP_HOME) - 8]);
    let slow = code.translate_address(8, Use::Write);
    match i32::try_from(back as i64) {
        Ok(back) => dynasm!(code.ops ; .arch x64 ; mov QWORD [r14], back),
        Err(_) => {
            code.constant(host::SCRATCH, back);
            dynasm!(code.ops ; .arch x64 ; mov [r14], r15);
        }
    }
    dynasm!(code.ops ; .arch x64 ; lea Rq(RSP_HOME), [Rq(RSP_HOME) - 8]);
    code.count_after(8);
    code.never_rejoin(slow);
}

fn conditional(code: &mut Code, condition: ConditionCode, target: u64) {
    use ConditionCode::*;
    code.need_flags(matches!(condition, o | no | l | ge | le | g));
    let to: DynamicLabel = code.taken(target);
    let ops = &mut code.ops;
    match condition {
        o => dynasm!(ops ; .arch x64 ; jo =>to),
        no => dynasm!(ops ; .arch x64 ; jno =>to),
        b => dynasm!(ops ; .arch x64 ; jb =>to),
        ae => dynasm!(ops ; .arch x64 ; jae =>to),
        e => dynasm!(ops ; .arch x64 ; je =>to),
        ne => dynasm!(ops ; .arch x64 ; jne =>to),
        be => dynasm!(ops ; .arch x64 ; jbe =>to),
        a => dynasm!(ops ; .arch x64 ; ja =>to),
        s => dynasm!(ops ; .arch x64 ; js =>to),
        ns => dynasm!(ops ; .arch x64 ; jns =>to),
        p => dynasm!(ops ; .arch x64 ; jp =>to),
        np => dynasm!(ops ; .arch x64 ; jnp =>to),
        l => dynasm!(ops ; .arch x64 ; jl =>to),
        ge => dynasm!(ops ; .arch x64 ; jge =>to),
        le => dynasm!(ops ; .arch x64 ; jle =>to),
        g => dynasm!(ops ; .arch x64 ; jg =>to),
        None => dynasm!(ops ; .arch x64 ; jmp =>to),
    }
}
