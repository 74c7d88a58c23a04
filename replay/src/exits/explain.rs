//! The exit at which feeding a tape differs: what the tape has of it, what the backend does about it, and why they differ.

use super::{
    found::{Found, taped},
    replayed::{Handling, Method, Replayed},
    view::{View, taped_entry},
};
use crate::{
    Error,
    causes::{self, Case, Finding, Seen, Side, rules},
    explain::{self, Teller, Widths},
    observer::{Entry, Log, Observation},
    report::{Class, Divergence},
    sides::Sides,
    signature,
    state::{Difference, compare_controls},
};
use vmtape_arch::{cpuid::maxphyaddr, host::Silicon};
use vmtape_machine::MachineSpec;
use vmtape_traces::{
    ExitGroup, ahead,
    event::{Control, Fault},
};

/// What an exit counts in a budget of instructions.
const INSTRUCTIONS_PER_EXIT: u64 = 1_000;

/// What a replayed machine made of an exit.
pub(super) struct Last {
    number: u64,
    pub handling: Handling,
    pub controls: Vec<Control>,
    /// Its handling used what the tape does not have.
    pub unknown: bool,
    /// Faults of the exit that its handling did not ask for.
    pub missed: Vec<Fault>,
}

impl Last {
    /// The exit's.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Gives the machine an exit.
    pub fn of(replayed: &mut Replayed, group: &ExitGroup) -> Result<Self, Error> {
        let (unknown, done) = (replayed.machine.unknown_reads(), replayed.machine.controls().len());
        let handling = replayed.take(group)?;
        let unknown = replayed.machine.unknown_reads() != unknown;
        if unknown {
            replayed.goes_astray(group.exit.vcpu);
        }
        let missed = replayed.machine.missed_faults();
        Ok(Self { number: group.number, handling, controls: replayed.controls(done), unknown, missed })
    }
}

/// A machine that has replayed up to an exit, and what it did about that one.
pub(super) struct At {
    replayed: Replayed,
    last: Last,
    observations: Vec<Observation>,
}

impl At {
    pub fn new(replayed: Replayed, last: Last, observations: Vec<Observation>) -> Self {
        Self { replayed, last, observations }
    }
}

/// Adds the stories and the cause to a divergence that was found.
pub(super) fn explain(
    sides: &Sides,
    method: Method,
    found: &Found,
    last: Option<At>,
    divergence: &mut Divergence,
) -> Result<(), Error> {
    if !sides.explain {
        return Ok(());
    }
    let group = &found.group;
    let at = match last {
        // Nobody tells stories of ioctls.
        Some(at) if at.last.number == group.number && found.is_ioctl() => Some(at),
        _ => feed_to(sides, &sides.actual, method, group.number)?,
    };
    let Some(at) = at else { return Ok(()) };
    // The exit has no part in what the VMM asked.
    let (on_tape, observations) = match found.is_ioctl() {
        true => Default::default(),
        // If the exit was given, so was silicon's walk.
        false if method.same => (Observation::of(group), [walk_of(group), at.observations.clone()].concat()),
        false => (Observation::of(group), at.observations.clone()),
    };
    let focus = explain::focus([&on_tape, &observations], None);
    let [name, other] = sides.names();
    let mut expected = seen(name, &at, on_tape, &sides.expected.silicon, focus, group);
    // The replayed machine has written to its entries what it would.
    for entry in &mut expected.tables {
        let taped = taped_entry(&at.replayed, group, entry).unwrap_or(entry.before);
        (entry.before, entry.after) = (taped, taped);
    }
    let actual = Seen {
        outcome: if found.is_ioctl() { explain::outcome(&[], false) } else { view(&at, group).outcome },
        ..seen(other, &at, observations, &sides.actual.silicon, focus, group)
    };
    let case = Case { what: &found.what.0, focus, insn: &[], expected: &expected, actual: &actual };
    // Another build of one machine differs from it in nothing that could be tried.
    let here = rules::named(&actual.observations, &sides.plugin.rules, &sides.actual.backend);
    let there = rules::named(&expected.observations, &sides.expected_plugin.rules, &sides.expected.backend);
    let cause = match method.same {
        true => None,
        false => cause(sides, method, &at, found, &case).or_else(|| causes::of_rules(&there, &here)),
    };
    divergence.rules = [here, there].concat();
    divergence.class = cause.as_ref().map_or(Class::Unexplained, |cause| Class::of(cause.kind));
    divergence.cause = cause;
    if !found.is_ioctl() {
        divergence.stories = [&expected, &actual]
            .map(|side| {
                let teller = Teller { widths: side.widths, focus };
                teller.tell(&side.name, &side.observations, &side.outcome, &side.tables)
            })
            .into();
    }
    Ok(())
}

