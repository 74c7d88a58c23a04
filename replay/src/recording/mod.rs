//! A recording of the real KVM against a run of ours, exit by exit.

mod align;
mod pages;
mod steps;

use self::{
    pages::Pages,
    steps::{Step, Steps, Survey},
};
use crate::{
    exempt::{self, Exemption},
    explain,
    islands::{Alignment, Island, Why},
    report::{Class, Divergence, Level, Report, Row},
    signature::Signature,
    spec, text,
};
use std::{cell::Cell, collections::BTreeSet};
use vmtape_arch::{
    exit::{Exit, Isa, SvmExitCode, VmxReason},
    note::Note,
};
use vmtape_machine::MachineSpec;
use vmtape_traces::{ExitGroup, Result, Tape, text::MODE_UNTOLD};

/// Exits shown before a difference.
const CONTEXT: usize = 3;

/// Compares the exits of vCPU 0. `reproduce` is the command line for the report.
pub fn compare(real: &Tape, ours: &Tape, report: &mut Report, reproduce: &str) -> Result<()> {
    let machine = spec::machine(ours).ok();
    let Some(entry) = Steps::new(ours, 0, |_| true)?.peek().map(|step| step.group.exit.rip) else {
        return Ok(());
    };
    let survey = Survey::of(real, entry)?;
    let mut comparison = Comparison {
        touched: Pages::default(),
        apic_written: BTreeSet::new(),
        alignment: Alignment::default(),
        machine,
        report,
        left: survey.exits,
        survey: &survey,
    };
    comparison.exempt(exempt::FIRMWARE, survey.firmware_exits);
    comparison.exempt(exempt::HOST_SCHEDULING, survey.host_exits);
    let filtered = Cell::new(0);
    let mut firmware = survey.firmware_exits;
    let real = Steps::new(real, CONTEXT, |group| {
        let is_firmware = firmware > 0;
        firmware = firmware.saturating_sub(1);
        !is_firmware && !exempt::is_host_exit(&group.exit.exit)
    })?;
    let ours = Steps::new(ours, CONTEXT, |group| {
        // The other side may be a recording, too.
        let is_host = exempt::is_host_exit(&group.exit.exit);
        let is_filtered = !is_host && survey.is_filtered(group);
        filtered.set(filtered.get() + u64::from(is_filtered));
        !is_filtered && !is_host
    })?;
    comparison.run(real, ours, reproduce)?;
    comparison.exempt(exempt::NOT_TRACED, filtered.get());
    let alignment = comparison.alignment;
    report.alignment = (!alignment.islands.is_empty()).then_some(alignment);
    report.conclude();
    Ok(())
}

impl Survey {
    /// An exit that the recording's filter would have left out: neither its reason is there nor anything that it did.
    fn is_filtered(&self, group: &ExitGroup) -> bool {
        let mut did = group.notes.iter().filter_map(exempt::comparable).peekable();
        !self.reasons.contains(&group.exit.exit.reason)
            && did.peek().is_some()
            && did.all(|note| !self.traced.contains(&note.to_raw().kind))
    }
}

