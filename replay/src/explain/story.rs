//! What one side did about an instruction, and what came of it for the guest.

use super::{Walker, Widths, fold, walk};
use crate::{
    exempt,
    observer::{Entry, Observation, Walk},
    text,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;
use vmtape_arch::{
    PAGE_SHIFT,
    access::{AccessKind, Verdict},
    event::EventKind,
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, Isa, Resume, ResumeKind, StimulusKind},
    note::Note,
};
use vmtape_traces::{Event, ExitGroup};

/// What the guest notices of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Completes,
    /// It goes on with what a device answered.
    Mmio { gpa: u64 },
    /// It takes an exception; a page fault with CR2.
    Exception { vector: Vector, code: Option<u32>, address: Option<u64> },
    /// It does not go on: KVM_RUN returns to its caller.
    Left(Resume),
    /// It neither goes on nor returns.
    Endless,
}

impl Outcome {
    /// In a word that signatures are made of: without addresses.
    pub fn word(&self) -> String {
        match self {
            Self::Completes => "none".into(),
            Self::Mmio { .. } => "mmio".into(),
            Self::Exception { vector, code: Some(code), .. } => format!("{vector}({code:#x})"),
            Self::Exception { vector, .. } => vector.to_string(),
            Self::Left(resume) if resume.kind == ResumeKind::MEMORY_FAULT => resume.kind.to_string(),
            Self::Left(resume) => text::resume_text(resume),
            Self::Endless => "endless".into(),
        }
    }

    /// The error code, if it is a page fault.
    pub fn page_fault(&self) -> Option<PageFaultError> {
        match *self {
            Self::Exception { vector: Vector::PF, code, .. } => code.map(PageFaultError::from_bits),
            _ => None,
        }
    }

    fn of_exception(exception: &Exception) -> Self {
        Self::Exception {
            vector: exception.vector,
            code: exception.has_error_code.is_set().then_some(exception.error_code),
            address: (exception.vector == Vector::PF).then_some(exception.payload),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completes => write!(f, "the instruction completes"),
            Self::Mmio { gpa } => write!(f, "the instruction completes, as device access to {gpa:#x}"),
            Self::Exception { vector, code, address } => {
                write!(f, "the guest takes {vector}")?;
                if let Some(code) = code {
                    write!(f, " ({code:#x})")?;
                }
                address.map_or(Ok(()), |address| write!(f, ", CR2 {address:#x}"))
            }
            Self::Left(resume) => write!(f, "KVM_RUN returns {}", text::resume_text(resume)),
            Self::Endless => write!(f, "the guest exits at this instruction for ever"),
        }
    }
}

/// One side's story of an instruction.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Story {
    /// Whose.
    pub side: String,
    /// What happened about the address in question, in order.
    pub lines: Vec<String>,
    /// What came of it.
    #[serde(rename = "came_of_it")]
    pub outcome: String,
}

/// What a tape tells of an exit.
pub fn of_group(group: &ExitGroup, widths: Widths) -> Story {
    let observations = Observation::of(group);
    let focus = focus([&observations, &[]], None);
    Teller { widths, focus }.tell("the tape", &observations, &outcome(&observations, false), &[])
}

impl Story {
    /// The line of a walk by which this side does something else than the other one: the last with a remark that the other one's
    /// walks do not have, one that decides a fault before all others.
    pub fn deciding<'s>(&'s self, other: &Self) -> Option<&'s str> {
        let remark = |line: &'s str| line.split_once(walk::REMARK).map(|(_, remark)| remark);
        let theirs: Vec<_> =
            other.lines.iter().filter_map(|line| Some(line.split_once(walk::REMARK)?.1)).collect();
        let own = || self.lines.iter().map(String::as_str).rev();
        let mut told = own().filter(|line| remark(line).is_some_and(|remark| !theirs.contains(&remark)));
        let decides = told.clone().find(|line| remark(line).is_some_and(|r| r.starts_with(walk::DECIDES)));
        decides.or_else(|| told.next()).map(str::trim_start)
    }
}

/// The outcome of an instruction. `endless`: the machine's watchdog ended the run there.
pub fn outcome(observations: &[Observation], endless: bool) -> Outcome {
    if endless {
        return Outcome::Endless;
    }
    let mut outcome = Outcome::Completes;
    for (n, observation) in observations.iter().enumerate() {
        let found = match observation {
            Observation::Fault(fault) if !taken(&observations[n + 1..]) => Outcome::of_exception(fault),
            Observation::Inject(event, cr2) if event.kind == EventKind::HARDWARE_EXCEPTION => {
                let vector = Vector(event.vector);
                Outcome::Exception {
                    vector,
                    code: event.has_error_code.is_set().then_some(event.error_code),
                    address: cr2.filter(|_| vector == Vector::PF),
                }
            }
            Observation::Event(Event::Resume { resume, .. }) if leaves(resume) => Outcome::Left(*resume),
            Observation::Event(Event::Note { note, .. }) if exempt::is_apic_access(note) => continue,
            Observation::Event(Event::Note { note: Note::Mmio { gpa, .. }, .. }) => {
                outcome = Outcome::Mmio { gpa: *gpa };
                continue;
            }
            _ => continue,
        };
        // What comes after it belongs to the exception's handler.
        return found;
    }
    outcome
}

