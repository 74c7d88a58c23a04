//! Axis `exits` for a verdict that shows late (a crash, a wrong result): the exit that dooms the guest.
//!
//! Two searches over the run. *Doomed*: the other configuration handles the first exits and the taped one the rest; the
//! fewest exits after which the end can no longer be averted. *Last chance*: the taped configuration handles the first
//! exits and the other one the rest; the most exits after which switching still causes it. With a single cause both
//! name the same exit; where they differ, what lies between them causes it again.

use super::{
    Bench, Finding, Trial,
    exits::AXIS,
    search::{Mark, turn},
    trial::{Criterion, Ended},
};
use crate::{Error, player::Player, signature::Signature, spec, text};
use vmtape_machine::MachineSpec;
use vmtape_traces::{ExitGroup, Exits, reader::Checkpoint};

/// A point of a run at which the guest moves from one machine to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    exits: u64,
    icount: u64,
}

/// The first machine of a trial, kept at the latest point before all points that are still searched.
struct Before<'a> {
    machine: MachineSpec,
    /// Checkpoints that lead to the point, and what the guest had printed.
    chain: Vec<Vec<u8>>,
    at: Point,
    printed: Vec<u8>,
    /// Checkpoints of the tape may be used.
    taped: bool,
    bench: &'a Bench<'a>,
}

/// What a trial tells.
struct Outcome {
    mark: Mark,
    text: String,
    /// Where the guest really moved, and the first machine there.
    point: Point,
    link: Vec<Vec<u8>>,
    printed: Vec<u8>,
}

pub fn bisect(bench: &mut Bench, actual: MachineSpec, options: &str) -> Result<Finding, Error> {
    let (taped, other) = (bench.machine.clone(), actual);
    match bench.test("every exit elsewhere", other.clone())? {
        Mark::Bad => {}
        Mark::Good => return Ok(bench.nothing(AXIS, "elsewhere the verdict is the same")),
        Mark::Skip => {
            let why = bench.trials.last().map_or(String::new(), |trial| trial.shows.clone());
            return Err(Error::Other(why));
        }
    }
    let doomed = Row { first: &other, second: &taped, more_is_bad: true }.search(bench)?;
    let chance = Row { first: &taped, second: &other, more_is_bad: false }.search(bench)?;
    let (here, there) = (exit_between(bench, &taped, doomed)?, exit_between(bench, &other, doomed)?);
    let line = match (&here, &there) {
        (Some(group), _) => text::exit_line(group),
        (None, Some(group)) => format!("elsewhere, {}", text::exit_line(group)),
        (None, None) => format!("no exit: the instruction after {} others", doomed.0.icount),
    };
    let mut finding = bench.found(AXIS, format!("first bad: {line}"), options)?;
    if let (Some(_), there) = (&here, &there) {
        let there = there.as_ref().map_or("no exit there".into(), text::exit_line);
        finding.notes.push(format!("elsewhere: {there}"));
    }
    let place = |point: Point| format!("{} instructions ({} exits)", point.icount, point.exits);
    finding.notes.push(format!(
        "doomed once the first {} ran elsewhere, not yet after {}",
        place(doomed.1),
        place(doomed.0)
    ));
    finding.notes.push(format!(
        "switching after {} still causes it, after {} no longer",
        place(chance.1),
        place(chance.0)
    ));
    Ok(finding)
}

/// A row of moments at which the guest moves from one machine to the other.
struct Row<'m> {
    first: &'m MachineSpec,
    second: &'m MachineSpec,
    /// The more of the run the first machine has, the worse.
    more_is_bad: bool,
}

