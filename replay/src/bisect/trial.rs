//! One trial of a bisection: a machine beside the tape, and what it shows.

use super::{Finding, search::Mark};
use crate::{
    Error, Report, across, exits, identical,
    player::{Create, Player},
    report::{Divergence, Verdict},
    signature::Signature,
    spec, text,
};
use schemars::JsonSchema;
use serde::Serialize;
use vmtape_abi::Description;
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_traces::{Tape, event::End};

/// Whether the guest runs in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Run,
    Exits,
}

/// What makes a machine bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// It differs from the tape.
    Divergence(Mode),
    /// Its run ends otherwise than the tape does.
    End,
    /// Its guest prints this.
    Prints(String),
}

/// The two machines of a trial.
pub struct Pair {
    /// What the second one is compared with, where that is not the bisected tape itself.
    pub tape: Option<Tape>,
    pub expected: MachineSpec,
    pub actual: MachineSpec,
}

/// What a trial showed.
#[derive(Clone, Debug)]
pub enum Show {
    Same,
    Different {
        signature: Signature,
        text: String,
        divergence: Option<Box<Divergence>>,
    },
    /// It could not be tried, and why.
    Unable(String),
}

/// A trial as the evidence lists it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Trial {
    pub what: String,
    pub mark: Mark,
    pub shows: String,
}

/// What somebody who waits for a bisection hears.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A trial begins.
    Trial(&'a str),
    /// It has come so far; the tape is so long.
    At { at: u64, of: u64 },
}

/// Everything that the trials of one bisection have in common.
pub struct Bench<'a> {
    pub tape: &'a Tape,
    /// The tape's machine.
    pub machine: MachineSpec,
    pub create: Create<'a>,
    /// What the plugin of a backend says of itself.
    pub describe: &'a dyn Fn(&str) -> Result<Description, Error>,
    pub criterion: Criterion,
    /// The command line to which a candidate's own options are added.
    pub command: String,
    pub progress: &'a dyn Fn(Step),
    pub trials: Vec<Trial>,
    /// What is looked for, once the bad end has shown it.
    pub wanted: Option<Signature>,
    /// There is one trial only, whose divergence is explained at once.
    pub only: bool,
    /// The last bad trial: its machines and its divergence.
    pub bad: Option<(Pair, Option<Divergence>)>,
}

impl<'a> Bench<'a> {
    /// Tries a machine beside the tape's own.
    pub fn test(&mut self, what: &str, actual: MachineSpec) -> Result<Mark, Error> {
        let pair = Pair { tape: None, expected: self.machine.clone(), actual };
        self.test_pair(what, pair, self.create)
    }

    /// Tries a pair of machines. The first bad trial decides what is looked for.
    pub fn test_pair(&mut self, what: &str, pair: Pair, create: Create) -> Result<Mark, Error> {
        (self.progress)(Step::Trial(what));
        let shown = self.show(&pair, create)?;
        let (mark, shows) = match shown {
            Show::Same => (Mark::Good, "same".to_owned()),
            Show::Unable(why) => (Mark::Skip, format!("cannot be tried: {why}")),
            Show::Different { signature, text, divergence } => {
                let wanted = self.wanted.get_or_insert_with(|| signature.clone());
                if *wanted == signature {
                    self.bad = Some((pair, divergence.map(|divergence| *divergence)));
                    (Mark::Bad, text)
                } else {
                    (Mark::Skip, format!("another difference comes first: {text} [{signature}]"))
                }
            }
        };
        self.trials.push(Trial { what: what.to_owned(), mark, shows });
        Ok(mark)
    }

    /// Notes a candidate that cannot be tried.
    pub fn skip(&mut self, what: &str, why: String) -> Mark {
        let shows = format!("cannot be tried: {why}");
        self.trials.push(Trial { what: what.to_owned(), mark: Mark::Skip, shows });
        Mark::Skip
    }

    /// As [`Bench::skip`], if the error speaks of the candidate; any other error ends the bisection.
    pub fn unable(&mut self, what: &str, error: Error) -> Result<Mark, Error> {
        if is_about_machine(&error) { Ok(self.skip(what, error.to_string())) } else { Err(error) }
    }

