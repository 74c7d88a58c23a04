//! Always has an interrupt that waits, and a timer on its way: whoever loses one, delivers it too early, twice or in another order makes
//! it say so.
//!
//! Interrupts are off but for one instruction of each round. At each exit an interrupt waits in the local APIC; before that instruction
//! two, of which one is a timer's that has expired; and within the handler of an NMI another NMI waits for its end.

use crate::{
    apic::{EOI, ICR_HIGH, ICR_LOW, IRR, LVT_TIMER, TIMER_DIVIDE, TIMER_INITIAL},
    kernel::{Kernel, NMI, vars},
    parameters::{Kind, Parameter, Values},
    programs::{expect, smp},
};
use iced_x86::{IcedError, code_asm::*};

const DEFAULT_ROUNDS: u64 = 8;
/// Of fresh pages, one a round: what a guest of 16 MiB has from `BASE` on.
const MOST_ROUNDS: u64 = 2048;
const BASE: u32 = 0x80_0000;
/// The timer's has the higher priority class. See: SDM vol. 3A 11.8.3.1 Task and Processor Priorities
const IPI: u8 = 0x31;
const TIMER: u8 = 0x41;
/// Divided by one.
const DIVIDE: i32 = 0b1011;
const TICKS: i32 = 300;
const LVT_DEADLINE: i32 = 2 << 17;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Level assert; the first to itself, the second, which has no shorthand, to local APIC 0.
const ICR_IPI: i32 = 0x4_4000 | IPI as i32;
const ICR_NMI: i32 = 0x4400;
const RFLAGS_IF: i32 = 1 << 9;
/// How often it looks before it believes that something does not come.
const PATIENCE: i32 = 100_000;
/// What a handler has pushed below the frame.
const PUSHED: i32 = 32;

/// Interrupts and NMIs so far, and where the next interrupts have to return to.
const INTERRUPTS: u64 = vars::PROGRAM;
const NMIS: u64 = vars::PROGRAM + 0x08;
const RETURN: u64 = vars::PROGRAM + 0x10;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("rounds", Kind::Number, "8", "rounds of two interrupts and two NMIs, each at exits"),
    Parameter::new(
        "timer",
        Kind::Choice(&["one-shot", "deadline"]),
        "one-shot",
        "the local APIC timer's mode",
    ),
];

/// R12 holds the round.
pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let rounds = values.number("rounds").unwrap_or(DEFAULT_ROUNDS).clamp(1, MOST_ROUNDS) as i32;
    let by_deadline = values.word("timer") == Some("deadline");
    let [timer, ipi, nmi] = [(); 3].map(|()| k.a.create_label());
    smp::mask_pics(k)?;
    smp::enable_apic(k)?;
    for (vector, handler) in [(TIMER, timer), (IPI, ipi), (NMI, nmi)] {
        k.set_gate(vector, handler)?;
    }
    k.a.cli()?;
    k.a.xor(r12d, r12d)?;
    apic(k, ICR_HIGH, 0)?;
    arm_timer(k, by_deadline)?;
    apic(k, ICR_LOW, ICR_IPI)?;
    let mut round = k.a.create_label();
    k.here(&mut round)?;
    leave(k)?;
    wait_for_timer(k)?;
    leave(k)?;
    expect_waiting(k)?;
    two_nmis(k)?;
    take_both(k)?;
    k.a.inc(r12d)?;
    k.a.cmp(r12d, rounds)?;
    k.a.jb(round)?;
    k.print("pending: everything came in its time\n")?;
    k.a.xor(eax, eax)?;
    k.exit()?;
    on_timer(k, timer)?;
    on_ipi(k, ipi, by_deadline)?;
    on_nmi(k, nmi)
}

fn expect(k: &mut Kernel, what: &str) -> Result<(), IcedError> {
    expect::expect_equal(k, "pending", what)
}

/// Clobbers RBX.
fn apic(k: &mut Kernel, register: u32, value: i32) -> Result<(), IcedError> {
    k.a.mov(ebx, register)?;
    k.a.mov(dword_ptr(rbx), value)
}

/// Clobbers RAX to RDX.
fn arm_timer(k: &mut Kernel, by_deadline: bool) -> Result<(), IcedError> {
    if by_deadline {
        apic(k, LVT_TIMER, LVT_DEADLINE | i32::from(TIMER))?;
        // The mode comes before the deadline. See: SDM vol. 3A 11.5.4.1 TSC-Deadline Mode
        k.a.mfence()?;
        k.a.rdtsc()?;
        k.a.add(eax, TICKS)?;
        k.a.adc(edx, 0)?;
        k.a.mov(ecx, IA32_TSC_DEADLINE)?;
        return k.a.wrmsr();
    }
    apic(k, LVT_TIMER, i32::from(TIMER))?;
    apic(k, TIMER_DIVIDE, DIVIDE)?;
    apic(k, TIMER_INITIAL, TICKS)
}

/// An exit. Clobbers what CPUID does.
fn leave(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.xor(eax, eax)?;
    k.a.cpuid()
}

/// The register of the IRR that has a vector, and its bit there.
fn requested(vector: u8) -> (u32, i32) {
    (IRR + u32::from(vector / 32) * 16, 1 << (vector % 32))
}

