//! Axis `kvm`: the release in which the verdict changes, and the single patch in it that does.
//!
//! First the releases that the backend knows are searched. Then only the switches differ between two neighbours, and
//! the smallest set of them is looked for that makes the older release behave as the newer one.

use super::{
    Bench, Finding,
    search::{Mark, Turn, minimize, turn},
};
use crate::{Error, spec::PROFILE};
use vmtape_abi::TableRow;
use vmtape_machine::MachineSpec;

const AXIS: &str = "kvm";

/// What to search.
pub struct Request {
    /// The machine that is tried, its options without a release.
    pub machine: MachineSpec,
    /// What `--kvm` needs after a release for this machine's options.
    pub suffix: String,
    /// The releases between which to search: by default the tape's, and the newest or else the oldest.
    pub good: Option<String>,
    pub bad: Option<String>,
}

/// A release and a set of patches on top of it, as `--kvm` spells them.
struct Candidate<'a> {
    request: &'a Request,
    release: &'a str,
    toggles: Vec<(String, String)>,
}

impl Candidate<'_> {
    fn text(&self) -> String {
        let toggles = self.toggles.iter().map(|(name, _)| format!(",{name}"));
        [self.release.to_owned(), self.request.suffix.clone()].into_iter().chain(toggles).collect()
    }

    fn machine(&self) -> MachineSpec {
        let base = &self.request.machine;
        let release = (PROFILE.to_owned(), self.release.to_owned());
        let options = std::iter::once(release).chain(base.options.clone()).chain(self.toggles.clone());
        MachineSpec { options: options.collect(), ..base.clone() }
    }
}

pub fn bisect(bench: &mut Bench, request: &Request) -> Result<Finding, Error> {
    let base = &request.machine;
    let tables = (bench.describe)(&base.backend)?;
    let releases: Vec<&str> =
        tables.profiles.iter().map(|row| row.name.as_str()).filter(|name| is_release(name)).collect();
    let position = |name: &str| {
        releases.iter().position(|release| *release == name).ok_or_else(|| {
            Error::Other(format!(
                "{name} is no release of `{}`; there are {}",
                base.backend,
                releases.join(", ")
            ))
        })
    };
    let taped = bench.machine.options.iter().find(|(name, _)| name == PROFILE);
    let good = match (&request.good, taped) {
        (Some(name), _) | (None, Some((_, name))) => position(name)?,
        _ => return Err(Error::Other("the tape names no release: give --good".into())),
    };
    let try_release = |bench: &mut Bench, n: usize, toggles: Vec<(String, String)>| {
        let candidate = Candidate { request, release: releases[n], toggles };
        bench.test(&candidate.text(), candidate.machine())
    };
    let ends = match &request.bad {
        Some(name) => vec![position(name)?],
        None => vec![releases.len() - 1, 0],
    };
    let mut bad = None;
    for end in ends.into_iter().filter(|end| *end != good) {
        if try_release(bench, end, Vec::new())? == Mark::Bad {
            bad = Some(end);
            break;
        }
    }
    let Some(bad) = bad else {
        return Ok(bench.nothing(AXIS, "no release differs from the tape"));
    };
    if try_release(bench, good, Vec::new())? != Mark::Good {
        return Err(Error::Other(format!(
            "{} already differs from the tape: it is no good end (--good names another)",
            releases[good]
        )));
    }
    // The searched row goes from good to bad, whichever is older.
    let place = |n: u64| if good < bad { good + n as usize } else { good - n as usize };
    let length = good.abs_diff(bad) as u64;
    let found = turn(0, length, |n| try_release(bench, place(n), Vec::new()))?;
    let ends = (place(found.last_good), place(found.first_bad));
    let mut finding = patch(bench, request, &tables.patches, (releases[ends.0], releases[ends.1]))?;
    note_skipped(&mut finding, &found, &releases, place);
    Ok(finding)
}

