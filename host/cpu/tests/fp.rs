//! When floating-point and vector instructions are available, and the supervisor's forms of XSAVE.
#![allow(dead_code, reason = "no test file uses all of `common`")]

mod common;

use common::{DATA, Machine};
use iced_x86::{IcedError, code_asm::*};
use vmtape_arch::{
    exception::Vector,
    regs::{Cr0, Cr4},
};
use vmtape_cpu::Stop;

const RAX: usize = 0;
const RDX: usize = 2;
const RDI: usize = 7;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What a kernel that supports everything has set.
fn all_cr4() -> Cr4 {
    Cr4::new().with_pae(true).with_osfxsr(true).with_osxmmexcpt(true).with_osxsave(true)
}

/// CR0 and CR4, under names that the assembler leaves free.
struct Control {
    zero: Cr0,
    four: Cr4,
}

fn machine(write: Write, change: impl FnOnce(&mut Control)) -> Machine {
    let mut machine = Machine::assemble(64, write);
    let mut control = Control { zero: machine.state.cr0().with_mp(true).with_ne(true), four: all_cr4() };
    change(&mut control);
    machine.state.cr0 = control.zero.into_bits();
    machine.state.cr4 = control.four.into_bits();
    machine.state.xcr0 = 7;
    machine.state.gpr[RDI] = DATA;
    machine
}

/// The exception of the first instruction, if it takes one.
fn exception(machine: &mut Machine) -> Option<Vector> {
    match machine.run(1) {
        Stop::Budget => None,
        _ => machine.env.fault.map(|fault| fault.vector),
    }
}

/// Under CR0.EM, CR0.TS, CR0.TS with CR0.MP clear, CR4.OSFXSR clear, CR4.OSXSAVE clear.
/// See: SDM vol. 3A Table 2-2. Action Taken By x87 FPU Instructions, Table 14-1. Action Taken for Combinations of OSFXSR
const AVAILABILITY: &[(&str, Write, [Option<Vector>; 5])] = {
    const NM: Option<Vector> = Some(Vector::NM);
    const UD: Option<Vector> = Some(Vector::UD);
    &[
        ("ADDPS", |a| a.addps(xmm0, xmm1), [UD, NM, NM, UD, None]),
        ("MOVDQA", |a| a.movdqa(xmm0, xmmword_ptr(rdi)), [UD, NM, NM, UD, None]),
        ("LDMXCSR", |a| a.ldmxcsr(dword_ptr(rdi)), [UD, NM, NM, UD, None]),
        ("MOVNTI", |a| a.movnti(dword_ptr(rdi), eax), [None, None, None, None, None]),
        ("CRC32", |a| a.crc32(eax, ecx), [None, None, None, None, None]),
        ("PADDB MM", |a| a.paddb(mm0, mm1), [UD, NM, NM, None, None]),
        ("EMMS", |a| a.emms(), [UD, NM, NM, None, None]),
        ("FLD1", |a| a.fld1(), [NM, NM, NM, None, None]),
        ("FNINIT", |a| a.fninit(), [NM, NM, NM, None, None]),
        ("WAIT", |a| a.wait(), [None, NM, None, None, None]),
        ("FXSAVE", |a| a.fxsave(ptr(rdi)), [UD, NM, NM, None, None]),
        ("XSAVE", |a| a.xsave(ptr(rdi)), [None, NM, NM, None, UD]),
        ("XSAVES", |a| a.xsaves(ptr(rdi)), [None, NM, NM, None, UD]),
        ("VMOVDQU", |a| a.vmovdqu(ymm0, ymmword_ptr(rdi)), [None, NM, NM, None, UD]),
    ]
};

#[test]
fn availability_follows_control_registers() {
    for (name, write, expected) in AVAILABILITY {
        let actual = [
            machine(*write, |c| c.zero.set_em(true)),
            machine(*write, |c| c.zero.set_ts(true)),
            machine(*write, |c| c.zero = c.zero.with_ts(true).with_mp(false)),
            machine(*write, |c| c.four.set_osfxsr(false)),
            machine(*write, |c| c.four.set_osxsave(false)),
        ]
        .map(|mut machine| exception(&mut machine));
        assert_eq!(&actual, expected, "{name}");
    }
}

#[test]
fn avx_needs_its_state_enabled() {
    let mut machine = machine(|a| a.vzeroall(), |_| ());
    machine.state.xcr0 = 3;
    assert_eq!(exception(&mut machine), Some(Vector::UD));
}

#[test]
fn an_unmasked_simd_exception_is_xm_or_ud() {
    for (osxmmexcpt, expected) in [(true, Vector::XM), (false, Vector::UD)] {
        let mut machine = machine(|a| a.divss(xmm0, xmm1), |c| c.four.set_osxmmexcpt(osxmmexcpt));
        machine.state.fpu.mxcsr = 0;
        machine.state.fpu.xmm[0] = [1f32.to_bits().into(), 0];
        assert_eq!(exception(&mut machine), Some(expected));
        assert_eq!(machine.state.fpu.mxcsr, 4, "ZE is set, the result is not written");
        assert_eq!(machine.state.fpu.xmm[0], [1f32.to_bits().into(), 0]);
    }
}

#[test]
fn a_pending_x87_exception_is_taken_by_the_next_waiting_instruction() {
    let write: Write = |a| {
        a.fninit()?;
        a.fldz()?;
        a.fldcw(word_ptr(rdi))?;
        a.fld1()?;
        a.fdivrp(st1, st0)?;
        a.fnstsw(ax)?;
        a.fld1()
    };
    let mut machine = machine(write, |_| ());
    // Zero divide unmasked; FDIVRP computes 1 / 0.
    machine.env.ram.write(DATA, &0x37bu16.to_le_bytes());
    assert_eq!(machine.run(6), Stop::Budget);
    assert_eq!(machine.state.gpr[RAX] & 0x80ff, 0x8084, "busy, error summary, zero divide");
    assert_eq!(exception(&mut machine), Some(Vector::MF));
}

#[test]
fn xsaves_and_xrstors_carry_protection_keys() {
    let write: Write = |a| {
        a.xsaves64(ptr(rdi))?;
        a.xrstors64(ptr(rdi))
    };
    let mut machine = machine(write, |_| ());
    machine.state.xcr0 = 0x207;
    machine.state.gpr[RAX] = 0x205;
    machine.state.gpr[RDX] = 0;
    machine.state.pkru = 0x5555_5554;
    machine.state.fpu.ymm_hi[3] = [7, 8];
    assert_eq!(machine.run(1), Stop::Budget);
    // XSTATE_BV: x87 is in use after reset (FCW is not FNINIT's). XCOMP_BV names what was asked for.
    assert_eq!(machine.read_u64(DATA + 512), 0x205);
    assert_eq!(machine.read_u64(DATA + 520), 1 << 63 | 0x205);
    assert_eq!(machine.read_u64(DATA + 576 + 48), 7);
    assert_eq!(machine.read_u64(DATA + 576 + 256), 0x5555_5554);
    machine.state.pkru = 0;
    machine.state.fpu.ymm_hi[3] = [0, 0];
    assert_eq!(machine.run(1), Stop::Budget);
    assert_eq!((machine.state.pkru, machine.state.fpu.ymm_hi[3]), (0x5555_5554, [7, 8]));
}

#[test]
fn xsaves_is_privileged() {
    let mut machine = machine(|a| a.xsaves(ptr(rdi)), |_| ());
    machine.state.cpl = 3;
    assert_eq!(exception(&mut machine), Some(Vector::GP));
}
