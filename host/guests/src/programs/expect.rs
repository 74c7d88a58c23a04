//! Guests that look themselves whether all is as it must be, and say what is not.

use crate::kernel::Kernel;
use iced_x86::{IcedError, code_asm::*};

/// Gives up unless the last comparison was equal: `GUEST: FAIL: WHAT, round N`, N in R12.
pub fn expect_equal(k: &mut Kernel, guest: &str, what: &str) -> Result<(), IcedError> {
    let mut good: CodeLabel = k.a.create_label();
    k.a.je(good)?;
    k.print(&format!("{guest}: FAIL: {what}, round "))?;
    k.a.mov(rax, r12)?;
    k.print_dec()?;
    k.print("\n")?;
    k.a.mov(eax, 1)?;
    k.exit()?;
    k.here(&mut good)
}
