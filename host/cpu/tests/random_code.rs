//! Random bytes as code, in every mode and at both ends of the privilege levels: whatever a guest executes, the
//! interpreter neither panics nor leaves its budget.
#![allow(dead_code, reason = "no test file uses all of `common`")]

mod common;

use common::{CODE, Machine, RAM_SIZE};
use vmtape_arch::{
    regs::{Cr0, Cr4, Rflags},
    vcpu::{TableReg, VcpuState, seg},
};
use vmtape_cpu::Stop;

/// Programs per mode.
const PROGRAMS: u64 = 5000;
const BUDGET: u64 = 60;

/// SplitMix64, so that every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Mostly an address in memory.
    fn word(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.next() as u32 as u64,
            2 => self.below(256),
            3 => u64::MAX - self.below(16),
            _ => self.below(RAM_SIZE as u64),
        }
    }
}

/// Opcode bytes with more prefixes and two-byte opcodes than chance gives.
fn program(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < 400 {
        if random.one_in(4) {
            let prefixes = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x48, 0x4d, 0x64];
            code.push(prefixes[random.below(10) as usize]);
        }
        if random.one_in(2) {
            code.push(0x0f);
            if random.one_in(4) {
                code.push(random.below(2) as u8);
            }
        }
        for _ in 0..1 + random.below(5) {
            code.push(random.next() as u8);
        }
    }
    code
}

fn randomize(state: &mut VcpuState, random: &mut Random, bits: u32) {
    for register in &mut state.gpr {
        *register = random.word();
    }
    let user = bits != 16 && random.one_in(3);
    state.cpl = if user { 3 } else { 0 };
    let mut flags = Rflags::from_bits(random.next() & 0x3f_7fd5).with_always_one(true);
    flags.set_vm(bits == 32 && user && random.one_in(4));
    flags.set_tf(random.one_in(8));
    state.rflags = flags.into_bits();
    let table = |random: &mut Random| TableReg {
        base: random.below(RAM_SIZE as u64),
        limit: random.next() as u16,
        ..TableReg::default()
    };
    (state.gdtr, state.idtr) = (table(random), table(random));
    for n in [seg::LDTR, seg::TR] {
        state.seg[n].base = random.word();
        state.seg[n].limit = random.next() as u32;
        state.seg[n].attr = state.seg[n].attr.with_present(true).with_typ(random.next() as u8 & 15);
    }
    if random.one_in(4) {
        state.seg[1 + random.below(5) as usize].limit = random.word() as u32;
    }
    state.cr4 |= Cr4::new().with_osfxsr(true).with_osxsave(random.one_in(2)).into_bits();
    state.cr4 |= Cr4::new().with_vme(random.one_in(2)).with_umip(random.one_in(4)).into_bits();
    state.cr0 |= Cr0::new().with_am(random.one_in(2)).with_ts(random.one_in(8)).into_bits();
    if random.one_in(4) {
        state.dr7 = random.next() & 0xffff_00ff;
        state.dr = [random.word(), random.word(), random.word(), CODE];
    }
    (state.star, state.lstar, state.sysenter_cs) = (random.next(), random.word(), random.next());
    state.efer |= random.below(2);
    state.intercepts.exceptions = if random.one_in(2) { u32::MAX } else { 0 };
}

fn run(bits: u32) {
    let mut machine = Machine::new(bits, &[]);
    for seed in 0..PROGRAMS {
        let mut random = Random(seed << 8 | bits as u64);
        assert!(machine.env.ram.write(CODE, &program(&mut random)));
        machine.state = common::state(bits);
        for _ in 0..64 {
            let (at, value) = (random.below(RAM_SIZE as u64 - 8), random.next());
            assert!(machine.env.ram.write(at, &value.to_le_bytes()));
        }
        if bits == 16 {
            machine.state.cr0 = Cr0::new().with_et(true).into_bits();
        }
        randomize(&mut machine.state, &mut random, bits);
        let mut stops = 0;
        while machine.state.icount < BUDGET && stops < 20 {
            let left = BUDGET - machine.state.icount;
            let stop = machine.run(left);
            assert!(machine.state.icount <= BUDGET, "bits {bits}, seed {seed}");
            if matches!(stop, Stop::TripleFault | Stop::Halted) {
                break;
            }
            // Past the instruction that faulted.
            machine.state.rip = machine.state.rip.wrapping_add(1);
            machine.state.intercepts.exceptions = u32::MAX;
            stops += 1;
        }
    }
}

#[test]
fn sixteen_bits() {
    run(16);
}

#[test]
fn thirty_two_bits() {
    run(32);
}

#[test]
fn sixty_four_bits() {
    run(64);
}
