//! The intercept vectors. Their 192 bits are numbered as the exit codes are.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, Table B-1 VMCB Layout, Control Area; appendix C SVM Intercept Exit Codes.

use vmtape_arch::exit::SvmExitCode;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CR reads and writes, DR reads and writes, exceptions, and three vectors of instructions and events.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InterceptVector(pub [u32; 6]);

impl InterceptVector {
    /// The vector of the exceptions, a bit each.
    pub const EXCEPTIONS: usize = 2;

    /// Whether what has this exit code exits. Codes beyond the vectors have no bit.
    pub fn has(&self, code: SvmExitCode) -> bool {
        self.0.get((code.0 / 32) as usize).is_some_and(|word| word >> (code.0 % 32) & 1 != 0)
    }

    /// Intercepts, or no longer. Whether that is a change.
    pub fn set(&mut self, code: SvmExitCode, on: bool) -> bool {
        let Some(word) = self.0.get_mut((code.0 / 32) as usize) else { return false };
        let bit = 1 << (code.0 % 32);
        let new = if on { *word | bit } else { *word & !bit };
        std::mem::replace(word, new) != new
    }

    /// Exceptions, a bit per vector.
    pub fn exceptions(&self) -> u32 {
        self.0[Self::EXCEPTIONS]
    }
}
