//! Two vCPUs: the second is started by INIT and SIPI, they hand a counter back and forth, and interrupt each other.

use crate::{
    kernel::{Kernel, NMI, vars},
    parameters::{Kind, Parameter, Values},
    programs::smp,
};
use iced_x86::{IcedError, code_asm::*};

const ROUNDS: i32 = 100;

/// The counter: even values are the boot processor's turn.
const TURN: u64 = vars::PROGRAM;
/// NMIs that the second processor took.
const NMIS: u64 = vars::PROGRAM + 0x08;
const MOST_NMIS: u64 = 1000;
/// Turns of a loop between two NMIs: both processors get to run meanwhile.
const PAUSE: i32 = 5000;

pub const PARAMETERS: &[Parameter] = &[Parameter::new(
    "nmis",
    Kind::Number,
    "0",
    "NMIs that the second processor is sent at the end, while it runs without an exit",
)];

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let nmis = values.number("nmis").unwrap_or(0).min(MOST_NMIS) as i32;
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
    let on_nmi = k.a.create_label();
    if nmis > 0 {
        k.set_gate(NMI, on_nmi)?;
        send_nmis(k, nmis)?;
        k.print("NMIs that came: ")?;
        k.a.mov(rax, qword_ptr(NMIS))?;
        k.print_dec()?;
        k.print("\n")?;
    }
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
    if nmis > 0 {
        k.a.jmp(forever)?;
        return count_nmi(k, on_nmi);
    }
    k.a.hlt()?;
    k.a.jmp(forever)
}

/// Clobbers RBX and RCX.
fn send_nmis(k: &mut Kernel, nmis: i32) -> Result<(), IcedError> {
    let (mut next, mut pause) = (k.a.create_label(), k.a.create_label());
    k.a.mov(r12d, nmis)?;
    k.here(&mut next)?;
    smp::send_nmi(k)?;
    k.a.mov(ecx, PAUSE)?;
    k.here(&mut pause)?;
    k.a.dec(ecx)?;
    k.a.jnz(pause)?;
    k.a.dec(r12d)?;
    k.a.jnz(next)
}

fn count_nmi(k: &mut Kernel, mut handler: CodeLabel) -> Result<(), IcedError> {
    k.here(&mut handler)?;
    k.a.inc(qword_ptr(NMIS))?;
    k.a.iretq()
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
