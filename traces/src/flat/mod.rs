//! Events as words: each event is a tag, up to 64 words and some bytes. The codec below this module knows nothing of
//! exits; the words' order here is part of the format (see traces/README.md).

mod end;
mod entry;
mod exit;

pub(crate) use end::{cpuid_bytes, cpuid_entry};

use crate::{
    event::{
        Control, Data, Event, ExitEvent, Fault, FaultIn, InputSource, Milestone, PcpuEvent, PcpuKind,
        RegisterChanges, Registers, Skip,
    },
    ioctl::{Packed, Unpacked},
};
use end::{end_words, read_end};
use entry::{entry_words, read_entry};
use exit::{exit_words, read_exit};
use vmtape_arch::{
    exit::{Resume, ResumeKind},
    level::Place,
    memory::MemoryStatus,
    note::{Note, NoteKind, RawNote},
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
    pub const MILESTONE: u64 = 10;
    pub const DEVICES: u64 = 11;
    pub const ENTRY: u64 = 12;
    pub const MOMENT: u64 = 15;
    pub const FAULT: u64 = 16;
    pub const PCPU: u64 = 17;
    pub const FAULT_IN: u64 = 18;
    pub const NOTE: u64 = 0x100;
}

/// The bit of a kind of events in an index.
pub fn kind_bit(tag: u64) -> u32 {
    1 << tag.min(31)
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
pub(crate) const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

pub(crate) const fn low(word: u64) -> u32 {
    word as u32
}

pub(crate) const fn high(word: u64) -> u32 {
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
                self.words.extend_from_slice(&registers.values[..inline]);
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
                self.words.extend_from_slice(&[*hpa, kind, value]);
                tag::READ
            }
            Event::Note { vcpu, place, note } => {
                let raw = note.to_raw();
                self.words.push(join(*vcpu, place.packed() | u32::from(raw.pad) << 16));
                self.words.extend_from_slice(&raw.args);
                tag::NOTE + u64::from(raw.kind.0)
            }
            Event::Resume { vcpu, resume, changes } => {
                self.words.push((*vcpu).into());
                resume_words(resume, &mut self.words);
                self.words.extend(Some(changes.to_word()).filter(|word| *word != 0));
                tag::RESUME
            }
            Event::Entry(entry) => {
                entry_words(entry, clock, &mut self.words, &mut self.blob);
                tag::ENTRY
            }
            Event::Input { icount, source, value } => {
                self.words.extend_from_slice(&[clock.forward(*icount), source.0.into(), *value]);
                tag::INPUT
            }
            Event::Fault(fault) => {
                let Fault { icount, vcpu, point, occurrence, since_exit, a, b, answer, rule, skipped } =
                    *fault;
                let icount = clock.forward(icount);
                self.words.extend_from_slice(&[
                    icount,
                    join(vcpu, point),
                    occurrence,
                    since_exit,
                    a,
                    b,
                    answer,
                ]);
                self.words.extend(Some(join(rule, skipped.0)).filter(|plan| *plan != 0));
                tag::FAULT
            }
            Event::FaultIn(FaultIn { icount, gpa, answer }) => {
                self.words.extend_from_slice(&[clock.forward(*icount), *gpa, answer.0.into()]);
                tag::FAULT_IN
            }
            Event::Pcpu(PcpuEvent { icount, kind, cpu, vcpu, result }) => {
                let icount = clock.forward(*icount);
                self.words.extend_from_slice(&[
                    icount,
                    kind.0.into(),
                    join(*cpu, *vcpu),
                    u64::from(*result as u32),
                ]);
                tag::PCPU
            }
            Event::Control { icount, control } => {
                self.words.push(clock.forward(*icount));
                control.pack(&mut Packed::new(&mut self.words, &mut self.blob));
                tag::CONTROL
            }
            Event::StateHash { icount, exits, hash } => {
                self.words.extend_from_slice(&[
                    clock.forward(*icount),
                    exits.wrapping_sub(clock.exits),
                    *hash,
                ]);
                tag::STATE_HASH
            }
            Event::Milestone(Milestone { icount, exits, hash }) => {
                self.words.extend_from_slice(&[
                    clock.forward(*icount),
                    exits.wrapping_sub(clock.exits),
                    *hash,
                ]);
                tag::MILESTONE
            }
            Event::Devices { icount, accesses, hash } => {
                self.words.extend_from_slice(&[clock.forward(*icount), *accesses, *hash]);
                tag::DEVICES
            }
            Event::Line { vcpu, text } => {
                self.words.push((*vcpu).into());
                self.blob.extend_from_slice(text.as_bytes());
                tag::LINE
            }
            Event::Moment { vcpu, icount, rip } => {
                self.words.push(clock.forward(*icount));
                self.words.extend_from_slice(&[join(*vcpu, rip.is_some().into()), rip.unwrap_or(0)]);
                tag::MOMENT
            }
            Event::End { icount, exits, end } => {
                self.words.extend_from_slice(&[clock.forward(*icount), exits.wrapping_sub(clock.exits)]);
                end_words(end, &mut self.words, &mut self.blob);
                tag::END
            }
        };
    }

    /// The event that these words are.
    pub fn event(&self, clock: &mut Clock) -> Result<Event, &'static str> {
        self.view().event(clock)
    }

    /// These words, to be read.
    pub fn view(&self) -> View<'_> {
        View { tag: self.tag, words: &self.words, blob: &self.blob }
    }
}

