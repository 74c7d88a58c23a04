//! One address read twice, and time in between for somebody to change CPUID: what the selftest mmu_role_test did.
//!
//! See: tools/testing/selftests/kvm/x86_64/mmu_role_test.c, removed in 2022 ("Remove the obsolete/dead MMU role test") because
//! of feb627e8d6f6 ("KVM: x86: Forbid KVM_SET_CPUID{,2} after KVM_RUN").

use crate::{
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
    programs::{
        judge,
        paging::{self, Mapping, Page},
        touch,
    },
};
use iced_x86::{IcedError, code_asm::*};

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new(
        "gpa",
        Kind::Number,
        "0x100000000",
        "the address, as in the selftest; without RAM it is MMIO",
    ),
    Parameter::new("page", Kind::Choice(Page::WORDS), "1G", "the size of the page that maps it"),
    Parameter::new("invlpg", Kind::Flag, "0", "INVLPG before the second read"),
    Parameter::new(
        "wait",
        Kind::Number,
        "20000",
        "rounds of two instructions between the reads; instruction 20000 is one",
    ),
];

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let (gpa, page) = (values.number("gpa").unwrap_or(0), Page::of(values.word("page")));
    let mapping = Mapping::new(gpa, page);
    paging::prepare(k)?;
    mapping.install(k)?;
    judge::read(k, "first", mapping.gva, gpa, page)?;
    touch::wait(k, values.number("wait").unwrap_or(0))?;
    if values.flag("invlpg") {
        k.a.mov(rbx, mapping.gva)?;
        k.a.invlpg(byte_ptr(rbx))?;
    }
    judge::read(k, "second", mapping.gva, gpa, page)?;
    judge::finish(k, 2)
}
