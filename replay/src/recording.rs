//! A recording of the real KVM against a run of ours, exit by exit.

use crate::{
    exempt::{self, Exemption},
    explain,
    report::{Class, Divergence, Level, Report, Row},
    signature::Signature,
    spec, text,
};
use std::collections::BTreeSet;
use vmtape_arch::{
    PAGE_SHIFT,
    exit::{Exit, Isa, SvmExitCode, VmxReason},
    note::{Note, NoteKind},
};
use vmtape_machine::MachineSpec;
use vmtape_traces::{ExitGroup, Exits, Result, Tape};

/// Exits shown before a difference.
const CONTEXT: usize = 3;

/// An exit of a tape, and whether the host has taken pages back before it.
struct Step {
    group: ExitGroup,
    unmapped: bool,
}

/// Compares the exits of vCPU 0. `reproduce` is the command line for the report.
pub fn compare(real: &Tape, ours: &Tape, report: &mut Report, reproduce: &str) -> Result<()> {
    let machine = spec::machine(ours).ok();
    let mut ours = steps(ours)?;
    let Some(first) = ours.first() else { return Ok(()) };
    let (mut real, firmware) = split_firmware(steps(real)?, first.group.exit.rip);
    let traced = kinds(real.iter().chain(&firmware));
    let mut comparison = Comparison {
        firmware: Pages::of(&firmware),
        touched: Pages::default(),
        traced,
        reinjects: false,
        machine,
        report,
    };
    comparison.exempt(exempt::FIRMWARE, firmware.len() as u64);
    let before = real.len();
    real.retain(|step| !exempt::is_host_exit(&step.group.exit.exit));
    comparison.reinjects = real.len() != before;
    comparison.exempt(exempt::HOST_SCHEDULING, (before - real.len()) as u64);
    let reasons: BTreeSet<_> = real.iter().map(|step| step.group.exit.exit.reason).collect();
    let before = ours.len();
    ours.retain(|step| !comparison.is_filtered(&reasons, &step.group));
    comparison.exempt(exempt::NOT_TRACED, (before - ours.len()) as u64);
    comparison.run(&real, &ours, reproduce);
    report.conclude();
    Ok(())
}

fn steps(tape: &Tape) -> Result<Vec<Step>> {
    let mut exits = Exits::new(tape.events(), 0);
    let (mut steps, mut unmapped) = (Vec::new(), false);
    while let Some(group) = exits.next().transpose()? {
        unmapped |= exits.other.drain(..).any(|event| exempt::unmaps(&event));
        if group.exit.vcpu == 0 {
            steps.push(Step { group, unmapped });
        }
    }
    Ok(steps)
}

/// Cuts off what ran before the guest's entry point, if the recording has it.
fn split_firmware(mut real: Vec<Step>, entry: u64) -> (Vec<Step>, Vec<Step>) {
    let start = real.iter().position(|step| step.group.exit.rip == entry).unwrap_or(0);
    let guest = real.split_off(start);
    (guest, real)
}

fn kinds<'a>(steps: impl Iterator<Item = &'a Step>) -> BTreeSet<NoteKind> {
    steps.flat_map(|step| &step.group.notes).map(|note| note.to_raw().kind).collect()
}

/// Guest pages that a stretch of a recording mapped.
#[derive(Debug, Default)]
struct Pages(Vec<(u64, u64)>);

impl Pages {
    fn of(steps: &[Step]) -> Self {
        let notes = steps.iter().flat_map(|step| &step.group.notes);
        Self(notes.filter_map(mapped).collect())
    }

    fn add(&mut self, group: &ExitGroup) {
        self.0.extend(group.notes.iter().filter_map(mapped));
    }

    fn contains(&self, gpa: u64) -> bool {
        let gfn = gpa >> PAGE_SHIFT;
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&gfn))
    }
}

