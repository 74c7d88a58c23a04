//! An exit in words.

use super::{
    hypervisor::{at, var},
    vmcb::{self, Field},
};
use crate::kernel::{Kernel, vars};
use iced_x86::{IcedError, code_asm::*};

/// Prints text and a field in hexadecimal.
pub fn print_field(k: &mut Kernel, text: &str, field: Field) -> Result<(), IcedError> {
    k.print(text)?;
    k.a.push(rax)?;
    match field.size {
        4 => k.a.mov(eax, dword_ptr(at(field)))?,
        _ => k.a.mov(rax, qword_ptr(at(field)))?,
    }
    k.print_hex()?;
    k.a.pop(rax)
}

/// Prints ` exit 0x... rip +0x...`: the offset from where the guest's guest began, or the RIP itself where it is far away.
pub fn print_exit(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut far, mut done) = (k.a.create_label(), k.a.create_label());
    print_field(k, " exit 0x", vmcb::EXITCODE)?;
    k.a.push(rax)?;
    k.a.mov(rax, qword_ptr(at(vmcb::RIP)))?;
    k.a.sub(rax, qword_ptr(var::START))?;
    k.a.cmp(rax, 0x1_0000)?;
    k.a.jae(far)?;
    k.print(" rip +0x")?;
    k.a.jmp(done)?;
    k.here(&mut far)?;
    k.print(" rip 0x")?;
    k.a.mov(rax, qword_ptr(at(vmcb::RIP)))?;
    k.here(&mut done)?;
    k.print_hex()?;
    k.a.pop(rax)
}

/// Prints ` info1 0x... info2 0x...`.
pub fn print_info(k: &mut Kernel) -> Result<(), IcedError> {
    print_field(k, " info1 0x", vmcb::EXITINFO1)?;
    print_field(k, " info2 0x", vmcb::EXITINFO2)
}

/// Prints which vector the last [`Kernel::attempt`] met.
pub fn print_vector(k: &mut Kernel) -> Result<(), IcedError> {
    k.print(" vector 0x")?;
    k.print_variable(vars::VECTOR)
}
