//! Verdicts for a terminal.

use super::{
    Failure, Report,
    fleet::{Cell, Matrix, Outcome},
};
use crate::scenarios::report::table;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::{io::Write, path::Path};
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_machine::model::guest_phys_bits;
use vmtape_replay::{
    check::{
        Assessment, Guest, Verdict,
        finding::{Severity, Subject},
        machine_text,
    },
    evidence::Evidence,
};

/// Lines of a side's story: endless loops have thousands.
pub const STORY: usize = 16;

/// The guest in numbers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct GuestText {
    pub tape: String,
    pub name: String,
    pub recorded: String,
    pub phys_bits: u8,
    pub guest_phys_bits: u8,
    pub exits: u64,
    /// Exits and instructions before it moves.
    pub moves_at_exit: u64,
    pub moves_at_instruction: u64,
    /// Address bits that its paging entries, device accesses and memory slots need.
    pub entry_bits: u8,
    pub device_bits: u8,
    pub slot_bits: u8,
}

impl GuestText {
    pub fn of(path: &Path, guest: &Guest) -> Self {
        Self {
            tape: path.display().to_string(),
            name: guest.machine.image.name.clone(),
            recorded: machine_text(&guest.machine),
            phys_bits: maxphyaddr(&guest.machine.cpuid),
            guest_phys_bits: guest_phys_bits(&guest.machine.cpuid),
            exits: guest.footprint.exits,
            moves_at_exit: guest.footprint.moves_at_exit,
            moves_at_instruction: guest.footprint.moves_at_instruction,
            entry_bits: guest.footprint.entries.bits(),
            device_bits: guest.footprint.devices.bits(),
            slot_bits: guest.footprint.slots.bits(),
        }
    }
}

pub fn print(out: &mut impl Write, report: &Report) -> Result<()> {
    if let Some(guest) = &report.guest {
        let mappable = match guest.guest_phys_bits {
            0 => String::new(),
            bits => format!(", GuestPhysBits {bits}"),
        };
        writeln!(
            out,
            "{}: {} of {} physical address bits{mappable}; recorded by {}; {} exits",
            guest.tape, guest.name, guest.phys_bits, guest.recorded, guest.exits
        )?;
        writeln!(
            out,
            "  address bits in use: paging entries {}, devices {}, memory {}",
            guest.entry_bits, guest.device_bits, guest.slot_bits
        )?;
    }
    if let Some(guest) = report.guest.as_ref().filter(|guest| guest.moves_at_instruction != 0) {
        let (exit, instruction) = (guest.moves_at_exit, guest.moves_at_instruction);
        writeln!(out, "  moves before exit {exit}, after {instruction} instructions")?;
    }
    for host in &report.hosts {
        print_host(out, host)?;
    }
    for Failure { host, error } in &report.errors {
        writeln!(out, "\n{host}: COULD NOT TEST: {error}")?;
    }
    if let (Some(matrix), true) = (&report.matrix, report.hosts.is_empty()) {
        print_matrix(out, matrix)?;
    }
    if let Some(pin) = &report.pin {
        writeln!(out, "\n{pin}")?;
    }
    Ok(())
}

fn print_host(out: &mut impl Write, host: &Assessment) -> Result<()> {
    let word = match (&host.evidence, host.verdict) {
        (Some(_), Verdict::Safe) => "SAFE AS FAR AS THE TRACE TELLS".to_owned(),
        (_, Verdict::Unknown) => "NOTHING BREAKS OF WHAT THE TRACE TELLS, BUT NOT ALL IS KNOWN".to_owned(),
        (_, verdict) => verdict.text().to_uppercase(),
    };
    writeln!(out, "\n{}: {word} ({})", host.host, host.machine)?;
    if host.findings.iter().all(|finding| finding.severity == Severity::Caution) {
        writeln!(out, "  {}", host.reason)?;
    }
    for finding in &host.findings {
        writeln!(out, "  {}: {finding}", finding.severity.text())?;
        if finding.severity != Severity::Caution && finding.subject != Subject::Replay {
            writeln!(out, "    See: {}", finding.source)?;
        }
    }
    for line in pin_lines(host) {
        writeln!(out, "  {line}")?;
    }
    if let Some(evidence) = &host.evidence {
        print_evidence(out, evidence)?;
    }
    let divergence = host.replay.as_ref().and_then(|report| report.divergence.as_ref());
    if let Some(divergence) = divergence {
        let exit = divergence.expected_exit;
        let exit = exit.map_or(String::new(), |exit| format!("at exit {exit} of the tape, "));
        writeln!(
            out,
            "  first difference: {exit}after {} instructions, rip {:#x}",
            divergence.icount, divergence.rip
        )?;
        for story in &divergence.stories {
            writeln!(out, "    {}: {}", story.side, story.outcome)?;
            for line in story.lines.iter().take(STORY) {
                writeln!(out, "      {line}")?;
            }
            if story.lines.len() > STORY {
                writeln!(out, "      and so on, {} lines in all", story.lines.len())?;
            }
        }
        writeln!(out, "  again: {}", divergence.reproduce)?;
    }
    Ok(())
}

