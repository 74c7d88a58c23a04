//! Binary floating point in integers: every rounding mode, every exception flag, x86's rules for NaNs and tininess.
//!
//! One unpacked form serves single, double and double-extended precision.
//! See: SDM vol. 1 4.8 Real Numbers and Floating-Point Formats, 4.9 Overview of Floating-Point Exceptions

use bitfield_struct::bitfield;

/// Exception flags in the order that MXCSR and the x87 status word share.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Flags {
    pub invalid: bool,
    pub denormal: bool,
    pub zero_divide: bool,
    pub overflow: bool,
    pub underflow: bool,
    pub precision: bool,
    #[bits(2)]
    __: u8,
}

impl Flags {
    pub const NONE: Self = Self::new();
    pub const INVALID: Self = Self::new().with_invalid(true);

    /// Adds the flags of `other`.
    pub fn raise(&mut self, other: Self) {
        *self = Self::from_bits(self.into_bits() | other.into_bits());
    }

    /// The flags of `self` that `masked` does not mask.
    pub fn unmasked(self, masked: Self) -> Self {
        Self::from_bits(self.into_bits() & !masked.into_bits())
    }

    /// Those found before the operation is carried out.
    pub fn before_computation(self) -> Self {
        Self::new()
            .with_invalid(self.invalid())
            .with_denormal(self.denormal())
            .with_zero_divide(self.zero_divide())
    }
}

/// The rounding-control field. See: SDM vol. 1 Table 4-8. Rounding Modes and Encoding of Rounding Control (RC) Field
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// From the two bits of an RC field.
    pub const fn from_rc(rc: u8) -> Self {
        match rc & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// An encoding: significant bits with the integer bit, and the width of the exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    precision: u32,
    exp_bits: u32,
    /// The integer bit is stored (double-extended precision).
    explicit: bool,
}

/// Single precision.
pub const F32: Format = Format { precision: 24, exp_bits: 8, explicit: false };
/// Double precision.
pub const F64: Format = Format { precision: 53, exp_bits: 11, explicit: false };
/// Double-extended precision.
pub const F80: Format = Format { precision: 64, exp_bits: 15, explicit: true };

impl Format {
    const fn bias(self) -> i32 {
        (1 << (self.exp_bits - 1)) - 1
    }

    const fn max_biased(self) -> u32 {
        (1 << self.exp_bits) - 1
    }

    /// Stored bits of the significand.
    const fn sig_bits(self) -> u32 {
        if self.explicit { self.precision } else { self.precision - 1 }
    }

    const fn pack(self, sign: bool, biased: u32, sig: u64) -> u128 {
        let sig_bits = self.sig_bits();
        let stored = sig & (u64::MAX >> (64 - sig_bits));
        (sign as u128) << (sig_bits + self.exp_bits) | (biased as u128) << sig_bits | stored as u128
    }

    /// The integer bit where it is stored, for infinities and NaNs.
    const fn integer_bit(self) -> u64 {
        if self.explicit { 1 << 63 } else { 0 }
    }

    /// Signed zero.
    pub const fn zero(self, sign: bool) -> u128 {
        self.pack(sign, 0, 0)
    }

    /// Signed infinity.
    pub const fn infinity(self, sign: bool) -> u128 {
        self.pack(sign, self.max_biased(), self.integer_bit())
    }

    /// QNaN floating-point indefinite, the masked response to an invalid operation.
    pub const fn indefinite(self) -> u128 {
        self.pack(true, self.max_biased(), self.integer_bit() | 1 << (self.precision - 2))
    }
}

/// By what exponents are scaled when an unmasked overflow or underflow is delivered in double-extended precision.
const SCALING: i32 = 24576;

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Zero,
    Finite,
    Infinity,
    Quiet,
    Signaling,
    /// An encoding that double-extended precision does not support (a clear integer bit where it must be set).
    Unsupported,
}

/// A number taken apart: `sig` has its integer bit at bit 63, whatever the format.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    pub class: Class,
    pub sign: bool,
    pub exp: i32,
    pub sig: u64,
    /// It was encoded as a denormal.
    pub denormal: bool,
}