impl Row<'_> {
    /// Searches the exits, then the instructions between two of them. Gives the last good and the first bad point.
    fn search(&self, bench: &mut Bench) -> Result<(Point, Point), Error> {
        let whole = whole_run(bench, self.first)?;
        let start = Point { exits: 0, icount: 0 };
        let (good, bad) = if self.more_is_bad { (start, whole) } else { (whole, start) };
        let before = Before::new(bench, self.first, !self.more_is_bad);
        let mut hunt = Hunt { row: self, before, good, bad, trials: Vec::new() };
        let whose = if self.more_is_bad { "elsewhere" } else { "as taped" };
        let place = |n: u64, length: u64| if self.more_is_bad { n } else { length - n };
        turn(0, whole.exits, |n| {
            let exits = place(n, whole.exits);
            hunt.test(Point { exits, icount: u64::MAX }, format!("the first {exits} exits {whose}"))
        })?;
        let (low, high) = (hunt.good.icount.min(hunt.bad.icount), hunt.good.icount.max(hunt.bad.icount));
        turn(0, high - low, |n| {
            let icount = low + place(n, high - low);
            hunt.test(Point { exits: u64::MAX, icount }, format!("the first {icount} instructions {whose}"))
        })?;
        let Hunt { good, bad, trials, .. } = hunt;
        bench.trials.extend(trials);
        Ok((good, bad))
    }
}

/// A search on its way.
struct Hunt<'a, 'm> {
    row: &'a Row<'m>,
    before: Before<'a>,
    good: Point,
    bad: Point,
    trials: Vec<Trial>,
}

impl Hunt<'_, '_> {
    fn test(&mut self, goal: Point, what: String) -> Result<Mark, Error> {
        let outcome = self.before.test(goal, self.row.second)?;
        self.trials.push(Trial { what, mark: outcome.mark, shows: outcome.text });
        // Where the guest came to rest may lie beyond what is still searched.
        match outcome.mark {
            Mark::Good if closer(outcome.point, self.good, self.bad) => self.good = outcome.point,
            Mark::Bad if closer(outcome.point, self.bad, self.good) => self.bad = outcome.point,
            _ => {}
        }
        if outcome.mark == if self.row.more_is_bad { Mark::Good } else { Mark::Bad } {
            self.before.keep(outcome.point, outcome.link, outcome.printed);
        }
        Ok(outcome.mark)
    }
}

/// Whether a point lies between two others, the second of which is of the other mark.
fn closer(point: Point, same: Point, other: Point) -> bool {
    point.icount.abs_diff(other.icount) < same.icount.abs_diff(other.icount)
}

/// The end of a machine's whole run.
fn whole_run(bench: &Bench, machine: &MachineSpec) -> Result<Point, Error> {
    let inputs = Box::new(spec::inputs(bench.tape)?);
    let mut player =
        Player::new(machine.clone(), inputs, spec::generous_budget(bench.tape), bench.create, false)?;
    Ended::finish(&mut player)?;
    Ok(Point::of(&player))
}

/// The first exit of a machine's own run between two instructions.
fn exit_between(
    bench: &Bench,
    machine: &MachineSpec,
    (good, bad): (Point, Point),
) -> Result<Option<ExitGroup>, Error> {
    let inputs = Box::new(spec::inputs(bench.tape)?);
    let mut player =
        Player::new(machine.clone(), inputs, spec::generous_budget(bench.tape), bench.create, false)?;
    player.advance(good.icount, u64::MAX)?;
    let first = player.machine.exits();
    player.listen(true);
    // An exit whose instruction does not retire comes before the next one.
    player.advance(bad.icount, u64::MAX)?;
    let mut groups = Exits::new(player.take_events().into_iter().map(Ok), first);
    Ok(groups
        .find_map(|group| group.ok().filter(|group| (good.icount..bad.icount).contains(&group.exit.icount))))
}

impl Point {
    fn of(player: &Player) -> Self {
        Self { exits: player.machine.exits(), icount: player.machine.icount() }
    }
}

impl<'a> Before<'a> {
    fn new(bench: &'a Bench<'a>, machine: &MachineSpec, is_taped: bool) -> Self {
        Self {
            // Checkpoints are made here where they are needed, not at the tape's pace.
            machine: MachineSpec { checkpoint_every: 0, ..machine.clone() },
            chain: Vec::new(),
            at: Point { exits: 0, icount: 0 },
            printed: Vec::new(),
            // What the guest printed before a checkpoint is not in it.
            taped: is_taped && !matches!(bench.criterion, Criterion::Prints(_)),
            bench,
        }
    }