/// How much of a trace was judged, and where it ends.
fn print_evidence(out: &mut impl Write, evidence: &Evidence) -> Result<()> {
    writeln!(out, "  the trace: {}", evidence.summary())?;
    writeln!(
        out,
        "    {} alike, {} other exits of which the guest sees nothing, {} of which it sees a difference",
        evidence.alike, evidence.otherwise, evidence.differ
    )?;
    for (what, count) in &evidence.exempt {
        writeln!(out, "    no question of the host: {count} x {what}")?;
    }
    for (why, count) in evidence.open.iter().chain(&evidence.open_events) {
        writeln!(out, "    not judged: {count} x {why}")?;
    }
    if evidence.slots > 0 {
        writeln!(out, "    {} memory slots are told", evidence.slots)?;
    }
    for limit in &evidence.limits {
        writeln!(out, "    not told: {limit}")?;
    }
    Ok(())
}

/// The settings that would help on one host, and what no setting does.
pub fn pin_lines(host: &Assessment) -> Vec<String> {
    let pins = &host.pins;
    let guest = (!pins.qemu().is_empty()).then(|| format!("to pin: -cpu MODEL,{}", pins.qemu()));
    let hide = pins.hide_width.iter().map(|host| {
        format!("to pin: KVM on {host} has to hide its width (kvm_intel: allow_smaller_maxphyaddr=1; kvm_amd: npt=0)")
    });
    let out = pins.keep_out.iter();
    let out = out.map(|(first, last)| format!("to pin: keep memory and BARs out of {first:#x}-{last:#x}"));
    let conflicts = pins.conflicts.iter().map(|conflict| format!("cannot be had: {conflict}"));
    guest.into_iter().chain(hide).chain(out).chain(conflicts).collect()
}

fn print_matrix(out: &mut impl Write, matrix: &Matrix) -> Result<()> {
    let mut hosts =
        table(["host", "backend", "bits", "KVM tells", "maps", "IOMMU", "levels", "hides its width"]);
    for host in &matrix.hosts {
        hosts.add_row([
            host.name.clone(),
            host.backend.clone(),
            host.phys_bits.to_string(),
            host.kvm_phys_bits.to_string(),
            host.mappable_bits.to_string(),
            host.iommu_bits.map_or("-".into(), |bits| bits.to_string()),
            host.guest_levels.to_string(),
            if host.hides_width { "yes" } else { "no" }.to_owned(),
        ]);
    }
    writeln!(out, "{hosts}\n")?;
    let mut moves = table(["from \\ to"]);
    let names = || matrix.hosts.iter().map(|host| host.name.as_str());
    moves.set_header(std::iter::once("from \\ to").chain(names()));
    for from in names() {
        let cells = names().map(|to| matrix.cell(from, to).map_or(String::new(), word));
        moves.add_row(std::iter::once(from.to_owned()).chain(cells));
    }
    writeln!(out, "{moves}\n")?;
    for cell in matrix.cells.iter().filter(|cell| cell.outcome != Outcome::Safe) {
        writeln!(
            out,
            "{} -> {}: {} ({}): {}",
            cell.from,
            cell.to,
            cell.outcome.text(),
            cell.guest,
            cell.reason
        )?;
    }
    for (sentence, moves) in matrix.cautions() {
        writeln!(out, "caution: {sentence} ({})", moves.join(", "))?;
    }
    let count = |outcome| matrix.moves().filter(|cell| cell.outcome == outcome).count();
    let conditional = match count(Outcome::Conditional) {
        0 => String::new(),
        some => format!(", {some} more for a guest that does not rely on reserved bits"),
    };
    writeln!(
        out,
        "{} of {} moves are safe{conditional}; for {} with `{}`",
        count(Outcome::Safe),
        matrix.moves().count(),
        matrix.guests.join(", "),
        matrix.cpu.join(", ")
    )?;
    Ok(())
}

/// A verdict in the table: a star where there is something to know of a safe move.
fn word(cell: &Cell) -> String {
    let told = cell.assessment.as_ref().is_some_and(|assessment| !assessment.findings.is_empty());
    let star = if cell.outcome == Outcome::Safe && told { "*" } else { "" };
    format!("{}{star}", cell.outcome.text())
}
