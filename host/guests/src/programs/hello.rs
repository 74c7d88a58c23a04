//! The smallest guest that says something.

use crate::{kernel::Kernel, parameters::Values};
use iced_x86::{IcedError, code_asm::*};

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    k.print("hello from a built-in guest\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}
