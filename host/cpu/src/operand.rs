//! Operands: the integer types of instructions, registers of every size, and access by operand number.

use crate::{
    core::Core,
    env::Interrupted,
    insn::{HIGH_BYTE, Insn, Kind},
    ram::Ram,
};

/// Something that memory holds in one piece.
pub trait Word: Copy + 'static {
    const BYTES: u64;
    fn load(ram: &Ram, hpa: u64) -> Option<Self>;
    fn store(self, ram: &Ram, hpa: u64) -> bool;
    /// As `store`, where changes of memory are counted, by the instruction that so many have retired before.
    fn store_counted(self, ram: &Ram, hpa: u64, icount: u64) -> bool;
    /// From the first `BYTES` bytes, little-endian.
    fn from_slice(bytes: &[u8; 16]) -> Self;
    /// Into the first `BYTES` bytes, little-endian.
    fn to_slice(self) -> [u8; 16];
}

/// An integer operand. Arithmetic is done on `u64`, zero-extended, and truncated.
pub trait Int: Word + PartialEq {
    const BITS: u32;
    fn from_u64(value: u64) -> Self;
    fn to_u64(self) -> u64;
    /// Sign-extended.
    fn to_i64(self) -> i64;
    fn get(core: &Core<'_>, register: u8) -> Self;
    fn set(self, core: &mut Core<'_>, register: u8);
}

macro_rules! word {
    ($($t:ty)*) => {$(
        impl Word for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn load(ram: &Ram, hpa: u64) -> Option<Self> {
                ram.load(hpa).map(<$t>::from_le_bytes)
            }
            #[inline(always)]
            fn store(self, ram: &Ram, hpa: u64) -> bool {
                ram.store(hpa, self.to_le_bytes())
            }
            #[inline(always)]
            fn store_counted(self, ram: &Ram, hpa: u64, icount: u64) -> bool {
                ram.store_counted(hpa, self.to_le_bytes(), icount)
            }
            #[inline]
            fn from_slice(bytes: &[u8; 16]) -> Self {
                u128::from_le_bytes(*bytes) as $t
            }
            #[inline]
            fn to_slice(self) -> [u8; 16] {
                u128::from(self).to_le_bytes()
            }
        }
    )*};
}

word!(u8 u16 u32 u64 u128);

macro_rules! int {
    ($t:ty, $signed:ty, $get:expr, $set:expr) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                i64::from(self as $signed)
            }
            #[inline(always)]
            fn get(core: &Core<'_>, register: u8) -> Self {
                $get(&core.state.gpr, register)
            }
            #[inline(always)]
            fn set(self, core: &mut Core<'_>, register: u8) {
                $set(&mut core.state.gpr, register, self);
            }
        }
    };
}

type Gprs = [u64; 16];

int!(u8, i8, get8, set8);
int!(u16, i16, |gpr: &Gprs, r: u8| gpr[(r & 15) as usize] as u16, |gpr: &mut Gprs, r: u8, v: u16| {
    let slot = &mut gpr[(r & 15) as usize];
    *slot = *slot & !0xffff | u64::from(v);
});
int!(u32, i32, |gpr: &Gprs, r: u8| gpr[(r & 15) as usize] as u32, |gpr: &mut Gprs, r: u8, v: u32| {
    gpr[(r & 15) as usize] = u64::from(v);
});
int!(u64, i64, |gpr: &Gprs, r: u8| gpr[(r & 15) as usize], |gpr: &mut Gprs, r: u8, v: u64| {
    gpr[(r & 15) as usize] = v;
});

#[inline(always)]
fn get8(gpr: &Gprs, register: u8) -> u8 {
    (gpr[(register & 15) as usize] >> high_shift(register)) as u8
}

#[inline(always)]
fn set8(gpr: &mut Gprs, register: u8, value: u8) {
    let shift = high_shift(register);
    let slot = &mut gpr[(register & 15) as usize];
    *slot = *slot & !(0xff << shift) | u64::from(value) << shift;
}

/// 8 for AH, CH, DH and BH.
#[inline(always)]
fn high_shift(register: u8) -> u32 {
    u32::from(register & HIGH_BYTE) / 2
}

/// Operand access by number. The address of a memory operand is computed anew with each call.
impl Core<'_> {
    /// Reads operand `n`.
    #[inline(always)]
    pub fn get<T: Int>(&mut self, insn: &Insn, n: usize) -> Result<T, Interrupted> {
        match insn.kinds[n] {
            Kind::Reg => Ok(T::get(self, insn.regs[n])),
            Kind::Imm => Ok(T::from_u64(insn.imm)),
            _ => self.read(insn.seg, insn.address(self)),
        }
    }

    /// Writes operand `n`.
    #[inline(always)]
    pub fn put<T: Int>(&mut self, insn: &Insn, n: usize, value: T) -> Result<(), Interrupted> {
        if insn.kinds[n] == Kind::Reg {
            value.set(self, insn.regs[n]);
            return Ok(());
        }
        self.write(insn.seg, insn.address(self), value)
    }

    /// Replaces operand `n` by what `f` makes of it. The second result of `f` is handed on. A memory operand is checked
    /// for writing before `f` runs.
    #[inline(always)]
    pub fn modify<T: Int, R>(
        &mut self,
        insn: &Insn,
        n: usize,
        f: impl FnOnce(T) -> (T, R),
    ) -> Result<R, Interrupted> {
        if insn.kinds[n] == Kind::Reg {
            let (value, result) = f(T::get(self, insn.regs[n]));
            value.set(self, insn.regs[n]);
            return Ok(result);
        }
        self.rmw(insn.seg, insn.address(self), f)
    }

    /// Replaces the six status flags.
    #[inline(always)]
    pub fn set_status(&mut self, flags: u64) {
        self.set_flags(crate::flags::STATUS, flags);
    }

    /// Replaces the flags in `mask`.
    #[inline(always)]
    pub fn set_flags(&mut self, mask: u64, flags: u64) {
        self.state.rflags = self.state.rflags & !mask | flags;
    }

    #[inline(always)]
    pub fn carry(&self) -> bool {
        self.state.rflags & crate::flags::CF != 0
    }
}
