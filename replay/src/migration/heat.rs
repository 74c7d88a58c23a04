//! A guest that is moved at every exit of its tape, one at a time: which moments are safe, and which would not be with a fault.
//!
//! One machine goes through the tape; at each exit a copy of its guest moves and runs to its end, which is held against the twin's
//! end: registers, memory and every write of it since the move, what devices saw, what was printed. A single moment is looked at
//! more closely by [`Sides::migrate`].

use super::{Fate, Journey, loses};
use crate::{Error, player::Player, sides::Sides, state, text};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use vmtape_machine::{Digest, vmm::When};
use vmtape_migrate::{classes::Class, points::Points};
use vmtape_traces::Event;

/// One moment.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cell {
    /// So many exits were taken before, and so many instructions have retired where the guest came to rest.
    pub exit: u64,
    pub instructions: u64,
    /// The last exit before the move.
    pub after: String,
    #[serde(rename = "verdict")]
    pub fate: Fate,
    pub why: String,
}

/// Moments, in order.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Map {
    pub cells: Vec<Cell>,
    /// By the last exit before the move, and verdict.
    pub by_exit: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A map for a class of faults.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OfClass {
    pub class: String,
    pub text: String,
    /// Moments at which a fault happened.
    pub reached: u64,
    #[serde(flatten)]
    pub map: Map,
}

/// All of them.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Heat {
    /// The worst of all classes.
    #[serde(flatten)]
    pub map: Map,
    /// Exits after which the guest does not come to rest before it ends.
    pub restless: u64,
    /// Where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_class: Vec<OfClass>,
}

/// How the twin ends.
struct Twin {
    player: Player,
    printed: Vec<u8>,
    digest: Digest,
}

impl Map {
    fn add(&mut self, cell: Cell) {
        *self.by_exit.entry(cell.after.clone()).or_default().entry(cell.fate.text()).or_default() += 1;
        self.cells.push(cell);
    }
}

impl Sides<'_> {
    /// Moves the guest at every `step`-th exit, by the journey's first hop: with the journey's own faults, or, where there are classes,
    /// once with each of those.
    pub fn heat(
        &self,
        journey: &Journey,
        step: u64,
        classes: &[Class],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Heat, Error> {
        let twin = self.twin()?;
        let (mut source, mut printed) = (self.traveller(&self.expected, true)?, Vec::new());
        let (mut heat, mut after) = (Heat::default(), "start".to_owned());
        let of_class = |Class { name, text, .. }: &Class| OfClass {
            class: name.clone(),
            text: text.clone(),
            reached: 0,
            map: Map::default(),
        };
        heat.by_class = classes.iter().map(of_class).collect();
        for exit in (0..).step_by(usize::try_from(step.max(1)).unwrap_or(usize::MAX)) {
            let rests = source.come_to_rest(if exit == 0 { When::Start } else { When::Exit(exit) })?;
            let last = source.take_events().into_iter().rev().find_map(|event| match event {
                Event::Exit(exit) => Some(text::reason(&exit.exit)),
                _ => None,
            });
            after = last.unwrap_or(after);
            printed.extend(source.take_serial());
            if source.end.is_some() {
                break;
            }
            if !rests {
                heat.restless += 1;
                continue;
            }
            // Where it came to rest later exits may have passed.
            if heat.map.cells.last().is_some_and(|cell| cell.instructions >= source.machine.icount()) {
                continue;
            }
            let (instructions, mut worst) = (source.machine.icount(), None::<(Fate, String)>);
            let cell = |(fate, why)| Cell { exit, instructions, after: after.clone(), fate, why };
            for (class, of_class) in classes.iter().zip(&mut heat.by_class) {
                let points = class.points();
                let found = self.cell(journey, points.clone(), &mut source, &mut printed, &twin)?;
                of_class.reached += u64::from(!points.fired().is_empty());
                if worst.as_ref().is_none_or(|worst| found.0 < worst.0) {
                    worst = Some((found.0, format!("{}: {}", class.name, found.1)));
                }
                of_class.map.add(cell(found));
            }
            let worst = match worst {
                Some(worst) => worst,
                None => self.cell(journey, (journey.points)(), &mut source, &mut printed, &twin)?,
            };
            heat.map.add(cell(worst));
            progress(exit);
        }
        if heat.map.cells.is_empty() {
            return Err(Error::NobodyMoves { tape: self.tape.name().to_owned(), at: When::Start });
        }
        Ok(heat)
    }

    fn twin(&self) -> Result<Twin, Error> {
        let mut player = self.traveller(&self.expected, false)?;
        player.advance(u64::MAX, u64::MAX)?;
        let (printed, digest) = (player.take_serial(), player.machine.digest());
        Ok(Twin { player, printed, digest })
    }

    fn cell(
        &self,
        journey: &Journey,
        points: Points,
        source: &mut Player,
        printed: &mut Vec<u8>,
        twin: &Twin,
    ) -> Result<(Fate, String), Error> {
        let hop = journey.hops.first().ok_or_else(|| Error::Other("there is no way to go".to_owned()))?;
        let mut there = self.traveller(&hop.to, false)?;
        let outcome = journey.hop(source, &mut there, points, 0, 1)?;
        // In rounds of pre-copy it has run on.
        printed.extend(source.take_serial());
        let at = source.machine.digest();
        if !outcome.has_moved() {
            let why = outcome.failure.clone().unwrap_or_default();
            return Ok((Fate::of_move(&outcome), why));
        }
        let before = there.machine.digest();
        there.advance(u64::MAX, u64::MAX)?;
        there.machine.pull();
        let printed = [&printed[..], &there.take_serial()].concat();
        let mut differences = state::compare(&twin.player.machine, &there.machine);
        differences.sort_by_key(|difference| difference.rank(u8::MAX));
        let (theirs, ours) = (there.machine.digest().since(&before), twin.digest.since(&at));
        let why = match () {
            () if there.end != twin.player.end => {
                let end = |player: &Player| player.end.as_ref().map_or("goes on".to_owned(), text::end_text);
                format!("the run ends otherwise: {}, not {}", end(&there), end(&twin.player))
            }
            () if printed != twin.printed => "it prints something else".to_owned(),
            () if !differences.is_empty() => differences[0].text(),
            () if there.machine.icount() != twin.player.machine.icount() => "it has got elsewhere".to_owned(),
            () if theirs.devices != ours.devices => "devices saw something else".to_owned(),
            () if theirs.memory != ours.memory => "memory was written otherwise on the way".to_owned(),
            () => return Ok((Fate::Moved, String::new())),
        };
        let fate = if loses(&there, &twin.player) { Fate::LOST } else { Fate::CORRUPT };
        Ok((fate, why))
    }
}
