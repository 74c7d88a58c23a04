//! What a message carries, written and read in order.

// UNSAFETY: plain structures as their bytes.
#![allow(unsafe_code)]

use crate::{fit::zeroed, sizes::Plain};

/// A message that ends too early, is too long, or holds what no sender writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn;

/// A message that is written.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn plain<T: Plain>(&mut self, value: &T) {
        self.raw(std::slice::from_ref(value));
    }

    /// A list, after its length.
    pub fn list<T: Plain>(&mut self, items: &[T]) {
        self.plain(&(items.len() as u64));
        self.raw(items);
    }

    pub fn text(&mut self, text: &str) {
        self.list(text.as_bytes());
    }

    fn raw<T: Plain>(&mut self, items: &[T]) {
        let bytes = size_of_val(items);
        self.0.reserve(bytes);
        // SAFETY: there is room for as many bytes; structures that cross have no padding but fields that are named so.
        unsafe {
            let end = self.0.as_mut_ptr().add(self.0.len());
            std::ptr::copy_nonoverlapping(items.as_ptr().cast::<u8>(), end, bytes);
            self.0.set_len(self.0.len() + bytes);
        }
    }
}

/// A message that is read.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn plain<T: Plain>(&mut self) -> Result<T, Torn> {
        let mut value = zeroed();
        self.fill(std::slice::from_mut(&mut value))?;
        Ok(value)
    }

    pub fn list<T: Plain>(&mut self) -> Result<Vec<T>, Torn> {
        let count = self.count::<T>()?;
        let mut items = vec![zeroed(); count];
        self.fill(&mut items)?;
        Ok(items)
    }

    /// A list of a known length, into its place.
    pub fn list_into<T: Plain>(&mut self, items: &mut [T]) -> Result<(), Torn> {
        if self.count::<T>()? != items.len() {
            return Err(Torn);
        }
        self.fill(items)
    }

    pub fn text(&mut self) -> Result<String, Torn> {
        String::from_utf8(self.list()?).map_err(|_| Torn)
    }

    /// Nothing is left.
    pub fn end(&self) -> Result<(), Torn> {
        if self.0.is_empty() { Ok(()) } else { Err(Torn) }
    }

    /// A length that the rest of the message can hold.
    fn count<T>(&mut self) -> Result<usize, Torn> {
        let count = self.plain::<u64>()? as usize;
        if count.checked_mul(size_of::<T>()).is_some_and(|bytes| bytes <= self.0.len()) {
            Ok(count)
        } else {
            Err(Torn)
        }
    }

    fn fill<T: Plain>(&mut self, items: &mut [T]) -> Result<(), Torn> {
        let (bytes, rest) = self.0.split_at_checked(size_of_val(items)).ok_or(Torn)?;
        // SAFETY: as many bytes as the items have, of which any are a value.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), items.as_mut_ptr().cast::<u8>(), bytes.len());
        }
        self.0 = rest;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::state::MsrEntry;

    #[test]
    fn what_was_written_is_read() {
        let entries = [MsrEntry::new(0x10, 1), MsrEntry::new(0x277, u64::MAX)];
        let mut to = Writer::default();
        to.plain(&7_u32);
        to.list(&entries);
        to.text("why");
        let mut from = Reader(&to.0);
        assert_eq!(from.plain::<u32>(), Ok(7));
        assert_eq!(from.list::<MsrEntry>().unwrap(), entries);
        assert_eq!(from.text().as_deref(), Ok("why"));
        assert_eq!(from.end(), Ok(()));
        for cut in 0..to.0.len() {
            let mut from = Reader(&to.0[..cut]);
            let all = from.plain::<u32>().and_then(|_| from.list::<MsrEntry>()).and_then(|_| from.text());
            assert_eq!(all, Err(Torn), "{cut}");
        }
        let mut long = Writer::default();
        long.plain(&u64::MAX);
        assert_eq!(Reader(&long.0).list::<u64>(), Err(Torn), "a length that nothing is behind");
    }
}
