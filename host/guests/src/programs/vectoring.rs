//! An event that is delivered through an IDT in MMIO: there is no gate that KVM could read for the guest.

use crate::{
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
    programs::paging::{self, GVA, Mapping, Page},
};
use iced_x86::{IcedError, code_asm::*};

/// Where no memory slot is.
const MMIO: u64 = 0xd000_0000;
/// Limit and base for LIDT, in RAM that nothing else uses.
const POINTER: u64 = 0x220_0000;
const LIMIT: i32 = 0xfff;

pub const PARAMETERS: &[Parameter] = &[Parameter::new(
    "event",
    Kind::Choice(&["div", "ud2", "int3", "int"]),
    "div",
    "what is delivered: #DE, #UD, #BP of INT3, or INT 0x30",
)];

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    paging::prepare(k)?;
    Mapping::new(MMIO, Page::Small).install(k)?;
    k.print("the IDT is MMIO\n")?;
    k.a.mov(rbx, POINTER)?;
    k.a.mov(word_ptr(rbx), LIMIT)?;
    k.a.mov(rax, GVA)?;
    k.a.mov(qword_ptr(rbx + 2), rax)?;
    k.a.lidt(ptr(rbx))?;
    k.a.xor(ecx, ecx)?;
    k.a.xor(edx, edx)?;
    match values.word("event") {
        Some("ud2") => k.a.ud2()?,
        Some("int3") => k.a.int3()?,
        Some("int") => k.a.int(0x30)?,
        _ => k.a.div(ecx)?,
    }
    k.print("FAIL: nothing was delivered\n")?;
    k.a.mov(eax, 1)?;
    k.exit()
}