fn wait_for_timer(k: &mut Kernel) -> Result<(), IcedError> {
    let (register, bit) = requested(TIMER);
    let (mut again, mut there) = (k.a.create_label(), k.a.create_label());
    k.a.mov(ecx, PATIENCE)?;
    k.a.mov(ebx, register)?;
    k.here(&mut again)?;
    k.a.mov(eax, dword_ptr(rbx))?;
    k.a.test(eax, bit)?;
    k.a.jnz(there)?;
    k.a.dec(ecx)?;
    k.a.jnz(again)?;
    k.a.inc(ecx)?;
    expect(k, "the timer does not expire")?;
    k.here(&mut there)
}

/// Both wait, and neither has come.
fn expect_waiting(k: &mut Kernel) -> Result<(), IcedError> {
    for vector in [TIMER, IPI] {
        let (register, bit) = requested(vector);
        k.a.mov(ebx, register)?;
        k.a.mov(eax, dword_ptr(rbx))?;
        k.a.and(eax, bit)?;
        k.a.cmp(eax, bit)?;
        expect(k, "an interrupt that waited is gone")?;
    }
    expect_count(k, INTERRUPTS, 0, "an interrupt came while they were off")
}

/// Two of a kind come each round.
fn expect_count(k: &mut Kernel, variable: u64, of_round: i32, what: &str) -> Result<(), IcedError> {
    k.a.lea(rax, qword_ptr(r12 + r12 + of_round))?;
    k.a.cmp(qword_ptr(variable), rax)?;
    expect(k, what)
}

/// The first one's handler sends the second.
fn two_nmis(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut again, mut enough) = (k.a.create_label(), k.a.create_label());
    apic(k, ICR_LOW, ICR_NMI)?;
    k.a.mov(ecx, PATIENCE)?;
    k.a.lea(rax, qword_ptr(r12 + r12 + 2))?;
    k.here(&mut again)?;
    k.a.dec(ecx)?;
    k.a.jz(enough)?;
    k.a.cmp(qword_ptr(NMIS), rax)?;
    k.a.jb(again)?;
    k.here(&mut enough)?;
    expect_count(k, NMIS, 2, "an NMI did not come, or came twice")
}

/// Interrupts are on behind the instruction that follows STI, whatever that one leaves the guest for: a page that nobody has touched.
fn take_both(k: &mut Kernel) -> Result<(), IcedError> {
    let mut after = k.a.create_label();
    k.a.lea(rax, ptr(after))?;
    k.a.mov(qword_ptr(RETURN), rax)?;
    k.a.mov(rdi, r12)?;
    k.a.shl(rdi, 12)?;
    k.a.add(rdi, BASE as i32)?;
    k.a.sti()?;
    k.a.mov(qword_ptr(rdi), r12)?;
    k.here(&mut after)?;
    k.a.nop()?;
    expect_count(k, INTERRUPTS, 2, "an interrupt did not come in its time")
}

fn enter(k: &mut Kernel, mut handler: CodeLabel) -> Result<(), IcedError> {
    k.here(&mut handler)?;
    for register in [rax, rbx, rcx, rdx] {
        k.a.push(register)?;
    }
    Ok(())
}

fn iret(k: &mut Kernel) -> Result<(), IcedError> {
    for register in [rdx, rcx, rbx, rax] {
        k.a.pop(register)?;
    }
    k.a.iretq()
}

/// An interrupt's turn: the first or the second of the round, at its instruction. Then an exit while it is in service.
fn take_turn(k: &mut Kernel, of_round: i32) -> Result<(), IcedError> {
    k.a.mov(rax, qword_ptr(rsp + PUSHED))?;
    k.a.cmp(qword_ptr(RETURN), rax)?;
    expect(k, "an interrupt came at another instruction")?;
    expect_count(k, INTERRUPTS, of_round, "interrupts came in another order")?;
    k.a.inc(qword_ptr(INTERRUPTS))?;
    leave(k)?;
    apic(k, EOI, 0)
}

fn on_timer(k: &mut Kernel, handler: CodeLabel) -> Result<(), IcedError> {
    enter(k, handler)?;
    take_turn(k, 0)?;
    iret(k)
}

/// What the next round waits for is on its way before this one's end, and interrupts are off again.
fn on_ipi(k: &mut Kernel, handler: CodeLabel, by_deadline: bool) -> Result<(), IcedError> {
    enter(k, handler)?;
    take_turn(k, 1)?;
    arm_timer(k, by_deadline)?;
    apic(k, ICR_LOW, ICR_IPI)?;
    k.a.and(qword_ptr(rsp + PUSHED + 16), !RFLAGS_IF)?;
    iret(k)
}

fn on_nmi(k: &mut Kernel, handler: CodeLabel) -> Result<(), IcedError> {
    let mut second = k.a.create_label();
    enter(k, handler)?;
    k.a.inc(qword_ptr(NMIS))?;
    k.a.test(qword_ptr(NMIS), 1)?;
    k.a.jz(second)?;
    apic(k, ICR_LOW, ICR_NMI)?;
    leave(k)?;
    expect_count(k, NMIS, 1, "an NMI came within another one's handler")?;
    k.here(&mut second)?;
    iret(k)
}