fn note_skipped(finding: &mut Finding, found: &Turn, releases: &[&str], place: impl Fn(u64) -> usize) {
    let skipped: Vec<&str> = (found.last_good + 1..found.first_bad).map(|n| releases[place(n)]).collect();
    if !skipped.is_empty() {
        finding
            .notes
            .push(format!("could not be judged, so the change may lie in them: {}", skipped.join(", ")));
    }
}

/// The smallest set of patches that makes a good release bad.
fn patch(
    bench: &mut Bench,
    request: &Request,
    patches: &[TableRow],
    (good, bad): (&str, &str),
) -> Result<Finding, Error> {
    let release = |release| Candidate { request, release, toggles: Vec::new() }.machine();
    let (before, after) =
        ((bench.create)(&release(good))?.resolved(), (bench.create)(&release(bad))?.resolved());
    let changed: Vec<(&TableRow, bool)> = patches
        .iter()
        .filter_map(|row| {
            let value =
                |options: &[(String, String)]| options.iter().find(|(name, _)| *name == row.name).cloned();
            let (before, after) = (value(&before)?, value(&after)?);
            (before != after).then(|| (row, is_on(&after.1)))
        })
        .collect();
    let toggle = |n: usize, reverse: bool| {
        let (row, on) = changed[n];
        (format!("{}{}", if on != reverse { '+' } else { '-' }, row.name), String::new())
    };
    let all: Vec<usize> = (0..changed.len()).collect();
    let mut test = |set: &[usize]| {
        let toggles = set.iter().map(|n| toggle(*n, false)).collect();
        let candidate = Candidate { request, release: good, toggles };
        Ok(bench.test(&candidate.text(), candidate.machine())? == Mark::Bad)
    };
    if changed.is_empty() || !test(&all)? {
        let mut finding = bench.found(AXIS, format!("first bad: {bad}"), &format!("--kvm {bad}"));
        finding.notes.push(format!("no set of the known patches makes {good} behave like it"));
        return Ok(finding);
    }
    let set = minimize(changed.len(), test)?;
    let options =
        Candidate { request, release: good, toggles: set.iter().map(|n| toggle(*n, false)).collect() }.text();
    let divergence = bench.divergence.clone();
    // The proof to the contrary: the bad release without it.
    let reverted =
        Candidate { request, release: bad, toggles: set.iter().map(|n| toggle(*n, true)).collect() };
    let healed = bench.test(&reverted.text(), reverted.machine())? == Mark::Good;
    bench.divergence = divergence;
    let names: Vec<String> = set.iter().map(|n| line(changed[*n].0, changed[*n].1, bad)).collect();
    let mut finding =
        bench.found(AXIS, format!("first bad: {}", names.join(" and ")), &format!("--kvm {options}"));
    finding.notes.push(match healed {
        true => format!("{} shows it, {} does not", options, reverted.text()),
        false => format!("{} shows it; {} is not the same as the tape either", options, reverted.text()),
    });
    Ok(finding)
}

/// A patch on one line: since when, which commit, what.
fn line(row: &TableRow, on: bool, bad: &str) -> String {
    let since = if row.value.is_empty() { bad } else { &row.value };
    let what = format!("{} ({})", row.name, row.source);
    if on { format!("{since} {what}") } else { format!("{bad} without {what}") }
}

fn is_on(value: &str) -> bool {
    value == "on"
}

/// Releases are in a row; other profiles (a series that was only posted) stand beside it.
fn is_release(name: &str) -> bool {
    let numbers = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parse = || {
        let (major, rest) = name.strip_prefix('v')?.split_once('.')?;
        let (minor, candidate) = rest.split_once("-rc").unwrap_or((rest, "0"));
        Some(numbers(major) && numbers(minor) && numbers(candidate))
    };
    parse().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_from_series() {
        for name in ["v5.6", "v5.9-rc7", "v6.12", "v7.2"] {
            assert!(is_release(name), "{name}");
        }
        for name in ["v1-series", "latest", "v5", "v5.", "v5.9-rc", "5.9", "v5.9-fix"] {
            assert!(!is_release(name), "{name}");
        }
    }
}
