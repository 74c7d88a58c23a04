//! Two tapes held against each other, without running anything.
//!
//! Tapes of one machine are compared event by event. Otherwise what the guests could observe is compared, aligned by
//! retired instructions: device accesses must be the same in order and time; CPUID and MSR values and injected exceptions
//! where both tapes have them. What silicon did without an exit is on no tape: such differences are unknown
//! ([`crate::native`]), and `vmtape replay` settles them.

use crate::{
    Error, across,
    aligned::{Ahead, Aligned},
    causes::configuration,
    checker::Checker,
    ends, exempt,
    exits::View,
    explain::{self, Widths},
    native,
    report::{Class, Divergence, Level, Report, Row},
    seen::Seen,
    signature::{self, Signature},
    spec,
    state::Difference,
    text::{self, event_text},
};
use std::collections::{BTreeMap, VecDeque};
use vmtape_arch::note::Note;
use vmtape_machine::MachineSpec;
use vmtape_traces::{
    Event, ExitGroup, Exits, Tape,
    event::{Control, End},
    flat::tag,
};

/// Events compared at a time.
const BATCH: usize = 4096;

/// Compares two tapes of runs. `reproduce` is the command line for the report.
pub fn compare(expected: &Tape, actual: &Tape, report: &mut Report, reproduce: &str) -> Result<(), Error> {
    let (a, b) = (spec::machine(expected)?, spec::machine(actual)?);
    if a.backend == b.backend {
        let Some(found) = equal(expected, actual, report)? else {
            report.method = "event by event: both tapes are equal".into();
            report.conclude();
            return Ok(());
        };
        report.leave_open(format!("first difference for the host: {found}"), 1);
    }
    report.method = "what the guests could observe, aligned by retired instructions".into();
    let common = last_common(expected, actual);
    // A difference behind what is equal is the first one. Where there is none that a guest observes, the costs of all count.
    if common != [0, 0] {
        let mut late = report.clone();
        late.compared = Checker::from_chunk(expected, common[0]).compared().clone();
        if observed(expected, actual, common, &mut late, reproduce)? {
            *report = late;
            report.conclude();
            return Ok(());
        }
    }
    observed(expected, actual, [0, 0], report, reproduce)?;
    report.conclude();
    Ok(())
}

/// The last chunks that the tapes have alike, with exits in them: what ends in them is whole in the next ones.
fn last_common(expected: &Tape, actual: &Tape) -> [usize; 2] {
    let [first, other] =
        [(expected, actual), (actual, expected)].map(|(tape, other)| tape.last_common(other));
    let exits = |chunk: usize| expected.chunks().get(chunk).map(|chunk| chunk.first_exit);
    if exits(first + 1) > exits(first) { [first, other] } else { [0, 0] }
}

/// Compares all events; gives the first difference in words. Chunks of equal digests are not decoded, but for the last one.
fn equal(expected: &Tape, actual: &Tape, report: &mut Report) -> Result<Option<String>, Error> {
    let [first, other] = [(expected, actual), (actual, expected)].map(|(tape, other)| {
        let exempts = tape.schema().min(other.schema()) < exempt::READS_SCHEMA;
        if exempts { 0 } else { tape.last_common(other) }
    });
    let mut checker = Checker::from_chunk(expected, first);
    let mut events = actual.events_from(other);
    loop {
        let batch = events.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
        let over = batch.is_empty();
        if let Some(mismatch) = checker.check(batch)? {
            let words = |event: &Option<Event>| event.as_ref().map_or("nothing".into(), event_text);
            return Ok(Some(format!("{}, not {}", words(&mismatch.actual), words(&mismatch.expected))));
        }
        report.compared = checker.compared().clone();
        if over {
            let rest = checker.rest()?;
            return Ok(rest.map(|event| format!("nothing, not {}", event_text(&event))));
        }
    }
}

/// What a guest observed at one instruction.
struct ObservedExit {
    group: ExitGroup,
    devices: Vec<Seen>,
    /// CPUID, MSRs and exceptions, which the other side may have without an exit.
    others: Vec<Seen>,
}

