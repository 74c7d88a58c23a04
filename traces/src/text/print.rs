//! A tape's events as lines.

use super::{LOST, STIMULUS, note::note_text, own, place_text, tables::reason};
use crate::{
    Metadata,
    event::{End, Event, ExitEvent, Fault, FaultIn, Milestone, NO_VCPU, PcpuEvent, RegisterChanges},
    import,
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
};
use vmtape_arch::{
    exit::{Exit, Isa, Resume},
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
    /// The rip that the next event tells, outside an exit.
    rip: Option<u64>,
    form: Form,
    /// Of the tape, for the names that its numbers have.
    names: Metadata,
}

/// How much a line tells.
#[derive(Clone, Copy, Debug, Default)]
struct Form {
    /// Lines are those of the imported trace: none for what follows from them.
    of_trace: bool,
    /// The clock is no time.
    ticks: bool,
    /// The trace does not tell `intr_info` and `error_code` of exits.
    terse: bool,
}

impl<W: Write> Printer<W> {
    /// A printer that has written the first line.
    pub fn new(out: W) -> io::Result<Self> {
        Self::start(out, Form::default(), Metadata::default())
    }

    /// Likewise for the events of a tape that says this of itself: of an imported one in the lines and with the times of
    /// its trace.
    pub fn of_tape(out: W, metadata: &Metadata) -> io::Result<Self> {
        let has = |name| metadata.notes.iter().any(|(note, _)| note == name);
        let of_trace = metadata.origin == import::ORIGIN;
        let form = Form { of_trace, ticks: has(import::CLOCK), terse: has(import::NOT_TOLD) };
        Self::start(out, form, metadata.clone())
    }

    fn start(mut out: W, form: Form, names: Metadata) -> io::Result<Self> {
        let (tracer, clock) = if form.of_trace {
            (super::TRACER_OF_IMPORT, "TIMESTAMP")
        } else {
            (super::TRACER, "INSTRUCTIONS")
        };
        writeln!(out, "{tracer}\n#\n#      TASK-PID     CPU#  FLAGS  {clock}  FUNCTION")?;
        Ok(Self {
            out,
            icount: 0,
            rips: BTreeMap::new(),
            current: NO_VCPU,
            pending: None,
            rip: None,
            form,
            names,
        })
    }

