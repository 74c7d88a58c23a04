//! Structures between sides whose headers differ in age: what one side does not have is zero on the other.

// UNSAFETY: copies between structures of two sizes.
#![allow(unsafe_code)]

use crate::{
    raw::{slice, slice_mut},
    sizes::Plain,
    table::Sizes,
};

/// All zeroes.
pub fn zeroed<T: Plain>() -> T {
    // SAFETY: any bytes are a value.
    unsafe { std::mem::zeroed() }
}

/// Copies structures between lists of two strides, `from` and `to`.
///
/// # Safety
/// Both lists have `count` structures of their stride, and do not overlap.
unsafe fn copy_each<T>((from, from_size): (*const T, usize), (to, to_size): (*mut T, usize), count: usize) {
    let common = from_size.min(to_size);
    let (mut from, mut to) = (from.cast::<u8>(), to.cast::<u8>());
    for _ in 0..count {
        // SAFETY: the caller vouches for the lists.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to, common);
            std::ptr::write_bytes(to.add(common), 0, to_size - common);
            (from, to) = (from.add(from_size), to.add(to_size));
        }
    }
}

/// Writes a structure where the other side has room for one of its own size.
///
/// # Safety
/// `to` is good for `T::size(peer)` bytes.
#[inline]
pub unsafe fn put<T: Plain>(value: T, to: *mut T, peer: &Sizes) {
    let size = T::size(peer);
    // SAFETY: the caller vouches for it.
    unsafe {
        if size == size_of::<T>() {
            to.write_unaligned(value);
        } else {
            copy_each((&raw const value, size_of::<T>()), (to, size), 1);
        }
    }
}

/// A list of ours, lent to the other side.
pub struct Outgoing<L> {
    list: L,
    /// A copy in the other side's stride, where ours would not do.
    copy: Vec<u64>,
    size: usize,
}

impl<L> Outgoing<L> {
    /// # Safety
    /// `ours` is the list's.
    #[inline]
    unsafe fn new<T: Plain>(list: L, ours: *const T, len: usize, peer: &Sizes) -> Self {
        let size = T::size(peer);
        // Of one structure a side with a smaller one does not look beyond that.
        let fits = size == size_of::<T>() || size < size_of::<T>() && len <= 1;
        // SAFETY: the caller vouches for the list.
        let copy = if fits { Vec::new() } else { unsafe { in_stride(ours, len, size) } };
        Self { list, copy, size }
    }
}

/// A list in the stride of the other side.
///
/// # Safety
/// There are `len` structures.
#[cold]
unsafe fn in_stride<T>(ours: *const T, len: usize, size: usize) -> Vec<u64> {
    let mut copy = vec![0; (size * len).div_ceil(size_of::<u64>())];
    // SAFETY: both have `len` structures.
    unsafe { copy_each((ours, size_of::<T>()), (copy.as_mut_ptr().cast(), size), len) };
    copy
}

impl<'a, T: Plain> Outgoing<&'a [T]> {
    #[inline]
    pub fn shared(list: &'a [T], peer: &Sizes) -> Self {
        // SAFETY: the list's own pointer and length.
        unsafe { Self::new(list, list.as_ptr(), list.len(), peer) }
    }

    #[inline]
    pub fn ptr(&self) -> *const T {
        if self.copy.is_empty() { self.list.as_ptr() } else { self.copy.as_ptr().cast() }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }
}

impl<'a, T: Plain> Outgoing<&'a mut [T]> {
    #[inline]
    pub fn exclusive(list: &'a mut [T], peer: &Sizes) -> Self {
        let (ptr, len) = (list.as_ptr(), list.len());
        // SAFETY: the list's own pointer and length.
        unsafe { Self::new(list, ptr, len, peer) }
    }

    #[inline]
    pub fn ptr(&mut self) -> *mut T {
        if self.copy.is_empty() { self.list.as_mut_ptr() } else { self.copy.as_mut_ptr().cast() }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Takes over what the other side has written. What it does not have stays as it is.
    #[inline]
    pub fn take_back(&mut self) {
        if !self.copy.is_empty() {
            self.copy_back();
        }
    }

    #[cold]
    fn copy_back(&mut self) {
        let common = self.size.min(size_of::<T>());
        for (n, item) in self.list.iter_mut().enumerate() {
            // SAFETY: the copy has as many structures of `size` bytes; any bytes are a value.
            unsafe {
                let theirs = self.copy.as_ptr().cast::<u8>().add(n * self.size);
                std::ptr::copy_nonoverlapping(theirs, (&raw mut *item).cast(), common);
            }
        }
    }
}

/// A list of the other side, as ours.
pub struct Incoming<T> {
    theirs: *mut T,
    len: usize,
    size: usize,
    /// A copy in our stride, where theirs would not do.
    copy: Vec<T>,
}

impl<T: Plain> Incoming<T> {
    /// # Safety
    /// `theirs` points to `len` structures of the peer's size for as long as this lives, or is null.
    #[inline]
    pub unsafe fn new(theirs: *mut T, len: usize, peer: &Sizes) -> Self {
        let size = T::size(peer);
        let fits = size == size_of::<T>() || size > size_of::<T>() && len == 1 || theirs.is_null();
        // SAFETY: the caller vouches for theirs.
        let copy = if fits { Vec::new() } else { unsafe { in_own_stride(theirs, len, size) } };
        Self { theirs, len, size, copy }
    }

