//! Exits as words: the fields of the structures in their order.

use super::{Clock, Words, bytes, half, high, join, low};
use crate::event::ExitEvent;
use vmtape_arch::{
    access::{Access, AccessKind},
    event::{Event as Injected, EventKind},
    exception::{Exception, Vector},
    exit::{Exit, Isa, StimulusKind},
    level::Level,
    sensitive::{Sensitive, SensitiveKind},
};

/// An exit's words.
pub(super) fn exit_words(event: &ExitEvent, clock: &mut Clock, out: &mut Vec<u64>) {
    let ExitEvent { vcpu, icount, rip, exit } = event;
    let Exit { isa, reason, info1, info2, intr_info, error_code, gpa, gva, .. } = *exit;
    let [p0, p1] = exit.pad;
    out.extend_from_slice(&[
        (*vcpu).into(),
        clock.forward(*icount),
        *rip,
        join(isa.0, exit.stimulus.0),
        join(reason, half([exit.trap.into(), exit.level.0, p0, p1])),
        info1,
        info2,
        join(intr_info, error_code),
        gpa,
        gva,
    ]);
    clock.exits += 1;
    access_words(&exit.access, out);
    sensitive_words(&exit.insn, out);
    let x = &exit.exception;
    out.extend_from_slice(&[
        join(half([x.vector.0, x.has_error_code.into(), x.insn_len, x.pad]), x.error_code),
        x.payload,
    ]);
}

fn access_words(access: &Access, out: &mut Vec<u64>) {
    let Access { gva, kind, user, implicit, size, pad, delivering } = *access;
    out.extend_from_slice(&[gva, join(half([kind.0, user.into(), implicit.into(), size]), pad)]);
    injected_words(&delivering, out);
}

/// The words of an event that is delivered.
pub(super) fn injected_words(d: &Injected, out: &mut Vec<u64>) {
    let [p0, p1, p2, p3, p4, p5] = d.pad;
    out.extend_from_slice(&[
        join(half([d.valid.into(), d.kind.0, d.vector, d.has_error_code.into()]), d.error_code),
        bytes([d.insn_len, d.reinjected.into(), p0, p1, p2, p3, p4, p5]),
    ]);
}

fn sensitive_words(insn: &Sensitive, out: &mut Vec<u64>) {
    let b = &insn.bytes;
    out.extend_from_slice(&[
        join(half([insn.kind.0, insn.len, insn.size, insn.gpr]), insn.number),
        insn.value,
        insn.address,
        insn.aux,
        insn.aux2,
        bytes([
            insn.rep.into(),
            insn.immediate.into(),
            insn.memory.into(),
            insn.segment,
            insn.address_size,
            b[0],
            b[1],
            b[2],
        ]),
        bytes([b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10]]),
        join(half([b[11], b[12], b[13], b[14]]), 0),
    ]);
}

/// An exit has so many words.
pub(super) const WORDS: usize = 24;

/// The inverse of [`exit_words`].
#[inline(always)]
pub(super) fn read_exit(w: &mut Words<'_>, clock: &mut Clock) -> Result<ExitEvent, &'static str> {
    let (vcpu, icount, rip) = (w.u32()?, clock.at(w.next()?), w.next()?);
    clock.exits += 1;
    let (kinds, reason) = (w.next()?, w.next()?);
    let (info1, info2, intr, gpa, gva) = (w.next()?, w.next()?, w.next()?, w.next()?, w.next()?);
    let [trap, level, p0, p1] = high(reason).to_le_bytes();
    let access = read_access(w)?;
    let insn = read_sensitive(w)?;
    let (kind, payload) = (w.next()?, w.next()?);
    let [vector, has_error_code, insn_len, pad] = low(kind).to_le_bytes();
    let exception = Exception {
        vector: Vector(vector),
        has_error_code: (has_error_code != 0).into(),
        insn_len,
        pad,
        error_code: high(kind),
        payload,
    };
    let exit = Exit {
        isa: Isa(low(kinds)),
        reason: low(reason),
        info1,
        info2,
        intr_info: low(intr),
        error_code: high(intr),
        gpa,
        gva,
        stimulus: StimulusKind(high(kinds)),
        trap: (trap != 0).into(),
        level: Level(level),
        pad: [p0, p1],
        access,
        insn,
        exception,
    };
    Ok(ExitEvent { vcpu, icount, rip, exit })
}

#[inline(always)]
fn read_access(w: &mut Words<'_>) -> Result<Access, &'static str> {
    let (gva, what) = (w.next()?, w.next()?);
    let [kind, user, implicit, size] = low(what).to_le_bytes();
    Ok(Access {
        gva,
        kind: AccessKind(kind),
        user: (user != 0).into(),
        implicit: (implicit != 0).into(),
        size,
        pad: high(what),
        delivering: read_injected(w)?,
    })
}

/// The inverse of [`injected_words`].
#[inline(always)]
pub(super) fn read_injected(w: &mut Words<'_>) -> Result<Injected, &'static str> {
    let (event, rest) = (w.next()?, w.next()?);
    let [valid, kind, vector, has_error_code] = low(event).to_le_bytes();
    let [insn_len, reinjected, p0, p1, p2, p3, p4, p5] = rest.to_le_bytes();
    Ok(Injected {
        valid: (valid != 0).into(),
        kind: EventKind(kind),
        vector,
        has_error_code: (has_error_code != 0).into(),
        error_code: high(event),
        insn_len,
        reinjected: (reinjected != 0).into(),
        pad: [p0, p1, p2, p3, p4, p5],
    })
}

#[inline(always)]
fn read_sensitive(w: &mut Words<'_>) -> Result<Sensitive, &'static str> {
    let what = w.next()?;
    let [kind, len, size, gpr] = low(what).to_le_bytes();
    let (value, address, aux, aux2) = (w.next()?, w.next()?, w.next()?, w.next()?);
    let (first, second, third) = (w.next()?, w.next()?, w.u32()?);
    let [rep, immediate, memory, segment, address_size, b0, b1, b2] = first.to_le_bytes();
    let mut bytes = [b0, b1, b2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[3..11].copy_from_slice(&second.to_le_bytes());
    bytes[11..].copy_from_slice(&third.to_le_bytes());
    Ok(Sensitive {
        kind: SensitiveKind(kind),
        len,
        size,
        gpr,
        number: high(what),
        value,
        address,
        aux,
        aux2,
        rep: (rep != 0).into(),
        immediate: (immediate != 0).into(),
        memory: (memory != 0).into(),
        segment,
        address_size,
        bytes,
    })
}
