//! The x87 FPU: its register stack, loads, stores and arithmetic. Transcendental functions are not implemented.
//!
//! Results are exact (see [`super::soft`]). An unmasked numeric overflow or underflow of a register destination stores
//! the masked response rather than the scaled one.
// See: SDM vol. 1 chapter 8, Programming with the x87 FPU

mod arith;
mod compare;
mod control;
mod load_store;

use super::{
    Done,
    soft::{Class, Context, F80, Flags, Number, Rounding},
};
use crate::{core::Core, env::Interrupted, insn::Handler};
use bitfield_struct::bitfield;
use iced_x86::Instruction;

pub(super) use control::fninit;

/// The status word. See: SDM vol. 1 Figure 8-4. x87 FPU Status Word
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub(super) struct StatusWord {
    #[bits(6)]
    pub flags: u8,
    pub stack_fault: bool,
    /// ES: an unmasked exception is pending.
    pub error_summary: bool,
    pub c0: bool,
    pub c1: bool,
    pub c2: bool,
    #[bits(3)]
    pub top: u8,
    pub c3: bool,
    pub busy: bool,
}

/// The control word. See: SDM vol. 1 Figure 8-6. x87 FPU Control Word
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub(super) struct ControlWord {
    #[bits(6)]
    pub masks: u8,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    pub precision: u8,
    #[bits(2)]
    pub rounding: u8,
    #[bits(4)]
    __: u8,
}

pub(super) const ERROR_SUMMARY: u16 = StatusWord::new().with_error_summary(true).into_bits();
pub(super) const TOP: u16 = StatusWord::new().with_top(7).into_bits();

pub fn handler(i: &Instruction) -> Option<Handler> {
    control::handler(i)
        .or_else(|| load_store::handler(i))
        .or_else(|| arith::handler(i))
        .or_else(|| compare::handler(i))
}

/// The register stack.
impl Core<'_> {
    fn status(&self) -> StatusWord {
        StatusWord::from_bits(self.state.fpu.fsw)
    }

    fn control(&self) -> ControlWord {
        ControlWord::from_bits(self.state.fpu.fcw)
    }

    fn set_status_word(&mut self, status: StatusWord) {
        self.state.fpu.fsw = status.into_bits();
    }

    /// The physical register behind ST(i).
    fn physical(&self, i: u8) -> usize {
        ((self.status().top() + i) & 7) as usize
    }

    fn is_empty(&self, i: u8) -> bool {
        self.state.fpu.ftw >> self.physical(i) & 1 == 0
    }

    /// The encoding in ST(i).
    fn st(&self, i: u8) -> u128 {
        u128::from_le_bytes(self.state.fpu.st[self.physical(i)]) & (u128::MAX >> 48)
    }

    fn st_number(&self, i: u8) -> Number {
        Number::unpack(F80, self.st(i))
    }

    fn set_st(&mut self, i: u8, value: u128) {
        let n = self.physical(i);
        self.state.fpu.st[n] = value.to_le_bytes();
        self.state.fpu.ftw |= 1 << n;
    }

    fn pop_st(&mut self) {
        let n = self.physical(0);
        self.state.fpu.ftw &= !(1 << n);
        self.turn(1);
    }

    /// Moves TOP.
    fn turn(&mut self, by: u8) {
        let status = self.status();
        self.set_status_word(status.with_top((status.top() + by) & 7));
    }

    /// Pushes, or answers a stack overflow.
    fn push_st(&mut self, value: u128) {
        if !self.is_empty(7) {
            if self.stack_fault(true) {
                self.turn(7);
                self.set_st(0, F80.indefinite());
            }
            return;
        }
        self.turn(7);
        self.set_st(0, value);
    }

    /// The context of an operation: the control word's rounding and, for arithmetic, its precision.
    fn x87_context(&self, arithmetic: bool) -> Context {
        let control = self.control();
        let precision = match (arithmetic, control.precision()) {
            (true, 0) => Some(24),
            (true, 2) => Some(53),
            _ => None,
        };
        let masked = Flags::from_bits(control.masks());
        Context {
            rounding: Rounding::from_rc(control.rounding()),
            overflow_masked: masked.overflow(),
            underflow_masked: masked.underflow(),
            precision,
            ..Context::DEFAULT
        }
    }

    /// Takes over flags, C1 and ES. False: an unmasked exception forbids the result.
    fn raise_x87(&mut self, cx: &Context) -> bool {
        let masked = Flags::from_bits(self.control().masks());
        let before = cx.flags.before_computation().unmasked(masked);
        let flags = if before == Flags::NONE { cx.flags } else { cx.flags.before_computation() };
        let trap = flags.unmasked(masked) != Flags::NONE;
        let status = self.status();
        self.set_status_word(
            status
                .with_flags(status.flags() | flags.into_bits())
                .with_c1(cx.rounded_up && before == Flags::NONE)
                .with_error_summary(status.error_summary() || trap)
                .with_busy(status.busy() || trap),
        );
        before == Flags::NONE
    }

    /// As [`Core::raise_x87`] for a result that goes to memory, which unmasked overflow and underflow forbid too.
    fn raise_store(&mut self, cx: &Context) -> bool {
        let masked = Flags::from_bits(self.control().masks()).with_precision(true);
        if cx.flags.unmasked(masked) == Flags::NONE {
            return self.raise_x87(cx);
        }
        // Nothing is rounded, so there is nothing imprecise.
        self.raise_x87(&Context { flags: cx.flags.with_precision(false), rounded_up: false, ..*cx });
        false
    }

    /// Flags a stack overflow or underflow. True: it is masked, go on with the indefinite value.
    fn stack_fault(&mut self, overflow: bool) -> bool {
        let cx = Context { flags: Flags::INVALID, ..Context::DEFAULT };
        let status = self.status();
        self.set_status_word(status.with_stack_fault(true));
        let masked = self.raise_x87(&cx);
        let status = self.status();
        self.set_status_word(status.with_c1(overflow));
        masked
    }
}

/// The NaN that a two-operand instruction returns, or the indefinite value for unsupported encodings.
/// See: SDM vol. 1 Table 4-7. Rules for Handling NaNs
fn nan(cx: &mut Context, a: Number, b: Number) -> Option<u128> {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return Some(cx.invalid(F80));
    }
    if a.class == Class::Signaling || b.class == Class::Signaling {
        cx.flags.set_invalid(true);
    }
    let chosen = match (a.is_nan(), b.is_nan()) {
        (false, false) => return None,
        (true, false) => a,
        (false, true) => b,
        (true, true) => match (a.class, b.class) {
            (Class::Signaling, Class::Quiet) => b,
            (Class::Quiet, Class::Signaling) => a,
            // The larger significand, then the positive one.
            _ => match a.sig.cmp(&b.sig) {
                std::cmp::Ordering::Greater => a,
                std::cmp::Ordering::Less => b,
                std::cmp::Ordering::Equal => {
                    if a.sign {
                        b
                    } else {
                        a
                    }
                }
            },
        },
    };
    Some(chosen.quiet(F80))
}

/// What follows an instruction's work on the stack.
type Operand = Result<Option<Number>, Interrupted>;

/// Nothing more to do: the exception was recorded in the status word.
const HANDLED: Done = Ok(());
