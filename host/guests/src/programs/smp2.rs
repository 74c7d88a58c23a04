//! Two vCPUs: the second is started by INIT and SIPI, they hand a counter back and forth, and interrupt each other.

use crate::{
    kernel::{Kernel, vars},
    parameters::Values,
    programs::smp,
};
use iced_x86::{IcedError, code_asm::*};

const ROUNDS: i32 = 100;

/// The counter: even values are the boot processor's turn.
const TURN: u64 = vars::PROGRAM;

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    smp::start_other(k)?;
    k.print("the second processor is up\n")?;
    hand_over(k, 0)?;
    k.print("the counter stands at ")?;
    k.a.mov(rax, qword_ptr(TURN))?;
    k.print_dec()?;
    k.print("\n")?;
    // Interrupt the other, which waits in HLT, and wait for its answer in the same way.
    smp::interrupt_other(k)?;
    wait_for_interrupts(k, 2)?;
    k.print("interrupts went both ways\nSUMMARY: 3 tests\n")?;
    k.a.xor(eax, eax)?;
    k.exit()?;

    k.define_ap_main()?;
    smp::enable_apic(k)?;
    hand_over(k, 1)?;
    wait_for_interrupts(k, 1)?;
    smp::interrupt_other(k)?;
    let mut forever = k.a.create_label();
    k.here(&mut forever)?;
    k.a.hlt()?;
    k.a.jmp(forever)
}

/// Raises the counter whenever it is even (`parity` 0) or odd (1), until it reaches twice `ROUNDS`.
fn hand_over(k: &mut Kernel, parity: i32) -> Result<(), IcedError> {
    let (mut again, mut done) = (k.a.create_label(), k.a.create_label());
    k.here(&mut again)?;
    k.a.pause()?;
    k.a.mov(eax, dword_ptr(TURN))?;
    k.a.cmp(eax, 2 * ROUNDS)?;
    k.a.jae(done)?;
    k.a.and(eax, 1)?;
    k.a.cmp(eax, parity)?;
    k.a.jne(again)?;
    k.a.lock().inc(dword_ptr(TURN))?;
    k.a.jmp(again)?;
    k.here(&mut done)
}

/// Halts until so many interrupts have been counted. STI holds interrupts back for one instruction, so none is lost
/// between the test and HLT.
fn wait_for_interrupts(k: &mut Kernel, count: i32) -> Result<(), IcedError> {
    let (mut again, mut done) = (k.a.create_label(), k.a.create_label());
    k.here(&mut again)?;
    k.a.cli()?;
    k.a.cmp(dword_ptr(vars::INTERRUPTS), count)?;
    k.a.jae(done)?;
    k.a.sti()?;
    k.a.hlt()?;
    k.a.jmp(again)?;
    k.here(&mut done)
}
