//! What each side asks of the other's table before it makes a call.

// UNSAFETY: foreign tables are looked at as words before Rust sees functions in them.
#![allow(unsafe_code)]

use crate::{
    sizes::{Mismatch, Sizes},
    table::{ABI_VERSION, BackendTable, HostTable, Status},
};
use thiserror::Error;

/// A function of a table.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    /// Where it stands in the table.
    pub at: usize,
    /// There is no default for it: a table without it cannot be used.
    pub needed: bool,
}

/// Why a table cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HandshakeError {
    #[error("it gives a null pointer instead of its table")]
    NoTable,
    #[error("it speaks version {found} of the backend ABI, this side speaks version {ABI_VERSION}")]
    OtherVersion { found: u32 },
    #[error("its table has {found} bytes, no table of version {ABI_VERSION} has fewer than {least}")]
    TableTooSmall { found: u32, least: usize },
    #[error(
        "its table of {found} bytes ends before `{function}`, for which there is no default (ABI version {ABI_VERSION}): it \
         was built from an older header"
    )]
    NoFunction { function: &'static str, found: u32 },
    #[error("`{function}` of its table is null, and there is no default for it (ABI version {ABI_VERSION})")]
    NullFunction { function: &'static str },
    #[error("its {}", describe(_0))]
    OtherSize(Mismatch),
    #[error("it failed while describing itself (status {status})")]
    DescribeFailed { status: Status },
    #[error("it describes itself without a name")]
    NoName,
}

fn describe(Mismatch { structure, here, there, least }: &Mismatch) -> String {
    let expected = match least {
        None => format!("it stands inside others and must have {here}: build both sides from one header"),
        Some(least) => format!("at least {least} are needed, and no header has more than {}", Sizes::MOST),
    };
    format!("{structure} has {there} bytes (ABI version {ABI_VERSION}): {expected}")
}

/// Whether a table has a function, as far as its size goes.
///
/// # Safety
/// `table` starts with the version and its size in bytes, and is as large.
pub unsafe fn has<T>(table: *const T, at: usize) -> bool {
    // SAFETY: the caller vouches for it.
    unsafe {
        let [_, size] = *table.cast::<[u32; 2]>();
        at + size_of::<usize>() <= size as usize && *table.byte_add(at).cast::<usize>() != 0
    }
}

/// Checks version, size and functions of a table.
///
/// # Safety
/// `table` is null, or starts with the version and, in version 2, its size in bytes, and is as large.
pub unsafe fn check<T>(table: *const T, calls: impl IntoIterator<Item = Call>) -> Result<(), HandshakeError> {
    if table.is_null() {
        return Err(HandshakeError::NoTable);
    }
    // SAFETY: every version of a table starts with these two words.
    let [version, found] = unsafe { *table.cast::<[u32; 2]>() };
    if version != ABI_VERSION {
        return Err(HandshakeError::OtherVersion { found: version });
    }
    for Call { name: function, at, .. } in calls.into_iter().filter(|call| call.needed) {
        if at + size_of::<usize>() > found as usize {
            return Err(HandshakeError::NoFunction { function, found });
        }
        // SAFETY: the table has these bytes.
        if !unsafe { has(table, at) } {
            return Err(HandshakeError::NullFunction { function });
        }
    }
    Ok(())
}

/// A table that says how large its side's structures are.
pub trait HasSizes {
    /// Bytes of the table that the two fields need.
    const LEAST: usize;

    /// # Safety
    /// The table has these bytes.
    unsafe fn sizes(table: *const Self) -> (*const Sizes, u32);
}

macro_rules! sized {
    ($($table:ty),*) => {$(
        impl HasSizes for $table {
            const LEAST: usize = std::mem::offset_of!(Self, sizes) + size_of::<usize>();

            unsafe fn sizes(table: *const Self) -> (*const Sizes, u32) {
                // SAFETY: the caller vouches for it.
                unsafe { ((*table).sizes, (*table).sizes_bytes) }
            }
        }
    )*};
}

sized!(BackendTable, HostTable);

/// The sizes of the other side's structures, if each can be passed in that size.
///
/// # Safety
/// `table` starts with its version and size, and is as large.
pub unsafe fn sizes<T: HasSizes>(table: *const T) -> Result<Sizes, HandshakeError> {
    // SAFETY: the caller vouches for it.
    let [_, found] = unsafe { *table.cast::<[u32; 2]>() };
    if (found as usize) < T::LEAST {
        return Err(HandshakeError::TableTooSmall { found, least: T::LEAST });
    }
    // SAFETY: the table has these bytes, and says how long the list is.
    let sizes = unsafe {
        let (list, bytes) = T::sizes(table);
        Sizes::read(list, bytes).and_then(|sizes| sizes.check(bytes).map(|()| sizes))
    };
    sizes.map_err(HandshakeError::OtherSize)
}
