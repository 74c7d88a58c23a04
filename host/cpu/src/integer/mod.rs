//! Integer instructions, one file per family.

use crate::{features::Features, insn::Handler};
use iced_x86::{Instruction, OpKind};

mod arith;
mod bcd;
mod bit;
mod bmi;
mod branch;
mod cmpxchg;
mod misc;
mod mov;
mod muldiv;
mod shift;
mod stack;
mod string;

/// The handler of an integer instruction.
pub(crate) fn handler(i: &Instruction, features: &Features) -> Option<Handler> {
    let families = [
        mov::handler,
        arith::handler,
        branch::handler,
        stack::handler,
        shift::handler,
        string::handler,
        misc::handler,
        muldiv::handler,
        cmpxchg::handler,
        bmi::handler,
        bcd::handler,
    ];
    families.iter().find_map(|handler| handler(i)).or_else(|| bit::handler(i, features))
}

/// Bytes of an operand that is a register or memory; other operands have the size of the first.
pub(crate) fn operand_size(i: &Instruction, n: u32) -> usize {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        _ => i.memory_size().size(),
    }
}

/// Picks the instance of a generic handler for an operand size in bytes.
macro_rules! sized {
    ($size:expr, $T:ident => $handler:expr) => {
        match $size {
            1 => {
                type $T = u8;
                $handler as $crate::insn::Handler
            }
            2 => {
                type $T = u16;
                $handler as $crate::insn::Handler
            }
            4 => {
                type $T = u32;
                $handler as $crate::insn::Handler
            }
            _ => {
                type $T = u64;
                $handler as $crate::insn::Handler
            }
        }
    };
}
pub(crate) use sized;

/// Picks the instance of a generic handler for a condition code.
macro_rules! conditional {
    ($number:expr, $CC:ident => $handler:expr) => {
        match $number {
            0 => {
                const $CC: u8 = 0;
                $handler as $crate::insn::Handler
            }
            1 => {
                const $CC: u8 = 1;
                $handler as $crate::insn::Handler
            }
            2 => {
                const $CC: u8 = 2;
                $handler as $crate::insn::Handler
            }
            3 => {
                const $CC: u8 = 3;
                $handler as $crate::insn::Handler
            }
            4 => {
                const $CC: u8 = 4;
                $handler as $crate::insn::Handler
            }
            5 => {
                const $CC: u8 = 5;
                $handler as $crate::insn::Handler
            }
            6 => {
                const $CC: u8 = 6;
                $handler as $crate::insn::Handler
            }
            7 => {
                const $CC: u8 = 7;
                $handler as $crate::insn::Handler
            }
            8 => {
                const $CC: u8 = 8;
                $handler as $crate::insn::Handler
            }
            9 => {
                const $CC: u8 = 9;
                $handler as $crate::insn::Handler
            }
            10 => {
                const $CC: u8 = 10;
                $handler as $crate::insn::Handler
            }
            11 => {
                const $CC: u8 = 11;
                $handler as $crate::insn::Handler
            }
            12 => {
                const $CC: u8 = 12;
                $handler as $crate::insn::Handler
            }
            13 => {
                const $CC: u8 = 13;
                $handler as $crate::insn::Handler
            }
            14 => {
                const $CC: u8 = 14;
                $handler as $crate::insn::Handler
            }
            _ => {
                const $CC: u8 = 15;
                $handler as $crate::insn::Handler
            }
        }
    };
}
pub(crate) use conditional;

/// The condition code (low opcode bits) of a conditional instruction.
pub(crate) fn condition_number(i: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as Cc;
    Some(match i.condition_code() {
        Cc::o => 0,
        Cc::no => 1,
        Cc::b => 2,
        Cc::ae => 3,
        Cc::e => 4,
        Cc::ne => 5,
        Cc::be => 6,
        Cc::a => 7,
        Cc::s => 8,
        Cc::ns => 9,
        Cc::p => 10,
        Cc::np => 11,
        Cc::l => 12,
        Cc::ge => 13,
        Cc::le => 14,
        Cc::g => 15,
        _ => return None,
    })
}
