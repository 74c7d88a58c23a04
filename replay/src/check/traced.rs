//! May the guest of a trace move to a host? As far as the trace tells: there is no machine to run again.

use super::{Assessment, Verdict, finding::Severity, pins::Pins};
use crate::{
    Error,
    evidence::{self, Target},
};
use vmtape_traces::Tape;

/// Gives the verdict. That nothing breaks is said of no more than the exits that were judged.
pub fn check(tape: &Tape, target: &Target, progress: &mut dyn FnMut(u64)) -> Result<Assessment, Error> {
    let evidence = evidence::judge(tape, target, progress)?;
    if evidence.is_nothing() {
        return Err(Error::NothingCompared { tape: tape.name().to_owned() });
    }
    let mut findings: Vec<_> = evidence.found.iter().map(|found| found.finding.clone()).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let verdict = match findings.first().map(|finding| finding.severity) {
        Some(Severity::Refuses) => Verdict::Refused,
        Some(Severity::Breaks) => Verdict::Unsafe,
        Some(Severity::Conditional) => Verdict::Conditional,
        _ if evidence.open_faults > 0 => Verdict::Unknown,
        _ => Verdict::Safe,
    };
    let worst = findings.first().filter(|_| !matches!(verdict, Verdict::Safe | Verdict::Unknown));
    let reason = match worst {
        Some(finding) => finding.to_string(),
        None if verdict == Verdict::Unknown => format!(
            "{} faults are left open, and a host's width and levels decide what they are; {}",
            evidence.open_faults,
            evidence.summary()
        ),
        None => format!("only as far as the trace tells: {}", evidence.summary()),
    };
    let exit = worst.and_then(|finding| finding.exit);
    let pins = worst.map(|_| Pins::of(&findings, target.width())).unwrap_or_default();
    Ok(Assessment {
        host: target.passport.name.clone(),
        machine: target.machine.clone(),
        verdict,
        reason,
        exit,
        findings,
        pins,
        replay: None,
        evidence: Some(evidence),
    })
}