/// Feeds a machine up to and with an exit. `None`: the tape does not have it.
fn feed_to(sides: &Sides, machine: &MachineSpec, method: Method, number: u64) -> Result<Option<At>, Error> {
    let log = Log::default();
    let mut replayed = Replayed::new(machine, sides, method, Some(log.clone()))?;
    ahead::with_exits(sides.tape, 0, 0, |exits| {
        while let Some(group) = exits.next_exit()? {
            let wanted = group.number == number;
            log.clear();
            log.switch(wanted);
            let last = Last::of(&mut replayed, group)?;
            if wanted {
                return Ok(Some(At::new(replayed, last, log.take())));
            }
        }
        Ok(None)
    })
}

fn walk_of(group: &ExitGroup) -> Vec<Observation> {
    Observation::of(group)
        .into_iter()
        .filter(|observation| matches!(observation, Observation::Walk(_)))
        .collect()
}

fn view(at: &At, group: &ExitGroup) -> View {
    View::of_replayed(&at.replayed, group, &at.last.handling)
}

fn seen(
    name: String,
    at: &At,
    observations: Vec<Observation>,
    host: &Silicon,
    focus: Option<u64>,
    group: &ExitGroup,
) -> Seen {
    let (machine, vcpu) = (&at.replayed.machine, group.exit.vcpu);
    let tables = |gva| machine.state(vcpu).map(|state| explain::tables(machine, state, gva));
    let tables: Vec<Entry> = focus.and_then(tables).unwrap_or_default();
    let widths = Widths { guest: maxphyaddr(machine.cpuid(vcpu)), host: host.phys_bits };
    Seen {
        name,
        vendor: host.vendor,
        widths,
        outcome: explain::outcome(&observations, false),
        observations,
        tables,
    }
}

/// Whether the tape's own machine, given what caused the exit as another one is, does what the tape has. If not, what it does with
/// something changed shows nothing of the change.
fn repeats_tape(sides: &Sides, method: Method, found: &Found) -> Result<bool, Error> {
    let group = &found.group;
    let Some(at) = feed_to(sides, &sides.expected, method, group.number)? else { return Ok(false) };
    if found.is_ioctl() {
        let (changes, questions) = compare_controls(taped(group), at.last.controls, false);
        return Ok(changes.is_empty() && questions.is_empty());
    }
    let (expected, actual) = (View::of_tape(&at.replayed, group), view(&at, group));
    let differences = expected.differences(&actual, at.replayed.guest_width());
    Ok(!at.last.unknown && differences.is_empty() && expected.outcome.word() == actual.outcome.word())
}

fn cause(sides: &Sides, method: Method, at: &At, found: &Found, case: &Case) -> Option<causes::Cause> {
    let group = &found.group;
    let mut repeated = None;
    let mut run = |side: Side, machine: &MachineSpec| {
        if side == Side::Expected {
            let repeats = match repeated {
                Some(repeats) => repeats,
                None => repeats_tape(sides, method, found)?,
            };
            repeated = Some(repeats);
            if !repeats {
                return Ok(Finding::Still);
            }
        }
        let Some(tried) = feed_to(sides, machine, method, group.number)? else { return Ok(Finding::Still) };
        let on_tape = || (View::of_tape(&tried.replayed, group), taped(group));
        let ((expected, asked), (actual, answered)) = match side {
            Side::Actual => (on_tape(), (view(&tried, group), tried.last.controls.clone())),
            Side::Expected => (
                (view(&tried, group), tried.last.controls.clone()),
                (view(at, group), at.last.controls.clone()),
            ),
        };
        if found.is_ioctl() {
            let (changes, questions) = compare_controls(asked, answered, false);
            return Ok(if changes.is_empty() && questions.is_empty() {
                Finding::Equal
            } else {
                Finding::Still
            });
        }
        if tried.last.unknown {
            return Ok(Finding::Still);
        }
        let guest = tried.replayed.guest_width();
        let differences: Vec<Difference> = expected.differences(&actual, guest);
        let (what, _) = signature::what(&differences, &expected.outcome, &actual.outcome, guest);
        let equal = differences.is_empty() && expected.outcome.word() == actual.outcome.word();
        Ok(if equal { Finding::Equal } else { Finding::of(&what, case.what) })
    };
    let cost = group.number.saturating_mul(INSTRUCTIONS_PER_EXIT);
    causes::find(sides, case, found.difference.as_ref(), cost, &mut run)
}
