//! System instructions, segmentation, far transfers, flags that need privilege (PUSHF, POPF, CLI, STI), event delivery
//! and debug. Each of them ends its block.

pub(crate) mod debug;
pub(crate) mod event;

use crate::insn::Handler;
use iced_x86::Instruction;

/// The handler of a system instruction.
pub(crate) fn handler(_: &Instruction) -> Option<Handler> {
    None
}
