//! Events as words: each event is a tag, up to 64 words and some bytes. The codec below this module knows nothing of
//! exits; the words' order here is part of the format (see traces/README.md).

use crate::event::{Control, Data, End, Event, ExitEvent, InputSource, Registers};
use vmtape_arch::{
    access::{Access, AccessKind},
    cpuid::CpuidEntry,
    event::{Event as Injected, EventKind},
    exception::{Exception, Vector},
    exit::{Exit, Isa, Resume, ResumeKind, StimulusKind},
    note::{Note, NoteKind, RawNote},
    sensitive::{Sensitive, SensitiveKind},
};

/// The most words that one event has.
pub const MAX_WORDS: usize = 62;

/// The kinds of events. A note's tag is `NOTE` plus its kind.
pub mod tag {
    pub const EXIT: u64 = 1;
    pub const REGISTERS: u64 = 2;
    pub const READ: u64 = 3;
    pub const RESUME: u64 = 4;
    pub const INPUT: u64 = 5;
    pub const CONTROL: u64 = 6;
    pub const STATE_HASH: u64 = 7;
    pub const LINE: u64 = 8;
    pub const END: u64 = 9;
    pub const NOTE: u64 = 0x100;
}

/// What absolute counts are taken relative to, so that they predict well: both start at the chunk's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    pub icount: u64,
    pub exits: u64,
}

impl Clock {
    fn forward(&mut self, icount: u64) -> u64 {
        let delta = icount.wrapping_sub(self.icount);
        self.icount = icount;
        delta
    }

    fn at(&mut self, delta: u64) -> u64 {
        self.icount = self.icount.wrapping_add(delta);
        self.icount
    }
}

/// An event as words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flat {
    pub tag: u64,
    pub words: Vec<u64>,
    pub blob: Vec<u8>,
}

/// Two halves of a word.
const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

const fn low(word: u64) -> u32 {
    word as u32
}

const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Eight bytes as a word, low byte first.
const fn bytes(b: [u8; 8]) -> u64 {
    u64::from_le_bytes(b)
}

const fn half(b: [u8; 4]) -> u32 {
    u32::from_le_bytes(b)
}

impl Flat {
    /// Sets this to the words of `event`, reusing the memory.
    pub fn set(&mut self, event: &Event, clock: &mut Clock) {
        self.words.clear();
        self.blob.clear();
        self.tag = match event {
            Event::Exit(exit) => {
                exit_words(exit, clock, &mut self.words);
                tag::EXIT
            }
            Event::Registers(registers) => {
                self.words.push(join(registers.vcpu, registers.mask));
                let inline = registers.values.len().min(MAX_WORDS - 1);
                self.words.extend(&registers.values[..inline]);
                self.blob.extend(registers.values[inline..].iter().flat_map(|v| v.to_le_bytes()));
                tag::REGISTERS
            }
            Event::Read { hpa, data } => {
                let (kind, value) = match data {
                    Data::U64(value) => (0, *value),
                    Data::U32(value) => (1, u64::from(*value)),
                    Data::Bytes(bytes) => {
                        self.blob.extend_from_slice(bytes);
                        (2, 0)
                    }
                };
                self.words.extend([*hpa, kind, value]);
                tag::READ
            }
            Event::Note { vcpu, note } => {
                let raw = note.to_raw();
                self.words.push(join(*vcpu, raw.pad));
                self.words.extend(raw.args);
                tag::NOTE + u64::from(raw.kind.0)
            }
            Event::Resume { vcpu, resume } => {
                self.words.push((*vcpu).into());
                resume_words(resume, &mut self.words);
                tag::RESUME
            }
            Event::Input { icount, source, value } => {
                self.words.extend([clock.forward(*icount), source.0.into(), *value]);
                tag::INPUT
            }
            Event::Control { icount, control } => {
                self.words.push(clock.forward(*icount));
                control_words(control, &mut self.words, &mut self.blob);
                tag::CONTROL
            }
            Event::StateHash { icount, exits, hash } => {
                self.words.extend([clock.forward(*icount), exits.wrapping_sub(clock.exits), *hash]);
                tag::STATE_HASH
            }
            Event::Line { vcpu, text } => {
                self.words.push((*vcpu).into());
                self.blob.extend_from_slice(text.as_bytes());
                tag::LINE
            }
            Event::End { icount, exits, end } => {
                self.words.extend([clock.forward(*icount), exits.wrapping_sub(clock.exits)]);
                end_words(end, &mut self.words, &mut self.blob);
                tag::END
            }
        };
    }

