//! What the fuzz targets run, kept here so that the ordinary tests run it too.

use crate::{
    Tape,
    codec::Decoder,
    flat::Clock,
    format::payload::{Column, Columns},
    import::{self, Source},
};

/// Reads bytes as a tape, as far as that goes.
pub fn tape(bytes: &[u8]) {
    let Ok(tape) = Tape::from_bytes(bytes.to_vec()) else { return };
    let _ = tape.verify();
    let _ = tape.totals();
    let _ = tape.images();
    tape.events().take_while(Result::is_ok).for_each(drop);
    let _ = tape.events_from_exit(100).map(|mut events| events.next());
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

/// Imports bytes as the text of a trace.
pub fn trace_text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let _ = import::events(&Source::Text(text), &mut |_| Ok(()));
}
