//! What the fuzz targets run, kept here so that the ordinary tests run it too.

use crate::{
    Tape,
    codec::Decoder,
    flat::Clock,
    format::{
        header::{ChunkHeader, FileHeader, Sealed, Trailer},
        payload::{Column, Columns},
    },
    import::{self, Source},
};
use zerocopy::FromBytes;

/// Reads bytes as a tape, as far as that goes: as they are, and with checksums that are right.
pub fn tape(bytes: &[u8]) {
    read(bytes.to_vec());
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    read(sealed);
}

fn read(bytes: Vec<u8>) {
    let Ok(tape) = Tape::from_bytes(bytes) else { return };
    let _ = tape.verify();
    let _ = tape.totals();
    let _ = tape.images();
    tape.events().take_while(Result::is_ok).for_each(drop);
    let _ = tape.events_from_exit(100).map(|mut events| events.next());
}

/// Makes every checksum right that there is a place for.
fn reseal(bytes: &mut [u8]) {
    let seal = |bytes: &mut [u8], start: usize, size: usize| {
        if let Some(part) = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..size)) {
            let (body, crc) = part.split_at_mut(size - 4);
            crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        }
    };
    seal(bytes, 0, FileHeader::SIZE);
    let mut at = FileHeader::SIZE;
    while let Ok((header, _)) = ChunkHeader::read_from_prefix(bytes.get(at..).unwrap_or_default()) {
        let payload = at + ChunkHeader::SIZE;
        let length = usize::try_from(header.length.get()).unwrap_or(usize::MAX);
        let end = length.checked_next_multiple_of(16).and_then(|length| payload.checked_add(length));
        let Some(stored) = end.and_then(|end| bytes.get(payload..end)) else { break };
        let crc = crc32fast::hash(stored).to_le_bytes();
        bytes[payload - 8..payload - 4].copy_from_slice(&crc);
        seal(bytes, at, ChunkHeader::SIZE);
        at = end.unwrap_or(usize::MAX);
    }
    seal(bytes, bytes.len().saturating_sub(Trailer::SIZE), Trailer::SIZE);
}

/// Reads bytes as columns: a length and a place each, so that the fuzzer reaches the decoder without a checksum.
pub fn columns(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0xfd).map(<[u8]>::to_vec);
    let ops = parts.next().unwrap_or_default();
    let columns = parts.filter(|part| part.len() >= 2).map(|part| Column {
        tag: match part[0] {
            tag @ ..16 => tag.into(),
            note => 0x100 + u64::from(note - 16),
        },
        word: part[1],
        bytes: part[2..].to_vec(),
    });
    let mut decoder = Decoder::new(Columns { ops, columns: columns.collect() }, Clock::default());
    for _ in 0..10_000 {
        if decoder.next_event().is_err() {
            return;
        }
    }
}

/// Imports bytes as a `trace.dat` or `perf.data` file.
pub fn trace_file(bytes: &[u8]) {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if std::io::Write::write_all(&mut file, bytes).is_ok() {
        let _ = import::events(&Source::Path(file.path().to_owned()), &mut |_| Ok(()));
    }
}

/// Imports bytes as the text of a trace.
pub fn trace_text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let _ = import::events(&Source::Text(text), &mut |_| Ok(()));
}
