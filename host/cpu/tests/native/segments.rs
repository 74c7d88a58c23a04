//! Segment loads, far transfers and descriptor queries from 32-bit code, on descriptors of our own in the LDT; and what
//! accesses through the loaded segment then meet.

use crate::{
    compare::{self, Outcome},
    interpreter::Interpreter,
    random::{chance, pick, range, value},
    silicon::{CODE16, Context, DATA, Descriptor, Ending, Mode, RIP, Silicon, TARGET, TARGET16},
};
use iced_x86::{IcedError, code_asm::*};
use rand_pcg::{Pcg64, rand_core::Rng};

const WINDOW: usize = 0xc00;
const WINDOW_SIZE: usize = 0x800;
const PROGRAMS: usize = 4000;
const STATES: usize = 100;

/// What the LDT holds. The first two are those of 16-bit mode.
pub const DESCRIPTORS: &[Descriptor] = {
    const CODE: u32 = 2;
    const EXPAND_DOWN: u32 = 1;
    const PLAIN: Descriptor = Descriptor {
        base: DATA as u32,
        limit: 0x1fff,
        big: true,
        contents: 0,
        read_exec_only: false,
        pages: false,
        absent: false,
    };
    &[
        Descriptor { base: crate::silicon::CODE as u32, big: false, contents: CODE, ..PLAIN },
        Descriptor { big: false, ..PLAIN },
        Descriptor { limit: 0x11ff, ..PLAIN },
        Descriptor { base: DATA as u32 + 0x800, limit: 0x7ff, read_exec_only: true, ..PLAIN },
        Descriptor { limit: 0xfff, contents: EXPAND_DOWN, ..PLAIN },
        Descriptor { limit: 0xfff, contents: EXPAND_DOWN, big: false, ..PLAIN },
        Descriptor { base: 0, limit: 0xf_ffff, pages: true, contents: CODE, read_exec_only: true, ..PLAIN },
        Descriptor { contents: CODE, ..PLAIN },
        Descriptor { absent: true, ..PLAIN },
        Descriptor { limit: 1, pages: true, ..PLAIN },
        Descriptor { contents: CODE, absent: true, ..PLAIN },
    ]
};
/// Bits 19:16 of what LAR gives.
const LAR_UNDEFINED: u32 = 0xf_0000;
/// The flat code segment among them.
const FLAT_CODE: u16 = 6 << 3 | 7;

/// Compares many random programs; the differences.
pub fn check(silicon: &Silicon, interpreter: &mut Interpreter) -> Vec<String> {
    let mut rng = Pcg64::new(1, 0x7365_6773);
    let mut differences = Vec::new();
    for _ in 0..PROGRAMS {
        let (text, bytes) = program(&mut rng).expect("the program assembles");
        silicon.load(&bytes);
        interpreter.load(&silicon.code(), bytes.len());
        let pages = crate::random::pages(&mut rng);
        silicon.set_data(&pages);
        interpreter.set_data(&pages);
        let difference = (0..STATES).find_map(|_| one(&mut rng, &text, silicon, interpreter));
        differences.extend(difference.map(|difference| format!("{text}: {difference}")));
    }
    differences
}