/// An event as words that somebody else keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct View<'a> {
    pub tag: u64,
    pub words: &'a [u64],
    pub blob: &'a [u8],
}

impl View<'_> {
    /// The event that these words are.
    pub fn event(&self, clock: &mut Clock) -> Result<Event, &'static str> {
        let mut w = Words(self.words);
        let event = match self.tag {
            tag::EXIT => return Ok(Event::Exit(Box::new(self.exit(clock)?))),
            tag::REGISTERS => return Ok(Event::Registers(self.registers(Vec::new())?)),
            tag::READ => {
                let (hpa, data) = self.read()?;
                return Ok(Event::Read { hpa, data });
            }
            tag::RESUME => {
                let (vcpu, resume, changes) = self.resume()?;
                return Ok(Event::Resume { vcpu, resume, changes });
            }
            tag::ENTRY => Event::Entry(Box::new(read_entry(&mut w, clock, self.blob)?)),
            tag::INPUT => {
                Event::Input { icount: clock.at(w.next()?), source: InputSource(w.u32()?), value: w.next()? }
            }
            tag::FAULT => Event::Fault(read_fault(&mut w, clock)?),
            tag::FAULT_IN => Event::FaultIn(FaultIn {
                icount: clock.at(w.next()?),
                gpa: w.next()?,
                answer: MemoryStatus(w.u32()?),
            }),
            tag::PCPU => {
                let (icount, kind, place) = (clock.at(w.next()?), PcpuKind(w.u32()?), w.next()?);
                let (cpu, vcpu, result) = (low(place), high(place), w.u32()? as i32);
                Event::Pcpu(PcpuEvent { icount, kind, cpu, vcpu, result })
            }
            tag::CONTROL => {
                let icount = clock.at(w.next()?);
                let mut packed = Unpacked::new(w.0, self.blob)?;
                let control = Control::unpack(&mut packed)?;
                packed.end()?;
                return Ok(Event::Control { icount, control });
            }
            tag::STATE_HASH => Event::StateHash {
                icount: clock.at(w.next()?),
                exits: clock.exits.wrapping_add(w.next()?),
                hash: w.next()?,
            },
            tag::MILESTONE => Event::Milestone(Milestone {
                icount: clock.at(w.next()?),
                exits: clock.exits.wrapping_add(w.next()?),
                hash: w.next()?,
            }),
            tag::DEVICES => {
                Event::Devices { icount: clock.at(w.next()?), accesses: w.next()?, hash: w.next()? }
            }
            tag::LINE => Event::Line { vcpu: w.u32()?, text: text(self.blob)? },
            tag::MOMENT => {
                let (icount, who, rip) = (clock.at(w.next()?), w.next()?, w.next()?);
                let rip = match (high(who), rip) {
                    (0, 0) => None,
                    (1, rip) => Some(rip),
                    _ => return Err("a moment with a rip that it does not tell"),
                };
                Event::Moment { vcpu: low(who), icount, rip }
            }
            tag::END => Event::End {
                icount: clock.at(w.next()?),
                exits: clock.exits.wrapping_add(w.next()?),
                end: read_end(&mut w, self.blob)?,
            },
            tag::NOTE.. => {
                let (vcpu, place, note) = self.note()?;
                return Ok(Event::Note { vcpu, place, note });
            }
            _ => return Err("unknown kind of event"),
        };
        w.end()?;
        Ok(event)
    }

    /// The exit that these words are.
    pub(crate) fn exit(&self, clock: &mut Clock) -> Result<ExitEvent, &'static str> {
        // Of as many words as it needs, it is read without a look at each.
        if let Ok(words) = <&[u64; exit::WORDS]>::try_from(self.words) {
            return read_exit(&mut Words(words), clock);
        }
        let mut w = Words(self.words);
        let exit = read_exit(&mut w, clock)?;
        w.end()?;
        Ok(exit)
    }

    /// The registers that these words are, in the memory of `values`.
    pub(crate) fn registers(&self, mut values: Vec<u64>) -> Result<Registers, &'static str> {
        let (first, rest) = self.words.split_first().ok_or(FEWER)?;
        values.clear();
        values.extend_from_slice(rest);
        values.extend(self.blob_words()?);
        Ok(Registers { vcpu: low(*first), mask: high(*first), values })
    }

    /// The read that these words are.
    pub(crate) fn read(&self) -> Result<(u64, Data), &'static str> {
        let mut w = Words(self.words);
        let (hpa, kind, value) = (w.next()?, w.next()?, w.next()?);
        w.end()?;
        let data = match kind {
            0 => Data::U64(value),
            1 => Data::U32(value as u32),
            2 => Data::Bytes(self.blob.to_vec()),
            _ => return Err("unknown form of read data"),
        };
        Ok((hpa, data))
    }

    /// The note that these words are, its vCPU and where it belongs: L1 on tapes of the first two schemas, which have
    /// zeroes there.
    pub(crate) fn note(&self) -> Result<(u32, Place, Note), &'static str> {
        let kind = u32::try_from(self.tag - tag::NOTE).map_err(|_| "unknown kind of event")?;
        let (first, args) = self.words.split_first().ok_or(FEWER)?;
        let args = args.try_into().map_err(|_| if args.len() < 6 { FEWER } else { MORE })?;
        let (place, pad) = (Place::unpacked(high(*first)), (high(*first) >> 16) as u16);
        let raw = RawNote { kind: NoteKind(kind), place: Place::L1, pad, args };
        Ok((low(*first), place, Note::from_raw(raw)))
    }

    /// The end of handling that these words are, its vCPU, and what it changed.
    pub(crate) fn resume(&self) -> Result<(u32, Resume, RegisterChanges), &'static str> {
        let mut w = Words(self.words);
        let (vcpu, resume) = (w.u32()?, read_resume(&mut w)?);
        let changes = match w.0.is_empty() {
            true => RegisterChanges::NONE,
            false => RegisterChanges::from_word(w.next()?).ok_or("changes of registers that are none")?,
        };
        w.end()?;
        Ok((vcpu, resume, changes))
    }

    fn blob_words(&self) -> Result<impl Iterator<Item = u64>, &'static str> {
        let (words, rest) = self.blob.as_chunks::<8>();
        if !rest.is_empty() {
            return Err("bytes that are no words");
        }
        Ok(words.iter().map(|b| u64::from_le_bytes(*b)))
    }
}

