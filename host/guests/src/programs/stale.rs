//! Two vCPUs with the same tables read the same address, one after the other. Give them different CPUIDs: KVM's page role
//! knows nothing of MAXPHYADDR, so with shadow paging the second may find the shadow page of the first.

use crate::{
    kernel::{Kernel, vars},
    parameters::{Kind, Parameter, Values},
    programs::{
        judge,
        paging::{self, Mapping, Page},
        smp,
    },
};
use iced_x86::{IcedError, code_asm::*};

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("gpa", Kind::Number, "0x10000000000", "the address; without RAM it is MMIO"),
    Parameter::new("page", Kind::Choice(Page::WORDS), "4K", "the size of the page that maps it"),
    Parameter::new("rewrite", Kind::Flag, "0", "the second vCPU writes the entry again, as it was"),
    Parameter::new("invlpg", Kind::Flag, "0", "INVLPG on the second vCPU before it reads"),
];

/// Whose turn it is: 0 the boot processor's, 1 the other's, 2 the boot processor's to finish.
const TURN: u64 = vars::PROGRAM;

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let (gpa, page) = (values.number("gpa").unwrap_or(0), Page::of(values.word("page")));
    let mapping = Mapping::new(gpa, page);
    paging::prepare(k)?;
    mapping.install(k)?;
    smp::start_other(k)?;
    judge::read(k, "vcpu 0", mapping.gva, gpa, page)?;
    k.a.mov(dword_ptr(TURN), 1)?;
    smp::wait_until(k, TURN, 2)?;
    judge::finish(k, 2)?;

    k.define_ap_main()?;
    smp::wait_until(k, TURN, 1)?;
    if values.flag("rewrite") {
        let (leaf, _) = mapping.leaf_and_parent();
        k.a.mov(rax, qword_ptr(leaf.address))?;
        k.a.mov(qword_ptr(leaf.address), rax)?;
    }
    if values.flag("invlpg") {
        k.a.mov(rbx, mapping.gva)?;
        k.a.invlpg(byte_ptr(rbx))?;
    }
    judge::read(k, "vcpu 1", mapping.gva, gpa, page)?;
    k.a.mov(dword_ptr(TURN), 2)?;
    let mut forever = k.a.create_label();
    k.here(&mut forever)?;
    k.a.cli()?;
    k.a.hlt()?;
    k.a.jmp(forever)
}
