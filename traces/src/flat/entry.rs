//! Entries as words; what they read as bytes: address, length, data.

use super::{
    Clock, FEWER, Words, exit::injected_words, exit::read_injected, join, read_resume, resume_words,
};
use crate::event::{EntryEvent, EntryOutcome};

/// An entry's words, and what it read.
pub(super) fn entry_words(entry: &EntryEvent, clock: &mut Clock, out: &mut Vec<u64>, blob: &mut Vec<u8>) {
    let EntryEvent { vcpu, icount, rip, rflags, interruptibility, cr8, reads, outcome } = entry;
    out.extend_from_slice(&[join(*vcpu, *interruptibility), clock.forward(*icount), *rip, *rflags]);
    resume_words(&outcome.resume, out);
    injected_words(&outcome.inject, out);
    out.push(outcome.windows);
    if *cr8 != 0 {
        out.push(*cr8);
    }
    for (hpa, data) in reads {
        blob.extend(hpa.to_le_bytes());
        blob.extend((data.len() as u32).to_le_bytes());
        blob.extend(data);
    }
}

/// The inverse of [`entry_words`].
pub(super) fn read_entry(
    w: &mut Words<'_>,
    clock: &mut Clock,
    blob: &[u8],
) -> Result<EntryEvent, &'static str> {
    let (who, icount, rip, rflags) = (w.next()?, clock.at(w.next()?), w.next()?, w.next()?);
    let outcome = EntryOutcome { resume: read_resume(w)?, inject: read_injected(w)?, windows: w.next()? };
    let cr8 = w.next().unwrap_or(0);
    let (mut reads, mut rest) = (Vec::new(), blob);
    while let Some((hpa, after)) = rest.split_first_chunk() {
        let (len, after) = after.split_first_chunk().ok_or(FEWER)?;
        let (data, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(FEWER)?;
        reads.push((u64::from_le_bytes(*hpa), data.to_vec()));
        rest = after;
    }
    if !rest.is_empty() {
        return Err("bytes that are no read of memory");
    }
    let (vcpu, interruptibility) = (super::low(who), super::high(who));
    Ok(EntryEvent { vcpu, icount, rip, rflags, interruptibility, cr8, reads, outcome })
}
