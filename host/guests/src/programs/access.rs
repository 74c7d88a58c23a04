//! One access to the mapping under test, and what became of it in words.

use crate::{
    boot::{layout, selector},
    kernel::{Kernel, NO_VECTOR, RETURN_VECTOR, vars},
};
use iced_x86::{IcedError, code_asm::*};

const PAGE_FAULT: i32 = 14;
/// What a write leaves.
const WRITTEN: i32 = 0x1357_9bdf;

/// How an address is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// Calls the address; a page that stands for code starts with `ret`.
    Fetch,
    /// FLDS, which KVM's emulator does not know.
    X87,
}

impl Access {
    /// The words of the parameter `access`.
    pub const WORDS: &'static [&'static str] = &["read", "write", "fetch", "x87"];

    pub fn of(word: Option<&str>) -> Self {
        match word {
            Some("write") => Self::Write,
            Some("fetch") => Self::Fetch,
            Some("x87") => Self::X87,
            _ => Self::Read,
        }
    }
}

/// Touches the address in RBX at CPL 0 or 3; R13 holds what a read gave. `vars::VECTOR` says what happened. Clobbers RAX
/// and RCX.
pub fn touch(k: &mut Kernel, access: Access, user: bool) -> Result<(), IcedError> {
    k.a.xor(r13d, r13d)?;
    k.attempt(|k| if user { touch_as_user(k, access) } else { emit(k, access) })
}

fn emit(k: &mut Kernel, access: Access) -> Result<(), IcedError> {
    match access {
        Access::Read => k.a.mov(r13, qword_ptr(rbx)),
        Access::Write => k.a.mov(dword_ptr(rbx), WRITTEN),
        Access::Fetch => k.a.call(rbx),
        Access::X87 => {
            k.a.fninit()?;
            k.a.fld(dword_ptr(rbx))
        }
    }
}

fn touch_as_user(k: &mut Kernel, access: Access) -> Result<(), IcedError> {
    let mut entry = k.a.create_label();
    k.a.lea(rcx, ptr(entry))?;
    k.a.push(i32::from(selector::USER_DATA))?;
    k.a.push(layout::USER_STACK_TOP as i32)?;
    k.a.push(2)?;
    k.a.push(i32::from(selector::USER_CODE64))?;
    k.a.push(rcx)?;
    k.a.iretq()?;
    k.here(&mut entry)?;
    emit(k, access)?;
    k.a.int(u32::from(RETURN_VECTOR))
}

/// Prints `#PF 0x9 cr2 0x...`, another exception's number and error code, or what the access gave. Clobbers RAX.
pub fn print_outcome(k: &mut Kernel, access: Access) -> Result<(), IcedError> {
    let (mut other, mut done) = (k.a.create_label(), k.a.create_label());
    let mut succeeded = k.a.create_label();
    k.a.mov(rax, qword_ptr(vars::VECTOR))?;
    k.a.cmp(eax, NO_VECTOR as i32)?;
    k.a.je(succeeded)?;
    k.a.cmp(eax, i32::from(RETURN_VECTOR))?;
    k.a.je(succeeded)?;
    k.a.cmp(eax, PAGE_FAULT)?;
    k.a.jne(other)?;
    k.print("#PF 0x")?;
    k.print_variable(vars::ERROR)?;
    k.print(" cr2 0x")?;
    k.print_variable(vars::CR2)?;
    k.a.jmp(done)?;
    k.here(&mut other)?;
    k.print("exception ")?;
    k.print_dec()?;
    k.print(" error 0x")?;
    k.print_variable(vars::ERROR)?;
    k.a.jmp(done)?;
    k.here(&mut succeeded)?;
    match access {
        Access::Read => {
            k.print("read 0x")?;
            k.a.mov(rax, r13)?;
            k.print_hex()?;
        }
        Access::Write => k.print("write")?,
        Access::Fetch => k.print("fetch")?,
        Access::X87 => k.print("x87")?,
    }
    k.here(&mut done)
}