impl Number {
    /// Takes an encoding apart.
    pub fn unpack(format: Format, bits: u128) -> Self {
        let sig_bits = format.sig_bits();
        let sign = bits >> (sig_bits + format.exp_bits) & 1 != 0;
        let biased = (bits >> sig_bits) as u32 & format.max_biased();
        // Left-aligned, with the integer bit at bit 63 once it is set.
        let stored = (bits as u64 & (u64::MAX >> (64 - sig_bits))) << (64 - format.precision);
        let fraction = stored & (u64::MAX >> 1);
        let number = |class, exp, sig, denormal| Self { class, sign, exp, sig, denormal };
        if biased == 0 {
            if stored == 0 {
                return number(Class::Zero, 0, 0, false);
            }
            let shift = stored.leading_zeros();
            return number(Class::Finite, 1 - format.bias() - shift as i32, stored << shift, true);
        }
        if format.explicit && stored >> 63 == 0 {
            return number(Class::Unsupported, 0, stored, false);
        }
        let sig = fraction | 1 << 63;
        if biased < format.max_biased() {
            return number(Class::Finite, biased as i32 - format.bias(), sig, false);
        }
        let class = match fraction {
            0 => Class::Infinity,
            f if f >> 62 != 0 => Class::Quiet,
            _ => Class::Signaling,
        };
        number(class, 0, sig, false)
    }

    pub fn is_nan(self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling | Class::Unsupported)
    }

    fn negated(self) -> Self {
        Self { sign: !self.sign, ..self }
    }

    /// The NaN made quiet and cut to `format`.
    pub fn quiet(self, format: Format) -> u128 {
        let sig = (self.sig | 3 << 62) >> (64 - format.precision);
        format.pack(self.sign, format.max_biased(), sig)
    }
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Less,
    Equal,
    Greater,
    Unordered,
}

/// The control bits that an operation obeys, and the flags it has raised so far.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub rounding: Rounding,
    /// MXCSR.DAZ: denormal operands count as zero.
    pub denormals_are_zero: bool,
    /// MXCSR.FTZ: tiny results become zero while underflow is masked.
    pub flush_to_zero: bool,
    pub overflow_masked: bool,
    pub underflow_masked: bool,
    /// x87 precision control rounds the significand shorter than the format.
    pub precision: Option<u32>,
    /// The result was rounded away from zero (x87 C1).
    pub rounded_up: bool,
    pub flags: Flags,
}

impl Context {
    /// Round to nearest, everything masked.
    pub const DEFAULT: Self = Self {
        rounding: Rounding::Nearest,
        denormals_are_zero: false,
        flush_to_zero: false,
        overflow_masked: true,
        underflow_masked: true,
        precision: None,
        rounded_up: false,
        flags: Flags::NONE,
    };

    /// Takes an operand apart; a denormal becomes zero under DAZ.
    pub fn operand(&self, format: Format, bits: u128) -> Number {
        let number = Number::unpack(format, bits);
        if number.denormal && self.denormals_are_zero {
            return Number { class: Class::Zero, denormal: false, ..number };
        }
        number
    }

    /// Flags an invalid operation and gives its masked response.
    pub fn invalid(&mut self, format: Format) -> u128 {
        self.flags.set_invalid(true);
        format.indefinite()
    }

    /// Flags denormal operands; called once no NaN is among them.
    pub fn note_denormals(&mut self, operands: &[Number]) {
        if operands.iter().any(|n| n.denormal) {
            self.flags.set_denormal(true);
        }
    }

