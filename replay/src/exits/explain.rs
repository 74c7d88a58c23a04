//! The exit at which feeding a tape differs: what the tape has of it, what the backend does about it, and why they differ.

use super::{Fed as Machine, feed, ioctls, resolve};
use crate::{
    Cause, Error, Report,
    across::Sides,
    causes::{
        Case, Seen, catalogue,
        trial::{self, Finding, Side},
    },
    explain::{self, Teller, Widths},
    report::{Class, Divergence, Row},
    witness::{Deed, Entry, Log},
};
use vmtape_arch::{cpuid::maxphyaddr, host::Silicon};
use vmtape_machine::MachineSpec;
use vmtape_traces::{ExitGroup, ahead};

/// What an exit counts in a budget of instructions.
const INSTRUCTIONS_PER_EXIT: u64 = 1_000;

/// A machine that was fed up to an exit, and what it did about that one.
struct Fed {
    machine: Machine,
    group: ExitGroup,
    deeds: Vec<Deed>,
    row: Option<Row>,
}

/// Adds the stories and the cause to a divergence that [`super::replay`] found.
pub fn explain(sides: &Sides, same: bool, report: &mut Report) -> Result<(), Error> {
    let Some(divergence) = &mut report.divergence else { return Ok(()) };
    let Some(number) = divergence.expected_exit else { return Ok(()) };
    let Some(fed) = feed_to(sides, &sides.actual, same, number)? else { return Ok(()) };
    let on_tape = Deed::of(&fed.group);
    let focus = explain::focus([&on_tape, &fed.deeds], None);
    let [name, other] = sides.names();
    let expected = seen(name, &fed, on_tape, &sides.expected.silicon, focus);
    let actual = seen(other, &fed, fed.deeds.clone(), &sides.actual.silicon, focus);
    let what = divergence.signature.what().to_owned();
    let case = Case { what: &what, focus, insn: &[], expected: &expected, actual: &actual };
    let cause = if sides.explain { cause(sides, same, divergence, &case) } else { None };
    if expected.outcome.word() != actual.outcome.word() {
        divergence.summary = format!("exit {number}: {}; expected: {}", actual.outcome, expected.outcome);
    }
    divergence.class = cause.as_ref().map_or(Class::Unexplained, |cause| Class::of(cause.kind));
    divergence.cause = cause;
    divergence.stories = [&expected, &actual]
        .map(|side| {
            let teller = Teller { widths: side.widths, focus };
            teller.tell(&side.name, &side.deeds, &side.outcome, &side.tables)
        })
        .into();
    Ok(())
}

/// Feeds a machine up to and with an exit. `None`: the tape does not have it.
fn feed_to(sides: &Sides, machine: &MachineSpec, same: bool, number: u64) -> Result<Option<Fed>, Error> {
    let log = Log::default();
    let mut machine = Machine::new(machine.clone(), sides.tape, sides.create, Some(log.clone()))?;
    ahead::with_exits(sides.tape, 0, 0, |exits| {
        while let Some(group) = exits.next_exit()? {
            let last = group.number == number;
            log.switch(last);
            let done = machine.machine.controls().len();
            let mut scratch = Report::new("", "", "");
            // What is not the last one needs no comparison, but the same treatment.
            let row = match same {
                true => feed(&mut machine, group, &mut scratch),
                false => resolve(&mut machine, group, &mut scratch),
            };
            let row = ioctls(&machine.machine, group, done).or(row);
            if last {
                let mut deeds = log.take();
                if same {
                    // The exit was given, and with it silicon's walk.
                    let walk = Deed::of(group).into_iter().filter(|deed| matches!(deed, Deed::Walk(_)));
                    deeds.splice(0..0, walk);
                }
                return Ok(Some(Fed { machine, group: group.clone(), deeds, row }));
            }
        }
        Ok(None)
    })
}

fn seen(name: String, fed: &Fed, deeds: Vec<Deed>, host: &Silicon, focus: Option<u64>) -> Seen {
    let machine = &fed.machine.machine;
    let vcpu = fed.group.exit.vcpu;
    let tables = |gva| machine.state(vcpu).map(|state| explain::tables(machine, state, gva));
    let tables: Vec<Entry> = focus.and_then(tables).unwrap_or_default();
    let widths = Widths { guest: maxphyaddr(machine.cpuid(vcpu)), host: host.phys_bits };
    Seen { name, vendor: host.vendor, widths, outcome: explain::outcome(&deeds, false), deeds, tables }
}

fn cause(sides: &Sides, same: bool, divergence: &Divergence, case: &Case) -> Option<Cause> {
    let known = catalogue::find(case);
    let number = divergence.expected_exit?;
    let mut run = |side: Side, machine: &MachineSpec| {
        let fed = match side {
            Side::Actual => feed_to(sides, machine, same, number)?,
            // The tape cannot be made otherwise.
            Side::Expected => None,
        };
        let equal = fed.is_some_and(|fed| fed.row.is_none());
        Ok((if equal { Finding::Equal } else { Finding::Still }, 0))
    };
    let found = trial::find(sides, number.saturating_mul(INSTRUCTIONS_PER_EXIT), &mut run);
    found.map(|found| found.in_words_of(known.clone())).or(known)
}
