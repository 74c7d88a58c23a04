//! FXSAVE and the XSAVE family: whole state images, saved and restored.

use crate::{
    compare::{self, Outcome},
    random::{chance, pick, range},
    silicon::{Context, DATA, Ending, RIP, Silicon},
};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use rand_pcg::{Pcg64, rand_core::Rng};

/// The area under test, which crosses a page.
const AREA: usize = 0xe00;
pub const AREA_SIZE: usize = 0x400;
const HEADER: usize = 512;
const STATES: usize = 2000;
/// Everything that both sides have: x87, SSE and AVX.
const COMPONENTS: u64 = 7;

const CODES: &[Code] = &[
    Code::Fxsave_m512byte,
    Code::Fxsave64_m512byte,
    Code::Fxrstor_m512byte,
    Code::Fxrstor64_m512byte,
    Code::Xsave_mem,
    Code::Xsave64_mem,
    Code::Xsaveopt_mem,
    Code::Xsavec_mem,
    Code::Xsavec64_mem,
    Code::Xrstor_mem,
    Code::Xrstor64_mem,
];

/// Compares all of them; the differences.
pub fn check(
    silicon: &Silicon,
    run_ours: &mut dyn FnMut(&[u8], usize, &mut Outcome<AREA_SIZE>),
) -> Vec<String> {
    CODES.iter().enumerate().filter_map(|(n, code)| one(*code, n as u128, silicon, run_ours).err()).collect()
}

fn one(
    code: Code,
    number: u128,
    silicon: &Silicon,
    run_ours: &mut dyn FnMut(&[u8], usize, &mut Outcome<AREA_SIZE>),
) -> Result<(), String> {
    let mut rng = Pcg64::new(number, 0x6d61_6765);
    let operand = MemoryOperand::with_base(Register::RDI);
    let instruction = Instruction::with1(code, operand).map_err(|error| error.to_string())?;
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, RIP).map_err(|error| error.to_string())?;
    let bytes = encoder.take_buffer();
    silicon.load(&bytes);
    for _ in 0..STATES {
        let (context, data) = state(&mut rng);
        let mut native = Outcome { context: context.clone(), data, ending: Ending::Next };
        let mut ours = Outcome { context: context.clone(), data, ending: Ending::Next };
        native.ending = silicon.run(&mut native.context, AREA, &mut native.data);
        run_ours(&bytes, AREA, &mut ours);
        forget_pointers(&mut native);
        forget_pointers(&mut ours);
        if let Some(difference) = compare::state_difference(&native, &ours) {
            let at = (context.gpr[7] - DATA) as usize - AREA + HEADER;
            let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"));
            let header = [word(at), word(at + 8), word(at + 16)];
            return Err(format!(
                "{code:?} of components {:#x}, header {header:x?}: {difference}",
                context.gpr[0]
            ));
        }
    }
    Ok(())
}

/// Instruction and operand pointers and the last opcode: AMD keeps them only for pending exceptions, and saves no
/// selectors. MXCSR_MASK and the bytes that FXSAVE reserves are each processor's own.
fn forget_pointers(outcome: &mut Outcome<AREA_SIZE>) {
    let area = (outcome.context.gpr[7] - DATA) as usize - AREA;
    let mut clear = |from: usize, to: usize| {
        let end = (area + to).min(AREA_SIZE);
        outcome.data[(area + from).min(end)..end].fill(0);
    };
    clear(5, 24);
    clear(28, 32);
    (0..8).for_each(|n| clear(42 + 16 * n, 48 + 16 * n));
    clear(416, 512);
}

fn state(rng: &mut Pcg64) -> (Context, [u8; AREA_SIZE]) {
    let mut context = Context::new();
    crate::case::random_vectors(rng, &mut context);
    crate::case::x87(rng, &mut context);
    context.set_mxcsr(crate::case::mxcsr(rng));
    context.gpr[0] = rng.next_u64() & !COMPONENTS | range(rng, COMPONENTS + 1);
    context.gpr[0] &= COMPONENTS;
    let aligned = chance(rng, 90);
    context.gpr[7] = DATA + AREA as u64 + if aligned { 64 } else { pick(rng, &[16, 32, 72]) };
    let mut data = [0; AREA_SIZE];
    data.fill_with(|| rng.next_u32() as u8);
    image(rng, &mut data[context.gpr[7] as usize - DATA as usize - AREA..]);
    (context, data)
}

/// Makes a plausible image of the noise: legal MXCSR, and a header that is mostly legal.
fn image(rng: &mut Pcg64, area: &mut [u8]) {
    let mut put = |at: usize, value: u64| area[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let illegal = if chance(rng, 3) { 1 << range(rng, 32) & !(1 << 17) } else { 0 };
    put(24, u64::from(rng.next_u32() & 0xffff | illegal));
    (0..64).step_by(8).for_each(|at| put(HEADER + at, 0));
    let present = range(rng, COMPONENTS + 1);
    // Components that no processor enables for a user program.
    let alien = if chance(rng, 5) { 1 << (20 + range(rng, 44)) } else { 0 };
    put(HEADER, present | alien);
    if chance(rng, 50) {
        let all =
            if chance(rng, 90) { present | range(rng, COMPONENTS + 1) } else { range(rng, COMPONENTS + 1) };
        put(HEADER + 8, 1 << 63 | all);
    }
    if chance(rng, 5) {
        put(HEADER + 8 * range(rng, 8) as usize, rng.next_u64());
    }
}