    /// Rounds `sig * 2^-127 * 2^exp` (bit 127 set, sticky bits jammed into bit 0) into the format.
    pub fn round(&mut self, format: Format, sign: bool, exp: i32, sig: u128) -> u128 {
        let precision = self.precision.unwrap_or(format.precision);
        let emin = 1 - format.bias();
        let unbounded = self.round_at(sign, sig, 128 - precision);
        // Tininess is detected after rounding with an unbounded exponent. See: SDM vol. 1 4.9.1.5
        let tiny = exp < emin && !(exp == emin - 1 && unbounded.carry);
        if tiny && self.flush_to_zero && self.underflow_masked {
            self.flags.raise(Flags::new().with_underflow(true).with_precision(true));
            return format.zero(sign);
        }
        let (rounded, mut biased) = if exp < emin {
            let shifted = shift_right_jam(sig, (emin - exp) as u32);
            (self.round_at(sign, shifted, 128 - precision), 0)
        } else {
            (unbounded, (exp + format.bias()) as u32)
        };
        // A denormal whose rounding reaches the integer bit is normal again, as is a carry out of a normal number.
        let mut value = rounded.sig;
        if rounded.carry {
            value = 1 << 127;
            biased += 1;
        } else if biased == 0 && value >> 127 != 0 {
            biased = 1;
        }
        if tiny && !self.underflow_masked && format.explicit {
            return self.scaled(format, sign, exp, &unbounded, SCALING);
        }
        if biased >= format.max_biased() {
            if !self.overflow_masked && format.explicit {
                return self.scaled(format, sign, exp, &unbounded, -SCALING);
            }
            return self.overflow(format, sign, precision, rounded.inexact);
        }
        if tiny && (rounded.inexact || !self.underflow_masked) {
            self.flags.set_underflow(true);
        }
        // An unmasked underflow delivers the result with a scaled exponent, which may be exact.
        let delivered = if tiny && !self.underflow_masked { unbounded } else { rounded };
        if delivered.inexact {
            self.flags.set_precision(true);
            self.rounded_up = delivered.up;
        }
        format.pack(sign, biased, (value >> (128 - format.precision)) as u64)
    }

    /// The result of an unmasked overflow or underflow in an x87 register: its exponent is brought back into the range.
    /// See: SDM vol. 1 8.5.4 Numeric Overflow Exception (#O), 8.5.5 Numeric Underflow Exception (#U)
    fn scaled(&mut self, format: Format, sign: bool, exp: i32, unbounded: &Rounded, by: i32) -> u128 {
        let overflow = by < 0;
        self.flags.raise(Flags::new().with_overflow(overflow).with_underflow(!overflow));
        let biased = exp + i32::from(unbounded.carry) + by + format.bias();
        if biased <= 0 || biased >= format.max_biased() as i32 {
            self.flags.set_precision(true);
            self.rounded_up = overflow;
            return if overflow { format.infinity(sign) } else { format.zero(sign) };
        }
        if unbounded.inexact {
            self.flags.set_precision(true);
            self.rounded_up = unbounded.up;
        }
        let sig = if unbounded.carry { 1 << 63 } else { (unbounded.sig >> 64) as u64 };
        format.pack(sign, biased as u32, sig)
    }