/// The exits of a tape at which its guest could observe something.
struct ObservedExits<'t> {
    machine: MachineSpec,
    exits: Exits<vmtape_traces::reader::Events<'t>>,
    ahead: Option<ObservedExit>,
    recent: VecDeque<ExitGroup>,
    end: Option<End>,
    counts: BTreeMap<String, u64>,
    /// Instructions that exits' handling completed.
    retired: u64,
    /// What devices saw, at those instructions of the part read so far that are still to be compared.
    marks: VecDeque<Mark>,
}

/// What devices saw in so many instructions: the number of accesses, and a hash over them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark {
    icount: u64,
    accesses: u64,
    hash: u64,
}

impl<'t> ObservedExits<'t> {
    /// From a chunk on.
    fn new(tape: &'t Tape, chunk: usize) -> Result<Self, Error> {
        let first = tape.chunks().get(chunk).map_or(0, |chunk| chunk.first_exit);
        let mut observed = Self {
            machine: spec::machine(tape)?,
            exits: Exits::new(tape.events_from(chunk), first),
            ahead: None,
            recent: VecDeque::new(),
            end: None,
            counts: BTreeMap::new(),
            retired: 0,
            marks: VecDeque::new(),
        };
        observed.advance()?;
        Ok(observed)
    }
}

impl Ahead for ObservedExits<'_> {
    type Exit = ObservedExit;

    fn ahead(&self) -> Option<&ExitGroup> {
        self.ahead.as_ref().map(|observed| &observed.group)
    }

    fn advance(&mut self) -> Result<Option<ObservedExit>, Error> {
        let now = self.ahead.take();
        while let Some(group) = self.exits.next().transpose()? {
            *self.counts.entry(text::reason(&group.exit.exit)).or_default() += 1;
            self.retired += u64::from(native::retired(&group));
            let observed = ObservedExit::of(group);
            if self.recent.len() == CONTEXT {
                self.recent.pop_front();
            }
            self.recent.push_back(observed.group.clone());
            if !observed.devices.is_empty() || !observed.others.is_empty() {
                self.ahead = Some(observed);
                break;
            }
        }
        for event in self.exits.other.drain(..) {
            match event {
                Event::End { end, .. } => self.end = self.end.take().or(Some(end)),
                Event::Devices { icount, accesses, hash } => {
                    self.marks.push_back(Mark { icount, accesses, hash });
                }
                _ => {}
            }
        }
        Ok(now)
    }
}

/// Exits shown before a difference.
const CONTEXT: usize = 3;

impl ObservedExit {
    fn of(group: ExitGroup) -> Self {
        let (mut devices, mut others) = (Vec::new(), Vec::new());
        for note in &group.notes {
            let Some(seen) = Seen::of(note) else { continue };
            match note {
                Note::Pio { .. } | Note::Mmio { .. } if exempt::is_apic_access(note) => {}
                Note::Pio { .. } | Note::Mmio { .. } => devices.push(seen),
                _ => others.push(seen),
            }
        }
        Self { group, devices, others }
    }
}