/// The frames that a note maps.
fn mapped(note: &Note) -> Option<(u64, u64)> {
    let (gfn, level) = match *note {
        Note::SpteRequested { gfn, level, .. } => (gfn, level),
        Note::MarkMmioSpte { gfn, .. } | Note::HandleMmioPageFault { gfn, .. } => (gfn, 1),
        _ => return None,
    };
    let pages = 1u64 << (9 * u32::from(level.clamp(1, 5) - 1));
    Some((gfn & !(pages - 1), gfn | (pages - 1)))
}

struct Comparison<'r> {
    /// What the recording's firmware touched.
    firmware: Pages,
    /// What the recorded guest has touched so far.
    touched: Pages,
    traced: BTreeSet<NoteKind>,
    /// The recording shows the host's own exits, so that an exception that one of them delayed is told after it.
    reinjects: bool,
    /// Ours, whose widths the recorded guest has too.
    machine: Option<MachineSpec>,
    report: &'r mut Report,
}

impl Comparison<'_> {
    fn exempt(&mut self, exemption: Exemption, count: u64) {
        if count > 0 {
            *self.report.exempted.entry(exemption.name).or_default() += count;
        }
    }

    fn run(&mut self, real: &[Step], ours: &[Step], reproduce: &str) {
        let (mut i, mut j) = (0, 0);
        while let (Some(Step { group: theirs, unmapped }), Some(Step { group: own, .. })) =
            (real.get(i), ours.get(j))
        {
            let rows = self.differences(theirs, own, i + 1 == real.len());
            if rows.is_empty() {
                self.report.compared.exits += 1;
                self.report.compared.instructions = own.exit.icount;
                self.report.compared.events += self.notes(theirs).len() as u64;
                (i, j) = (i + 1, j + 1);
            } else if *unmapped && self.has_touched(theirs) {
                self.exempt(exempt::REFAULT, 1);
                i += 1;
            } else if let Some(address) = fault_address(&own.exit.exit)
                && self.firmware.contains(address)
            {
                self.exempt(exempt::FIRMWARE_TOUCHED, 1);
                // The same fault with another code is one exit on both sides.
                i += usize::from(fault_address(&theirs.exit.exit) == Some(address));
                j += 1;
            } else {
                let found = self.divergence(&real[..=i], &ours[..=j], rows, reproduce);
                self.report.diverge(found);
                return;
            }
            self.touched.add(theirs);
        }
        self.leftovers(real, ours, i, j, reproduce);
    }

    /// A recording may stop early (its length is limited); a run of ours may not.
    fn leftovers(&mut self, real: &[Step], ours: &[Step], i: usize, j: usize, reproduce: &str) {
        if let Some(left) = real.get(i) {
            let rows = vec![Row::new("exit", text::exit_line(&left.group), "the run has ended")];
            let found = self.divergence(&real[..=i], &ours[..j], rows, reproduce);
            self.report.diverge(found);
        } else if ours.len() > j {
            let left = (ours.len() - j) as u64;
            self.report.unknown.insert("exits after the end of the recording".into(), left);
        }
    }

    /// The compared notes of a group, less kinds that the recording did not trace.
    fn notes(&mut self, group: &ExitGroup) -> Vec<Note> {
        let comparable = group.notes.iter().filter_map(exempt::comparable);
        let traced = comparable.filter(|note| self.traced.contains(&note.to_raw().kind));
        traced.filter(|note| self.reinjects || !exempt::is_reinjection(note)).collect()
    }

    /// An exit that the recording's filter would have left out: neither its reason is there nor anything that it did.
    fn is_filtered(&self, reasons: &BTreeSet<u32>, group: &ExitGroup) -> bool {
        let mut did = group.notes.iter().filter_map(exempt::comparable).peekable();
        !reasons.contains(&group.exit.exit.reason)
            && did.peek().is_some()
            && did.all(|note| !self.traced.contains(&note.to_raw().kind))
    }

    /// `last`: the recording ends with this exit, maybe in the middle of its handling.
    fn differences(&mut self, theirs: &ExitGroup, own: &ExitGroup, last: bool) -> Vec<Row> {
        let mut rows = exit_rows(theirs, own);
        if rows.is_empty() {
            let (a, mut b) = (self.notes(theirs), self.notes(own));
            if last {
                b.truncate(a.len());
            }
            if a != b {
                let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
                let line = |notes: &[Note]| {
                    notes.get(first).map_or("nothing".into(), |note| text::note_line(note, 0, own.exit.rip))
                };
                rows.push(Row::new("then", line(&a), line(&b)));
            }
        }
        rows
    }

    fn divergence(&self, real: &[Step], ours: &[Step], rows: Vec<Row>, reproduce: &str) -> Divergence {
        let (theirs, own) = (real.last().map(|step| &step.group), ours.last().map(|step| &step.group));
        let place = own.or(theirs).map(|group| &group.exit);
        let summary = match rows.first() {
            Some(row) => format!("{} is {} in the recording and {} here", row.what, row.expected, row.actual),
            None => String::new(),
        };
        let what = rows
            .first()
            .map_or_else(String::new, |row| format!("{}:{}>{}", row.what, row.expected, row.actual));
        let names = ["the recorded KVM".to_owned(), "this run".to_owned()];
        let told =
            self.machine.as_ref().map(|ours| explain::groups([theirs, own], [ours, ours], &names, &what));
        let (stories, cause) = told.unwrap_or_default();
        Divergence {
            signature: Signature::new(&what, place.map_or(0, |exit| exit.rip)),
            level: Level::HostVisible,
            class: cause.as_ref().map_or(Class::Unexplained, |cause| Class::of(cause.kind)),
            cause,
            summary,
            vcpu: 0,
            icount: place.map_or(0, |exit| exit.icount),
            rip: place.map_or(0, |exit| exit.rip),
            expected_exit: theirs.map(|group| group.number),
            actual_exit: own.map(|group| group.number),
            rows,
            stories,
            expected_context: text::context(real.iter().map(|step| &step.group), CONTEXT),
            actual_context: text::context(ours.iter().map(|step| &step.group), CONTEXT),
            rules: Vec::new(),
            reproduce: reproduce.to_owned(),
        }
    }

    /// A fault of the recording on a page that it had mapped already.
    fn has_touched(&self, group: &ExitGroup) -> bool {
        fault_address(&group.exit.exit).is_some_and(|address| self.touched.contains(address))
    }
}

