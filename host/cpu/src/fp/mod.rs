//! x87, SSE and extended state.

use crate::insn::Handler;
use iced_x86::Instruction;

/// The handler of a floating-point or vector instruction.
pub(crate) fn handler(_: &Instruction) -> Option<Handler> {
    None
}
