//! The compiler against the interpreter: the same random code on two processors, and the same registers, flags and memory
//! after each block.

mod code;
mod opcodes;
mod world;

use code::{Random, Registers};
use vmtape_cpu::{Engine, Flush, Stop};
use world::{CODE, World};

/// Instructions that a run of a program has.
const BUDGET: u64 = 300;
/// Runs of each program, from other registers each: the first ones make its blocks hot.
const RUNS: u64 = 40;
/// One in so many looks at all of memory compares it; every one compares registers.
const MEMORY: u64 = 16;

/// What came of some programs.
#[derive(Debug, Default)]
struct Tally {
    blocks: u64,
    compiled: u64,
    entered: u64,
    faults: u64,
}

/// Lets both run to the same place; `chains`: more than one block.
fn advance(pair: &mut [World; 2], until: u64, chains: bool) -> Stop {
    let [tested, reference] = pair;
    let stop = tested.run(until, chains);
    // A fault is not counted, and comes with the attempt.
    let reached = tested.state.icount + u64::from(stop == Stop::Exit);
    let expected = reference.run(reached, true);
    if stop != expected {
        compare(pair, false, &format!("{stop:?} where {expected:?} is right"));
        panic!("{stop:?} where {expected:?} is right\n{}", pair[0].listing());
    }
    stop
}

fn compare(pair: &[World; 2], memory: bool, what: &str) {
    let [tested, reference] = pair;
    if tested.state != reference.state || tested.fault != reference.fault {
        let gprs = (0..16).filter(|n| tested.state.gpr[*n] != reference.state.gpr[*n]);
        let differing: Vec<_> = gprs.map(|n| (n, tested.state.gpr[n], reference.state.gpr[n])).collect();
        let xmm = (0..16).filter(|n| tested.state.fpu.xmm[*n] != reference.state.fpu.xmm[*n]);
        let vectors: Vec<_> = xmm.map(|n| (n, tested.state.fpu.xmm[n], reference.state.fpu.xmm[n])).collect();
        eprintln!("at {:?}", reference.at(reference.state.rip));
        eprintln!("vectors {vectors:x?}, mxcsr {:x} {:x}", tested.state.fpu.mxcsr, reference.state.fpu.mxcsr);
        panic!(
            "{what}: registers {differing:x?}, rip {:x} {:x}, rflags {:x} {:x}, icount {} {}, faults {:x?} {:x?}\n{}",
            tested.state.rip,
            reference.state.rip,
            tested.state.rflags,
            reference.state.rflags,
            tested.state.icount,
            reference.state.icount,
            tested.fault,
            reference.fault,
            tested.listing(),
        );
    }
    assert_eq!(tested.changes(), reference.changes(), "{what}: changes of memory\n{}", tested.listing());
    if memory {
        assert_eq!(tested.first_difference(reference), None, "{what}: memory\n{}", tested.listing());
    }
}

fn programs(seeds: std::ops::Range<u64>, counts: bool) -> Tally {
    let mut pair = [Engine::Compiler, Engine::Interpreter].map(|engine| World::new(engine, counts));
    let mut tally = Tally::default();
    for seed in seeds {
        let mut random = Random(seed);
        let (program, entries) = code::program(&mut random);
        pair.iter_mut().for_each(|world| world.write(CODE, &program));
        for run in 0..RUNS {
            let start = code::registers(&mut random);
            pair.iter_mut().for_each(|world| world.begin(&start));
            let chains = random.one_in(2);
            let disturbs = random.one_in(4);
            while pair[0].state.icount < BUDGET {
                let until = if chains { pair[0].state.icount + 1 + random.below(90) } else { BUDGET };
                let stop = advance(&mut pair, until.min(BUDGET), chains);
                tally.blocks += 1;
                let what = format!("program {seed}, run {run}");
                compare(&pair, random.one_in(MEMORY), &what);
                if stop != Stop::Budget {
                    tally.faults += 1;
                    let go_on = code::registers(&mut random);
                    let entry = CODE + entries[random.below(code::ENTRIES as u64) as usize];
                    pair.iter_mut().for_each(|world| world.go_on(entry, &go_on));
                }
                if disturbs && random.one_in(8) {
                    disturb(&mut pair, &mut random);
                }
            }
        }
        compare(&pair, true, &format!("program {seed}"));
    }
    (tally.compiled, tally.entered) = pair[0].cpu.compiled();
    tally
}

/// What others do to a processor between two instructions.
fn disturb(pair: &mut [World; 2], random: &mut Random) {
    match random.below(3) {
        0 => pair.iter_mut().for_each(|world| world.cpu.flush_tlb(Flush::All)),
        1 => {
            let page = random.below(16) << 12;
            pair.iter_mut().for_each(|world| world.cpu.flush_tlb(Flush::Page(page)));
        }
        // A device writes into code.
        _ => {
            let (at, byte) = (CODE + random.below(64), [random.next() as u8]);
            pair.iter_mut().for_each(|world| world.write(at, &byte));
        }
    }
}

