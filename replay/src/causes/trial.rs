//! Causes by trial: a side is run again with one thing changed, and the instruction is looked at again.

use super::{Cause, Kind};
use crate::{Error, across::Sides};
use vmtape_abi::{Description, TableRow};
use vmtape_arch::host::Silicon;
use vmtape_machine::MachineSpec;

/// Which of the two machines is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Expected,
    Actual,
}

/// What a trial showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The difference is still there, or another one of its kind.
    Still,
    /// This difference is gone; others are left.
    Gone,
    /// Both machines are equal after the instruction.
    Equal,
}

/// One thing changed.
#[derive(Clone, Debug)]
struct Toggle {
    side: Side,
    kind: Kind,
    /// As options spell it.
    name: String,
    /// What it says of itself.
    text: String,
    source: String,
    /// `name=value`, for people.
    change: String,
    machine: MachineSpec,
}

/// Instructions that all trials of one divergence may take together: some seconds.
const BUDGET: u64 = 1 << 30;

/// Tries a machine instead of one side. Gives what it found, and how far its count of exits up to there is away from that
/// of the side itself.
pub type Run<'a> = dyn FnMut(Side, &MachineSpec) -> Result<(Finding, u64), Error> + 'a;

/// Looks for the one change that makes the difference go away.
pub fn find(sides: &Sides, icount: u64, run: &mut Run) -> Option<Cause> {
    let mut left = BUDGET;
    for (n, group) in groups(sides).into_iter().enumerate() {
        let mut best: Option<((Finding, std::cmp::Reverse<u64>), Toggle)> = None;
        if n == DIFFERING {
            let trials = sides.actual.options.len() as u64;
            left = left.checked_sub(trials.saturating_mul(icount + 1))?;
            if let Some(cause) = several(sides, run) {
                return Some(cause);
            }
        }
        for toggle in group {
            left = left.checked_sub(icount + 1)?;
            // What a backend refuses is no trial.
            let Ok((finding, away)) = run(toggle.side, &toggle.machine) else { continue };
            let rank = (finding, std::cmp::Reverse(away));
            if finding > Finding::Still && best.as_ref().is_none_or(|(other, _)| rank > *other) {
                best = Some((rank, toggle));
            }
        }
        if let Some(((finding, _), toggle)) = best {
            return Some(cause(sides, &toggle, finding));
        }
    }
    None
}

fn cause(sides: &Sides, toggle: &Toggle, finding: Finding) -> Cause {
    let side = match toggle.side {
        Side::Expected => sides.names()[0].clone(),
        Side::Actual => sides.names()[1].clone(),
    };
    let gone = match finding {
        Finding::Equal => "both sides are equal here",
        Finding::Gone | Finding::Still => "this difference is gone, others are left",
    };
    Cause {
        kind: toggle.kind,
        name: toggle.name.clone(),
        sentence: toggle.text.clone(),
        source: toggle.source.clone(),
        confirmed: Some(format!("{side} with {}: {gone}", toggle.change)),
    }
}

/// The smallest set of switches that explains the difference between two machines of one backend, where no single one
/// does: a series of patches, mostly.
fn several(sides: &Sides, run: &mut Run) -> Option<Cause> {
    let (expected, actual) = (&sides.expected, &sides.actual);
    if expected.backend != actual.backend {
        return None;
    }
    let mut toggles = differing(Side::Actual, actual, expected, sides.plugin);
    let mut equal = |toggles: &[Toggle]| {
        let mut machine = actual.clone();
        for (name, value) in toggles.iter().filter_map(|toggle| toggle.change.split_once('=')) {
            machine.options.retain(|(key, _)| key != name);
            machine.options.push((name.to_owned(), value.to_owned()));
        }
        matches!(run(Side::Actual, &machine), Ok((Finding::Equal, _)))
    };
    if toggles.len() < 2 || !equal(&toggles) {
        return None;
    }
    for n in (0..toggles.len()).rev() {
        let toggle = toggles.remove(n);
        if !equal(&toggles) {
            toggles.insert(n, toggle);
        }
    }
    let all =
        |text: fn(&Toggle) -> &str, between: &str| toggles.iter().map(text).collect::<Vec<_>>().join(between);
    let whole = Toggle {
        name: all(|toggle| &toggle.name, " and "),
        text: all(|toggle| &toggle.text, "; "),
        source: all(|toggle| &toggle.source, "; "),
        change: all(|toggle| &toggle.change, ","),
        ..toggles.first()?.clone()
    };
    Some(cause(sides, &whole, Finding::Equal))
}

/// The first so many groups are single switches of one backend that differ.
const DIFFERING: usize = 2;

