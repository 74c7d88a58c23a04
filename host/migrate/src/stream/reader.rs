//! Reading a stream, however it is cut into pieces.

use super::{
    CHECKSUM, HEAD, LONGEST, MAGIC, MANDATORY, SECTION_HEAD, SectionKind, StreamError, VERSION, bytes::Bytes,
};

/// A section whose checksum is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub kind: SectionKind,
    pub number: u32,
    pub mandatory: bool,
    pub payload: Vec<u8>,
}

/// What arrived of a stream and was not read yet.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// Bytes of it that were read.
    read: usize,
    begun: bool,
    next: u32,
}

impl Reader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        // What was read is dropped now and then, not byte by byte.
        if self.read > LONGEST {
            self.bytes.drain(..std::mem::take(&mut self.read));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next section. `None`: it has not arrived whole.
    pub fn section(&mut self) -> Result<Option<Section>, StreamError> {
        if !self.begun && !self.head()? {
            return Ok(None);
        }
        let left = &self.bytes[self.read..];
        let mut head = Bytes(left);
        let words = [head.u32(), head.u32(), head.u32(), head.u32()];
        let [Some(kind), Some(flags), Some(number), Some(length)] = words else { return Ok(None) };
        let kind = SectionKind(kind);
        if length as usize > LONGEST {
            return Err(StreamError::Length { kind, number, length });
        }
        let end = SECTION_HEAD + length as usize;
        let Some(section) = left.get(..end + CHECKSUM) else { return Ok(None) };
        let found = Bytes(&section[end..]).u32().unwrap_or_default();
        let expected = crc32fast::hash(&section[..end]);
        if found != expected {
            return Err(StreamError::Checksum { kind, number, expected, found });
        }
        if number != self.next {
            return Err(StreamError::Order { kind, expected: self.next, found: number });
        }
        if flags & !MANDATORY != 0 {
            return Err(StreamError::Flags(flags));
        }
        let payload = section[SECTION_HEAD..end].to_vec();
        self.read += end + CHECKSUM;
        self.next += 1;
        Ok(Some(Section { kind, number, mandatory: flags & MANDATORY != 0, payload }))
    }

    /// Nothing more arrives. An error: it ends within something.
    pub fn finish(&self) -> Result<(), StreamError> {
        match (self.begun, self.bytes.len() - self.read) {
            (false, 0) => Err(StreamError::Torn("nothing: not a byte has come")),
            (false, _) => Err(StreamError::Torn("its head")),
            (true, 0) => Ok(()),
            (true, _) => Err(StreamError::Torn("a section")),
        }
    }

    fn head(&mut self) -> Result<bool, StreamError> {
        let known = self.bytes.len().min(MAGIC.len());
        if self.bytes[..known] != MAGIC[..known] {
            return Err(StreamError::Foreign(self.bytes[..known].to_vec()));
        }
        let Some(rest) = self.bytes.get(MAGIC.len()..HEAD) else { return Ok(false) };
        let mut rest = Bytes(rest);
        let (version, flags) = (rest.u32().unwrap_or_default(), rest.u32().unwrap_or_default());
        if version != VERSION {
            return Err(StreamError::Version(version));
        }
        if flags != 0 {
            return Err(StreamError::Flags(flags));
        }
        (self.begun, self.read) = (true, HEAD);
        Ok(true)
    }
}