#[cfg(all(target_arch = "x86_64", unix))]
fn check(seeds: std::ops::Range<u64>, counts: bool) {
    let tally = programs(seeds, counts);
    eprintln!("{tally:?}");
    assert!(tally.compiled > 0 && tally.entered > tally.blocks / 8, "little was compiled: {tally:?}");
}

#[cfg(all(target_arch = "x86_64", unix))]
#[test]
fn random_code_runs_alike() {
    check(0..300, false);
}

#[cfg(all(target_arch = "x86_64", unix))]
#[test]
fn changes_of_memory_are_counted_alike() {
    check(300..500, true);
}

/// More code than decoded instructions are kept: what is compiled is forgotten with them, also where blocks lead to each other.
#[cfg(all(target_arch = "x86_64", unix))]
#[test]
fn much_code_runs_alike() {
    /// Two blocks: `inc rbx; add rcx, rbx; jmp r8`, and `add rdx, rcx; xor rsi, rdx; lahf; rcl ebx, 1; fninit; add rdi, rsi; jmp` back.
    /// What a register leads to is known by its address, whichever code was compiled later.
    const LOOP: &[u8] = &[
        0x48, 0xff, 0xc3, 0x48, 0x01, 0xd9, 0x41, 0xff, 0xe0, // the first
        0x48, 0x01, 0xca, 0x48, 0x31, 0xd6, 0x9f, 0xd1, 0xd3, 0xdb, 0xe3, 0x48, 0x01, 0xf7, 0xeb, 0xe7,
    ];
    const SECOND: u64 = CODE + 9;
    const NOP: u8 = 0x90;
    /// Each of them begins a block of its own: more than 2^19 instructions.
    const ENTRIES: std::ops::Range<u64> = 0x2000..0x8000;
    let gpr = std::array::from_fn(|n| match n {
        4 => 0x8800,
        8 => SECOND,
        _ => 1,
    });
    let start = Registers { gpr, rflags: 2, bases: [0; 2], xmm: [[0; 2]; 16], mxcsr: 0x1f80, ts: false };
    let mut pair = [Engine::Compiler, Engine::Interpreter].map(|engine| World::new(engine, false));
    for world in &mut pair {
        world.write(CODE, LOOP);
        world.write(ENTRIES.start, &[NOP; 0x7000]);
    }
    for _ in 0..3 {
        for world in &mut pair {
            world.begin(&start);
            assert_eq!(world.run(10_000, true), Stop::Budget);
        }
        compare(&pair, true, "the loop");
        for entry in ENTRIES {
            pair[0].go_on(entry, &start);
            let until = pair[0].state.icount + 1;
            assert_eq!(pair[0].run(until, true), Stop::Budget);
        }
    }
}

/// All opcodes of all maps, so that none becomes host code that this host does not have.
#[cfg(all(target_arch = "x86_64", unix))]
#[test]
fn every_opcode_runs_alike() {
    /// So often a block runs until it is compiled, and a few times then.
    const RUNS: u64 = 20;
    let mut pair = [Engine::Compiler, Engine::Interpreter].map(|engine| World::new(engine, false));
    for (number, program) in (0..).zip(opcodes::programs()) {
        let mut random = Random(number);
        pair.iter_mut().for_each(|world| world.write(CODE, &program));
        for run in 0..RUNS {
            let mut start = Registers { ts: false, ..code::registers(&mut random) };
            start.gpr[opcodes::BASE] = opcodes::OPERAND;
            pair.iter_mut().for_each(|world| world.begin(&start));
            advance(&mut pair, opcodes::INSNS, false);
            compare(&pair, run == RUNS - 1, &format!("program {number}"));
        }
    }
    let (compiled, _) = pair[0].cpu.compiled();
    assert!(compiled > 20_000, "{compiled}");
}

/// Ten million blocks: `cargo test --release -p vmtape_cpu --test lockstep -- --ignored`, from seed VMTAPE_SEED on.
#[cfg(all(target_arch = "x86_64", unix))]
#[test]
#[ignore = "minutes"]
fn random_code_runs_alike_for_long() {
    let seed = std::env::var("VMTAPE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1000);
    let count = std::env::var("VMTAPE_PROGRAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(30_000);
    check(seed..seed + count, false);
}

#[test]
fn an_engine_that_does_not_fit_is_the_interpreter() {
    assert_eq!(World::new(Engine::Interpreter, false).cpu.compiled(), (0, 0));
}
