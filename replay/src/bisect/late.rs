//! Axis `exits` for a verdict that shows late (a crash, a wrong result): the exit that dooms the guest.
//!
//! Two searches over the run. *Doomed*: the other configuration handles the first exits and the taped one the rest; the
//! fewest exits after which the end can no longer be averted. *Last chance*: the taped configuration handles the first
//! exits and the other one the rest; the most exits after which switching still causes it. With a single cause both
//! name the same exit; where they differ, what lies between them causes it again.

use super::{
    Bench, Finding,
    exits::AXIS,
    search::{Mark, turn},
    trial::{self, Criterion, Ended, same_end},
};
use crate::{Error, player::Player, signature::Signature, spec, text};
use vmtape_machine::MachineSpec;
use vmtape_traces::Exits;

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
struct Told {
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
    let exits = bench.tape.totals()?.exits;
    let theirs = exits_of(bench, &other)?;
    let doomed = search(bench, &other, &taped, theirs, true)?;
    let chance = search(bench, &taped, &other, exits, false)?;
    let mut line = format!("first bad: exit {}", doomed.1.exits - 1);
    if let Some(exit) = exit_at(bench, &other, doomed.1)? {
        line += &format!(": {exit}");
    }
    let mut finding = bench.found(AXIS, line, options);
    let place = |point: Point| format!("{} exits and {} instructions", point.exits, point.icount);
    finding.notes.push(format!(
        "the guest is doomed once the first {} ran elsewhere; after {} it is not",
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

/// Searches the row of exits at which the guest moves from one machine to the other. `prefix_is_bad`: the more of the run
/// the first machine has, the worse. Gives the last good and the first bad point.
fn search(
    bench: &mut Bench,
    first: &MachineSpec,
    second: &MachineSpec,
    exits: u64,
    prefix_is_bad: bool,
) -> Result<(Point, Point), Error> {
    let mut trials = Vec::new();
    let mut before = Before::new(bench, first, !prefix_is_bad);
    let (mut good, mut bad) = (Point { exits, icount: u64::MAX }, Point { exits: 0, icount: 0 });
    if prefix_is_bad {
        (good, bad) = (bad, good);
    }
    // `turn` goes from good to bad; places are counted in exits of the first machine.
    let place = |n: u64| if prefix_is_bad { n } else { exits - n };
    turn(0, exits, |n| {
        let told = before.test(place(n), second)?;
        let what = match prefix_is_bad {
            true => format!("the first {} exits elsewhere", told.point.exits),
            false => format!("the first {} exits as taped", told.point.exits),
        };
        trials.push(super::Trial { what, mark: told.mark, shows: told.text.clone() });
        match told.mark {
            Mark::Good => good = told.point,
            Mark::Bad => bad = told.point,
            Mark::Skip => {}
        }
        if told.mark == if prefix_is_bad { Mark::Good } else { Mark::Bad } {
            before.keep(told.point, told.link, told.printed);
        }
        Ok(told.mark)
    })?;
    bench.trials.extend(trials);
    Ok((good, bad))
}

/// Exits of a machine's whole run.
fn exits_of(bench: &Bench, machine: &MachineSpec) -> Result<u64, Error> {
    let inputs = Box::new(spec::inputs(bench.tape)?);
    let mut player = Player::new(machine.clone(), inputs, trial::budget(bench.tape)?, bench.create, false)?;
    Ended::finish(&mut player)?;
    Ok(player.machine.exits())
}

/// The exit before a point, on one line.
fn exit_at(bench: &Bench, machine: &MachineSpec, point: Point) -> Result<Option<String>, Error> {
    let inputs = Box::new(spec::inputs(bench.tape)?);
    let mut player = Player::new(machine.clone(), inputs, trial::budget(bench.tape)?, bench.create, false)?;
    let Some(number) = point.exits.checked_sub(1) else { return Ok(None) };
    player.advance(u64::MAX, number)?;
    player.listen(true);
    player.advance(u64::MAX, point.exits)?;
    let mut groups = Exits::new(player.take_events().into_iter().map(Ok), number);
    let group = groups.find_map(|group| group.ok().filter(|group| group.number == number));
    Ok(group.map(|group| text::exit_line(&group)))
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

    /// Runs the first machine for so many exits, moves the guest to the second one, and judges the end.
    fn test(&self, exits: u64, second: &MachineSpec) -> Result<Told, Error> {
        let (mut player, mut chain) = self.start(exits)?;
        player.advance(u64::MAX, exits)?;
        /// Instructions in a row that may leave the guest before it is considered not to come to rest.
        const PATIENCE: u32 = 256;
        for _ in 0..PATIENCE {
            if player.end.is_some() || player.machine.can_move() {
                break;
            }
            player.advance(player.machine.icount() + 1, u64::MAX)?;
        }
        let point = Point { exits: player.machine.exits(), icount: player.machine.icount() };
        let mut printed = self.printed.clone();
        printed.extend(player.take_serial());
        if player.end.is_none() && !player.machine.can_move() {
            let text = "the guest does not come to rest there".to_owned();
            return Ok(Told { mark: Mark::Skip, text, point, link: Vec::new(), printed });
        }
        if player.end.is_none() {
            chain.push(player.machine.checkpoint());
        }
        let ended = match player.end {
            Some(_) => Ended::finish(&mut player)?,
            None => self.go_on(&mut player, second)?,
        };
        let (mark, text) = self.judge(&ended, &printed)?;
        Ok(Told { mark, text, point, link: chain, printed })
    }

    /// A machine at the last known point before so many exits.
    fn start(&self, exits: u64) -> Result<(Player, Vec<Vec<u8>>), Error> {
        let tape = self.bench.tape;
        let mut chain = self.chain.clone();
        let checkpoint =
            tape.checkpoint_before(exits).filter(|found| self.taped && found.exit > self.at.exits);
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
        Player::new(machine.clone(), inputs, trial::budget(tape)?, self.bench.create, false)
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
                let expected = trial::end_of(self.bench.tape)?;
                let same = expected.is_some_and(|expected| same_end(&expected, &ended.end));
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
