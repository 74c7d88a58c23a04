//! Outcomes as a table, as JSON, and as JUnit XML.

use super::runner::{Outcome, Verdict};
use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use schemars::JsonSchema;
use serde::Serialize;
use std::{collections::BTreeMap, io::Write};

/// How many cases went how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Totals {
    pub passed: usize,
    pub deviating: usize,
    pub skipped: usize,
}

/// Everything that was run.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    pub totals: Totals,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn new(outcomes: Vec<Outcome>) -> Self {
        let count = |verdict| outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
        let totals = Totals {
            passed: count(Verdict::Pass),
            deviating: count(Verdict::Deviates),
            skipped: count(Verdict::Skipped),
        };
        Self { totals, outcomes }
    }

    /// One line per case; what deviates is told below with the command that shows it.
    pub fn table(&self, out: &mut impl Write) -> Result<()> {
        let mut table = table(["scenario", "backend", "verdict", "what it says"]);
        for outcome in &self.outcomes {
            let verdict = match outcome.verdict {
                Verdict::Pass => "ok",
                Verdict::Deviates => "DEVIATES",
                Verdict::Skipped => "skipped",
            };
            table.add_row([&outcome.name, &outcome.on, verdict, &outcome.text]);
        }
        writeln!(out, "{table}")?;
        for outcome in self.outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Deviates) {
            writeln!(out, "\n{} on {}: {}", outcome.name, outcome.on, outcome.text)?;
            for reason in &outcome.reasons {
                writeln!(out, "  {reason}")?;
            }
            writeln!(out, "  source: {}", outcome.source)?;
            for command in &outcome.commands {
                writeln!(out, "  $ {command}")?;
            }
        }
        let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.outcomes.iter().filter(|o| o.verdict == Verdict::Skipped).flat_map(|o| &o.reasons)
        {
            *skipped.entry(reason).or_default() += 1;
        }
        for (reason, count) in skipped {
            writeln!(out, "SKIPPED {count}: {reason}")?;
        }
        let Totals { passed, deviating, skipped } = self.totals;
        writeln!(out, "{passed} as expected, {deviating} deviating, {skipped} skipped")?;
        Ok(())
    }

    /// JUnit XML: a suite per history, a case per row and backend.
    pub fn junit(&self, out: impl Write) -> Result<()> {
        let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
        for outcome in &self.outcomes {
            let suite = suites.entry(&outcome.history).or_insert_with(|| TestSuite::new(&*outcome.history));
            suite.add_test_case(test_case(outcome));
        }
        let mut report = quick_junit::Report::new("vmtape scenarios");
        report.add_test_suites(suites.into_values());
        report.serialize(out)?;
        Ok(())
    }
}

fn test_case(outcome: &Outcome) -> TestCase {
    let reasons = outcome.reasons.join("\n");
    let status = match outcome.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Deviates => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(reasons);
            status.set_description(outcome.commands.join("\n"));
            status
        }
        Verdict::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reasons);
            status
        }
    };
    let mut case = TestCase::new(format!("{} [{}]", outcome.name, outcome.on), status);
    case.set_classname(&*outcome.history);
    case.set_system_out(format!("{}\n{}", outcome.text, outcome.source));
    case
}

/// A plain table, as wide as the terminal.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome {
            history: "h".into(),
            name: "a-row".into(),
            on: "vmx".into(),
            text: "what it says".into(),
            source: "a manual".into(),
            verdict,
            reasons: if verdict == Verdict::Pass { vec![] } else { vec!["because <of> this".into()] },
            commands: vec!["vmtape backends".into()],
        }
    }

    #[test]
    fn the_three_forms_tell_the_same() {
        let report = Report::new([Verdict::Pass, Verdict::Deviates, Verdict::Skipped].map(outcome).to_vec());
        assert_eq!(report.totals, Totals { passed: 1, deviating: 1, skipped: 1 });
        let (mut table, mut junit) = (Vec::new(), Vec::new());
        report.table(&mut table).unwrap();
        report.junit(&mut junit).unwrap();
        let (table, junit) = (String::from_utf8(table).unwrap(), String::from_utf8(junit).unwrap());
        assert!(table.contains("because <of> this") && table.contains("$ vmtape backends"), "{table}");
        let parsed = quick_junit::Report::deserialize_from_str(&junit).unwrap();
        assert_eq!((parsed.tests, parsed.failures), (3, 1), "{junit}");
    }
}
