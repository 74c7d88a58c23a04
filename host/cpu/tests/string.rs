//! Repeated string instructions: bulk paths, restarts, single steps.
#![allow(dead_code, reason = "no test file uses all of `common`")]

mod common;

use common::{DATA, Machine};
use vmtape_arch::access::AccessKind;
use vmtape_cpu::Stop;

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

fn pattern(machine: &Machine, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + n / 256) as u8).collect();
    machine.env.ram.write(DATA, &bytes);
    bytes
}

#[test]
fn movs_copies_over_pages_as_one_instruction() {
    let mut machine = Machine::assemble(64, |a| a.rep().movsd());
    let bytes = pattern(&machine, 0x3000);
    machine.state.gpr[RCX] = 0x3000 / 4;
    machine.state.gpr[RSI] = DATA;
    machine.state.gpr[RDI] = DATA + 0x8004;
    assert_eq!(machine.run(1), Stop::Budget);
    let mut copy = vec![0; bytes.len()];
    assert!(machine.env.ram.read(DATA + 0x8004, &mut copy));
    assert_eq!(copy, bytes);
    assert_eq!(machine.state.gpr[RCX], 0);
    assert_eq!(machine.state.gpr[RSI], DATA + 0x3000);
}

#[test]
fn movs_onto_itself_repeats_the_first_element() {
    let mut machine = Machine::assemble(64, |a| a.rep().movsb());
    pattern(&machine, 64);
    machine.env.ram.write(DATA, &[0x5a]);
    machine.state.gpr[RCX] = 32;
    machine.state.gpr[RSI] = DATA;
    machine.state.gpr[RDI] = DATA + 1;
    machine.run(1);
    assert_eq!(machine.read_u64(DATA + 25), 0x5a5a_5a5a_5a5a_5a5a);
}

#[test]
fn stos_restarts_at_the_page_that_faulted() {
    let mut machine = Machine::assemble(64, |a| a.rep().stosq());
    machine.state.gpr[0] = 0x0123_4567_89ab_cdef;
    machine.state.gpr[RCX] = 0x400;
    machine.state.gpr[RDI] = DATA;
    machine.env.absent.push(((DATA >> 12) + 1, AccessKind::WRITE));
    assert_eq!(machine.run(1), Stop::Exit);
    assert_eq!((machine.state.gpr[RCX], machine.state.gpr[RDI]), (0x200, DATA + 0x1000));
    assert_eq!((machine.state.icount, machine.state.rip), (0, common::CODE));
    machine.env.absent.clear();
    assert_eq!(machine.run(1), Stop::Budget);
    assert_eq!(machine.read_u64(DATA + 0x1ff8), 0x0123_4567_89ab_cdef);
    assert_eq!(machine.state.icount, 1);
}

#[test]
fn scas_stops_at_the_match() {
    let mut machine = Machine::assemble(32, |a| a.repne().scasb());
    pattern(&machine, 64);
    machine.state.gpr[0] = 7 * 9;
    machine.state.gpr[RCX] = 64;
    machine.state.gpr[RDI] = DATA;
    machine.run(1);
    assert_eq!((machine.state.gpr[RCX], machine.state.gpr[RDI]), (64 - 10, DATA + 10));
}

#[test]
fn sixteen_bit_addresses_wrap() {
    let mut machine = Machine::assemble(16, |a| a.rep().stosb());
    machine.state.gpr[RCX] = 0xabcd_0004;
    machine.state.gpr[RDI] = 0x1234_fffe;
    machine.state.gpr[0] = 0xee;
    machine.run(1);
    assert_eq!((machine.state.gpr[RCX], machine.state.gpr[RDI]), (0xabcd_0000, 0x1234_0002));
    assert_eq!(machine.read_u64(0) & 0xff_ffff, 0xeeee);
}
