//! PUSH, POP and LEAVE of 64 bits.

use super::code::Code;
use crate::{
    frame::{Home, RBP_HOME, RSP_HOME, home},
    interface::Use,
};
use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code as Form, Instruction};

#[derive(Clone, Copy, Debug)]
pub(super) enum Stack {
    /// A register.
    Push(u8),
    PushImmediate(i32),
    /// Any register but RSP.
    Pop(u8),
    Leave,
}

const RSP: u8 = 4;

pub(super) fn of(i: &Instruction) -> Option<Stack> {
    let register = || i.op0_register().number() as u8;
    match i.code() {
        Form::Push_r64 => Some(Stack::Push(register())),
        Form::Pushq_imm8 => Some(Stack::PushImmediate(i.immediate8to64() as i32)),
        Form::Pushq_imm32 => Some(Stack::PushImmediate(i.immediate32to64() as i32)),
        Form::Pop_r64 if register() != RSP => Some(Stack::Pop(register())),
        Form::Leaveq => Some(Stack::Leave),
        _ => None,
    }
}

pub(super) fn emit(code: &mut Code, stack: Stack) {
    code.give_up_flags();
    code.retry_here();
    let slow = match stack {
        Stack::Push(register) => {
            dynasm!(code.ops ; .arch x64 ; lea r14, [Rq(RSP_HOME) - 8]);
            let slow = code.translate_address(8, Use::Write);
            let value = code.value(register);
            dynasm!(code.ops
                ; .arch x64
                ; mov [r14], Rq(value)
                ; lea Rq(RSP_HOME), [Rq(RSP_HOME) - 8]
            );
            code.count_after(8);
            slow
        }
        Stack::PushImmediate(value) => {
            dynasm!(code.ops ; .arch x64 ; lea r14, [Rq(RSP_HOME) - 8]);
            let slow = code.translate_address(8, Use::Write);
            dynasm!(code.ops
                ; .arch x64
                ; mov QWORD [r14], value
                ; lea Rq(RSP_HOME), [Rq(RSP_HOME) - 8]
            );
            code.count_after(8);
            slow
        }
        Stack::Pop(register) => {
            dynasm!(code.ops ; .arch x64 ; mov r14, Rq(RSP_HOME));
            let slow = code.translate_address(8, Use::Read);
            match home(register) {
                Home::Host(to) => dynasm!(code.ops ; .arch x64 ; mov Rq(to), [r14]),
                Home::Frame(at) => {
                    dynasm!(code.ops ; .arch x64 ; mov r15, [r14] ; mov [BYTE rbp + at], r15);
                }
            }
            dynasm!(code.ops ; .arch x64 ; lea Rq(RSP_HOME), [Rq(RSP_HOME) + 8]);
            slow
        }
        Stack::Leave => {
            dynasm!(code.ops ; .arch x64 ; mov r14, Rq(RBP_HOME));
            let slow = code.translate_address(8, Use::Read);
            dynasm!(code.ops
                ; .arch x64
                ; lea Rq(RSP_HOME), [Rq(RBP_HOME) + 8]
                ; mov Rq(RBP_HOME), [r14]
            );
            slow
        }
    };
    code.rejoin(slow);
}