/// Whether what silicon was about to deliver became an exit instead: nothing else may come in between.
fn taken(later: &[Observation]) -> bool {
    let event =
        later.iter().find(|observation| !matches!(observation, Observation::Event(Event::Note { .. })));
    matches!(event, Some(Observation::Event(Event::Exit(exit))) if exit.exit.stimulus == StimulusKind::EXCEPTION)
}

/// Whether a handling ends with the guest left for good, or for its VMM to decide.
pub(crate) fn leaves(resume: &Resume) -> bool {
    use ResumeKind as R;
    !matches!(resume.kind, R::RESUME | R::BLOCKED | R::HLT | R::IO | R::MMIO)
}

/// The linear address that the stories are about: that of a page fault, of an access that became an exit, or else of any
/// walk that passed `entry`.
pub fn focus(sides: [&[Observation]; 2], entry: Option<u64>) -> Option<u64> {
    let walks = || sides.into_iter().flatten().filter_map(as_walk);
    let passes = |walk: &&Walk| walk.entries.iter().any(|step| step.gpa.is_some() && step.gpa == entry);
    let through = walks().find(passes).map(|walk| walk.access.gva);
    let fault = || {
        sides.into_iter().find_map(|observations| match outcome(observations, false) {
            Outcome::Exception { address, .. } => address,
            _ => None,
        })
    };
    let exits = || {
        let mut events = sides.into_iter().flatten().filter_map(|observation| match observation {
            Observation::Event(Event::Exit(exit)) => address_of(&exit.exit),
            _ => None,
        });
        events.next_back()
    };
    through.or_else(fault).or_else(exits)
}

fn as_walk(observation: &Observation) -> Option<&Walk> {
    match observation {
        Observation::Walk(walk) => Some(walk),
        _ => None,
    }
}

/// The linear address of the access that an exit is about.
pub(crate) fn address_of(exit: &Exit) -> Option<u64> {
    match exit.stimulus {
        StimulusKind::ACCESS => Some(exit.access.gva),
        StimulusKind::EXCEPTION if exit.exception.vector == Vector::PF => Some(exit.exception.payload),
        _ => None,
    }
}

/// Tells what a side did about an address.
pub struct Teller {
    pub widths: Widths,
    /// The linear address; `None`: everything is told.
    pub focus: Option<u64>,
}

impl Teller {
    /// The story, line by line. `tables`: the guest's entries for the address, for a side that walked nothing.
    pub fn tell(
        &self,
        side: &str,
        observations: &[Observation],
        outcome: &Outcome,
        tables: &[Entry],
    ) -> Story {
        let mut lines = Vec::new();
        let mut walks = KvmWalk::default();
        for (n, observation) in observations.iter().enumerate() {
            match observation {
                Observation::Walk(walk) if self.is_about(walk.access.gva) => lines.extend(self.silicon(walk)),
                Observation::Event(Event::Exit(exit))
                    if address_of(&exit.exit).is_some_and(|gva| self.is_about(gva)) =>
                {
                    lines.push(exit_text(&exit.exit));
                }
                Observation::Event(Event::Note { note, .. }) => {
                    self.note(note, &mut walks, &mut lines);
                    continue;
                }
                Observation::Fault(fault)
                    if !taken(&observations[n + 1..]) && self.is_about(fault.payload) =>
                {
                    lines.push("silicon delivers it to the guest, without an exit".to_owned());
                }
                _ => {}
            }
        }
        lines.extend(walks.finish(self.widths));
        // A walk tells its entries with their levels.
        let walked = lines.iter().any(|line| line.trim_start().starts_with("level "));
        if !walked && !tables.is_empty() {
            lines.push(
                "nobody walks the guest's tables: a translation made earlier is used. They hold".to_owned(),
            );
            lines.extend(walk::lines(tables, Walker::Silicon, self.widths, None));
        }
        Story { side: side.to_owned(), lines: fold::repeats(lines), outcome: outcome.to_string() }
    }

    fn is_about(&self, gva: u64) -> bool {
        self.focus.is_none_or(|focus| focus >> PAGE_SHIFT == gva >> PAGE_SHIFT)
    }