    /// What a pair shows. A machine that its backend refuses or breaks under is nothing that can be judged.
    pub fn show(&self, pair: &Pair, create: Create) -> Result<Show, Error> {
        let shown = match &self.criterion {
            Criterion::Divergence(mode) => self.compare(*mode, pair, create),
            Criterion::End => self.ends(pair, create),
            Criterion::Prints(text) => self.prints(text, pair, create),
        };
        match shown {
            Err(error) if is_about_machine(&error) => Ok(Show::Unable(error.to_string())),
            shown => shown,
        }
    }

    fn compare(&self, mode: Mode, pair: &Pair, create: Create) -> Result<Show, Error> {
        let report = self.report(mode, pair, create, self.only)?;
        Ok(match report.divergence {
            Some(divergence) => Show::Different {
                signature: divergence.signature.clone(),
                text: divergence.summary.clone(),
                divergence: Some(Box::new(divergence)),
            },
            None if report.verdict == Verdict::Same => Show::Same,
            None if report.verdict == Verdict::Unknown => Show::Unable(unknown(&report)),
            None => Show::Unable("nothing could be compared".into()),
        })
    }

    /// Compares two machines by the method that fits them: the same machine event by event, another one by what the guest
    /// can observe.
    fn report(&self, mode: Mode, pair: &Pair, create: Create, explain: bool) -> Result<Report, Error> {
        let tape = pair.tape.as_ref().unwrap_or(self.tape);
        let (mut expected, mut actual) = (pair.expected.clone(), pair.actual.clone());
        // Another build of the backend may resolve the same options to more.
        let same = is_same(&expected, &actual);
        actual.options = create(&actual)?.resolved();
        let mut report = Report::new("", tape.name(), actual.backend.clone());
        let (expected_plugin, plugin) =
            ((self.describe)(&expected.backend)?, (self.describe)(&actual.backend)?);
        expected.describe_by(&expected_plugin);
        actual.describe_by(&plugin);
        let same = same || is_same(&expected, &actual);
        let totals = tape.totals()?;
        let of = if same || mode == Mode::Exits { totals.exits } else { totals.icount };
        let tick = &mut |at| (self.progress)(Step::At { at, of });
        /// Exits of context before a difference.
        const CONTEXT: usize = 3;
        let sides = across::Sides {
            way: None,
            at: When::Start,
            tape,
            expected,
            actual,
            create,
            expected_plugin: &expected_plugin,
            plugin: &plugin,
            context: CONTEXT,
            explain,
            reproduce: String::new(),
            inputs: None,
        };
        match (mode, same) {
            (Mode::Exits, same) => {
                exits::replay(&sides, exits::Method { same, ..Default::default() }, &mut report, tick)?;
            }
            (Mode::Run, true) => {
                let machine = sides.actual.clone();
                identical::replay(tape, machine, create, None, &mut report, "", tick)?;
            }
            (Mode::Run, false) => sides.compare(&mut report, tick)?,
        }
        Ok(report)
    }

    /// The divergence of the last bad trial, explained.
    fn explained(&mut self) -> Result<Option<Divergence>, Error> {
        let Some((pair, divergence)) = self.bad.take() else { return Ok(None) };
        match &self.criterion {
            Criterion::Divergence(mode)
                if divergence.is_some() && !self.only && !is_same(&pair.expected, &pair.actual) =>
            {
                Ok(self.report(*mode, &pair, self.create, true)?.divergence)
            }
            _ => Ok(divergence),
        }
    }

    fn ends(&self, pair: &Pair, create: Create) -> Result<Show, Error> {
        let expected = match &pair.tape {
            Some(tape) => tape.end()?.map(|(_, end)| end),
            None => self.tape.end()?.map(|(_, end)| end),
        };
        let ended = Ended::of(self.tape, pair.actual.clone(), create)?;
        Ok(if expected.as_ref().is_some_and(|expected| text::same_end(expected, &ended.end)) {
            Show::Same
        } else {
            Show::Different {
                signature: ended.signature(),
                text: text::end_text(&ended.end),
                divergence: None,
            }
        })
    }

    fn prints(&self, wanted: &str, pair: &Pair, create: Create) -> Result<Show, Error> {
        let ended = Ended::of(self.tape, pair.actual.clone(), create)?;
        Ok(if ended.printed.contains(wanted) {
            Show::Different {
                signature: Signature::new(&format!("prints:{wanted}"), 0),
                text: format!("the guest prints {wanted:?}"),
                divergence: None,
            }
        } else {
            Show::Same
        })
    }

