//! Plan i of a campaign.

use super::{Campaign, Job, Moving, Whose};
use crate::{
    coin::Coin,
    plan::{Number, Numbers, Plan, Rule, What, When},
    points::Point,
};
use vmtape_machine::{HostPoint, Phase};

/// Numbers of one job, one after the other.
struct Draw {
    coin: Coin,
    next: u64,
}

/// Numbers that a job may draw: the next job's begin behind them.
const PER_JOB: u64 = 1 << 20;

impl Draw {
    fn new(campaign: &Campaign, index: u64) -> Self {
        Self { coin: Coin::new(campaign.seed.0, b"campaign"), next: index * PER_JOB }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.coin.number(self.next - 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    fn of<'t, T>(&mut self, choices: &'t [T]) -> &'t T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// From one on, each power of two as likely as the next.
    fn logarithmic(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits + 1);
        (1 << bits) + self.below(1 << bits)
    }

    fn comes_up(&mut self, probability: f64) -> bool {
        (self.number() as f64) < probability * 2f64.powi(64)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

pub(super) fn is_repeated(campaign: &Campaign, index: u64) -> bool {
    Coin::new(campaign.seed.0, b"again").comes_up(index, campaign.repeat)
}

pub(super) fn job<'p>(
    campaign: &Campaign,
    index: u64,
    again: bool,
    points: impl Fn(Whose) -> &'p [Point],
) -> Job {
    /// Instructions after which a short guest moves: up to 2^N.
    const MOMENTS: u64 = 12;
    let mut draw = Draw::new(campaign, index);
    let guest = draw.of(&campaign.guests).clone();
    let machine = draw.below(campaign.machines.len() as u64) as usize;
    let moves = !campaign.moves.is_empty() && draw.comes_up(campaign.moving);
    let moving = moves.then(|| Moving {
        way: draw.below(campaign.moves.len() as u64) as usize,
        insn: draw.logarithmic(MOMENTS),
    });
    let whose = if moves { Whose::Migration } else { Whose::Machine(machine) };
    let mut points: Vec<&Point> = points(whose).iter().filter(|point| is_wanted(campaign, point)).collect();
    points.sort_by(|a, b| a.name.cmp(&b.name));
    let count = 1 + draw.below(campaign.rules);
    let rules = if points.is_empty() { 0 } else { count };
    let rules = (0..rules)
        .map(|_| {
            let point = *draw.of(&points);
            if moves { rule_of_move(&mut draw, point) } else { rule(&mut draw, point) }
        })
        .collect();
    let plan = Plan {
        seed: Number(draw.number() >> 32),
        retries: if !moves && draw.one_in(4) { 2 } else { 0 },
        heal_from: (!moves && draw.one_in(4)).then(|| Number(draw.logarithmic(15))),
        rules,
        ..Plan::default()
    };
    Job { index, again, guest, machine, moving, plan }
}

fn is_wanted(campaign: &Campaign, point: &Point) -> bool {
    campaign.points.is_empty() || campaign.points.contains(&point.name)
}

fn rule(draw: &mut Draw, point: &Point) -> Rule {
    /// Occurrences and instructions that a short guest comes to.
    const OCCURRENCES: u64 = 9;
    const INSTRUCTIONS: u64 = 15;
    let mut when = When { point: point.name.clone(), ..When::default() };
    if point.number == HostPoint::NMI.0 {
        let moments = (0..1 + draw.below(2)).map(|_| draw.logarithmic(INSTRUCTIONS)).collect::<Vec<_>>();
        when.insn = Some(Numbers::of(moments));
    } else {
        match draw.below(5) {
            0 => {
                when.probability = Some(1.0 / draw.logarithmic(8) as f64);
                when.active = Some(0.5);
            }
            1 => {
                when.insn = Some(Numbers::run(draw.logarithmic(INSTRUCTIONS)..=u64::MAX));
                when.times = Some(Number(1 + draw.below(3)));
            }
            _ => when.n = Some(Numbers::one(draw.logarithmic(OCCURRENCES))),
        }
    }
    let what = What { answer: Some(Number(answer(draw, point.said("answer")))), goto: None };
    Rule { name: String::new(), when, what }
}

/// A migration asks in phases, and often at the same instruction.
fn rule_of_move(draw: &mut Draw, point: &Point) -> Rule {
    const OCCURRENCES: u64 = 6;
    let mut when = When { point: point.name.clone(), ..When::default() };
    match draw.below(4) {
        0 => {
            when.probability = Some(1.0 / draw.logarithmic(6) as f64);
            when.active = Some(0.5);
        }
        1 => {
            let phases = &Phase::NAMED[1..];
            when.phase = Some(draw.of(phases).1.to_owned());
        }
        _ => when.n = Some(Numbers::one(draw.logarithmic(OCCURRENCES))),
    }
    let what = What { answer: Some(Number(answer(draw, point.said("answer")))), goto: None };
    Rule { name: String::new(), when, what }
}

/// An answer that means something, by what the table says of it.
fn answer(draw: &mut Draw, said: &str) -> u64 {
    /// Nanoseconds: up to some minutes.
    const NANOSECONDS: u64 = 37;
    match said {
        _ if said.contains("bits that are") => 1 << draw.below(64),
        _ if said.contains("nanoseconds") => draw.logarithmic(NANOSECONDS),
        _ if said.contains("bytes of it") => draw.below(1 << 12),
        _ if said.contains("bit's number") => draw.below(1 << 9),
        _ if said.contains("word's number") => draw.below(1 << 6),
        _ if said.contains("places") => 1 + draw.below(8),
        _ if said.ends_with("the bits") => draw.number(),
        _ if said.ends_with("the errno") => *draw.of(&[0, 5, 12, 14, 22]),
        _ if said.contains("vector (") => *draw.of(&[6, 13]),
        _ if said.contains("vector") => 0x20 + draw.below(0xe0),
        // `the errno (12 is ENOMEM)`: what it says as an example.
        _ if said.contains('(') && !draw.one_in(4) => example(said).unwrap_or(1),
        _ => draw.below(3),
    }
}

/// The number in a text's parentheses.
fn example(said: &str) -> Option<u64> {
    let (_, inner) = said.split_once('(')?;
    crate::plan::parse_number(inner.split([' ', ')']).next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_the_table_says() {
        let campaign = super::super::tests::campaign();
        let mut draw = Draw::new(&campaign, 0);
        for _ in 0..100 {
            assert!(answer(&mut draw, " the bits that are inverted").is_power_of_two());
            assert!((0x20..0x100).contains(&answer(&mut draw, " the vector")));
            assert!([12, 0, 1, 2].contains(&answer(&mut draw, " the errno (12 is ENOMEM)")));
            assert!((1..=1 << 10).contains(&draw.logarithmic(9)));
        }
        assert_eq!(example(" MCi_STATUS, of which (0xb6 is one)"), Some(0xb6));
    }
}
