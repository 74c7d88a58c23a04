//! May a guest move to another host? From its tape and the passport of that host.
//!
//! Two kinds of evidence make a verdict. What the tape shows of the guest (addresses in its paging entries, of its devices
//! and memory slots, the CPUID leaves that it read) is held against what the host has ([`rules`]). And the guest is run
//! again on the host's silicon, backend and profile, beside the tape's own machine ([`rerun`]). A refusal is no more than
//! the first kind; that nothing breaks is said only after the second.
//!
//! By default the guest is run there from its start, so that everything on its tape is tried there. A guest that moves
//! later has done what came before on its first host: only what it still holds then, or does afterwards, counts.

pub mod finding;
pub mod footprint;
pub mod pins;
pub mod rerun;
pub mod reserved;
pub mod rules;
pub mod tables;
pub mod traced;

use crate::{Error, Report, evidence::Evidence, player::Create};
use finding::{Finding, Severity};
use footprint::Footprint;
use pins::Pins;
use schemars::JsonSchema;
use serde::Serialize;
use vmtape_abi::Description;
use vmtape_arch::cpuid::CpuidEntry;
use vmtape_machine::{MachineSpec, Passport, vmm::When};
use vmtape_traces::Tape;

/// The guest and what its tape shows.
pub struct Guest<'a> {
    pub tape: &'a Tape,
    pub machine: MachineSpec,
    pub footprint: Footprint,
    /// What KVM_GET_SUPPORTED_CPUID says where it was recorded.
    pub supported: Vec<CpuidEntry>,
    pub plugin: &'a Description,
    /// When it moves.
    pub at: When,
    /// It has an assigned device: all its memory and BARs are mapped for DMA.
    pub assigned_device: bool,
}

/// A host that the guest is to move to.
pub struct Host<'a> {
    pub passport: &'a Passport,
    /// The guest's machine there, with its own CPUID.
    pub machine: MachineSpec,
    /// What KVM_GET_SUPPORTED_CPUID says there.
    pub supported: Vec<CpuidEntry>,
    /// KVM_CAP_SMALLER_MAXPHYADDR: a narrower guest gets its own reserved bits.
    pub hides_width: bool,
    pub plugin: &'a Description,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Safe,
    /// The guest would see nothing but that address bits are not reserved there which are for it: a guest that does not rely on
    /// them is safe.
    Conditional,
    /// The guest would see a difference.
    Unsafe,
    /// The guest cannot be there: it is wider than the host.
    Refused,
    /// Of an imported trace: nothing breaks of what it tells, but faults are left open that width and levels decide.
    Unknown,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Conditional => "conditional",
            Self::Unsafe => "unsafe",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// What is to be said of one host.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Assessment {
    pub host: String,
    /// Backend, silicon and profile that the guest ran on.
    pub machine: String,
    pub verdict: Verdict,
    /// Why, in one sentence.
    pub reason: String,
    /// The first exit that would differ, on the tape's side.
    pub exit: Option<u64>,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// What would make it safe, as far as settings can.
    #[serde(skip_serializing_if = "Pins::is_empty")]
    pub pins: Pins,
    /// The comparison with the guest's run on that host.
    pub replay: Option<Report>,
    /// Of an imported trace, which has no guest to run: how much of it was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// Gives the verdict. `reproduce` is the command that shows the comparison again.
pub fn check(
    guest: &Guest,
    host: &Host,
    create: Create,
    reproduce: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Assessment, Error> {
    let mut findings = rules::findings(guest, host);
    let replay = match rerun::run(guest, host, create, reproduce, progress) {
        Ok(ran) if ran.report.verdict == crate::report::Verdict::Nothing => {
            return Err(Error::NothingCompared { tape: guest.tape.name().to_owned() });
        }
        Ok(ran) if ran.report.verdict == crate::report::Verdict::Unknown && ran.findings.is_empty() => {
            return Err(Error::PartlyCompared {
                tape: guest.tape.name().to_owned(),
                unknown: ran.report.unknown.into_keys().collect::<Vec<_>>().join(", "),
            });
        }
        Ok(ran) => {
            findings.extend(ran.findings);
            Some(ran.report)
        }
        Err(Error::Machine(cause @ vmtape_machine::Error::Backend { .. })) => {
            findings.push(rerun::refused(&cause));
            None
        }
        Err(error) => return Err(error),
    };
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let verdict = match findings.first().map(|finding| finding.severity) {
        Some(Severity::Refuses) => Verdict::Refused,
        Some(Severity::Breaks) => Verdict::Unsafe,
        Some(Severity::Conditional) => Verdict::Conditional,
        _ => Verdict::Safe,
    };
    let worst = findings.first().filter(|_| verdict != Verdict::Safe);
    let reason = match (worst, &replay) {
        (Some(finding), _) => finding.to_string(),
        (None, Some(report)) => {
            let moved = guest.footprint.moves_at_instruction;
            let from = if moved == 0 { String::new() } else { format!(", from instruction {moved} on") };
            format!(
                "the same there, {} instructions long{from}",
                report.compared.instructions.saturating_sub(moved)
            )
        }
        (None, None) => String::new(),
    };
    let differs = findings.iter().find(|finding| finding.subject == finding::Subject::Replay);
    let mut pins = match verdict {
        Verdict::Safe => Pins::default(),
        _ => Pins::of(&findings, rules::widest(host)),
    };
    if differs.is_none() {
        // A guest that runs alike there does not mind the width.
        pins.hide_width.clear();
    }
    Ok(Assessment {
        host: host.passport.name.clone(),
        machine: machine_text(&host.machine),
        verdict,
        reason,
        exit: differs.and_then(|finding| finding.exit).or(worst.and_then(|finding| finding.exit)),
        findings,
        pins,
        replay,
        evidence: None,
    })
}

/// A machine in a few words.
pub fn machine_text(machine: &MachineSpec) -> String {
    let profile = machine.options.iter().find(|(key, _)| key == crate::spec::PROFILE);
    let profile = profile.map_or(String::new(), |(_, value)| format!(", {value}"));
    format!("{} on {}{profile}", machine.backend, machine.host)
}
