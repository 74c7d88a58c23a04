//! What a walk of the nested tables gives, in either format.

use crate::memory_type;
use vmtape_arch::exception::PageFaultError;

/// A guest physical address that the nested tables translate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nested {
    pub hpa: u64,
    pub read: bool,
    /// Writable without another walk: the dirty bit, where there is one, is set.
    pub write: bool,
    pub fetch: bool,
    pub memory_type: memory_type::Nested,
}

/// Why they do not translate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFault {
    /// EPT violation; the rights that all entries give together.
    Violation {
        read: bool,
        write: bool,
        fetch: bool,
    },
    Misconfiguration,
    /// The log of page modifications is full.
    LogFull,
    /// Nested page fault with its error code.
    Npf(PageFaultError),
}