    /// The event that these words are.
    pub fn event(&self, clock: &mut Clock) -> Result<Event, &'static str> {
        let mut w = Words(&self.words);
        let event = match self.tag {
            tag::EXIT => Event::Exit(Box::new(read_exit(&mut w, clock)?)),
            tag::REGISTERS => {
                let first = w.next()?;
                let values = w.rest().iter().copied().chain(self.blob_words()?).collect();
                Event::Registers(Registers { vcpu: low(first), mask: high(first), values })
            }
            tag::READ => {
                let (hpa, kind, value) = (w.next()?, w.next()?, w.next()?);
                let data = match kind {
                    0 => Data::U64(value),
                    1 => Data::U32(value as u32),
                    2 => Data::Bytes(self.blob.clone()),
                    _ => return Err("unknown form of read data"),
                };
                Event::Read { hpa, data }
            }
            tag::RESUME => Event::Resume { vcpu: w.u32()?, resume: read_resume(&mut w)? },
            tag::INPUT => {
                Event::Input { icount: clock.at(w.next()?), source: InputSource(w.u32()?), value: w.next()? }
            }
            tag::CONTROL => {
                Event::Control { icount: clock.at(w.next()?), control: read_control(&mut w, &self.blob)? }
            }
            tag::STATE_HASH => Event::StateHash {
                icount: clock.at(w.next()?),
                exits: clock.exits.wrapping_add(w.next()?),
                hash: w.next()?,
            },
            tag::LINE => Event::Line { vcpu: w.u32()?, text: text(&self.blob)? },
            tag::END => Event::End {
                icount: clock.at(w.next()?),
                exits: clock.exits.wrapping_add(w.next()?),
                end: read_end(&mut w, &self.blob)?,
            },
            note if note >= tag::NOTE && note - tag::NOTE <= u32::MAX.into() => {
                let first = w.next()?;
                let mut args = [0; 6];
                for arg in &mut args {
                    *arg = w.next()?;
                }
                let raw = RawNote { kind: NoteKind((note - tag::NOTE) as u32), pad: high(first), args };
                Event::Note { vcpu: low(first), note: Note::from_raw(raw) }
            }
            _ => return Err("unknown kind of event"),
        };
        if !w.rest().is_empty() {
            return Err("more words than the event has");
        }
        Ok(event)
    }

    fn blob_words(&self) -> Result<impl Iterator<Item = u64>, &'static str> {
        let (words, rest) = self.blob.as_chunks::<8>();
        if !rest.is_empty() {
            return Err("bytes that are no words");
        }
        Ok(words.iter().map(|b| u64::from_le_bytes(*b)))
    }
}

/// Words being taken from the front.
struct Words<'a>(&'a [u64]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<u64, &'static str> {
        let (first, rest) = self.0.split_first().ok_or("fewer words than the event has")?;
        self.0 = rest;
        Ok(*first)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.next()?.try_into().map_err(|_| "a word beyond 32 bits")
    }

    fn rest(&mut self) -> &'a [u64] {
        std::mem::take(&mut self.0)
    }
}

fn text(blob: &[u8]) -> Result<String, &'static str> {
    std::str::from_utf8(blob).map(str::to_owned).map_err(|_| "text that is not UTF-8")
}