const FEWER: &str = "fewer words than the event has";
const MORE: &str = "more words than the event has";

/// Words being taken from the front.
struct Words<'a>(&'a [u64]);

impl<'a> Words<'a> {
    #[inline(always)]
    fn next(&mut self) -> Result<u64, &'static str> {
        let (first, rest) = self.0.split_first().ok_or(FEWER)?;
        self.0 = rest;
        Ok(*first)
    }

    #[inline(always)]
    fn u32(&mut self) -> Result<u32, &'static str> {
        self.next()?.try_into().map_err(|_| "a word beyond 32 bits")
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err(MORE) }
    }
}

fn text(blob: &[u8]) -> Result<String, &'static str> {
    std::str::from_utf8(blob).map(str::to_owned).map_err(|_| "text that is not UTF-8")
}

fn read_fault(w: &mut Words<'_>, clock: &mut Clock) -> Result<Fault, &'static str> {
    let (icount, place) = (clock.at(w.next()?), w.next()?);
    let mut fault = Fault {
        icount,
        vcpu: low(place),
        point: high(place),
        occurrence: w.next()?,
        since_exit: w.next()?,
        a: w.next()?,
        b: w.next()?,
        answer: w.next()?,
        ..Fault::default()
    };
    if !w.0.is_empty() {
        let plan = w.next()?;
        if plan == 0 {
            return Err("a fault of a plan that has no rule");
        }
        (fault.rule, fault.skipped) = (low(plan), Skip(high(plan)));
    }
    Ok(fault)
}

fn resume_words(resume: &Resume, out: &mut Vec<u64>) {
    out.push(join(resume.kind.0, resume.errno as u32));
    out.extend_from_slice(&resume.data);
}

fn read_resume(w: &mut Words<'_>) -> Result<Resume, &'static str> {
    let first = w.next()?;
    let mut data = [0; 6];
    for word in &mut data {
        *word = w.next()?;
    }
    Ok(Resume { kind: ResumeKind(low(first)), errno: high(first) as i32, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_tells_what_it_changed_where_it_did() {
        let changes = RegisterChanges { handling: 0xffff, entry: 3 };
        for (changes, words) in [(RegisterChanges::NONE, 8), (changes, 9)] {
            let event = Event::Resume { vcpu: 1, resume: Resume::GUEST, changes };
            let mut flat = Flat::default();
            flat.set(&event, &mut Clock::default());
            assert_eq!(flat.words.len(), words);
            assert_eq!(flat.event(&mut Clock::default()), Ok(event));
        }
        for (last, words) in [(0, 9), (1 << 32, 9), (1, 10)] {
            let mut flat = Flat { tag: tag::RESUME, words: vec![0; words], blob: Vec::new() };
            flat.words[8] = last;
            assert!(flat.event(&mut Clock::default()).is_err(), "{last:#x} of {words}");
        }
    }

    #[test]
    fn a_fault_has_its_rule_where_there_is_one() {
        let bare = Fault { icount: 9, vcpu: 1, point: 20, occurrence: 3, answer: 1, ..Fault::default() };
        for (fault, words) in [(bare, 7), (Fault { rule: 2, skipped: Skip::HEALING, ..bare }, 8)] {
            let mut flat = Flat::default();
            flat.set(&Event::Fault(fault), &mut Clock::default());
            assert_eq!(flat.words.len(), words);
            assert_eq!(flat.event(&mut Clock::default()), Ok(Event::Fault(fault)));
        }
        let words = vec![0; 8];
        let flat = Flat { tag: tag::FAULT, words, blob: Vec::new() };
        assert!(flat.event(&mut Clock::default()).is_err(), "a rule that is none");
    }
}
