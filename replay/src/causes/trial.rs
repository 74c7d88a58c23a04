//! Causes by trial: a side is run again with one thing changed, and the instruction is looked at again.
//!
//! Only what really differs between the two machines can make a difference between them: a patch that both sides have, or
//! that neither has, is no candidate, whatever it would do. A switch that one side's backend does not have is off there.
//! The candidates in order:
//!
//! 1. what somebody chose: parameters, and patches switched by name,
//! 2. properties of the hosts, where the vendor is the same,
//! 3. what is known of silicon by observation,
//! 4. patches that one side's KVM has and the other's has not.
//!
//! The first one with which both sides are equal is the cause, or else the first one with which this difference is gone.
//! Where no single one does it, and the backend is the same, a smallest set of them is ([`minimize`] says which).

use super::{
    cause::{Cause, Kind},
    hosts,
    toggle::{Finding, Side, Toggle},
};
use crate::{
    Error,
    bisect::search::minimize,
    sides::Sides,
    spec::{self, PROFILE},
};
use vmtape_abi::{Description, TableRow};
use vmtape_machine::MachineSpec;

/// Instructions that all trials of one divergence may take together: some seconds.
const BUDGET: u64 = 1 << 30;

/// Tries a machine instead of one side.
pub type Run<'a> = dyn FnMut(Side, &MachineSpec) -> Result<Finding, Error> + 'a;

/// Looks for the one change that makes the difference go away. `cost`: what a trial takes of the budget.
pub fn find(sides: &Sides, cost: u64, run: &mut Run) -> Option<Cause> {
    let mut left = BUDGET;
    let mut try_out = |side: Side, machine: &MachineSpec| {
        left = left.checked_sub(cost.saturating_add(1))?;
        // What a backend refuses is no trial.
        Some(run(side, machine).unwrap_or(Finding::Still))
    };
    let mut gone = None;
    for toggle in candidates(sides) {
        match try_out(toggle.side, &toggle.machine) {
            None => break,
            Some(Finding::Still) => {}
            Some(Finding::Gone) => gone = gone.or(Some(toggle)),
            Some(Finding::Equal) => return Some(toggle.cause(sides, Finding::Equal)),
        }
    }
    match gone {
        Some(toggle) => Some(toggle.cause(sides, Finding::Gone)),
        None => several(sides, &mut |machine| try_out(Side::Actual, machine) == Some(Finding::Equal)),
    }
}

/// The smallest set of switches that explains the difference between two machines of one backend, where no single one
/// does: a series of patches, mostly.
fn several(sides: &Sides, equal: &mut dyn FnMut(&MachineSpec) -> bool) -> Option<Cause> {
    if sides.expected.backend != sides.actual.backend {
        return None;
    }
    let [_, actual] = Half::of(sides);
    let toggles = [actual.chosen_ones(), actual.of_kind(Kind::Silicon), actual.of_kind(Kind::Patch)].concat();
    let with = |set: &[usize]| {
        let changes = set.iter().filter_map(|n| toggles[*n].change.split_once('='));
        changes.fold(actual.plain(), |machine, (name, value)| set_option(machine, name, value))
    };
    let all: Vec<usize> = (0..toggles.len()).collect();
    if all.len() < 2 || !equal(&with(&all)) {
        return None;
    }
    let set = minimize(all.len(), |set| Ok(equal(&with(set)))).ok()?;
    let text = |text: fn(&Toggle) -> &str, between: &str| {
        set.iter().map(|n| text(&toggles[*n])).collect::<Vec<_>>().join(between)
    };
    let whole = Toggle {
        name: text(|toggle| &toggle.name, " and "),
        text: text(|toggle| &toggle.text, "; "),
        source: text(|toggle| &toggle.source, "; "),
        change: text(|toggle| &toggle.change, ","),
        ..toggles.get(*set.first()?)?.clone()
    };
    Some(whole.cause(sides, Finding::Equal))
}

/// The changes to try, in order. See the head of this file.
pub fn candidates(sides: &Sides) -> Vec<Toggle> {
    let halves = Half::of(sides);
    let both = |toggles: &dyn Fn(&Half) -> Vec<Toggle>| -> Vec<Toggle> {
        halves.iter().rev().flat_map(toggles).collect()
    };
    [
        both(&|half| half.chosen_ones()),
        both(&|half| hosts::toggles(half.side, &half.plain(), half.other)),
        both(&|half| half.of_kind(Kind::Silicon)),
        both(&|half| half.of_kind(Kind::Patch)),
    ]
    .concat()
}