/// Compares from these chunks on. False: nothing differs but perhaps the ends.
fn observed(
    expected: &Tape,
    actual: &Tape,
    chunks: [usize; 2],
    report: &mut Report,
    reproduce: &str,
) -> Result<bool, Error> {
    let mut both = Aligned {
        expected: ObservedExits::new(expected, chunks[0])?,
        actual: ObservedExits::new(actual, chunks[1])?,
    };
    let ioctl = first_ioctl(expected, actual)?;
    let mut devices = DeviceMarks::default();
    while let Some(at) = both.icount() {
        if ioctl.as_ref().is_some_and(|(icount, _)| *icount <= at) {
            break;
        }
        devices.compare(&mut both, at);
        if devices.different.is_some() {
            break;
        }
        let [left, right] = both.advance()?;
        let (what, seen) = match compare_observed(left.as_ref(), right.as_ref()) {
            Compared::Equal => {
                report.compared.instructions = at;
                report.compared.exits += 1;
                continue;
            }
            Compared::Unknown => {
                let what =
                    "CPUID, MSR accesses and exceptions that one side's silicon may have without an exit";
                report.leave_open(what, 1);
                continue;
            }
            Compared::Different(what, seen) => (what, seen),
        };
        let groups = [left, right].map(|observed| observed.map(|observed| observed.group));
        let [expected, actual] = groups.each_ref().map(|group| View::of_group(group.as_ref()));
        let guest = Widths::of_machine(&both.expected.machine).guest;
        let differences = expected.differences(&actual, guest);
        let (name, _) = signature::what(&differences, &expected.outcome, &actual.outcome, guest);
        let row = Row::new(what, Seen::line(&seen[0]), Seen::line(&seen[1]));
        report.diverge(divergence(groups, &name, row, &both, reproduce));
        return Ok(true);
    }
    let until = ioctl.as_ref().map_or(u64::MAX, |(icount, _)| *icount);
    devices.compare(&mut both, until);
    report.compared.events += devices.equal;
    if devices.different.is_some() && devices.equal == 0 && chunks != [0, 0] {
        // Where they were equal last is told before.
        return Ok(false);
    }
    if let Some([left, right]) = devices.different {
        let groups = last_exits(&both);
        let text = |mark: Mark| format!("{} accesses, hash {:016x}", mark.accesses, mark.hash);
        let what = format!("what devices saw, between {} and {} instructions", devices.equal_at, left.icount);
        let row = Row::new(what, text(left), text(right));
        let found = divergence(groups, "devices", row, &both, reproduce);
        let signature = Signature::new("devices", signature::NOWHERE);
        report.diverge(Divergence { signature, icount: devices.equal_at, ..found });
        return Ok(true);
    }
    if let Some((_, ioctl)) = ioctl {
        let groups = last_exits(&both);
        let found = divergence(groups, &ioctl.name, ioctl.row, &both, reproduce);
        let signature = Signature::new(&ioctl.name, signature::NOWHERE);
        report.diverge(Divergence { level: Level::VmmVisible, signature, ..found });
        return Ok(true);
    }
    finish(&both, report, reproduce);
    let between = expected.totals()?.icount.saturating_sub(both.expected.retired);
    report.leave_open(native::UNKNOWN, between);
    report.settled_by = Some(native::SETTLED_BY);
    Ok(false)
}

/// The comparison of what devices saw, which the tapes tell at some instructions, natively or by exits.
#[derive(Default)]
struct DeviceMarks {
    /// It was the same in so many instructions, and at so many marks.
    equal_at: u64,
    equal: u64,
    /// Both sides where it was not, first.
    different: Option<[Mark; 2]>,
}

impl DeviceMarks {
    /// Compares the marks that both tapes have, up to an instruction.
    fn compare(&mut self, both: &mut Aligned<ObservedExits>, until: u64) {
        let Aligned { expected: a, actual: b } = both;
        while let (Some(left), Some(right)) = (a.marks.front().copied(), b.marks.front().copied())
            && left.icount.min(right.icount) <= until
            && self.different.is_none()
        {
            if left.icount <= right.icount {
                a.marks.pop_front();
            }
            if right.icount <= left.icount {
                b.marks.pop_front();
            }
            match left == right {
                _ if left.icount != right.icount => {}
                true => (self.equal_at, self.equal) = (left.icount, self.equal + 1),
                false => self.different = Some([left, right]),
            }
        }
    }
}