struct Comparison<'r> {
    survey: &'r Survey,
    alignment: Alignment,
    /// Exits of the recording that are still to come.
    left: u64,
    /// What the recorded guest has touched so far.
    touched: Pages,
    /// Registers of the local APIC that the recorded guest has written since its firmware.
    apic_written: BTreeSet<u32>,
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

    fn run(&mut self, mut real: Steps, mut ours: Steps, reproduce: &str) -> Result<()> {
        while let (Some(Step { group: theirs, unmapped }), Some(Step { group: own, .. })) =
            (real.peek(), ours.peek())
        {
            let rows = self.differences(theirs, own);
            let (mut takes_theirs, mut takes_own) = (true, true);
            if rows.is_empty() {
                self.report.compared.exits += 1;
                self.alignment.equal += 1;
                self.report.compared.instructions = own.exit.icount;
                self.report.compared.events += self.notes(theirs).len() as u64;
            } else if *unmapped && self.has_touched(theirs) {
                self.exempt(exempt::REFAULT, 1);
                takes_own = false;
            } else if let Some(address) = fault_address(&own.exit.exit)
                && self.survey.firmware.contains(address)
            {
                self.exempt(exempt::FIRMWARE_TOUCHED, 1);
                // The same fault with another code is one exit on both sides.
                takes_theirs = fault_address(&theirs.exit.exit) == Some(address);
            } else {
                if !self.island(&mut real, &mut ours, rows, reproduce)? {
                    break;
                }
                continue;
            }
            self.touched.add(theirs);
            let written = theirs.notes.iter().filter_map(exempt::apic_register);
            self.apic_written.extend(written.filter(|(_, write)| *write).map(|(register, _)| register));
            if takes_theirs {
                self.left -= 1;
                real.advance()?;
            }
            if takes_own {
                ours.advance()?;
            }
        }
        self.leftovers(&real, ours, reproduce)
    }

    /// A stretch that differs: tells of it, and goes on behind it. False where no place to go on is found.
    fn island(
        &mut self,
        real: &mut Steps,
        ours: &mut Steps,
        rows: Vec<Row>,
        reproduce: &str,
    ) -> Result<bool> {
        let found = self.divergence(real, ours, rows, reproduce);
        // The same exit that did something else is a stretch by itself.
        let alone = real.peek().map(|step| align::key(&step.group))
            == ours.peek().map(|step| align::key(&step.group));
        let ends = [!real.look(align::WINDOW)?, !ours.look(align::WINDOW)?];
        let keys = |steps: &Steps| steps.window().map(|step| align::key(&step.group)).collect::<Vec<_>>();
        let place = if alone { Some((1, 1)) } else { align::resume(&keys(real), &keys(ours), ends) };
        let (theirs, own) = place.unwrap_or((real.window().len(), ours.window().len()));
        let differing = |steps: &Steps, count| {
            steps.window().take(count).map(|step| step.group.clone()).collect::<Vec<_>>()
        };
        let groups = [differing(real, theirs), differing(ours, own)].concat();
        let why = if place.is_some() { align::why(groups.iter()) } else { Why::Unexplained };
        let unexplained = self.alignment.count.contains_key(&Why::Unexplained);
        self.alignment.add(Island {
            expected_exit: found.expected_exit,
            actual_exit: found.actual_exit,
            expected: theirs as u64,
            actual: own as u64,
            why,
            summary: found.summary.clone(),
        });
        // The first that nobody can explain is told in full; before there is one, the first of all.
        if why == Why::Unexplained && !unexplained {
            self.report.divergence = None;
        }
        self.report.diverge(found);
        for _ in 0..theirs {
            if let Some(step) = real.peek() {
                self.touched.add(&step.group);
            }
            self.left = self.left.saturating_sub(1);
            real.advance()?;
        }
        for _ in 0..own {
            ours.advance()?;
        }
        if place.is_none() {
            self.alignment.lost = true;
            self.alignment.expected += real.count_rest()?;
            self.alignment.actual += ours.count_rest()?;
        }
        Ok(place.is_some())
    }

    /// A recording may stop early (its length is limited); a run of ours may not.
    fn leftovers(&mut self, real: &Steps, mut ours: Steps, reproduce: &str) -> Result<()> {
        if let Some(left) = real.peek() {
            let rows = vec![Row::new("exit", text::exit_line(&left.group), "the run has ended")];
            let found = self.divergence(real, &ours, rows, reproduce);
            self.alignment.add(Island {
                expected_exit: found.expected_exit,
                actual_exit: None,
                expected: self.left,
                actual: 0,
                why: Why::Unexplained,
                summary: found.summary.clone(),
            });
            self.report.diverge(found);
            return Ok(());
        }
        let left = ours.count_rest()?;
        self.exempt(exempt::AFTER_RECORDING, left);
        Ok(())
    }

    /// The compared notes of a group, less kinds that the recording did not trace.
    fn notes(&mut self, group: &ExitGroup) -> Vec<Note> {
        let comparable = group.notes.iter().filter_map(exempt::comparable);
        let traced = comparable.filter(|note| self.survey.traced.contains(&note.to_raw().kind));
        let mut sent = false;
        let mut notes: Vec<_> = traced
            .filter(|note| {
                sent |= matches!(note, Note::ApicIpi { .. });
                sent || !matches!(note, Note::ApicAcceptIrq { .. })
            })
            .map(|note| self.as_told(note))
            .collect();
        if let Some(skip) = exempt::skip_of_injected_again(&notes) {
            notes.drain(skip);
        }
        notes.dedup_by(|again, first| exempt::is_injected_again(first, again));
        if !exempt::interrupts_delivery(&group.exit.exit) {
            notes.retain(|note| !exempt::is_reinjection(note));
        }
        notes
    }

    /// A note without what the recording cannot tell alike: values that a firmware left in the local APIC, and the processor's
    /// mode where the trace's printer does not tell it.
    fn as_told(&self, note: Note) -> Note {
        match note {
            Note::EmulateInsn { rip, csbase, len, insn, failed, .. } if self.survey.modes_untold => {
                Note::EmulateInsn { rip, csbase, len, insn, mode: MODE_UNTOLD, failed }
            }
            _ => match exempt::apic_register(&note) {
                Some((register, false)) if self.is_of_firmware(register) => exempt::without_value(&note),
                _ => note,
            },
        }
    }

    /// Whether the local APIC's register may hold what the firmware left there.
    fn is_of_firmware(&self, register: u32) -> bool {
        self.survey.firmware_exits > 0 && !self.apic_written.contains(&register)
    }

    fn differences(&mut self, theirs: &ExitGroup, own: &ExitGroup) -> Vec<Row> {
        let mut rows = exit_rows(theirs, own);
        let masked = exempt::comparable_info1(&theirs.exit.exit, &own.exit.exit).1;
        self.exempt(exempt::IO_ADDRESS_SIZE, masked.into());
        if rows.is_empty() {
            let (a, mut b) = (self.notes(theirs), self.notes(own));
            // The recording may end in the middle of its last exit's handling.
            if self.left == 1 {
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

    fn divergence(&self, real: &Steps, ours: &Steps, rows: Vec<Row>, reproduce: &str) -> Divergence {
        let (theirs, own) = (real.context().last(), ours.context().last());
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
            nested: place.and_then(text::nested),
            expected_exit: theirs.map(|group| group.number),
            actual_exit: own.map(|group| group.number),
            rows,
            stories,
            expected_context: text::context(real.context(), CONTEXT),
            actual_context: text::context(ours.context(), CONTEXT),
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
    let [info1, own_info1] = exempt::comparable_info1(a, b).0;
    let fields = [
        ("rip", theirs.exit.rip, own.exit.rip),
        ("info1", info1, own_info1),
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
