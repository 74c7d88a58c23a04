//! A tape's events as lines.

use super::{STIMULUS, note::note_text, own, place_text, tables::reason};
use crate::event::{Event, ExitEvent, Milestone, NO_VCPU};
use std::{
    collections::BTreeMap,
    io::{self, Write},
};
use vmtape_arch::{
    exit::Resume,
    level::Place,
    note::{Note, NoteKind},
};

/// Microseconds in a second of ftrace's clock; here an instruction is a microsecond.
const PER_SECOND: u64 = 1_000_000;

/// Prints events in the order of the tape.
pub struct Printer<W> {
    out: W,
    icount: u64,
    /// The exit that each vCPU is in, by its rip.
    rips: BTreeMap<u32, u64>,
    /// The vCPU that the events without one belong to.
    current: u32,
    /// The end of an exit's handling that goes without saying if an entry follows.
    pending: Option<u32>,
}

impl<W: Write> Printer<W> {
    /// A printer that has written the first line.
    pub fn new(mut out: W) -> io::Result<Self> {
        writeln!(out, "{}\n#\n#      TASK-PID     CPU#  FLAGS  INSTRUCTIONS  FUNCTION", super::TRACER)?;
        Ok(Self { out, icount: 0, rips: BTreeMap::new(), current: NO_VCPU, pending: None })
    }

    /// Prints an event.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        if let Some(vcpu) = self.pending.take() {
            let entry = matches!(event, Event::Note { vcpu: of, place: Place::L1, note: Note::Entry { .. } } if *of == vcpu);
            // Outside an exit the importer would not know that there was an end.
            if !(entry && self.rips.contains_key(&vcpu)) {
                let (name, text) = own::text(&Event::Resume { vcpu, resume: Resume::GUEST });
                self.line(vcpu, &name, &text)?;
            }
        }
        match event {
            Event::Exit(exit) => self.exit(event, exit),
            Event::Note { vcpu, place, note } => self.note(event, *vcpu, *place, note),
            Event::Resume { vcpu, resume } if *resume == Resume::GUEST => {
                self.pending = Some(*vcpu);
                Ok(())
            }
            Event::Line { vcpu, text } => {
                let (name, text) = text.split_once(": ").unwrap_or((text, ""));
                self.line(*vcpu, name, text)
            }
            Event::Resume { vcpu, .. } => self.own(event, *vcpu),
            Event::Registers(registers) => self.own(event, registers.vcpu),
            Event::Input { icount, .. }
            | Event::Control { icount, .. }
            | Event::StateHash { icount, .. }
            | Event::Milestone(Milestone { icount, .. })
            | Event::End { icount, .. } => {
                self.icount = *icount;
                self.own(event, self.current)
            }
            Event::Read { .. } => self.own(event, self.current),
        }
    }

    /// Ends the text.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(vcpu) = self.pending.take() {
            self.own(&Event::Resume { vcpu, resume: Resume::GUEST }, vcpu)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn exit(&mut self, event: &Event, exit: &ExitEvent) -> io::Result<()> {
        let ExitEvent { vcpu, icount, rip, exit } = exit;
        self.icount = *icount;
        self.current = *vcpu;
        self.rips.insert(*vcpu, *rip);
        let text = format!(
            "vcpu {vcpu} reason {} rip {rip:#x} info1 {:#018x} info2 {:#018x} intr_info {:#010x} error_code {:#010x}",
            reason(exit.isa, exit.reason),
            exit.info1,
            exit.info2,
            exit.intr_info,
            exit.error_code,
        );
        self.line(*vcpu, "kvm_exit", &text)?;
        match own::stimulus(event) {
            Some(text) => self.line(*vcpu, STIMULUS, &text),
            None => Ok(()),
        }
    }

    fn note(&mut self, event: &Event, vcpu: u32, place: Place, note: &Note) -> io::Result<()> {
        let rip = self.rips.get(&vcpu).copied().unwrap_or(0);
        match note_text(note, vcpu, rip) {
            Some(text) => {
                let kind = note.to_raw().kind;
                if kind == NoteKind::ENTRY {
                    self.rips.remove(&vcpu);
                }
                let text = text + &place_text(place);
                self.line(vcpu, kind.name().unwrap_or_default(), &text)
            }
            None => self.own(event, vcpu),
        }
    }

    fn own(&mut self, event: &Event, vcpu: u32) -> io::Result<()> {
        let (name, text) = own::text(event);
        self.line(vcpu, &name, &text)
    }

    /// Tasks are named as QEMU names them.
    fn line(&mut self, vcpu: u32, name: &str, text: &str) -> io::Result<()> {
        let (seconds, micros) = (self.icount / PER_SECOND, self.icount % PER_SECOND);
        match vcpu {
            NO_VCPU => write!(self.out, "            host-1       [000]")?,
            _ => write!(self.out, "{:>16}-{:<7} [000]", format!("CPU {vcpu}/KVM"), 1000 + u64::from(vcpu))?,
        }
        writeln!(self.out, " ..... {seconds:>5}.{micros:06}: {name}: {text}")
    }
}
