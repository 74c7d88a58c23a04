//! Pointers and lengths, read as the slices that they stand for.

// UNSAFETY: this is where foreign pointers become references.
#![allow(unsafe_code)]

use crate::table::{Sink, Text};

/// A slice from a foreign pointer; a null pointer is an empty slice.
///
/// # Safety
/// `ptr` points to `len` values that stay unchanged while the result is used, or `len` is zero.
pub unsafe fn slice<'a, T>(ptr: *const T, len: usize) -> &'a [T] {
    if ptr.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { std::slice::from_raw_parts(ptr, len) }
}

/// As [`slice`], for a buffer.
///
/// # Safety
/// As [`slice`], and nobody else uses the buffer meanwhile.
pub unsafe fn slice_mut<'a, T>(ptr: *mut T, len: usize) -> &'a mut [T] {
    if ptr.is_null() || len == 0 {
        return &mut [];
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { std::slice::from_raw_parts_mut(ptr, len) }
}

/// Copies text; what is not UTF-8 is replaced.
///
/// # Safety
/// As [`slice`].
pub unsafe fn text(text: Text) -> String {
    // SAFETY: the caller vouches for it.
    String::from_utf8_lossy(unsafe { slice(text.ptr, text.len) }).into_owned()
}

/// Hands bytes to a sink.
///
/// # Safety
/// The sink's context is alive.
pub unsafe fn put_bytes(sink: Sink<u8>, data: &[u8]) {
    // SAFETY: the sink copies what it wants before it returns.
    unsafe { (sink.put)(sink.ctx, data.as_ptr(), data.len()) }
}
