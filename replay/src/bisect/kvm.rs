//! Axis `kvm`: the release in which the verdict changes, and the single patch in it that does.
//!
//! First the releases that the backend knows are searched. Then only the switches differ between two neighbours, and
//! the smallest set of them is looked for that makes the older release behave as the newer one.

use super::{
    Bench, Finding,
    search::{Mark, minimize, turn},
};
use crate::{Error, spec::PROFILE};
use vmtape_abi::TableRow;
use vmtape_machine::MachineSpec;

const AXIS: &str = "kvm";
/// Kinds of profiles in a plugin's table; a series that was only posted stands beside the row of releases.
const RELEASE: &str = "release";
const ALIAS: &str = "alias";
const SERIES: &str = "series";

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
            Error::Misuse(format!("{name} is no release of `{}`; there are {known}", base.backend))
        })
    };
    let taped = bench.machine.options.iter().find(|(name, _)| name == PROFILE);
    let good = match (&request.good, taped) {
        (Some(name), _) | (None, Some((_, name))) => position(name)?,
        _ => return Err(Error::Misuse("the tape names no release: give --good".into())),
    };
    if let Some(series) =
        rows.iter().find(|row| row.value == SERIES && Some(&row.name) == request.bad.as_ref())
    {
        return bisect_series(bench, request, &tables.patches, releases[good], series);
    }
    let try_release = |bench: &mut Bench, n: usize, toggles: Vec<(String, String)>| {
        let candidate = Candidate { request, release: releases[n], toggles };
        bench.test(&candidate.text(), candidate.machine())
    };
    let ends = match request.bad.as_deref().map(position).transpose()? {
        Some(end) if end == good => {
            return Err(Error::Misuse(format!("there is no release between {0} and {0}", releases[good])));
        }
        Some(end) => vec![end],
        None => ends(bench, request, &releases)?,
    };
    let mut bad = None;
    for end in ends.into_iter().filter(|end| *end != good) {
        if try_release(bench, end, Vec::new())? == Mark::Bad {
            bad = Some(end);
            break;
        }
    }
    let Some(bad) = bad else {
        let which = request
            .bad
            .as_deref()
            .map_or("no release differs".into(), |bad| format!("{bad} does not differ"));
        return Ok(bench.nothing(AXIS, format!("{which} from the tape")));
    };
    if try_release(bench, good, Vec::new())? != Mark::Good {
        return Err(not_good(releases[good]));
    }
    // The searched row goes from good to bad, whichever is older.
    let place = |n: u64| if good < bad { good + n as usize } else { good - n as usize };
    let length = good.abs_diff(bad) as u64;
    let found = turn(0, length, |n| try_release(bench, place(n), Vec::new()))?;
    let neighbours = (releases[place(found.last_good)], releases[place(found.first_bad)]);
    let mut finding = match good < bad {
        true => Step { older: neighbours.0, newer: neighbours.1, newer_is: Mark::Bad },
        false => Step { older: neighbours.1, newer: neighbours.0, newer_is: Mark::Good },
    }
    .explain(bench, request, &tables.patches)?;
    let skipped: Vec<&str> = (found.last_good + 1..found.first_bad).map(|n| releases[place(n)]).collect();
    if !skipped.is_empty() {
        finding.notes.push(format!("show another difference first, or nothing: {}", skipped.join(", ")));
    }
    Ok(finding)
}

/// Searches the patches of a series that no release has, on top of a good release.
fn bisect_series(
    bench: &mut Bench,
    request: &Request,
    patches: &[TableRow],
    good: &str,
    series: &TableRow,
) -> Result<Finding, Error> {
    let candidate = |release| Candidate { request, release, toggles: Vec::new() };
    let (before, after) = (candidate(good), candidate(&series.name));
    if bench.test(&after.text(), after.machine())? != Mark::Bad {
        return Ok(bench.nothing(AXIS, format!("{} does not differ from the tape", series.name)));
    }
    if bench.test(&before.text(), before.machine())? != Mark::Good {
        return Err(not_good(good));
    }
    Step { older: good, newer: &series.name, newer_is: Mark::Bad }.explain(bench, request, patches)
}

fn not_good(release: &str) -> Error {
    Error::Other(format!("{release} already differs from the tape: it is no good end (--good names another)"))
}

/// Releases that may be the bad end: the newest, the oldest, and one of each set of switches in between.
fn ends(bench: &Bench, request: &Request, releases: &[&str]) -> Result<Vec<usize>, Error> {
    let mut ends = vec![releases.len().saturating_sub(1), 0];
    let mut before = None;
    for (n, release) in releases.iter().enumerate() {
        let machine = Candidate { request, release, toggles: Vec::new() }.machine();
        let mut options = (bench.create)(&machine)?.resolved();
        options.retain(|(name, _)| name != PROFILE);
        if before.replace(options.clone()).is_some_and(|before| before != options) && !ends.contains(&n) {
            ends.push(n);
        }
    }
    Ok(ends)
}