    fn keep(&mut self, point: Point, chain: Vec<Vec<u8>>, printed: Vec<u8>) {
        (self.at, self.chain, self.printed) = (point, chain, printed);
    }

    /// Runs the first machine up to a point, moves the guest to the second one, and judges the end.
    fn test(&self, goal: Point, second: &MachineSpec) -> Result<Outcome, Error> {
        let (mut player, mut chain) = self.start(goal)?;
        player.advance(goal.icount, goal.exits)?;
        let rests = player.rest()?;
        let point = Point::of(&player);
        let mut printed = self.printed.clone();
        printed.extend(player.take_serial());
        if player.end.is_none() && !rests {
            let text = "the guest does not come to rest there".to_owned();
            return Ok(Outcome { mark: Mark::Skip, text, point, link: Vec::new(), printed });
        }
        if player.end.is_none() {
            chain.push(player.machine.checkpoint()?);
        }
        let ended = match player.end {
            Some(_) => Ended::finish(&mut player)?,
            None => match self.go_on(&mut player, second) {
                Err(Error::Machine(cause @ vmtape_machine::Error::Backend { .. })) => {
                    let text = format!("the guest cannot move there: {cause}");
                    return Ok(Outcome { mark: Mark::Skip, text, point, link: Vec::new(), printed });
                }
                ended => ended?,
            },
        };
        let (mark, text) = self.judge(&ended, &printed)?;
        Ok(Outcome { mark, text, point, link: chain, printed })
    }

    /// A machine at the last known point before another one.
    fn start(&self, goal: Point) -> Result<(Player, Vec<Vec<u8>>), Error> {
        let tape = self.bench.tape;
        let mut chain = self.chain.clone();
        let before = |found: &Checkpoint| found.exit <= goal.exits && found.icount <= goal.icount;
        let checkpoint = tape.checkpoints().rev().find(before);
        let checkpoint = checkpoint.filter(|found| self.taped && found.exit > self.at.exits);
        if let Some(start) = checkpoint {
            chain.clear();
            for checkpoint in tape.checkpoints().take_while(|checkpoint| checkpoint.exit <= start.exit) {
                chain.push(tape.checkpoint(checkpoint)?.1);
            }
        }
        let mut player = self.player(&self.machine)?;
        if !chain.is_empty() {
            player.machine.restore(chain.iter().map(Vec::as_slice))?;
        }
        Ok((player, chain))
    }

    fn player(&self, machine: &MachineSpec) -> Result<Player, Error> {
        let tape = self.bench.tape;
        let inputs = Box::new(spec::inputs(tape)?);
        Player::new(machine.clone(), inputs, spec::generous_budget(tape), self.bench.create, false)
    }

    fn go_on(&self, player: &mut Player, second: &MachineSpec) -> Result<Ended, Error> {
        let mut other = self.player(&MachineSpec { checkpoint_every: 0, ..second.clone() })?;
        other.machine.take_over(&mut player.machine)?;
        Ended::finish(&mut other)
    }

    fn judge(&self, ended: &Ended, printed: &[u8]) -> Result<(Mark, String), Error> {
        let found = match &self.bench.criterion {
            Criterion::Prints(wanted) => {
                let all = format!("{}{}", String::from_utf8_lossy(printed), ended.printed);
                all.contains(wanted).then(|| Signature::new(&format!("prints:{wanted}"), 0))
            }
            _ => {
                let expected = self.bench.tape.end()?.map(|(_, end)| end);
                let same = expected.is_some_and(|expected| text::same_end(&expected, &ended.end));
                (!same).then(|| ended.signature())
            }
        };
        let end = text::end_text(&ended.end);
        Ok(match found {
            None => (Mark::Good, format!("same: {end}")),
            Some(found) if Some(&found) == self.bench.wanted.as_ref() => (Mark::Bad, end),
            Some(found) => (Mark::Skip, format!("another verdict: {end} [{found}]")),
        })
    }
}