    /// Prints an event.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        if let Some(vcpu) = self.pending.take()
            && !self.form.of_trace
        {
            let entry = matches!(event, Event::Note { vcpu: of, place: Place::L1, note: Note::Entry { .. } } if *of == vcpu);
            // Outside an exit the importer would not know that there was an end.
            if !(entry && self.rips.contains_key(&vcpu)) {
                let (name, text) = own::text(&Event::resume(vcpu, Resume::GUEST), &self.names);
                self.line(vcpu, &name, &text)?;
            }
        }
        match event {
            Event::Exit(exit) => self.exit(event, exit),
            Event::Note { vcpu, place, note } => self.note(event, *vcpu, *place, note),
            Event::Resume { vcpu, resume, changes: RegisterChanges::NONE } if *resume == Resume::GUEST => {
                self.pending = Some(*vcpu);
                Ok(())
            }
            Event::Moment { vcpu, icount, rip } => {
                self.rips.remove(vcpu);
                (self.icount, self.rip) = (*icount, *rip);
                Ok(())
            }
            Event::End { end: End::Cut, .. } if self.form.of_trace => Ok(()),
            Event::Line { text, .. } if text.starts_with(LOST) => self.lost(text),
            Event::Line { vcpu, text } => {
                let (name, text) = text.split_once(": ").unwrap_or((text, ""));
                self.line(*vcpu, name, text)
            }
            Event::Resume { vcpu, .. } => self.own(event, *vcpu),
            Event::Entry(entry) => {
                self.icount = entry.icount;
                self.own(event, entry.vcpu)
            }
            Event::Registers(registers) => self.own(event, registers.vcpu),
            Event::Input { icount, .. }
            | Event::Control { icount, .. }
            | Event::StateHash { icount, .. }
            | Event::Milestone(Milestone { icount, .. })
            | Event::Devices { icount, .. }
            | Event::Fault(Fault { icount, .. })
            | Event::FaultIn(FaultIn { icount, .. })
            | Event::Pcpu(PcpuEvent { icount, .. })
            | Event::End { icount, .. } => {
                self.icount = *icount;
                self.own(event, self.current)
            }
            Event::Read { .. } => self.own(event, self.current),
        }
    }

    /// What the lines go to.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes what waited for the next event, as if there were none.
    pub fn settle(&mut self) -> io::Result<()> {
        if let Some(vcpu) = self.pending.take()
            && !self.form.of_trace
        {
            self.own(&Event::resume(vcpu, Resume::GUEST), vcpu)?;
        }
        Ok(())
    }

    /// Ends the text.
    pub fn finish(mut self) -> io::Result<W> {
        self.settle()?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn exit(&mut self, event: &Event, exit: &ExitEvent) -> io::Result<()> {
        let ExitEvent { vcpu, icount, rip, exit } = exit;
        self.icount = *icount;
        self.current = *vcpu;
        self.rips.insert(*vcpu, *rip);
        let mut text = format!(
            "vcpu {} reason {} rip {rip:#x} info1 {:#018x} info2 {:#018x}",
            number(*vcpu),
            reason(exit.isa, exit.reason),
            exit.info1,
            exit.info2,
        );
        if !self.form.terse {
            let _ = write!(text, " intr_info {:#010x} error_code {:#010x}", exit.intr_info, exit.error_code);
        }
        self.line(*vcpu, "kvm_exit", &text)?;
        match own::stimulus(event) {
            Some(text) if !(self.form.of_trace && follows(exit)) => self.line(*vcpu, STIMULUS, &text),
            _ => Ok(()),
        }
    }

    fn note(&mut self, event: &Event, vcpu: u32, place: Place, note: &Note) -> io::Result<()> {
        let rip = self.rips.get(&vcpu).copied().or(self.rip.take());
        let text = match (note, rip) {
            // Kernels before 6.1 do not tell the rip.
            (Note::PageFault { address, code }, None) if self.form.of_trace => {
                Some(format!("address {address:x} error_code {code:x}"))
            }
            _ => note_text(note, number(vcpu), rip.unwrap_or(0)),
        };
        match text {
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

    /// `CPU:0 [LOST 42 EVENTS]`.
    fn lost(&mut self, text: &str) -> io::Result<()> {
        let mut words = text.split(' ');
        let (cpu, count) = (words.nth(2).unwrap_or_default(), words.nth(1).unwrap_or_default());
        match count {
            "0" => writeln!(self.out, "CPU:{cpu} [LOST EVENTS]"),
            count => writeln!(self.out, "CPU:{cpu} [LOST {count} EVENTS]"),
        }
    }

    fn own(&mut self, event: &Event, vcpu: u32) -> io::Result<()> {
        let (name, text) = own::text(event, &self.names);
        self.line(vcpu, &name, &text)
    }

    /// Tasks are named as QEMU names them.
    fn line(&mut self, vcpu: u32, name: &str, text: &str) -> io::Result<()> {
        let (seconds, micros) = (self.icount / PER_SECOND, self.icount % PER_SECOND);
        match vcpu {
            NO_VCPU => write!(self.out, "            host-1       [000]")?,
            _ => write!(
                self.out,
                "{:>16}-{:<7} [000]",
                format!("CPU {}/KVM", number(vcpu)),
                1000 + u64::from(vcpu)
            )?,
        }
        match self.form.ticks {
            true => writeln!(self.out, " ..... {}: {name}: {text}", self.icount),
            false => writeln!(self.out, " ..... {seconds:>5}.{micros:06}: {name}: {text}"),
        }
    }
}

/// The number that a vCPU of an imported tape has in its own machine.
fn number(vcpu: u32) -> u32 {
    if vcpu == NO_VCPU { vcpu } else { vcpu & ((1 << import::VM_SHIFT) - 1) }
}

/// Whether an importer finds all of an exit in `kvm_exit` and the notes after it.
fn follows(exit: &Exit) -> bool {
    let Exit { isa, reason, info1, info2, intr_info, error_code, .. } = *exit;
    let mut told = Exit { isa, reason, info1, info2, intr_info, error_code, ..Default::default() };
    import::addresses(&mut told);
    if isa == Isa::VMX {
        told.gpa = exit.gpa;
    }
    told == *exit
}