fn exit_words(event: &ExitEvent, clock: &mut Clock, out: &mut Vec<u64>) {
    let ExitEvent { vcpu, icount, rip, exit } = event;
    let Exit { isa, reason, info1, info2, intr_info, error_code, gpa, gva, .. } = *exit;
    let [p0, p1, p2] = exit.pad;
    out.extend([
        (*vcpu).into(),
        clock.forward(*icount),
        *rip,
        join(isa.0, exit.stimulus.0),
        join(reason, half([exit.trap.into(), p0, p1, p2])),
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
    out.extend([
        join(half([x.vector.0, x.has_error_code.into(), x.insn_len, x.pad]), x.error_code),
        x.payload,
    ]);
}

fn access_words(access: &Access, out: &mut Vec<u64>) {
    let Access { gva, kind, user, implicit, size, pad, delivering: d } = *access;
    let [p0, p1, p2, p3, p4, p5] = d.pad;
    out.extend([
        gva,
        join(half([kind.0, user.into(), implicit.into(), size]), pad),
        join(half([d.valid.into(), d.kind.0, d.vector, d.has_error_code.into()]), d.error_code),
        bytes([d.insn_len, d.reinjected.into(), p0, p1, p2, p3, p4, p5]),
    ]);
}

fn sensitive_words(insn: &Sensitive, out: &mut Vec<u64>) {
    let b = &insn.bytes;
    out.extend([
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

fn read_exit(w: &mut Words<'_>, clock: &mut Clock) -> Result<ExitEvent, &'static str> {
    let (vcpu, icount, rip) = (w.u32()?, clock.at(w.next()?), w.next()?);
    clock.exits += 1;
    let (kinds, reason) = (w.next()?, w.next()?);
    let (info1, info2, intr, gpa, gva) = (w.next()?, w.next()?, w.next()?, w.next()?, w.next()?);
    let [trap, p0, p1, p2] = high(reason).to_le_bytes();
    let access = read_access(w)?;
    let insn = read_sensitive(w)?;
    let (kind, payload) = (w.next()?, w.next()?);
    let [vector, has_error_code, insn_len, pad] = low(kind).to_le_bytes();
    let exception = Exception {
        vector: Vector(vector),
        has_error_code: has_error_code != 0,
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
        trap: trap != 0,
        pad: [p0, p1, p2],
        access,
        insn,
        exception,
    };
    Ok(ExitEvent { vcpu, icount, rip, exit })
}

fn read_access(w: &mut Words<'_>) -> Result<Access, &'static str> {
    let (gva, what, event, rest) = (w.next()?, w.next()?, w.next()?, w.next()?);
    let [kind, user, implicit, size] = low(what).to_le_bytes();
    let [valid, event_kind, vector, has_error_code] = low(event).to_le_bytes();
    let [insn_len, reinjected, p0, p1, p2, p3, p4, p5] = rest.to_le_bytes();
    Ok(Access {
        gva,
        kind: AccessKind(kind),
        user: user != 0,
        implicit: implicit != 0,
        size,
        pad: high(what),
        delivering: Injected {
            valid: valid != 0,
            kind: EventKind(event_kind),
            vector,
            has_error_code: has_error_code != 0,
            error_code: high(event),
            insn_len,
            reinjected: reinjected != 0,
            pad: [p0, p1, p2, p3, p4, p5],
        },
    })
}

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
        rep: rep != 0,
        immediate: immediate != 0,
        memory: memory != 0,
        segment,
        address_size,
        bytes,
    })
}

fn resume_words(resume: &Resume, out: &mut Vec<u64>) {
    out.push(join(resume.kind.0, resume.errno as u32));
    out.extend(resume.data);
}

fn read_resume(w: &mut Words<'_>) -> Result<Resume, &'static str> {
    let first = w.next()?;
    let mut data = [0; 6];
    for word in &mut data {
        *word = w.next()?;
    }
    Ok(Resume { kind: ResumeKind(low(first)), errno: high(first) as i32, data })
}

fn control_words(control: &Control, out: &mut Vec<u64>, blob: &mut Vec<u8>) {
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
    }
}

fn read_control(w: &mut Words<'_>, blob: &[u8]) -> Result<Control, &'static str> {
    Ok(match (w.next()?, w.next()?, w.u32()? as i32) {
        (0, vcpu, result) => {
            let (entries, rest) = blob.as_chunks::<32>();
            if !rest.is_empty() {
                return Err("a CPUID table that ends within an entry");
            }
            Control::SetCpuid { vcpu: low(vcpu), entries: entries.iter().map(cpuid_entry).collect(), result }
        }
        (1, slot, result) => Control::SetMemoryRegion {
            slot: low(slot),
            flags: high(slot),
            result,
            gpa: w.next()?,
            size: w.next()?,
            hpa: w.next()?,
        },
        (2, msr, result) => Control::SetMsr { vcpu: low(msr), index: high(msr), result, data: w.next()? },
        _ => return Err("unknown control"),
    })
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

fn end_words(end: &End, out: &mut Vec<u64>, blob: &mut Vec<u8>) {
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

fn read_end(w: &mut Words<'_>, blob: &[u8]) -> Result<End, &'static str> {
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
