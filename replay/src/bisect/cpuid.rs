//! Axis `cpuid`: the smallest set of CPUID changes that makes the verdict flip, by delta debugging.

use super::{
    Bench, Finding, Pair,
    search::{Mark, minimize},
};
use crate::{Error, cpuid::Change, spec};
use vmtape_arch::cpuid::CpuidEntry;
use vmtape_machine::MachineSpec;

const AXIS: &str = "cpuid";

/// What to search.
pub struct Request {
    /// The machine that is tried; its CPUID is replaced.
    pub machine: MachineSpec,
    /// The CPUID with all changes, and the one without any.
    pub to: Vec<CpuidEntry>,
    pub from: Vec<CpuidEntry>,
    /// The CPU model of `from`, as `--cpu` spells it.
    pub model: String,
    /// The tape's own machine gets the same CPUID in each trial, and the two are compared: which part of the CPUID does
    /// the divergence need? Otherwise the tried machine alone gets it.
    pub both: bool,
}

pub fn bisect(bench: &mut Bench, request: &Request) -> Result<Finding, Error> {
    let changes = Change::between(&request.from, &request.to);
    if changes.is_empty() {
        return Ok(bench.nothing(AXIS, "the CPU model is the tape's: no CPUID change could flip the verdict"));
    }
    let text = |set: &[usize]| match set {
        [] => "no change".to_owned(),
        set => set.iter().map(|n| changes[*n].text()).collect::<Vec<_>>().join(","),
    };
    let test = |bench: &mut Bench, set: &[usize]| {
        let what = if set.len() == changes.len() { format!("all {} changes", set.len()) } else { text(set) };
        request.test(bench, &what, set.iter().map(|n| &changes[*n]))
    };
    let all: Vec<usize> = (0..changes.len()).collect();
    if test(bench, &all)? != Mark::Bad {
        return Ok(bench.nothing(AXIS, "all CPUID changes together do not flip the verdict"));
    }
    if test(bench, &[])? == Mark::Bad {
        let mut finding = bench.found(AXIS, "first bad: whatever the CPUID says", "")?;
        finding.notes.push("no CPUID change is needed for it".into());
        return Ok(finding);
    }
    let set = minimize(changes.len(), |set| Ok(test(bench, set)? == Mark::Bad))?;
    let mut finding = bench.found(AXIS, format!("first bad: {}", text(&set)), "")?;
    let set: Vec<&Change> = set.iter().map(|n| &changes[*n]).collect();
    finding.reproduce = reproduce(bench, &request.model, &set, request.both)?;
    finding.notes.push(format!(
        "the smallest set out of {} changes: without any one of it the verdict is good",
        changes.len()
    ));
    Ok(finding)
}

/// The command that runs the tape's guest with changes to its CPUID, and compares (`both`) as the bisection did. Empty:
/// no command line says these changes.
pub(super) fn reproduce(
    bench: &Bench,
    model: &str,
    changes: &[&Change],
    both: bool,
) -> Result<String, Error> {
    let words: Vec<String> = changes.iter().map(|change| change.text()).collect();
    if words.iter().any(|word| word.contains('(') || word.starts_with("linear-bits")) {
        return Ok(String::new());
    }
    let cpu = std::iter::once(model.to_owned()).chain(words).collect::<Vec<_>>().join(",");
    let machine = bench.machine_options()?;
    let guest = &bench.machine.image.name;
    Ok(match both {
        false => format!("vmtape run {machine} --cpu {cpu} {guest}"),
        true => {
            let (_, elsewhere) = bench.command.split_once(bench.tape.name()).unwrap_or_default();
            format!(
                "vmtape record -o other.tape {machine} --cpu {cpu} {guest} && vmtape replay other.tape{elsewhere}"
            )
        }
    })
}

impl Request {
    fn test<'c>(
        &self,
        bench: &mut Bench,
        what: &str,
        changes: impl Iterator<Item = &'c Change>,
    ) -> Result<Mark, Error> {
        let mut cpuid = self.from.clone();
        changes.for_each(|change| change.apply(&mut cpuid));
        let actual = MachineSpec { cpuid: cpuid.clone(), ..self.machine.clone() };
        let mut pair = Pair { tape: None, expected: bench.machine.clone(), actual };
        if self.both {
            pair.expected.cpuid = cpuid;
            match spec::record(&pair.expected, bench.tape, &spec::generous_budget(bench.tape), bench.create) {
                Ok(tape) => pair.tape = Some(tape),
                Err(error) => return bench.unable(what, error),
            }
        }
        bench.test_pair(what, pair, bench.create)
    }
}
