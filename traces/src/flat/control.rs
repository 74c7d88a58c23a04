//! Controls and ends as words and bytes.

use super::{Words, high, join, low, read_resume, resume_words, text};
use crate::event::{Control, End};
use vmtape_arch::cpuid::CpuidEntry;

/// A control's words and bytes.
pub(super) fn control_words(control: &Control, out: &mut Vec<u64>, blob: &mut Vec<u8>) {
    match control {
        Control::SetCpuid { vcpu, entries, result } => {
            out.extend([0, (*vcpu).into(), u64::from(*result as u32)]);
            blob.extend(entries.iter().flat_map(cpuid_bytes));
        }
        Control::SetMemoryRegion { slot, flags, gpa, size, hpa, result } => {
            out.extend([1, join(*slot, *flags), u64::from(*result as u32), *gpa, *size, *hpa]);
        }
        Control::SetMsr { vcpu, index, data, result } => {
            out.extend([2, join(*vcpu, *index), u64::from(*result as u32), *data]);
        }
        Control::CheckExtension { cap, result } => out.extend([3, (*cap).into(), 0, *result as u64]),
        Control::GetCpuid { vcpu, entries, result } => {
            out.extend([4, (*vcpu).into(), u64::from(*result as u32)]);
            blob.extend(entries.iter().flat_map(cpuid_bytes));
        }
        Control::GetSupportedCpuid { entries, result } => {
            out.extend([5, 0, u64::from(*result as u32)]);
            blob.extend(entries.iter().flat_map(cpuid_bytes));
        }
        Control::GetMsr { vcpu, index, data, result } => {
            out.extend([6, join(*vcpu, *index), u64::from(*result as u32), *data]);
        }
        Control::Query { query, vcpu, value, result } => {
            out.extend([7, join(*vcpu, *query), u64::from(*result as u32), *value]);
        }
    }
}

/// The inverse of [`control_words`].
pub(super) fn read_control(w: &mut Words<'_>, blob: &[u8]) -> Result<Control, &'static str> {
    Ok(match (w.next()?, w.next()?, w.u32()? as i32) {
        (0, vcpu, result) => Control::SetCpuid { vcpu: low(vcpu), entries: cpuid_table(blob)?, result },
        (1, slot, result) => Control::SetMemoryRegion {
            slot: low(slot),
            flags: high(slot),
            result,
            gpa: w.next()?,
            size: w.next()?,
            hpa: w.next()?,
        },
        (2, msr, result) => Control::SetMsr { vcpu: low(msr), index: high(msr), result, data: w.next()? },
        (3, cap, _) => Control::CheckExtension { cap: low(cap), result: w.next()? as i64 },
        (4, vcpu, result) => Control::GetCpuid { vcpu: low(vcpu), entries: cpuid_table(blob)?, result },
        (5, _, result) => Control::GetSupportedCpuid { entries: cpuid_table(blob)?, result },
        (6, msr, result) => Control::GetMsr { vcpu: low(msr), index: high(msr), result, data: w.next()? },
        (7, query, result) => {
            Control::Query { vcpu: low(query), query: high(query), result, value: w.next()? }
        }
        _ => return Err("unknown control"),
    })
}

fn cpuid_table(blob: &[u8]) -> Result<Vec<CpuidEntry>, &'static str> {
    let (entries, rest) = blob.as_chunks::<32>();
    if !rest.is_empty() {
        return Err("a CPUID table that ends within an entry");
    }
    Ok(entries.iter().map(cpuid_entry).collect())
}

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
        End::Idle => words(&[2, 0], ""),
        End::Fatal { vcpu, reason, .. } => words(&[3, (*vcpu).into()], reason),
        End::Limit { what } => words(&[4, 0], what),
        End::NoProgress { vcpu, reason, .. } => words(&[5, (*vcpu).into()], reason),
        End::Cut => words(&[6, 0], ""),
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
        (2, _) => End::Idle,
        (3, vcpu) => End::Fatal { vcpu, reason: text(blob)?, resume: read_resume(w)? },
        (4, _) => End::Limit { what: text(blob)? },
        (5, vcpu) => End::NoProgress { vcpu, reason: text(blob)?, repeats: w.next()? },
        (6, _) => End::Cut,
        _ => return Err("unknown end"),
    })
}
