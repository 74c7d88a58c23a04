//! The evidence as a comparison: the recorded KVM against the host.

use super::{Evidence, Found, target::Target};
use crate::{
    causes::{Cause, Kind},
    check::finding::Severity,
    report::{Class, Divergence, Level, Occurrence, Report},
    signature::Signature,
};

/// How exits of a trace are compared.
pub const METHOD: &str =
    "each exit of the trace is judged by what it and its events tell; there is no guest to run";

/// A report of the evidence. `go_on`: with all differences.
pub fn report(tape: &str, evidence: &Evidence, target: &Target, go_on: bool, reproduce: &str) -> Report {
    let mut report = Report::new(METHOD, format!("the recorded KVM ({tape})"), target.machine.clone());
    report.compared.exits = evidence.judged;
    report.compared.events = evidence.events;
    report.exempted.clone_from(&evidence.exempt);
    report.cost.clone_from(&evidence.cost);
    for (why, count) in evidence.open.iter().chain(&evidence.open_events) {
        report.leave_open(why.clone(), *count);
    }
    for found in evidence.found.iter().filter(|found| found.finding.severity != Severity::Caution) {
        let divergence = divergence(found, target, reproduce);
        if go_on {
            report.occurrences.push(Occurrence { divergence: divergence.clone(), times: found.times });
        }
        report.diverge(divergence);
    }
    // What the guest did between its exits is never known.
    report.leave_open("stretches between exits, of which no event tells", evidence.exits.saturating_sub(1));
    report.conclude();
    report
}

fn divergence(found: &Found, target: &Target, reproduce: &str) -> Divergence {
    let finding = &found.finding;
    let subject = format!("{:?}", finding.subject).to_lowercase();
    let cause = Cause {
        kind: Kind::Configuration,
        name: format!("host: {subject}"),
        sentence: finding.sentence.clone(),
        source: finding.source.to_owned(),
        confirmed: None,
    };
    let exit = finding.exit.map_or(String::new(), |exit| format!("exit {exit}: "));
    Divergence {
        level: Level::GuestVisible,
        class: Class::of(cause.kind),
        signature: Signature::new(&format!("evidence:{subject}"), found.rip),
        cause: Some(cause),
        summary: format!("{exit}on {} {finding}", target.machine),
        vcpu: found.vcpu,
        icount: found.time,
        rip: found.rip,
        nested: None,
        expected_exit: finding.exit,
        actual_exit: None,
        rows: Vec::new(),
        stories: Vec::new(),
        expected_context: Vec::new(),
        actual_context: Vec::new(),
        rules: Vec::new(),
        reproduce: reproduce.to_owned(),
    }
}