    fn overflow(&mut self, format: Format, sign: bool, precision: u32, inexact: bool) -> u128 {
        self.flags.raise(Flags::new().with_overflow(true).with_precision(inexact || self.overflow_masked));
        let to_infinity = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => sign,
            Rounding::Up => !sign,
        };
        self.rounded_up = to_infinity;
        if to_infinity {
            return format.infinity(sign);
        }
        let ones = u64::MAX << (64 - precision) >> (64 - format.precision);
        format.pack(sign, format.max_biased() - 1, ones)
    }

    /// Rounds off the low `drop` bits.
    fn round_at(&self, sign: bool, sig: u128, drop: u32) -> Rounded {
        let unit = 1u128 << drop;
        let rest = sig & (unit - 1);
        let half = unit >> 1;
        let kept = sig - rest;
        let up = match self.rounding {
            Rounding::Nearest => rest > half || rest == half && kept & unit != 0,
            Rounding::Down => sign && rest != 0,
            Rounding::Up => !sign && rest != 0,
            Rounding::Zero => false,
        };
        let (sig, carry) = if up { kept.overflowing_add(unit) } else { (kept, false) };
        Rounded { sig, carry, inexact: rest != 0, up }
    }

    /// Normalizes a nonzero `sig * 2^-127 * 2^exp` and rounds it.
    fn normalize(&mut self, format: Format, sign: bool, exp: i32, sig: u128) -> u128 {
        let shift = sig.leading_zeros();
        self.round(format, sign, exp - shift as i32, sig << shift)
    }

    /// Puts a finite number or infinity of any format into `format`.
    pub fn repack(&mut self, format: Format, n: Number) -> u128 {
        match n.class {
            Class::Zero => format.zero(n.sign),
            Class::Finite => self.round(format, n.sign, n.exp, (n.sig as u128) << 64),
            Class::Infinity => format.infinity(n.sign),
            _ => n.quiet(format),
        }
    }

    /// `a + b` of operands that are not NaN.
    pub fn add(&mut self, format: Format, a: Number, b: Number) -> u128 {
        match (a.class, b.class) {
            (Class::Infinity, Class::Infinity) if a.sign != b.sign => return self.invalid(format),
            _ => self.note_denormals(&[a, b]),
        }
        let zero_sign = self.rounding == Rounding::Down;
        match (a.class, b.class) {
            (Class::Infinity, _) => return format.infinity(a.sign),
            (_, Class::Infinity) => return format.infinity(b.sign),
            (Class::Zero, Class::Zero) if a.sign == b.sign => return format.zero(a.sign),
            (Class::Zero, Class::Zero) => return format.zero(zero_sign),
            (Class::Zero, _) => return self.repack(format, b),
            (_, Class::Zero) => return self.repack(format, a),
            _ => {}
        }
        let (big, small) = if (a.exp, a.sig) >= (b.exp, b.sig) { (a, b) } else { (b, a) };
        // One spare bit above for the carry.
        let x = (big.sig as u128) << 63;
        let y = shift_right_jam((small.sig as u128) << 63, (big.exp - small.exp) as u32);
        let sum = if a.sign == b.sign { x + y } else { x - y };
        if sum == 0 { format.zero(zero_sign) } else { self.normalize(format, big.sign, big.exp + 1, sum) }
    }

    /// `a - b`.
    pub fn sub(&mut self, format: Format, a: Number, b: Number) -> u128 {
        self.add(format, a, b.negated())
    }

    /// `a * b` of operands that are not NaN.
    pub fn mul(&mut self, format: Format, a: Number, b: Number) -> u128 {
        let sign = a.sign != b.sign;
        match (a.class, b.class) {
            (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return self.invalid(format),
            _ => self.note_denormals(&[a, b]),
        }
        match (a.class, b.class) {
            (Class::Infinity, _) | (_, Class::Infinity) => format.infinity(sign),
            (Class::Zero, _) | (_, Class::Zero) => format.zero(sign),
            _ => self.normalize(format, sign, a.exp + b.exp + 1, a.sig as u128 * b.sig as u128),
        }
    }

    /// `a / b` of operands that are not NaN.
    pub fn div(&mut self, format: Format, a: Number, b: Number) -> u128 {
        let sign = a.sign != b.sign;
        match (a.class, b.class) {
            (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return self.invalid(format),
            (Class::Finite, Class::Zero) => {
                self.flags.set_zero_divide(true);
                return format.infinity(sign);
            }
            _ => self.note_denormals(&[a, b]),
        }
        match (a.class, b.class) {
            (Class::Infinity, _) => return format.infinity(sign),
            (Class::Zero, _) | (_, Class::Infinity) => return format.zero(sign),
            _ => {}
        }
        let divisor = b.sig as u128;
        let dividend = (a.sig as u128) << 63;
        let low = (dividend % divisor) << 64;
        let quotient = (dividend / divisor) << 64 | (low / divisor);
        let sticky = u128::from(!low.is_multiple_of(divisor));
        self.normalize(format, sign, a.exp - b.exp, quotient | sticky)
    }

    /// The square root of an operand that is not NaN.
    pub fn sqrt(&mut self, format: Format, a: Number) -> u128 {
        match a.class {
            Class::Zero => return format.zero(a.sign),
            _ if a.sign => return self.invalid(format),
            Class::Infinity => return format.infinity(false),
            _ => self.note_denormals(&[a]),
        }
        let square = (a.sig as u128) << (63 + (a.exp & 1));
        let root = square.isqrt();
        let rest = square - root * root;
        // The root's fraction is never exactly one half.
        let sig = root << 64 | ((rest > root) as u128) << 63 | (rest != 0) as u128;
        self.round(format, false, a.exp >> 1, sig)
    }

    /// Compares; denormals are flagged, NaNs are the caller's.
    pub fn compare(&mut self, a: Number, b: Number) -> Relation {
        if a.is_nan() || b.is_nan() {
            return Relation::Unordered;
        }
        self.note_denormals(&[a, b]);
        // Signed magnitudes, so that both zeros are equal.
        let key = |n: Number| {
            let magnitude = match n.class {
                Class::Zero => 0,
                Class::Infinity => i128::MAX,
                _ => i128::from(n.exp + 0x8000) << 64 | i128::from(n.sig),
            };
            if n.sign { -magnitude } else { magnitude }
        };
        match key(a).cmp(&key(b)) {
            std::cmp::Ordering::Less => Relation::Less,
            std::cmp::Ordering::Equal => Relation::Equal,
            std::cmp::Ordering::Greater => Relation::Greater,
        }
    }

    /// A signed integer of `bits` bits, or `None` (invalid) if it does not fit. Inexact results are flagged.
    pub fn integer(&mut self, n: Number, bits: u32) -> Option<i64> {
        let limit = 1i128 << (bits - 1);
        let value = match n.class {
            Class::Zero => 0,
            Class::Finite if n.exp < 64 => {
                let rounded = self.round_to_unit(n);
                if rounded.inexact {
                    self.rounded_up = rounded.up;
                }
                let value = if n.sign { -(rounded.sig as i128) } else { rounded.sig as i128 };
                if value >= -limit && value < limit && rounded.inexact {
                    self.flags.set_precision(true);
                }
                value
            }
            _ => limit,
        };
        if value < -limit || value >= limit {
            self.flags.set_invalid(true);
            return None;
        }
        Some(value as i64)
    }

    /// Rounds a finite number below 2^64 to an integer.
    fn round_to_unit(&self, n: Number) -> Rounded {
        let wide = (n.sig as u128) << 63;
        let fixed = shift_right_jam(wide, (63 - n.exp) as u32 + 1);
        let rounded = self.round_at(n.sign, fixed, 62);
        Rounded { sig: rounded.sig >> 62, ..rounded }
    }

    /// Rounds to an integral value in the format. `quietly`: an inexact result is not flagged.
    pub fn round_to_integral(&mut self, format: Format, n: Number, quietly: bool) -> u128 {
        match n.class {
            Class::Finite if n.exp < 63 => {}
            _ => return self.repack(format, n),
        }
        let rounded = self.round_to_unit(n);
        if rounded.inexact && !quietly {
            self.flags.set_precision(true);
            self.rounded_up = rounded.up;
        }
        match rounded.sig {
            0 => format.zero(n.sign),
            sig => {
                let mut exact = Self::DEFAULT;
                exact.normalize(format, n.sign, 127, sig)
            }
        }
    }

    /// An integer in a format that holds it exactly.
    pub fn exact_integer(format: Format, value: i64) -> u128 {
        let mut cx = Self::DEFAULT;
        cx.of_integer(format, value)
    }

    /// An integer in the format.
    pub fn of_integer(&mut self, format: Format, value: i64) -> u128 {
        match value {
            0 => format.zero(false),
            _ => self.normalize(format, value < 0, 127, value.unsigned_abs() as u128),
        }
    }
}

#[derive(Clone, Copy)]
struct Rounded {
    sig: u128,
    carry: bool,
    inexact: bool,
    up: bool,
}

/// Shifts right; what falls off is kept as one sticky bit.
fn shift_right_jam(value: u128, shift: u32) -> u128 {
    match shift {
        0 => value,
        1..128 => value >> shift | (value << (128 - shift) != 0) as u128,
        _ => (value != 0) as u128,
    }
}
