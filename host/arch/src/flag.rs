//! A truth value in a structure that crosses the ABI.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Not};
use zerocopy::{Immutable, IntoBytes};

/// A byte that is true unless it is zero. A Rust `bool` holds 0 or 1 and nothing else, which no foreign library promises.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Serialize, Deserialize, IntoBytes, Immutable)]
#[serde(from = "bool", into = "bool")]
pub struct Flag(pub u8);

impl Flag {
    pub const NO: Self = Self(0);
    pub const YES: Self = Self(1);

    /// Whether it is true.
    pub const fn is_set(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Flag {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl From<Flag> for bool {
    fn from(flag: Flag) -> Self {
        flag.is_set()
    }
}

impl From<Flag> for u8 {
    /// 0 or 1.
    fn from(flag: Flag) -> Self {
        flag.is_set().into()
    }
}

impl Not for Flag {
    type Output = bool;

    fn not(self) -> bool {
        !self.is_set()
    }
}

/// All that is true is equal.
impl PartialEq for Flag {
    fn eq(&self, other: &Self) -> bool {
        self.is_set() == other.is_set()
    }
}

impl Eq for Flag {}

impl PartialEq<Flag> for bool {
    fn eq(&self, other: &Flag) -> bool {
        *self == other.is_set()
    }
}

impl PartialEq<bool> for Flag {
    fn eq(&self, other: &bool) -> bool {
        self.is_set() == *other
    }
}

impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.is_set(), f)
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.is_set(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_but_zero_is_true() {
        assert!(!Flag(0) && Flag(1).is_set() && Flag(2).is_set() && Flag(255).is_set());
        assert_eq!(Flag(2), Flag::YES);
        assert_ne!(Flag(2), Flag::NO);
    }
}
