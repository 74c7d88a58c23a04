//! Ends, and CPUID tables, as words and bytes.

use super::{Words, read_resume, resume_words, text};
use crate::event::End;
use vmtape_arch::cpuid::CpuidEntry;

/// A CPUID entry as it stands on the tape: its fields in order, little-endian.
pub(crate) fn cpuid_bytes(e: &CpuidEntry) -> [u8; 32] {
    let fields = [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, e.pad];
    let mut out = [0; 32];
    for (chunk, field) in out.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
        *chunk = field.to_le_bytes();
    }
    out
}

/// The inverse of [`cpuid_bytes`].
pub(crate) fn cpuid_entry(bytes: &[u8; 32]) -> CpuidEntry {
    let field = |n: usize| u32::from_le_bytes(bytes.as_chunks::<4>().0[n]);
    CpuidEntry {
        function: field(0),
        index: field(1),
        flags: field(2),
        eax: field(3),
        ebx: field(4),
        ecx: field(5),
        edx: field(6),
        pad: field(7),
    }
}

/// An end's words and bytes.
pub(super) fn end_words(end: &End, out: &mut Vec<u64>, blob: &mut Vec<u8>) {
    let mut words = |words: &[u64], text: &str| {
        out.extend_from_slice(words);
        blob.extend_from_slice(text.as_bytes());
    };
    match end {
        End::DebugExit { status } => words(&[0, (*status).into()], ""),
        End::Shutdown { reason } => words(&[1, 0], reason),
        End::Idle { reason } => words(&[2, 0], reason),
        End::Fatal { vcpu, reason, .. } => words(&[3, (*vcpu).into()], reason),
        End::Limit { what } => words(&[4, 0], what),
        End::NoProgress { vcpu, reason, .. } => words(&[5, (*vcpu).into()], reason),
        End::Cut => words(&[6, 0], ""),
        End::Interrupted => words(&[7, 0], ""),
    }
    match end {
        End::Fatal { resume, .. } => resume_words(resume, out),
        End::NoProgress { repeats, .. } => out.push(*repeats),
        _ => {}
    }
}

/// The inverse of [`end_words`].
pub(super) fn read_end(w: &mut Words<'_>, blob: &[u8]) -> Result<End, &'static str> {
    Ok(match (w.next()?, w.u32()?) {
        (0, status) => End::DebugExit { status },
        (1, _) => End::Shutdown { reason: text(blob)? },
        (2, _) => End::Idle { reason: text(blob)? },
        (3, vcpu) => End::Fatal { vcpu, reason: text(blob)?, resume: read_resume(w)? },
        (4, _) => End::Limit { what: text(blob)? },
        (5, vcpu) => End::NoProgress { vcpu, reason: text(blob)?, repeats: w.next()? },
        (6, _) => End::Cut,
        (7, _) => End::Interrupted,
        _ => return Err("unknown end"),
    })
}
