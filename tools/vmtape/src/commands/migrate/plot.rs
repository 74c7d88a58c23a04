//! What is to go wrong: faults by their occurrence, and those of the last messages by name.

use crate::fault_args::FaultArgs;
use anyhow::Result;
use std::{fmt, str::FromStr};
use vmtape_abi::TableRow;
use vmtape_machine::{Asked, Decision, Faults, Scripted};
use vmtape_migrate::{
    handover::Moment,
    points::{MovePoint, Named, Points},
    stream::SectionKind,
};

#[derive(Clone, Debug, Default, clap::Args)]
pub struct PlotArgs {
    /// Cut the link within a section: KIND[=BYTES], so many bytes of it arriving; ready, go and done are the last messages
    #[arg(long, value_name = "KIND")]
    cut: Vec<Cut>,

    /// Kill a process: source=MOMENT or destination=MOMENT; before-ready, before-go, within-go, after-go, after-done
    #[arg(long, value_name = "SIDE")]
    kill: Vec<Kill>,

    #[command(flatten)]
    faults: FaultArgs,
}

/// A cut within a section.
#[derive(Clone, Copy, Debug)]
struct Cut {
    kind: SectionKind,
    bytes: u64,
}

/// The death of a process.
#[derive(Clone, Copy, Debug)]
struct Kill {
    point: MovePoint,
    moment: Moment,
}

const MOMENTS: [(&str, Moment); 5] = [
    ("before-ready", Moment::BEFORE_READY),
    ("before-go", Moment::BEFORE_GO),
    ("within-go", Moment::WITHIN_GO),
    ("after-go", Moment::AFTER_GO),
    ("after-done", Moment::AFTER_DONE),
];
const SIDES: [(&str, MovePoint); 2] =
    [("source", MovePoint::KILL_SOURCE), ("destination", MovePoint::KILL_DESTINATION)];

impl FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, bytes) = text.split_once('=').unwrap_or((text, "0"));
        let kind = SectionKind::from_name(name).ok_or_else(|| {
            let names: Vec<_> = SectionKind::NAMED.iter().map(|(_, name)| *name).collect();
            format!("`{name}` is none of {}", names.join(", "))
        })?;
        let bytes = bytes.parse().map_err(|_| format!("`{bytes}` is not a count of bytes"))?;
        Ok(Self { kind, bytes })
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.bytes)
    }
}

impl FromStr for Kill {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = text.split_once('=').and_then(|(side, moment)| {
            let (_, point) = SIDES.into_iter().find(|(name, _)| *name == side)?;
            let (_, moment) = MOMENTS.into_iter().find(|(name, _)| *name == moment)?;
            Some(Self { point, moment })
        });
        found.ok_or_else(|| {
            let moments = MOMENTS.map(|(name, _)| name).join(", ");
            format!("`{text}` is not source=MOMENT or destination=MOMENT, MOMENT being one of {moments}")
        })
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = SIDES.iter().find(|(_, point)| *point == self.point).map_or("", |(name, _)| name);
        let moment = MOMENTS.iter().find(|(_, moment)| *moment == self.moment).map_or("", |(name, _)| name);
        write!(f, "{side}={moment}")
    }
}

impl PlotArgs {
    /// The options as they were given.
    pub fn command_line(&self) -> String {
        let cuts: String = self.cut.iter().map(|cut| format!(" --cut {cut}")).collect();
        let kills: String = self.kill.iter().map(|kill| format!(" --kill {kill}")).collect();
        cuts + &kills + &self.faults.command_line()
    }

    pub fn plot(&self) -> Result<Plot> {
        let row = |(id, name)| TableRow { id, name, ..Default::default() };
        let rows: Vec<_> = MovePoint::names().into_iter().map(row).collect();
        let cuts = self.cut.iter().map(|cut| (MovePoint::SEND_CUT, u64::from(cut.kind.0), None, cut.bytes));
        let kills = self.kill.iter().map(|kill| (kill.point, kill.moment.0, None, 1));
        Ok(Plot { scripted: self.faults.script(&rows)?, named: Named(cuts.chain(kills).collect()) })
    }
}

/// What goes wrong.
#[derive(Clone)]
pub struct Plot {
    scripted: Vec<Scripted>,
    named: Named,
}

impl Plot {
    pub fn points(&self) -> Points {
        let none = self.scripted.is_empty() && self.named.0.is_empty();
        if none { Points::default() } else { Points::new(Box::new(self.clone())) }
    }
}

impl Faults for Plot {
    fn decide(&mut self, asked: &Asked) -> Option<Decision> {
        self.named.decide(asked).or_else(|| self.scripted.decide(asked))
    }
}