    /// The options that make the tape's machine again, but for its CPU.
    pub(super) fn machine_options(&self) -> Result<String, Error> {
        let m = &self.machine;
        let mut options = format!("-b {}", m.backend);
        for (name, value) in spec::chosen(m, self.create)? {
            options += &format!(",{name}={value}");
        }
        if let Some((_, profile)) = m.options.iter().find(|(name, _)| name == spec::PROFILE) {
            options += &format!(" --kvm {profile}");
        }
        options += &format!(" --host {} -m {}M", m.host, m.memory >> 20);
        if m.vcpus > 1 {
            options += &format!(" --smp {}", m.vcpus);
        }
        Ok(options)
    }

    /// The finding of a search that is over.
    pub fn found(
        &mut self,
        axis: &'static str,
        line: impl Into<String>,
        options: &str,
    ) -> Result<Finding, Error> {
        let divergence = self.explained()?;
        Ok(Finding {
            axis,
            verdict: Verdict::Different,
            line: line.into(),
            signature: self.wanted.clone(),
            notes: Vec::new(),
            trials: std::mem::take(&mut self.trials),
            divergence,
            reproduce: format!("{} {}", self.command, options.trim()).trim_end().to_owned(),
        })
    }

    /// The finding of a search that had nothing to look for. What could not be tried may be what it looked for.
    pub fn nothing(&mut self, axis: &'static str, line: impl Into<String>) -> Finding {
        let trials = std::mem::take(&mut self.trials);
        let skipped = trials.iter().filter(|trial| trial.mark == Mark::Skip).count();
        let mut finding = Finding { trials, ..Finding::same(axis, line) };
        if skipped > 0 {
            finding.verdict = Verdict::Unknown;
            finding.notes.push(format!("that is not certain: {skipped} could not be judged"));
        }
        finding
    }
}

/// Why nothing is known though nothing differs.
fn unknown(report: &Report) -> String {
    let counts = report.unknown.iter().map(|(what, count)| format!("{count} {what}"));
    format!(
        "nothing differs of what could be compared, but unknown are {}",
        counts.collect::<Vec<_>>().join(", ")
    )
}

/// Whether an error is a machine's, that its backend refuses or breaks under, and not the tape's.
fn is_about_machine(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::Failed { .. } | Error::Machine(_))
}

/// Whether two machines are one: the guest, the backend with its options, and the silicon.
fn is_same(a: &MachineSpec, b: &MachineSpec) -> bool {
    let sorted = |machine: &MachineSpec| {
        let mut options = machine.options.clone();
        options.sort();
        options
    };
    (&a.backend, &a.silicon, &a.cpuid) == (&b.backend, &b.silicon, &b.cpuid) && sorted(a) == sorted(b)
}

/// How a machine's run ended, and what its guest printed.
pub(super) struct Ended {
    pub end: End,
    pub printed: String,
    rip: u64,
}

impl Ended {
    /// Runs a machine with a tape's inputs. One that goes on long after the tape's end hangs.
    pub fn of(tape: &Tape, machine: MachineSpec, create: Create) -> Result<Self, Error> {
        let mut player =
            Player::new(machine, Box::new(spec::inputs(tape)?), spec::generous_budget(tape), create, false)?;
        Self::finish(&mut player)
    }

    /// Runs a machine on to its end.
    pub fn finish(player: &mut Player) -> Result<Self, Error> {
        let mut printed = Vec::new();
        while player.end.is_none() {
            player.advance(u64::MAX, u64::MAX)?;
        }
        printed.extend(player.take_serial());
        let vcpu = match &player.end {
            Some(End::Fatal { vcpu, .. } | End::NoProgress { vcpu, .. }) => *vcpu,
            _ => 0,
        };
        Ok(Self {
            end: player.end.clone().unwrap_or(End::Cut),
            printed: String::from_utf8_lossy(&printed).into_owned(),
            rip: player.machine.state(vcpu).map_or(0, |state| state.rip),
        })
    }

    /// The end's name: how and where, not when.
    pub fn signature(&self) -> Signature {
        let rip = match self.end {
            End::Shutdown { .. } | End::Fatal { .. } | End::NoProgress { .. } => self.rip,
            _ => 0,
        };
        Signature::new(&format!("end:{}", text::end_kind(&self.end)), rip)
    }
}