/// The address of a page-fault exit: a gpa under nested paging, a gva under shadow paging.
fn fault_address(exit: &Exit) -> Option<u64> {
    match exit.isa {
        Isa::VMX => {
            matches!(VmxReason(exit.reason & 0xffff), VmxReason::EPT_VIOLATION | VmxReason::EPT_MISCONFIG)
                .then_some(exit.gpa)
        }
        Isa::SVM => {
            matches!(SvmExitCode(exit.reason), SvmExitCode::NPF | SvmExitCode::EXCP_PF).then_some(exit.info2)
        }
        _ => None,
    }
}

/// The fields of `kvm_exit` that differ. Fields that are not valid are not compared.
fn exit_rows(theirs: &ExitGroup, own: &ExitGroup) -> Vec<Row> {
    let (a, b) = (&theirs.exit.exit, &own.exit.exit);
    let mut rows = Vec::new();
    if (a.isa, a.reason) != (b.isa, b.reason) {
        rows.push(Row::new("reason", text::reason(a), text::reason(b)));
    }
    let interruption = |exit: &Exit| {
        /// Bit 31 of interruption information: it is valid. Bit 11: with an error code.
        const VALID: u32 = 1 << 31;
        const HAS_CODE: u32 = 1 << 11;
        let info = if exit.intr_info & VALID != 0 { exit.intr_info } else { 0 };
        (info, if info & HAS_CODE != 0 { exit.error_code } else { 0 })
    };
    let fields = [
        ("rip", theirs.exit.rip, own.exit.rip),
        ("info1", a.info1, b.info1),
        ("info2", a.info2, b.info2),
        ("intr_info", interruption(a).0.into(), interruption(b).0.into()),
        ("error_code", interruption(a).1.into(), interruption(b).1.into()),
    ];
    for (name, a, b) in fields {
        if a != b {
            rows.push(Row::new(name, format!("{a:#x}"), format!("{b:#x}")));
        }
    }
    rows
}
