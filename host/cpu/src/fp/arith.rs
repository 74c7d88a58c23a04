//! Single and double precision arithmetic on lanes, with the host's floats where they cannot differ.

use super::{
    mxcsr::Mxcsr,
    soft::{Class, Context, F32, F64, Flags, Format, Number, Relation, Rounding},
};
use std::cmp::Ordering;

/// A two-operand operation; SQRT uses the second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Sqrt,
}

/// Lanes of one precision and the context that collects their flags.
#[derive(Clone, Copy)]
pub struct Unit {
    pub format: Format,
    pub context: Context,
    /// #P is masked and flagged already: an inexact result changes no flag.
    quiet: bool,
    /// So host arithmetic, which rounds to nearest, gives the same result and raises no new flag.
    fast: bool,
}

impl Unit {
    pub fn new(mxcsr: Mxcsr, format: Format) -> Self {
        let precision = Flags::new().with_precision(true).into_bits();
        let quiet = mxcsr.flags() & precision != 0 && mxcsr.masks() & precision != 0;
        Self { format, context: mxcsr.context(), quiet, fast: quiet && mxcsr.rounding() == 0 }
    }

    /// One lane of an operation.
    pub fn apply(&mut self, op: Op, a: u64, b: u64) -> u64 {
        if self.fast {
            let result = if self.format == F64 { fast64(op, a, b) } else { fast32(op, a as u32, b as u32) };
            if let Some(result) = result {
                return result;
            }
        }
        self.exact(op, a, b)
    }

    fn exact(&mut self, op: Op, a: u64, b: u64) -> u64 {
        let format = self.format;
        let cx = &mut self.context;
        let (x, y) = (cx.operand(format, a as u128), cx.operand(format, b as u128));
        let result = match op {
            Op::Min | Op::Max => return select(cx, format, op, (a, x), (b, y)),
            Op::Sqrt => match nan(cx, format, y, y) {
                Some(nan) => nan,
                None => cx.sqrt(format, y),
            },
            _ => match (nan(cx, format, x, y), op) {
                (Some(nan), _) => nan,
                (None, Op::Add) => cx.add(format, x, y),
                (None, Op::Sub) => cx.sub(format, x, y),
                (None, Op::Mul) => cx.mul(format, x, y),
                (None, _) => cx.div(format, x, y),
            },
        };
        result as u64
    }

    /// A lane as the host's double. A single's denormal, which a double holds as a normal number, becomes zero.
    fn host(&self, a: u64) -> f64 {
        if self.format == F64 {
            return f64::from_bits(a);
        }
        let single = f32::from_bits(a as u32);
        if single.is_subnormal() { 0.0 } else { single.into() }
    }

    /// Compares two lanes. `signal_quiet`: a quiet NaN is an invalid operation too.
    pub fn compare(&mut self, a: u64, b: u64, signal_quiet: bool) -> Relation {
        // Neither NaNs nor denormals: no flag to raise.
        let (x, y) = (self.host(a), self.host(b));
        let plain = |x: f64| x.is_normal() || x == 0.0 && self.format == F64;
        if plain(x) && plain(y) {
            return match x.partial_cmp(&y) {
                Some(Ordering::Less) => Relation::Less,
                Some(Ordering::Equal) => Relation::Equal,
                _ => Relation::Greater,
            };
        }
        let cx = &mut self.context;
        let (x, y) = (cx.operand(self.format, a as u128), cx.operand(self.format, b as u128));
        let signaling = [x, y].iter().any(|n| n.class == Class::Signaling || signal_quiet && n.is_nan());
        if signaling {
            cx.flags.set_invalid(true);
        }
        cx.compare(x, y)
    }

    /// Converts a lane to another precision.
    pub fn convert(&mut self, to: Format, a: u64) -> u64 {
        let cx = &mut self.context;
        let n = cx.operand(self.format, a as u128);
        match nan(cx, to, n, n) {
            Some(nan) => nan as u64,
            None => {
                cx.note_denormals(&[n]);
                cx.repack(to, n) as u64
            }
        }
    }