    /// # Safety
    /// As for [`slice`].
    #[inline]
    pub unsafe fn shared<'a>(&self) -> &'a [T] {
        let ptr = if self.copy.is_empty() { self.theirs.cast_const() } else { self.copy.as_ptr() };
        // SAFETY: the caller vouches for it.
        unsafe { slice(ptr, self.len) }
    }

    /// # Safety
    /// As for [`slice_mut`].
    #[inline]
    pub unsafe fn exclusive<'a>(&mut self) -> &'a mut [T] {
        let ptr = if self.copy.is_empty() { self.theirs } else { self.copy.as_mut_ptr() };
        // SAFETY: the caller vouches for it.
        unsafe { slice_mut(ptr, self.len) }
    }

    /// Gives the other side what was written. What only it has stays as it is.
    ///
    /// # Safety
    /// As for `new`; nothing that was lent is in use.
    #[inline]
    pub unsafe fn give_back(&mut self) {
        let common = self.size.min(size_of::<T>());
        for (n, item) in self.copy.iter().enumerate() {
            // SAFETY: the caller vouches for theirs, which has as many structures.
            unsafe {
                let theirs = self.theirs.cast::<u8>().add(n * self.size);
                std::ptr::copy_nonoverlapping((&raw const *item).cast(), theirs, common);
            }
        }
    }
}

/// The other side's list in our stride.
///
/// # Safety
/// There are `len` structures of `size` bytes.
#[cold]
unsafe fn in_own_stride<T: Plain>(theirs: *const T, len: usize, size: usize) -> Vec<T> {
    let mut copy = Vec::new();
    copy.resize_with(len, zeroed);
    // SAFETY: both have `len` structures.
    unsafe { copy_each((theirs, size), (copy.as_mut_ptr(), size_of::<T>()), len) };
    copy
}

/// Room for a structure that the other side fills in.
pub struct Room<T> {
    ours: T,
    /// Room of the other side's size, where it is larger.
    larger: Vec<u64>,
}

impl<T: Plain> Room<T> {
    #[inline]
    pub fn new(peer: &Sizes) -> Self {
        let (here, there) = (size_of::<T>(), T::size(peer));
        let larger = if there > here { vec![0; there.div_ceil(size_of::<u64>())] } else { Vec::new() };
        Self { ours: zeroed(), larger }
    }

    #[inline]
    pub fn ptr(&mut self) -> *mut T {
        if self.larger.is_empty() { &raw mut self.ours } else { self.larger.as_mut_ptr().cast() }
    }

    #[inline]
    pub fn into_inner(self) -> T {
        match self.larger.is_empty() {
            true => self.ours,
            // SAFETY: it is larger than a `T`, of which any bytes are a value, and as aligned as one.
            false => unsafe { self.larger.as_ptr().cast::<T>().read_unaligned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::cpuid::CpuidEntry;

    /// A side whose CPUID entries have more or fewer bytes.
    fn peer(entry: u32) -> Sizes {
        Sizes { cpuid_entry: entry, ..*Sizes::OWN }
    }

    fn entries() -> [CpuidEntry; 3] {
        [1, 2, 3].map(|n| CpuidEntry { function: n, edx: 10 * n, pad: 100 * n, ..Default::default() })
    }

    #[test]
    fn a_list_goes_out_in_the_other_sides_stride() {
        let ours = entries();
        for size in [28, 32, 48] {
            let out = Outgoing::shared(&ours, &peer(size));
            // SAFETY: the list has three structures of `size` bytes.
            let bytes = unsafe { slice(out.ptr().cast::<u8>(), 3 * size as usize) };
            for (n, entry) in bytes.chunks(size as usize).enumerate() {
                let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
                let n = n as u32 + 1;
                assert_eq!((word(0), word(24)), (n, 10 * n));
                if size > 28 {
                    assert_eq!(word(28), 100 * n);
                }
                assert!(size == 28 || entry[32..].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn what_the_other_side_wrote_comes_back_and_the_rest_stays() {
        for size in [28_u32, 32, 48] {
            let mut ours = entries();
            let mut out = Outgoing::exclusive(&mut ours[..], &peer(size));
            let ptr = out.ptr().cast::<u8>();
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(ptr, 0xff, 3 * size as usize) };
            out.take_back();
            let pads = ours.map(|entry| entry.pad);
            assert_eq!(pads, if size == 28 { [100, 200, 300] } else { [u32::MAX; 3] });
            assert!(ours.iter().all(|entry| entry.edx == u32::MAX));
        }
    }

    #[test]
    fn a_list_comes_in_from_the_other_sides_stride_and_goes_back() {
        for size in [28_usize, 32, 48] {
            let mut theirs = vec![0xaa_u8; 3 * size];
            let peer = peer(size as u32);
            // SAFETY: the list has three structures of `size` bytes.
            let mut list = unsafe { Incoming::<CpuidEntry>::new(theirs.as_mut_ptr().cast(), 3, &peer) };
            // SAFETY: as above; one slice at a time.
            let ours = unsafe { list.exclusive() };
            let missing = if size == 28 { 0 } else { 0xaaaa_aaaa };
            assert!(ours.iter().all(|entry| entry.edx == 0xaaaa_aaaa && entry.pad == missing));
            ours.iter_mut().for_each(|entry| *entry = CpuidEntry { edx: 7, ..Default::default() });
            // SAFETY: as above.
            unsafe { list.give_back() };
            for entry in theirs.chunks(size) {
                assert_eq!(entry[24], 7);
                assert!(size < 48 || entry[32..].iter().all(|byte| *byte == 0xaa));
            }
        }
    }
}