enum Compared {
    Equal,
    Unknown,
    /// What differs, and how it is on both sides.
    Different(&'static str, [Vec<Seen>; 2]),
}

fn compare_observed(left: Option<&ObservedExit>, right: Option<&ObservedExit>) -> Compared {
    let devices =
        |observed: Option<&ObservedExit>| observed.map_or(Vec::new(), |observed| observed.devices.clone());
    let others =
        |observed: Option<&ObservedExit>| observed.map_or(Vec::new(), |observed| observed.others.clone());
    if devices(left) != devices(right) {
        return Compared::Different("device accesses", [devices(left), devices(right)]);
    }
    let (a, b) = (others(left), others(right));
    match () {
        () if a == b => Compared::Equal,
        () if a.is_empty() || b.is_empty() => Compared::Unknown,
        () => Compared::Different("what the guest sees", [a, b]),
    }
}

/// An ioctl that the two VMMs did not make in the same way.
struct Ioctl {
    name: String,
    row: Row,
}

/// The first such one, and when.
fn first_ioctl(expected: &Tape, actual: &Tape) -> Result<Option<(u64, Ioctl)>, Error> {
    let (mut a, mut b) = (controls(expected), controls(actual));
    loop {
        let (left, right) = (a.next().transpose()?, b.next().transpose()?);
        if left.is_none() && right.is_none() {
            return Ok(None);
        }
        if left == right {
            continue;
        }
        let icount = left.iter().chain(&right).map(|(icount, _)| *icount).min().unwrap_or(0);
        let name = match (&left, &right) {
            (Some((_, a)), Some((_, b))) => {
                Difference::Ioctl { expected: a.clone(), actual: b.clone() }.name()
            }
            _ => "ioctl:on-one-side".to_owned(),
        };
        let words = |made: &Option<(u64, Control)>| {
            made.as_ref()
                .map_or("nothing".to_owned(), |(at, control)| format!("{control}, after {at} instructions"))
        };
        return Ok(Some((icount, Ioctl { name, row: Row::new("ioctl", words(&left), words(&right)) })));
    }
}

/// The ioctls of a tape, each with its instruction count.
fn controls(tape: &Tape) -> impl Iterator<Item = Result<(u64, Control), Error>> {
    tape.events_with(tag::CONTROL).filter_map(|event| match event {
        Ok(Event::Control { icount, control }) => Some(Ok((icount, control))),
        Ok(_) => None,
        Err(error) => Some(Err(error.into())),
    })
}

/// The last exit of each that was read.
fn last_exits(both: &Aligned<ObservedExits>) -> [Option<ExitGroup>; 2] {
    [&both.expected, &both.actual].map(|observed| observed.recent.back().cloned())
}

/// Ends and costs.
fn finish(both: &Aligned<ObservedExits>, report: &mut Report, reproduce: &str) {
    let Aligned { expected: a, actual: b } = both;
    report.expected_end = a.end.as_ref().map(text::end_text);
    report.actual_end = b.end.as_ref().map(text::end_text);
    for (reason, count) in &a.counts {
        report.cost.entry(reason.clone()).or_default().expected = *count;
    }
    for (reason, count) in &b.counts {
        report.cost.entry(reason.clone()).or_default().actual = *count;
    }
    if !ends::alike(a.end.as_ref(), b.end.as_ref()) {
        let end = |observed: &ObservedExits| observed.end.as_ref().map_or("nothing".into(), text::end_text);
        let groups = last_exits(both);
        let difference = Difference::End { expected: end(a), actual: end(b) };
        report.diverge(divergence(groups, &difference.name(), difference.row(), both, reproduce));
    }
}

fn divergence(
    groups: [Option<ExitGroup>; 2],
    what: &str,
    row: Row,
    both: &Aligned<ObservedExits>,
    reproduce: &str,
) -> Divergence {
    let context = |observed: &ObservedExits| text::context(observed.recent.iter(), CONTEXT);
    let place = groups.iter().flatten().next().map(|group| &group.exit);
    let rip = place.map_or(0, |exit| exit.rip);
    let machines = [&both.expected.machine, &both.actual.machine];
    let names = across::names(machines[0], machines[1]);
    let (stories, known) = explain::groups(groups.each_ref().map(Option::as_ref), machines, &names, what);
    let cause = match configuration::find(machines[0], machines[1], what) {
        Some(only) => Some(only.in_words_of(known)),
        None => known,
    };
    Divergence {
        signature: Signature::new(what, rip),
        level: Level::GuestVisible,
        class: cause.as_ref().map_or(Class::Unexplained, |cause| Class::of(cause.kind)),
        cause,
        summary: format!("{}: {} instead of {}", row.what, row.actual, row.expected),
        vcpu: place.map_or(0, |exit| exit.vcpu),
        icount: place.map_or(0, |exit| exit.icount),
        rip,
        nested: place.and_then(text::nested),
        expected_exit: both.expected.recent.back().map(|group| group.number),
        actual_exit: both.actual.recent.back().map(|group| group.number),
        rows: vec![row],
        stories,
        expected_context: context(&both.expected),
        actual_context: context(&both.actual),
        rules: Vec::new(),
        reproduce: reproduce.to_owned(),
    }
}
