//! Writing a stream.

use super::{CHECKSUM, HEAD, MAGIC, MANDATORY, Record, SECTION_HEAD, SectionKind, VERSION};

/// Numbers the sections of a stream.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    begun: bool,
    next: u32,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of a record as the stream's next section, behind the stream's head if it is the first.
    pub fn record(&mut self, record: &Record) -> Vec<u8> {
        let (kind, payload) = record.encode();
        self.section(kind, record.is_mandatory(), &payload)
    }

    /// The bytes of a section.
    pub fn section(&mut self, kind: SectionKind, mandatory: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + SECTION_HEAD + payload.len() + CHECKSUM);
        if !std::mem::replace(&mut self.begun, true) {
            out.extend(MAGIC);
            out.extend(VERSION.to_le_bytes());
            out.extend([0; 4]);
        }
        let start = out.len();
        let flags = if mandatory { MANDATORY } else { 0 };
        let head = [kind.0, flags, self.next, payload.len() as u32];
        out.extend(head.into_iter().flat_map(u32::to_le_bytes));
        out.extend(payload);
        let checksum = crc32fast::hash(&out[start..]);
        out.extend(checksum.to_le_bytes());
        self.next += 1;
        out
    }
}
