//! x87, SSE and AVX register state.

use crate::layout;
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes};

/// The floating-point and vector registers of a vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoBytes, Immutable)]
pub struct Fpu {
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged tag word as in FXSAVE: a bit set means the register holds a value.
    pub ftw: u8,
    pub pad: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    pub pad2: u32,
    /// Physical registers R0-R7 as 80-bit values in the low ten bytes.
    pub st: [[u8; 16]; 8],
    /// Low 128 bits of YMM0-YMM15.
    pub xmm: [[u64; 2]; 16],
    /// High 128 bits of YMM0-YMM15.
    pub ymm_hi: [[u64; 2]; 16],
}

layout!(Fpu: 672, fip: 8, mxcsr: 24, st: 32, xmm: 160, ymm_hi: 416);

impl Fpu {
    /// State after reset: FNINIT and default MXCSR.
    pub const RESET: Self = Self {
        fcw: 0x40,
        fsw: 0,
        ftw: 0,
        pad: 0,
        fop: 0,
        fip: 0,
        fdp: 0,
        mxcsr: 0x1f80,
        pad2: 0,
        st: [[0; 16]; 8],
        xmm: [[0; 2]; 16],
        ymm_hi: [[0; 2]; 16],
    };
}
