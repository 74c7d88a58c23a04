//! MXCSR. See: SDM vol. 1 10.2.3 MXCSR Control and Status Register

use super::soft::{Context, Flags, Rounding};
use bitfield_struct::bitfield;

/// The SSE control and status register.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Mxcsr {
    #[bits(6)]
    pub flags: u8,
    /// Denormals are zero.
    pub daz: bool,
    #[bits(6)]
    pub masks: u8,
    #[bits(2)]
    pub rounding: u8,
    /// Flush to zero.
    pub ftz: bool,
    __: u16,
}

/// The bits that LDMXCSR, FXRSTOR and XRSTOR accept, as FXSAVE reports them in MXCSR_MASK.
pub const MXCSR_MASK: u32 = 0xffff;

impl Mxcsr {
    /// The control bits as an operation sees them, no flag raised yet.
    pub fn context(self) -> Context {
        Context {
            rounding: Rounding::from_rc(self.rounding()),
            denormals_are_zero: self.daz(),
            flush_to_zero: self.ftz(),
            overflow_masked: self.masked().overflow(),
            underflow_masked: self.masked().underflow(),
            ..Context::DEFAULT
        }
    }

    /// The exceptions that do not trap.
    pub fn masked(self) -> Flags {
        Flags::from_bits(self.masks())
    }

    /// With the flags added that an operation raised, and whether #XM is due.
    pub fn raise(self, flags: Flags) -> (Self, bool) {
        let mut raised = flags;
        // An unmasked exception found in the operands keeps the operation from being carried out.
        let before = flags.before_computation();
        if before.unmasked(self.masked()) != Flags::NONE {
            raised = before;
        }
        let trap = raised.unmasked(self.masked()) != Flags::NONE;
        (self.with_flags(self.flags() | raised.into_bits()), trap)
    }
}