fn one(rng: &mut Pcg64, text: &str, silicon: &Silicon, interpreter: &mut Interpreter) -> Option<String> {
    let mut context = Context::new();
    context.gpr = std::array::from_fn(|_| value(rng) & 0xffff_ffff);
    context.gpr[0] = u64::from(selector(rng));
    context.gpr[4] = DATA + 0x1000 + range(rng, 64) * 4;
    context.gpr[6] = offset(rng);
    context.gpr[7] = DATA + 0x1000 - 64 + range(rng, 32);
    let mut data = [0; WINDOW_SIZE];
    rng.fill_bytes(&mut data);
    let (to, code) = destination(rng);
    let mut put = |address: u64, bytes: &[u8]| {
        let at = (address - DATA) as usize - WINDOW;
        data[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // A far pointer at EDI for loads or transfers, and a frame for RETF and IRET on the stack.
    let far = if chance(rng, 50) { code } else { selector(rng) };
    put(context.gpr[7], &[&to.to_le_bytes()[..], &far.to_le_bytes()].concat());
    let flags = 0x202u32 | rng.next_u32() & 0x8d5;
    for (n, word) in [to, u32::from(code), flags].into_iter().enumerate() {
        put(context.gpr[4] + 4 * n as u64, &word.to_le_bytes());
    }
    let mut native = Outcome { context: context.clone(), data, ending: Ending::Next };
    let mut ours = Outcome { context: context.clone(), data, ending: Ending::Next };
    native.ending = silicon.run(&mut native.context, WINDOW, &mut native.data);
    ours.ending = interpreter.run(&mut ours.context, WINDOW, &mut ours.data);
    // LAR leaves the limit's upper bits undefined: Intel clears them, AMD does not. A fault comes back through the
    // kernel, which does not bring all selectors back. A far CALL that faults on its target has, on AMD, written
    // below the stack pointer by then.
    let ignored = if text.starts_with("Lar") { LAR_UNDEFINED } else { 0 };
    let faulted = matches!(native.ending, Ending::Fault(_));
    if faulted && text.starts_with("Call") {
        ours.data = native.data;
    }
    let differs = |n: &usize| (native.context.gpr[*n] ^ ours.context.gpr[*n]) as u32 & !ignored != 0;
    compare::state_difference(&native, &ours)
        .or_else(|| (0..8).find(differs).map(|n| registers(n, &native.context, &ours.context)))
        .or_else(|| {
            let (expected, actual) = (selectors(&native.context), selectors(&ours.context));
            (!faulted && expected != actual).then(|| format!("ES, SS, DS are {actual:x?}, not {expected:x?}"))
        })
        .map(|text| {
            format!("{text}; eax {:#x}, esi {:#x}, far {far:x}:{to:x}", context.gpr[0], context.gpr[6])
        })
}

/// ES, SS and DS. Null selectors count as one: the IRET of a host interrupt clears their privilege level.
fn selectors(context: &Context) -> [u16; 4] {
    context.selectors.map(|selector| if selector < 4 { 0 } else { selector })
}

fn registers(n: usize, native: &Context, ours: &Context) -> String {
    format!("register {n} is {:#x}, not {:#x}", ours.gpr[n] as u32, native.gpr[n] as u32)
}

/// A selector of the in or beyond its limit, or null.
fn selector(rng: &mut Pcg64) -> u16 {
    let requested = if chance(rng, 80) { 3 } else { range(rng, 4) as u16 };
    if chance(rng, 10) {
        requested
    } else {
        (range(rng, DESCRIPTORS.len() as u64 + 2) << 3) as u16 | 4 | requested
    }
}

/// An offset near the limits above, or in the data pages of a flat segment.
fn offset(rng: &mut Pcg64) -> u64 {
    let limit = pick(rng, &[0, 0x800, 0x1000, 0x1200, 0x2000, 0x1_0000, DATA + 0x1000]);
    (limit + range(rng, 16)).wrapping_sub(8) & 0xffff_ffff
}

/// Where a far transfer leads, and by which segment.
fn destination(rng: &mut Pcg64) -> (u32, u16) {
    let flat = (TARGET as u32, FLAT_CODE);
    match range(rng, 8) {
        0..3 => flat,
        3..6 => ((TARGET16 - crate::silicon::CODE) as u32, CODE16),
        6 => (flat.0, selector(rng)),
        _ => (offset(rng) as u32, pick(rng, &[FLAT_CODE, CODE16])),
    }
}

/// One or two instructions, with their names.
fn program(rng: &mut Pcg64) -> Result<(String, Vec<u8>), IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let segment = pick(rng, &[ds, es, ss]);
    let narrow = chance(rng, 30);
    match range(rng, 16) {
        0..2 => a.mov(segment, ax)?,
        2 => a.mov(segment, word_ptr(edi + 4))?,
        3..5 => {
            a.push(eax)?;
            pop_segment(&mut a, segment)?;
        }
        5..7 => load_pointer(&mut a, segment, narrow)?,
        7 => {
            if narrow {
                a.lar(cx, ax)?
            } else {
                a.lar(ecx, eax)?
            }
        }
        8 => {
            if narrow {
                a.lsl(cx, ax)?
            } else {
                a.lsl(ecx, eax)?
            }
        }
        9 => {
            if narrow {
                a.verr(ax)?
            } else {
                a.verw(ax)?
            }
        }
        10 => a.jmp(fword_ptr(edi))?,
        11 => a.call(fword_ptr(edi))?,
        12 => {
            if narrow {
                a.retf()?
            } else {
                a.retf_1(8)?
            }
        }
        13 => a.iretd()?,
        14 => {
            if narrow {
                a.mov(cx, segment)?
            } else {
                a.mov(ecx, segment)?
            }
        }
        _ => push_segment(&mut a, segment)?,
    }
    let operand = match segment {
        s if s == ds => esi + 0,
        s if s == es => dword_ptr(esi).es(),
        _ => dword_ptr(esi).ss(),
    };
    match range(rng, 6) {
        0 => a.mov(ebx, dword_ptr(operand))?,
        1 => a.mov(dword_ptr(operand), ebx)?,
        2 => a.mov(bl, byte_ptr(operand))?,
        3 => a.add(word_ptr(operand), bx)?,
        4 if segment == ss => a.push(ebx)?,
        _ => {}
    }
    let text = a.instructions().iter().map(|i| format!("{:?}", i.code())).collect::<Vec<_>>().join("; ");
    Ok((format!("{text} by {segment:?}"), a.assemble(RIP)?))
}

fn pop_segment(a: &mut CodeAssembler, segment: AsmRegisterSegment) -> Result<(), IcedError> {
    a.pop(segment)
}

fn push_segment(a: &mut CodeAssembler, segment: AsmRegisterSegment) -> Result<(), IcedError> {
    a.push(segment)
}

fn load_pointer(a: &mut CodeAssembler, segment: AsmRegisterSegment, narrow: bool) -> Result<(), IcedError> {
    match (segment, narrow) {
        (s, false) if s == ds => a.lds(edx, fword_ptr(edi)),
        (s, true) if s == ds => a.lds(dx, dword_ptr(edi + 2)),
        (s, false) if s == es => a.les(edx, fword_ptr(edi)),
        (s, true) if s == es => a.les(dx, dword_ptr(edi + 2)),
        (_, false) => a.lss(edx, fword_ptr(edi)),
        (_, true) => a.lss(dx, dword_ptr(edi + 2)),
    }
}

/// The mode in which these programs begin.
pub const MODE: Mode = Mode::Bits32;

/// The LDT as the interpreter finds it in memory.
pub fn ldt() -> Vec<u8> {
    DESCRIPTORS.iter().flat_map(|descriptor| descriptor.encoded().to_le_bytes()).collect()
}
