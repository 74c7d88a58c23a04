//! Numbers and strings of a payload, little-endian.

/// What is left of a payload.
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    /// A count of things of at least so many bytes each: more of them than fit are none.
    pub(super) fn count(&mut self, least: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count <= self.0.len() / least).then_some(count)
    }

    /// A text with its length before it.
    pub(super) fn text(&mut self) -> Option<String> {
        let len = self.count(1)?;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }
}

pub(super) fn put_text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u32).to_le_bytes());
    to.extend(text.as_bytes());
}

pub(super) fn put_u32(to: &mut Vec<u8>, words: impl IntoIterator<Item = u32>) {
    to.extend(words.into_iter().flat_map(u32::to_le_bytes));
}

pub(super) fn put_u64(to: &mut Vec<u8>, words: impl IntoIterator<Item = u64>) {
    to.extend(words.into_iter().flat_map(u64::to_le_bytes));
}
