//! The instruction after which two machines differ: what each side did about it, and why they differ.

use super::{LastEqual, Pair, Sides, end_difference};
use crate::{
    Error,
    causes::{self, Case, Cause, Finding, Seen, Side, rules},
    explain::{self, Teller, Widths},
    observer::{Entry, Observation},
    player::Player,
    report::{Class, Divergence, Level},
    signature::{self, Signature},
    state::{self, Difference},
    text,
};
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_machine::MachineSpec;
use vmtape_traces::{Event, ExitGroup, Exits, event::End};

/// Tells of the instruction that both machines of a pair have just executed.
pub(super) fn explain(
    sides: &Sides,
    pair: &Pair,
    before: &LastEqual,
    mut differences: Vec<Difference>,
) -> Result<Divergence, Error> {
    let guest = Widths::of_machine(&sides.expected).guest;
    differences.sort_by_key(|difference| difference.rank(guest));
    let ioctl = matches!(differences.first(), Some(Difference::Ioctl { .. }));
    let mut observations = [pair.expected.take_observations(), pair.actual.take_observations()];
    if ioctl {
        // The instruction that follows has no part in it.
        observations = [Vec::new(), Vec::new()];
    }
    let (groups, others) = (exits(&pair.expected), exits(&pair.actual));
    let vcpu = vcpu(&differences, [&groups, &others], before.icount);
    let entry = differences.first().and_then(Difference::entry);
    let focus = explain::focus([&observations[0], &observations[1]], entry);
    let [on_tape, here] = observations;
    let [name, other] = sides.names();
    let state = before.states.get(vcpu as usize);
    let tables = |player: &Player| match (focus, state) {
        (Some(gva), Some(state)) => explain::tables(&player.machine, state, gva),
        _ => Vec::new(),
    };
    let expected = seen(name, &pair.expected, on_tape, vcpu, tables(&pair.expected));
    let actual = seen(other, &pair.actual, here, vcpu, tables(&pair.actual));
    let (what, summary) = signature::what(&differences, &expected.outcome, &actual.outcome, guest);
    let insn = state.map(|state| explain::instruction(&pair.expected.machine, state)).unwrap_or_default();
    let case = Case { what: &what, focus, insn: &insn, expected: &expected, actual: &actual };
    let here = rules::named(&actual.observations, &sides.plugin.rules, &sides.actual.backend);
    let there = rules::named(&expected.observations, &sides.expected_plugin.rules, &sides.expected.backend);
    let cause = match sides.explain {
        true => cause(sides, pair, before, (&case, &differences), guest)
            .or_else(|| causes::of_rules(&there, &here)),
        false => None,
    };
    let rip = state.map_or(0, |state| state.rip);
    let number = |groups: &[ExitGroup]| groups.last().map(|group| group.number);
    let rules = [here, there].concat();
    Ok(Divergence {
        level: if ioctl { Level::VmmVisible } else { Level::GuestVisible },
        class: cause.as_ref().map_or(Class::Unexplained, |cause| Class::of(cause.kind)),
        signature: Signature::new(&what, if ioctl { signature::NOWHERE } else { rip }),
        cause,
        summary,
        vcpu,
        icount: before.icount,
        rip,
        nested: groups.last().or(others.last()).and_then(|group| text::nested(&group.exit)),
        expected_exit: number(&groups),
        actual_exit: number(&others),
        rows: differences.iter().flat_map(Difference::rows).collect(),
        stories: if ioctl { Vec::new() } else { [&expected, &actual].map(|side| tell(side, focus)).into() },
        expected_context: text::context(groups.iter(), sides.context),
        actual_context: text::context(others.iter(), sides.context),
        rules,
        reproduce: sides.reproduce.clone(),
    })
}

fn seen(
    name: String,
    player: &Player,
    observations: Vec<Observation>,
    vcpu: u32,
    tables: Vec<Entry>,
) -> Seen {
    let endless = matches!(player.end, Some(End::NoProgress { .. }));
    let machine = &player.machine;
    let widths = Widths {
        // A vCPU's CPUID may be another one than the machine began with.
        guest: maxphyaddr(machine.cpuid(vcpu)),
        host: machine.spec().silicon.phys_bits,
    };
    let vendor = machine.spec().silicon.vendor;
    Seen { name, vendor, widths, outcome: explain::outcome(&observations, endless), observations, tables }
}

fn tell(side: &Seen, focus: Option<u64>) -> explain::Story {
    let teller = Teller { widths: side.widths, focus };
    teller.tell(&side.name, &side.observations, &side.outcome, &side.tables)
}

/// The vCPU that executed the instruction.
fn vcpu(differences: &[Difference], sides: [&[ExitGroup]; 2], icount: u64) -> u32 {
    let register = differences.iter().find_map(|difference| match difference {
        Difference::Register { vcpu, .. } => Some(*vcpu),
        _ => None,
    });
    let mut exits = sides.into_iter().flatten().filter(|group| group.exit.icount >= icount);
    register.or_else(|| exits.next_back().map(|group| group.exit.vcpu)).unwrap_or(0)
}