/// Changes to try, the most likely ones first; of a group the best one counts.
fn groups(sides: &Sides) -> Vec<Vec<Toggle>> {
    let (expected, actual) = (&sides.expected, &sides.actual);
    let mut groups = vec![Vec::new(); DIFFERING];
    if expected.backend == actual.backend {
        groups[0] = differing(Side::Actual, actual, expected, sides.plugin);
        groups[1] = differing(Side::Expected, expected, actual, sides.plugin);
    }
    if expected.silicon.vendor == actual.silicon.vendor {
        groups.push(hosts(Side::Actual, actual, expected));
        groups.push(hosts(Side::Expected, expected, actual));
    }
    for (side, machine, plugin) in
        [(Side::Actual, actual, sides.plugin), (Side::Expected, expected, sides.expected_plugin)]
    {
        let (silicon, patches): (Vec<_>, Vec<_>) = plugin.patches.iter().partition(|row| is_silicon(row));
        let parameters = plugin.parameters.iter().filter(|row| !NATURE.contains(&row.name.as_str()));
        for rows in [silicon, patches, parameters.collect()] {
            groups.push(rows.into_iter().filter_map(|row| flipped(side, machine, plugin, row)).collect());
        }
    }
    groups
}

/// Parameters that make another kind of backend of it: everything changes with them, so they explain nothing.
const NATURE: [&str; 2] = ["ept", "npt"];

/// Switches that two machines of one backend have set differently, each set as the other has it.
fn differing(side: Side, machine: &MachineSpec, other: &MachineSpec, plugin: &Description) -> Vec<Toggle> {
    let changed = machine.options.iter().filter_map(|(name, value)| {
        let (_, wanted) = other.options.iter().find(|(key, other)| key == name && other != value)?;
        option(side, machine, plugin, name, wanted)
    });
    changed.collect()
}

/// A switch the other way round.
fn flipped(side: Side, machine: &MachineSpec, plugin: &Description, row: &TableRow) -> Option<Toggle> {
    let (_, value) = machine.options.iter().find(|(name, _)| *name == row.name)?;
    let wanted = if value == "on" { "off" } else { "on" };
    option(side, machine, plugin, &row.name, wanted)
}

fn option(
    side: Side,
    machine: &MachineSpec,
    plugin: &Description,
    name: &str,
    value: &str,
) -> Option<Toggle> {
    let parameter = plugin.parameters.iter().find(|row| row.name == name);
    let patch = plugin.patches.iter().find(|row| row.name == name);
    let row = parameter.or(patch)?;
    let kind = match parameter {
        Some(_) => Kind::Configuration,
        None if is_silicon(row) => Kind::Silicon,
        None => Kind::Patch,
    };
    let mut changed = machine.clone();
    changed.options.retain(|(key, _)| key != name);
    changed.options.push((name.to_owned(), value.to_owned()));
    Some(Toggle {
        side,
        kind,
        name: name.to_owned(),
        text: row.text.clone(),
        source: source(row),
        change: format!("{name}={value}"),
        machine: changed,
    })
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

fn is_silicon(row: &TableRow) -> bool {
    row.value == "silicon"
}

/// How names of a host's properties begin.
pub const HOST: &str = "host: ";

/// Properties of two hosts that differ, each set as the other has it.
fn hosts(side: Side, machine: &MachineSpec, other: &MachineSpec) -> Vec<Toggle> {
    type Copy = fn(&mut Silicon, &Silicon) -> String;
    let properties: [(&str, Copy); 6] = [
        ("MAXPHYADDR", |to, from| {
            to.phys_bits = from.phys_bits;
            from.phys_bits.to_string()
        }),
        ("host paging levels", |to, from| {
            to.host_levels = from.host_levels;
            from.host_levels.to_string()
        }),
        ("EPT levels", |to, from| {
            to.ept_levels = from.ept_levels;
            from.ept_levels.to_string()
        }),
        ("1 GiB pages", |to, from| {
            to.gbpages = from.gbpages;
            from.gbpages.to_string()
        }),
        ("EPT accessed and dirty bits", |to, from| {
            to.ept_ad = from.ept_ad;
            from.ept_ad.to_string()
        }),
        ("read-modify-write order", |to, from| {
            to.rmw_reads_first = from.rmw_reads_first;
            from.rmw_reads_first.to_string()
        }),
    ];
    let toggles = properties.into_iter().filter_map(|(property, copy)| {
        let mut changed = machine.clone();
        let value = copy(&mut changed.silicon, &other.silicon);
        (changed.silicon != machine.silicon).then(|| Toggle {
            side,
            kind: Kind::Configuration,
            name: format!("{HOST}{property}"),
            text: format!("The hosts differ in {property}: {} and {}", machine.host, other.host),
            source: "SDM vol. 3A 4.1.4 Enumeration of Paging Features by CPUID".to_owned(),
            change: format!("{property} {value}"),
            machine: changed,
        })
    });
    toggles.collect()
}