/// Two releases between which the verdict changes.
struct Step<'a> {
    older: &'a str,
    newer: &'a str,
    newer_is: Mark,
}

impl Step<'_> {
    /// Finds the smallest set of patches that makes the older release behave as the newer one.
    fn explain(&self, bench: &mut Bench, request: &Request, patches: &[TableRow]) -> Result<Finding, Error> {
        let changed = self.changed(bench, request, patches)?;
        let candidate = |release, set: &[usize], undo: bool| {
            let toggle = |n: &usize| {
                let (row, on) = changed[*n];
                (format!("{}{}", if on != undo { '+' } else { '-' }, row.name), String::new())
            };
            Candidate { request, release, toggles: set.iter().map(toggle).collect() }
        };
        let is_newer = |bench: &mut Bench, candidate: &Candidate| -> Result<bool, Error> {
            Ok(bench.test(&candidate.text(), candidate.machine())? == self.newer_is)
        };
        let word = if self.newer_is == Mark::Bad { "bad" } else { "good" };
        let all: Vec<usize> = (0..changed.len()).collect();
        let before = bench.bad.take();
        if changed.is_empty() || !is_newer(bench, &candidate(self.older, &all, false))? {
            bench.bad = before;
            let bad = if self.newer_is == Mark::Bad { self.newer } else { self.older };
            let mut finding = bench.found(
                AXIS,
                format!("first {word}: {}", self.newer),
                &format!("--kvm {bad}{}", request.suffix),
            )?;
            finding.notes.push(format!("no set of the known patches makes {} behave like it", self.older));
            return Ok(finding);
        }
        let set = minimize(changed.len(), |set| is_newer(bench, &candidate(self.older, set, false)))?;
        let last = bench.bad.take();
        let (with, without) = (candidate(self.older, &set, false), candidate(self.newer, &set, true));
        // The proof to the contrary: the newer release without it.
        let confirmed = !is_newer(bench, &without)?;
        bench.bad = if self.newer_is == Mark::Bad { last } else { before };
        let lines: Vec<String> = set.iter().map(|n| line(changed[*n].0, changed[*n].1)).collect();
        let bad = if self.newer_is == Mark::Bad { with.text() } else { without.text() };
        let line = format!("first {word}: {}", lines.join("; and "));
        let mut finding = bench.found(AXIS, line, &format!("--kvm {bad}"))?;
        let subjects = set.iter().map(|n| changed[*n].0).filter(|row| !row.subject.is_empty());
        finding.notes.extend(subjects.map(|row| format!("{}: {} ({})", row.commit, row.subject, row.source)));
        let so = if confirmed { "does not" } else { "does too" };
        finding.notes.push(format!(
            "{} shows what {} shows, {} {so}",
            with.text(),
            self.newer,
            without.text()
        ));
        Ok(finding)
    }

    /// The patches that one of the two releases has and the other has not; true: the newer one has it.
    fn changed<'r>(
        &self,
        bench: &Bench,
        request: &Request,
        patches: &'r [TableRow],
    ) -> Result<Vec<(&'r TableRow, bool)>, Error> {
        let options = |release| -> Result<_, Error> {
            let machine = Candidate { request, release, toggles: Vec::new() }.machine();
            Ok((bench.create)(&machine)?.resolved())
        };
        let (older, newer) = (options(self.older)?, options(self.newer)?);
        let value = |options: &[(String, String)], row: &TableRow| {
            options.iter().find(|(name, _)| *name == row.name).map(|(_, value)| value.clone())
        };
        let changed = patches.iter().filter_map(|row| {
            let (older, newer) = (value(&older, row)?, value(&newer, row)?);
            (older != newer).then_some((row, newer == ON))
        });
        Ok(changed.collect())
    }
}

/// How a switch that is on is spelled among resolved options.
const ON: &str = "on";

/// A patch on one line: since when, which commit, what it does. One that the newer release has no longer is told by the
/// commit that took it out.
fn line(row: &TableRow, came: bool) -> String {
    let (release, commit) = if came { (&row.since, &row.commit) } else { (&row.until, &row.undone_by) };
    let undoes = if came { String::new() } else { format!("undoes {}: ", row.commit) };
    // A patch that no release has goes by its name.
    let release = if release.is_empty() { &row.name } else { release };
    format!("{release} {commit} {undoes}{}", row.text)
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
        assert_eq!(line(&row, true), "v5.9-rc1 ec7771ab471b a check");
        assert_eq!(line(&row, false), "v5.15 e7177339d7b5 undoes ec7771ab471b: a check");
    }
}