/// The exits that a player has listened to.
fn exits(player: &Player) -> Vec<ExitGroup> {
    let events = player.peek_events();
    let exits = events.iter().filter(|event| matches!(event, Event::Exit(_))).count() as u64;
    let first = player.machine.exits().saturating_sub(exits);
    Exits::new(events.into_iter().map(Ok), first).filter_map(Result::ok).collect()
}

fn cause(
    sides: &Sides,
    pair: &Pair,
    before: &LastEqual,
    (case, differences): (&Case, &[Difference]),
    guest: u8,
) -> Option<Cause> {
    let mut run = |side: Side, machine: &MachineSpec| {
        try_out(sides, pair, before, (case, differences), (side, machine), guest, &|_| ())
    };
    let found = causes::find(sides, case, differences.first(), before.icount, &mut run);
    found.or_else(|| stale(sides, pair, before, (case, differences), guest))
}

/// A translation from before the guest changed its tables, which a processor may use until the guest invalidates it: with an empty
/// TLB both sides are equal.
fn stale(
    sides: &Sides,
    pair: &Pair,
    before: &LastEqual,
    (case, differences): (&Case, &[Difference]),
    guest: u8,
) -> Option<Cause> {
    [(Side::Actual, &sides.actual, case.actual), (Side::Expected, &sides.expected, case.expected)]
        .into_iter()
        .find(|(side, machine, _)| {
            let forget = |player: &mut Player| player.machine.arrived();
            let tried = try_out(sides, pair, before, (case, differences), (*side, machine), guest, &forget);
            matches!(tried, Ok(Finding::Equal))
        })
        .map(|(.., seen)| causes::stale_translation(&seen.name))
}

/// Runs a changed machine to the instruction, and holds it against the other side.
fn try_out(
    sides: &Sides,
    pair: &Pair,
    before: &LastEqual,
    (case, found): (&Case, &[Difference]),
    (side, machine): (Side, &MachineSpec),
    guest: u8,
    prepare: &dyn Fn(&mut Player),
) -> Result<Finding, Error> {
    let mut player = match side {
        Side::Expected => sides.player(side, machine, false)?,
        Side::Actual => {
            let mut expected = sides.player(Side::Expected, &sides.expected, false)?;
            match sides.way {
                Some(way) => sides.arrived(way, machine, &mut expected, false)?,
                None => sides.moved(machine, &mut expected, false)?,
            }
        }
    };
    player.advance(before.icount, u64::MAX)?;
    let states = (0..).zip(&before.states);
    let same = |(vcpu, state)| player.machine.state(vcpu).is_some_and(|other| state::is_equal(state, other));
    if player.end.is_some() || player.machine.icount() != before.icount || !states.into_iter().all(same) {
        return Ok(Finding::Still);
    }
    let other = if side == Side::Expected { &pair.actual } else { &pair.expected };
    let brought = {
        let (expected, actual) = if side == Side::Expected { (&player, other) } else { (other, &player) };
        state::compare(&expected.machine, &actual.machine)
    };
    prepare(&mut player);
    player.listen(true);
    player.advance(before.icount + 1, u64::MAX)?;
    let (expected, actual) = if side == Side::Expected { (&player, other) } else { (other, &player) };
    let mut differences = state::compare(&expected.machine, &actual.machine);
    differences.extend(end_difference(expected, actual));
    let (changes, questions) = state::compare_ioctls(&expected.machine, &actual.machine, pair.logs_alike);
    differences.extend(changes);
    differences.extend(questions.into_iter().filter(|_| pair.questions));
    if differences.is_empty() {
        return Ok(Finding::Equal);
    }
    // Memory that the change has altered before, and that this instruction neither alters nor differs in, is another matter.
    let in_place = |a: &Difference, gpa: u64| matches!(a, Difference::Memory { gpa: at, .. } if *at == gpa);
    differences.retain(|difference| match difference {
        Difference::Memory { gpa, .. } => {
            !brought.contains(difference) || found.iter().any(|other| in_place(other, *gpa))
        }
        _ => true,
    });
    if differences.is_empty() {
        return Ok(Finding::Gone);
    }
    differences.sort_by_key(|difference| difference.rank(guest));
    let endless = matches!(player.end, Some(End::NoProgress { .. }));
    let outcome = explain::outcome(&player.take_observations(), endless);
    let (what, _) = match side {
        Side::Expected => signature::what(&differences, &outcome, &case.actual.outcome, guest),
        Side::Actual => signature::what(&differences, &case.expected.outcome, &outcome, guest),
    };
    Ok(Finding::of(&what, case.what))
}
