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
/// Kinds of profiles in a plugin's table; others (a series that was only posted) stand beside the row of releases.
const RELEASE: &str = "release";
const ALIAS: &str = "alias";

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
    let rows = &tables.profiles;
    let releases: Vec<&str> =
        rows.iter().filter(|row| row.value == RELEASE).map(|row| row.name.as_str()).collect();
    let position = |name: &str| {
        let alias = rows.iter().find(|row| row.name == name && row.value == ALIAS);
        let name = alias.map_or(name, |row| row.since.as_str());
        releases.iter().position(|release| *release == name).ok_or_else(|| {
            let known = releases.join(", ");
            Error::Other(format!("{name} is no release of `{}`; there are {known}", base.backend))
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
    let mut finding =
        patch(bench, request, &tables.patches, (releases[ends.0], releases[ends.1]), ends.0 < ends.1)?;
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
    newer_is_bad: bool,
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
        let (word, release) = if newer_is_bad { ("bad", bad) } else { ("good", good) };
        let options = format!("--kvm {bad}{}", request.suffix);
        let mut finding = bench.found(AXIS, format!("first {word}: {release}"), &options);
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
    let names: Vec<String> = set.iter().map(|n| line(changed[*n].0, changed[*n].1, newer_is_bad)).collect();
    let word = if newer_is_bad { "bad" } else { "good" };
    let mut finding =
        bench.found(AXIS, format!("first {word}: {}", names.join("; and ")), &format!("--kvm {options}"));
    let subjects = set.iter().map(|n| changed[*n].0).filter(|row| !row.subject.is_empty());
    finding.notes.extend(subjects.map(|row| format!("{}: {} ({})", row.commit, row.subject, row.source)));
    finding.notes.push(match healed {
        true => format!("{} shows it, {} does not", options, reverted.text()),
        false => format!("{} shows it; {} is not the same as the tape either", options, reverted.text()),
    });
    Ok(finding)
}

/// A patch on one line: since when, which commit, what. `first bad` names what the bad release has and the good one has
/// not; where the good release is the newer one, `first good` names what made it so.
fn line(row: &TableRow, on: bool, newer_is_bad: bool) -> String {
    let came = on == newer_is_bad;
    let (release, commit) = if came { (&row.since, &row.commit) } else { (&row.until, &row.undone_by) };
    let undoes = if came { String::new() } else { format!("undoes {}: ", row.commit) };
    format!("{release} {commit} {undoes}{}", row.text)
}

fn is_on(value: &str) -> bool {
    value == "on"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_told_on_one_line() {
        let row = TableRow {
            text: "a check".into(),
            commit: "ec7771ab471b".into(),
            since: "v5.9-rc1".into(),
            until: "v5.15".into(),
            undone_by: "e7177339d7b5".into(),
            ..TableRow::default()
        };
        let (came, went) =
            ("v5.9-rc1 ec7771ab471b a check", "v5.15 e7177339d7b5 undoes ec7771ab471b: a check");
        // From old to new, then from new to old: what is off in the old release came in between.
        assert_eq!((line(&row, true, true), line(&row, false, true)), (came.into(), went.into()));
        assert_eq!((line(&row, false, false), line(&row, true, false)), (came.into(), went.into()));
    }
}