    fn silicon(&self, walk: &Walk) -> Vec<String> {
        let (access, widths) = (&walk.access, self.widths);
        let who = if access.user.is_set() { "user" } else { "supervisor" };
        let what = format!("{who} {} of {:#x}", access.kind, access.gva);
        if walk.entries.is_empty() && !walk.paged {
            return vec![format!(
                "silicon has no tables of the guest's to walk for a {what}: {}",
                verdict(walk)
            )];
        }
        if walk.entries.is_empty() {
            return vec![format!("silicon walks tables of KVM's for a {what}: {}", verdict(walk))];
        }
        let mut lines = vec![format!(
            "silicon walks the guest's tables with the host's {} bits for a {what}",
            widths.host
        )];
        let fault = (walk.verdict == Verdict::FAULT && walk.fault.vector == Vector::PF)
            .then(|| PageFaultError::from_bits(walk.fault.error_code));
        lines.extend(walk::lines(&walk.entries, Walker::Silicon, widths, fault));
        lines.push(format!("  {}", verdict(walk)));
        lines
    }

    fn note(&self, note: &Note, walks: &mut KvmWalk, lines: &mut Vec<String>) {
        match *note {
            Note::PagetableWalk { address, pferr } => {
                lines.extend(walks.finish(self.widths));
                if self.is_about(address) {
                    *walks = KvmWalk { address: Some((address, pferr)), ..KvmWalk::default() };
                }
            }
            Note::PagingElement { pte, level } => {
                walks.entries.push(Entry { level, gpa: None, before: pte, after: pte });
            }
            Note::WalkerError { pferr } => {
                walks.fault = Some(PageFaultError::from_bits(pferr));
                lines.extend(walks.finish(self.widths));
            }
            Note::SetAccessed { .. } | Note::SetDirty { .. } => {}
            Note::Mmio { gpa, value, kind, .. } => {
                lines.extend(walks.finish(self.widths));
                /// `kvm_mmio`: a write.
                const WRITE: u8 = 2;
                /// And the question of a read, whose answer follows.
                const UNSATISFIED_READ: u8 = 0;
                let word = if kind == WRITE { "write of" } else { "read, which gives" };
                if kind != UNSATISFIED_READ {
                    lines.push(format!("KVM makes it a device's: at {gpa:#x} a {word} {value:#x}"));
                }
            }
            Note::InjException { vector, has_error, error_code, reinjected: false } => {
                lines.extend(walks.finish(self.widths));
                let code = if has_error { format!(" ({error_code:#x})") } else { String::new() };
                lines.push(format!("KVM injects {vector}{code}"));
            }
            _ => {}
        }
    }
}

fn verdict(walk: &Walk) -> String {
    match (walk.verdict, walk.gpa) {
        (Verdict::NATIVE, Some(gpa)) => format!("found: page {gpa:#x}"),
        (Verdict::FAULT, _) => format!("{} ({:#x})", walk.fault.vector, walk.fault.error_code),
        _ => "an exit".to_owned(),
    }
}

fn exit_text(exit: &Exit) -> String {
    let details = match (exit.isa, exit.stimulus) {
        (_, StimulusKind::EXCEPTION) => format!("error code {:#x}", exit.exception.error_code),
        (Isa::VMX, _) => format!("qualification {:#x}, guest physical address {:#x}", exit.info1, exit.gpa),
        _ => format!("info1 {:#x}, info2 {:#x}", exit.info1, exit.info2),
    };
    format!("exit {}{}: {details}", text::reason(exit), text::of_level(exit.level))
}

/// A walk of KVM's, as its tracepoints tell it.
#[derive(Default)]
struct KvmWalk {
    address: Option<(u64, u32)>,
    entries: Vec<Entry>,
    fault: Option<PageFaultError>,
}

impl KvmWalk {
    /// The lines of the walk so far, if it is one that is told.
    fn finish(&mut self, widths: Widths) -> Vec<String> {
        let walk = std::mem::take(self);
        let Some((address, pferr)) = walk.address else { return Vec::new() };
        let error = PageFaultError::from_bits(pferr);
        let kind = match (error.w(), error.i()) {
            (true, _) => AccessKind::WRITE,
            (_, true) => AccessKind::FETCH,
            _ => AccessKind::READ,
        };
        let who = if error.u() { "user" } else { "supervisor" };
        let width = widths.guest;
        let mut lines = vec![format!(
            "KVM walks the guest's tables with the guest's {width} bits for a {who} {kind} of {address:#x}"
        )];
        lines.extend(walk::lines(&walk.entries, Walker::Kvm, widths, walk.fault));
        if let Some(fault) = walk.fault {
            lines.push(format!("  #PF ({:#x})", fault.into_bits()));
        }
        lines
    }
}
