//! Axis `faults`: the fewest faults of a tape from which the same follows.

use super::{
    Finding, Step, Trial,
    search::{self, Mark},
};
use crate::{
    Error,
    faults::{Judgement, Runs, fired, record},
    player::Create,
    report::Verdict,
    spec,
};
use vmtape_abi::Description;
use vmtape_faults::Verdict as Outcome;
use vmtape_machine::{HostPoint, Inputs, MachineSpec, Recorded};
use vmtape_traces::{Tape, event::Fault};

pub const AXIS: &str = "faults";

/// The tape, and what a run of its machine takes.
pub struct Request<'a> {
    pub tape: &'a Tape,
    pub create: Create<'a>,
    pub plugin: &'a Description,
    pub progress: &'a dyn Fn(Step),
}

impl Request<'_> {
    /// Finds the faults that matter.
    pub fn bisect(&self) -> Result<Finding, Error> {
        let (faults, _) = fired(self.tape)?;
        let Some(machine) = self.machine(&faults)? else {
            return Ok(Finding::same(AXIS, "no fault happened on this tape"));
        };
        let twin = self.record(&machine, &[])?;
        let all = self.judge(&twin, self.tape)?;
        if matches!(all.verdict, Outcome::Masked | Outcome::NotReached | Outcome::Unknown) {
            return Ok(Finding::same(AXIS, format!("{}: {}", all.verdict, all.why)));
        }
        let mut trials = Vec::new();
        let name = |fault: &Fault| self.name(fault);
        let kept = match faults.len() {
            1 => vec![0],
            count => search::minimize(count, |set| {
                let some: Vec<Fault> = set.iter().map(|at| faults[*at]).collect();
                let what = some.iter().map(name).collect::<Vec<_>>().join(", ");
                (self.progress)(Step::Trial(&what));
                let judged = self.judge(&twin, &self.record(&machine, &some)?)?;
                let bad = judged.signature.shows_same(&all.signature);
                let mark = if bad { Mark::Bad } else { Mark::Good };
                let shows = format!("{}: {}", judged.verdict, judged.why);
                trials.push(Trial { what: format!("{} of {count} faults", some.len()), mark, shows });
                Ok(bad)
            })?,
        };
        let mattered: Vec<&Fault> = kept.iter().map(|at| &faults[*at]).collect();
        let options = mattered.iter().map(|fault| option(&self.name(fault), fault));
        let lines = mattered.iter().map(|fault| self.line(fault)).collect::<Vec<_>>().join(" and ");
        Ok(Finding {
            verdict: Verdict::Different,
            signature: all.divergence.as_ref().map(|divergence| divergence.signature.clone()),
            notes: vec![
                format!("{} of {} faults matter: {}", kept.len(), faults.len(), all.why),
                format!("record with: {}", options.collect::<Vec<_>>().join(" ")),
            ],
            trials,
            divergence: all.divergence,
            ..Finding::same(AXIS, format!("{}, because of {lines}", all.verdict))
        })
    }

    /// The tape's machine, if it has faults.
    fn machine(&self, faults: &[Fault]) -> Result<Option<MachineSpec>, Error> {
        if faults.is_empty() { Ok(None) } else { spec::machine(self.tape).map(Some) }
    }

    fn inputs(&self, faults: &[Fault]) -> Result<Box<dyn Inputs>, Error> {
        let inputs: Recorded = spec::inputs(self.tape)?;
        Ok(Box::new(inputs.with_faults(faults.to_vec())))
    }

    fn record(&self, machine: &MachineSpec, faults: &[Fault]) -> Result<Tape, Error> {
        record(machine, self.inputs(faults)?, &spec::generous_budget(self.tape), self.create, None)
    }

    fn judge(&self, twin: &Tape, faulty: &Tape) -> Result<Judgement, Error> {
        Runs { twin, faulty, create: self.create, plugin: self.plugin }.judge()
    }

    fn name(&self, fault: &Fault) -> String {
        let name = self.tape.metadata().fault_point(fault.point);
        name.map_or_else(|| format!("point {:#x}", fault.point), str::to_owned)
    }

    fn line(&self, fault: &Fault) -> String {
        let (name, n, icount) = (self.name(fault), fault.occurrence, fault.icount);
        format!("{name} #{n} after {icount} instructions")
    }
}

/// The option of `record` that repeats a fault.
fn option(name: &str, fault: &Fault) -> String {
    let whose =
        if fault.vcpu < vmtape_machine::MAX_VCPUS { format!(",vcpu={}", fault.vcpu) } else { String::new() };
    let value = fault.answer;
    if fault.point == HostPoint::NMI.0 {
        return format!("--fault {name},insn={}", fault.icount);
    }
    format!("--fault {name},n={}{whose},value={value:#x}", fault.occurrence)
}
