//! The smallest guest that says something.

use crate::kernel::Kernel;
use iced_x86::{IcedError, code_asm::*};

pub fn program(k: &mut Kernel) -> Result<(), IcedError> {
    k.print("hello from a built-in guest\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}