    /// Converts a lane to a signed integer; the integer indefinite value if it does not fit.
    pub fn integer(&mut self, bits: u32, a: u64) -> u64 {
        let x = self.host(a);
        let rounded = match self.context.rounding {
            Rounding::Zero => x.trunc(),
            _ => x.round_ties_even(),
        };
        let usual = matches!(self.context.rounding, Rounding::Zero | Rounding::Nearest);
        let exact = rounded == x || self.quiet;
        if usual && exact && x.is_normal() && x.abs() < (1u64 << (bits - 2)) as f64 {
            return rounded as i64 as u64;
        }
        // Denormal operands are not flagged here: an integer conversion only ever reports #IE and #PE.
        let n = self.context.operand(self.format, a as u128);
        self.context.integer(n, bits).map_or(1 << (bits - 1), |x| x as u64)
    }

    /// Converts a signed integer to a lane.
    pub fn of_integer(&mut self, value: i64) -> u64 {
        self.context.of_integer(self.format, value) as u64
    }

    /// ROUNDPS and its kin.
    pub fn round(&mut self, a: u64, quietly: bool) -> u64 {
        let cx = &mut self.context;
        let n = cx.operand(self.format, a as u128);
        match nan(cx, self.format, n, n) {
            Some(nan) => nan as u64,
            None => cx.round_to_integral(self.format, n, quietly) as u64,
        }
    }
}

/// The NaN that an operation returns if an operand is one.
/// See: SDM vol. 1 Table 4-7. Rules for Handling NaNs
fn nan(cx: &mut Context, format: Format, a: Number, b: Number) -> Option<u128> {
    if a.class == Class::Signaling || b.class == Class::Signaling {
        cx.flags.set_invalid(true);
    }
    if a.is_nan() {
        return Some(a.quiet(format));
    }
    b.is_nan().then(|| b.quiet(format))
}

/// MIN and MAX give the second operand when there is a NaN or both are zero.
fn select(cx: &mut Context, format: Format, op: Op, a: (u64, Number), b: (u64, Number)) -> u64 {
    let value = |(bits, n): (u64, Number)| match n.class {
        Class::Zero => format.zero(n.sign) as u64,
        _ => bits,
    };
    if a.1.is_nan() || b.1.is_nan() {
        cx.flags.set_invalid(true);
        return value(b);
    }
    let first = match cx.compare(a.1, b.1) {
        Relation::Less => op == Op::Min,
        Relation::Greater => op == Op::Max,
        _ => false,
    };
    value(if first { a } else { b })
}

macro_rules! fast {
    ($name:ident, $float:ty, $bits:ty) => {
        /// The host's result, unless it could differ from x86's or raise another flag than precision.
        fn $name(op: Op, a: $bits, b: $bits) -> Option<u64> {
            let (x, y) = (<$float>::from_bits(a), <$float>::from_bits(b));
            if !y.is_normal() || !x.is_normal() && op != Op::Sqrt {
                return None;
            }
            let result = match op {
                Op::Add => x + y,
                Op::Sub => x - y,
                Op::Mul => x * y,
                Op::Div => x / y,
                Op::Sqrt => y.sqrt(),
                Op::Min => return Some(if x < y { a } else { b } as u64),
                Op::Max => return Some(if x > y { a } else { b } as u64),
            };
            // The smallest normal number may be a rounded tiny one.
            (result.is_normal() && result.abs() > <$float>::MIN_POSITIVE).then(|| result.to_bits() as u64)
        }
    };
}
fast!(fast32, f32, u32);
fast!(fast64, f64, u64);

/// CMPPS and its kin: all eight predicates. See: SDM vol. 2A Table 3-1. Comparison Predicate for CMPPD and CMPPS
pub fn predicate(unit: &mut Unit, predicate: u8, a: u64, b: u64) -> bool {
    let signal_quiet = matches!(predicate & 3, 1 | 2);
    let relation = unit.compare(a, b, signal_quiet);
    let holds = match predicate & 3 {
        0 => relation == Relation::Equal,
        1 => relation == Relation::Less,
        2 => matches!(relation, Relation::Less | Relation::Equal),
        _ => relation == Relation::Unordered,
    };
    holds != (predicate & 4 != 0)
}

/// The lane width in bits.
pub fn lane_bits(format: Format) -> u32 {
    if format == F32 { 32 } else { 64 }
}
