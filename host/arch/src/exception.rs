//! Exception vectors and error codes.

use crate::{flag::Flag, layout, open_enum};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

open_enum! {
    /// An exception or interrupt vector. See: SDM vol. 3A Table 6-1. Exceptions and Interrupts
    pub struct Vector(u8) {
        DE = 0 => "#DE",
        DB = 1 => "#DB",
        NMI = 2 => "NMI",
        BP = 3 => "#BP",
        OF = 4 => "#OF",
        BR = 5 => "#BR",
        UD = 6 => "#UD",
        NM = 7 => "#NM",
        DF = 8 => "#DF",
        TS = 10 => "#TS",
        NP = 11 => "#NP",
        SS = 12 => "#SS",
        GP = 13 => "#GP",
        PF = 14 => "#PF",
        MF = 16 => "#MF",
        AC = 17 => "#AC",
        MC = 18 => "#MC",
        XM = 19 => "#XM",
        VE = 20 => "#VE",
        CP = 21 => "#CP",
    }
}

impl Vector {
    /// Whether the exception pushes an error code.
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }
}

/// A #PF error code. See: SDM vol. 3A 4.7 Page-Fault Exceptions
#[bitfield(u32)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFaultError {
    pub p: bool,
    pub w: bool,
    pub u: bool,
    pub rsvd: bool,
    /// Instruction fetch.
    pub i: bool,
    /// Protection key.
    pub pk: bool,
    /// Shadow-stack access.
    pub ss: bool,
    #[bits(8)]
    __: u8,
    pub sgx: bool,
    #[bits(16)]
    __: u16,
}

/// An exception on its way to the guest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    pub vector: Vector,
    pub has_error_code: Flag,
    /// INT3, INTO and ICEBP: the length of the instruction, at which RIP still points although the exception is a trap.
    /// Otherwise zero.
    pub insn_len: u8,
    pub pad: u8,
    pub error_code: u32,
    /// #PF: the value for CR2. #DB: the DR6 bits to set. Otherwise zero.
    pub payload: u64,
}

layout!(Exception: 16, insn_len: 2, error_code: 4, payload: 8);

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: Vector) -> Self {
        Self { vector, has_error_code: Flag::NO, insn_len: 0, pad: 0, error_code: 0, payload: 0 }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self { vector, has_error_code: Flag::YES, insn_len: 0, pad: 0, error_code, payload: 0 }
    }

    /// `#GP(code)`.
    pub const fn gp(error_code: u32) -> Self {
        Self::with_code(Vector::GP, error_code)
    }

    /// `#UD`.
    pub const fn ud() -> Self {
        Self::new(Vector::UD)
    }

    /// `#PF(code)` with `gva` for CR2.
    pub const fn pf(gva: u64, error: PageFaultError) -> Self {
        Self { payload: gva, ..Self::with_code(Vector::PF, error.into_bits()) }
    }
}