/// One of the two machines, and what it could have of the other.
struct Half<'a> {
    side: Side,
    machine: &'a MachineSpec,
    other: &'a MachineSpec,
    plugin: &'a Description,
    /// Its options that its release does not imply.
    own: Vec<(String, String)>,
    /// Names of the options that somebody chose on either side.
    chosen: Vec<String>,
}

impl<'a> Half<'a> {
    fn of(sides: &'a Sides) -> [Self; 2] {
        let own = |machine| spec::chosen(machine, sides.create).unwrap_or_default();
        let (expected, actual) = (own(&sides.expected), own(&sides.actual));
        let names = actual.iter().chain(&expected).map(|(name, _)| name.clone());
        let mut chosen: Vec<String> = Vec::new();
        names.filter(|name| name != PROFILE).for_each(|name| {
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        });
        [
            Self {
                side: Side::Expected,
                machine: &sides.expected,
                other: &sides.actual,
                plugin: sides.expected_plugin,
                own: expected,
                chosen: chosen.clone(),
            },
            Self {
                side: Side::Actual,
                machine: &sides.actual,
                other: &sides.expected,
                plugin: sides.plugin,
                own: actual,
                chosen,
            },
        ]
    }

    /// The machine with nothing but its profile and what was chosen, so that what one option implies can follow it.
    fn plain(&self) -> MachineSpec {
        let profile = self.machine.options.iter().filter(|(name, _)| name == PROFILE);
        let own = self.own.iter().filter(|(name, _)| name != PROFILE);
        MachineSpec { options: profile.chain(own).cloned().collect(), ..self.machine.clone() }
    }

    /// Chosen options that differ, each set as the other has it.
    fn chosen_ones(&self) -> Vec<Toggle> {
        self.chosen.iter().filter_map(|name| self.toggle(name)).collect()
    }

    /// Switches of a kind that differ without having been chosen.
    fn of_kind(&self, kind: Kind) -> Vec<Toggle> {
        let rows = self.plugin.patches.iter().filter(|row| !self.chosen.contains(&row.name));
        rows.filter_map(|row| self.toggle(&row.name)).filter(|toggle| toggle.kind == kind).collect()
    }

    /// An option set as the other machine has it, if that is a change.
    fn toggle(&self, name: &str) -> Option<Toggle> {
        let value = option(self.machine, name)?;
        let wanted = match option(self.other, name) {
            Some(wanted) => wanted,
            // What makes another kind of backend of it is a difference only where the other one is of that kind.
            None if self.machine.nested_paging == name => option_word(self.other.has_nested_paging()?),
            None => flipped(value),
        };
        if wanted == value {
            return None;
        }
        let parameter = self.plugin.parameters.iter().find(|row| row.name == name);
        let row = parameter.or_else(|| self.plugin.patches.iter().find(|row| row.name == name))?;
        let kind = match parameter {
            Some(_) => Kind::Configuration,
            None if row.value == SILICON => Kind::Silicon,
            // A patch that neither side has is not what makes them differ.
            None if value == OFF && self.other.options.iter().all(|(key, _)| key != name) => return None,
            None => Kind::Patch,
        };
        Some(Toggle {
            side: self.side,
            kind,
            name: name.to_owned(),
            text: row.text.clone(),
            source: source(row),
            change: format!("{name}={wanted}"),
            machine: set_option(self.plain(), name, wanted),
        })
    }
}

/// How tables mark silicon's behaviour.
const SILICON: &str = "silicon";
/// Resolved switches are on or off.
const ON: &str = "on";
const OFF: &str = "off";

fn option_word(on: bool) -> &'static str {
    if on { ON } else { OFF }
}

fn flipped(value: &str) -> &'static str {
    option_word(value != ON)
}

fn option<'m>(machine: &'m MachineSpec, name: &str) -> Option<&'m str> {
    machine.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn set_option(mut machine: MachineSpec, name: &str, value: &str) -> MachineSpec {
    machine.options.retain(|(key, _)| key != name);
    machine.options.push((name.to_owned(), value.to_owned()));
    machine
}

/// The file, and for a patch its commit with the releases that have it.
fn source(row: &TableRow) -> String {
    let mut parts = vec![row.source.clone()];
    if !row.commit.is_empty() {
        parts.push(format!("{} {}", row.commit, row.subject).trim_end().to_owned());
    }
    match (row.since.as_str(), row.until.as_str()) {
        ("", _) => {}
        (since, "") => parts.push(format!("from {since} on")),
        (since, until) => parts.push(format!("from {since} to before {until}")),
    }
    parts.retain(|part| !part.is_empty());
    parts.join("; ")
}
