//! Runs rows: every command as a process of this very program, as a user would type it.

use super::{
    catalogue::{ANY, Case, Scenario},
    expect::{self, Channel, Line, Shown},
};
use crate::machine_args::{ISOLATE, create, default_host, parse_backend};
use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use vmtape_backends::Search;

/// How a case went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Pass,
    /// Something else was shown than is expected.
    Deviates,
    Skipped,
}

/// A case that was run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Outcome {
    pub history: String,
    pub name: String,
    pub on: String,
    pub text: String,
    pub source: String,
    pub verdict: Verdict,
    /// Deviations, or why it was skipped.
    pub reasons: Vec<String>,
    /// What one types to see it.
    pub commands: Vec<String>,
}

/// What all cases share.
pub struct Runner {
    pub program: PathBuf,
    /// Folders and files given with `--plugin`.
    pub plugins: Vec<PathBuf>,
    /// The seconds of `--isolate`.
    pub isolate: Option<u64>,
    pub search: Search,
    /// kvm-unit-tests' x86 folder.
    pub kvm_unit_tests: Option<PathBuf>,
    /// Also what takes minutes.
    pub slow: bool,
    /// Where tapes are left; otherwise they go with the run.
    pub keep: Option<PathBuf>,
}

impl Runner {
    /// Runs cases side by side; the outcomes are in the order of the cases.
    pub fn run_all(&self, cases: &[(&Scenario, &Case)], done: &(dyn Fn(&Outcome) + Sync)) -> Vec<Outcome> {
        let outcomes = Mutex::new(BTreeMap::new());
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let Some((scenario, case)) = cases.get(n) else { break };
                        let outcome = self.run(scenario, case);
                        done(&outcome);
                        outcomes.lock().expect("no worker panics with it").insert(n, outcome);
                    }
                });
            }
        });
        outcomes.into_inner().expect("no worker panics with it").into_values().collect()
    }

    /// Runs one case.
    pub fn run(&self, scenario: &Scenario, case: &Case) -> Outcome {
        let mut outcome = Outcome {
            history: scenario.history.clone(),
            name: scenario.name.clone(),
            on: case.on.clone(),
            text: scenario.text.clone(),
            source: scenario.source.clone(),
            verdict: Verdict::Skipped,
            reasons: Vec::new(),
            commands: Vec::new(),
        };
        match self.unfit(scenario, case) {
            Ok(None) => {}
            Ok(Some(reason)) => {
                outcome.reasons.push(reason);
                return outcome;
            }
            Err(error) => {
                outcome.verdict = Verdict::Deviates;
                outcome.reasons.push(format!("{error:#}"));
                return outcome;
            }
        }
        match self.attempt(scenario, case, &mut outcome.commands) {
            Ok(deviations) => outcome.reasons = deviations,
            Err(error) => outcome.reasons = vec![format!("{error:#}")],
        }
        outcome.verdict = if outcome.reasons.is_empty() { Verdict::Pass } else { Verdict::Deviates };
        outcome
    }

    /// Why a row cannot run here.
    fn unfit(&self, scenario: &Scenario, case: &Case) -> Result<Option<String>> {
        if scenario.slow && !self.slow {
            return Ok(Some("takes minutes: --slow runs it".into()));
        }
        let commands = || scenario.setup.iter().chain([&scenario.command]);
        let needs_images = commands().any(|command| command.contains(IMAGES));
        if needs_images && self.kvm_unit_tests.is_none() {
            return Ok(Some("VMTAPE_KUT is not set to the x86 folder of a built kvm-unit-tests".into()));
        }
        if scenario.needs.is_empty() {
            return Ok(None);
        }
        let (name, options) = parse_backend(&case.on)?;
        let plugin = self.search.load(&name)?;
        let vm = create(&plugin, default_host(plugin.description.vendor)?.1, &options)?;
        let missing = scenario.needs.iter().find(|cap| vm.check_extension(**cap) <= 0);
        Ok(missing.map(|cap| format!("the backend does not claim KVM_CAP {cap}")))
    }

    fn attempt(&self, scenario: &Scenario, case: &Case, typed: &mut Vec<String>) -> Result<Vec<String>> {
        let place = Place::new(self, scenario, case)?;
        for (name, text) in &scenario.files {
            fs::write(place.path.join(name), text).with_context(|| name.clone())?;
        }
        for command in &scenario.setup {
            let (words, text) = place.words(command)?;
            typed.push(text);
            let shown = self.vmtape(&place, &words)?;
            if !matches!(shown.status, Some(0 | 1)) {
                bail!("`{}`: {}", typed.last().expect("just pushed"), shown.err.join("; "));
            }
        }
        let (words, text) = place.words(&scenario.command)?;
        typed.push(text);
        if words.first().is_some_and(|word| word == "record") {
            return self.record(&place, &words, &case.lines, scenario.slow);
        }
        Ok(expect::deviations(&case.lines, &self.vmtape(&place, &words)?))
    }

    /// Records twice, compares the tapes, and replays one in both modes.
    fn record(&self, place: &Place, words: &[String], lines: &[Line], once: bool) -> Result<Vec<String>> {
        let to = |tape: &str| [words, &["-o".to_owned(), tape.to_owned()]].concat();
        let mut shown = self.vmtape(place, &to(TAPE))?;
        let wants_events = |line: &Line| match line {
            Line::Shows { channel, .. } | Line::Lacks { channel, .. } | Line::Counts { channel, .. } => {
                *channel == Channel::Event
            }
            Line::Status(_) => false,
        };
        if lines.iter().any(wants_events) {
            shown.events = self.vmtape(place, &["show".into(), TAPE.into()])?.out;
        }
        let mut deviations = expect::deviations(lines, &shown);
        if !deviations.is_empty() || once {
            return Ok(deviations);
        }
        self.vmtape(place, &to(AGAIN))?;
        let read = |name| fs::read(place.path.join(name)).with_context(|| format!("no tape {name}"));
        if read(TAPE)? != read(AGAIN)? {
            deviations.push("two recordings differ".into());
        }
        for mode in ["run", "exits"] {
            let line = ["replay", "--mode", mode, TAPE].map(String::from);
            let replayed = self.vmtape(place, &line)?;
            if replayed.status != Some(0) {
                let text = [replayed.out, replayed.err].concat().join("; ");
                deviations.push(format!("the tape does not replay in --mode {mode}: {text}"));
            }
        }
        fs::remove_file(place.path.join(AGAIN)).ok();
        Ok(deviations)
    }

    fn vmtape(&self, place: &Place, words: &[String]) -> Result<Shown> {
        let mut command = Command::new(&self.program);
        let (name, rest) = words.split_first().context("an empty command")?;
        command.current_dir(&place.path).env("NO_COLOR", "1").env_remove("RUST_LOG").arg(name).args(rest);
        if !self.plugins.is_empty() {
            let path = std::env::join_paths(&self.plugins).context("--plugin")?;
            command.env("VMTAPE_PLUGIN_PATH", path);
        }
        if let Some(seconds) = self.isolate {
            command.env(ISOLATE, seconds.to_string());
        }
        let output = command.output().with_context(|| self.program.display().to_string())?;
        let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect();
        Ok(Shown {
            status: output.status.code(),
            out: lines(&output.stdout),
            err: lines(&output.stderr),
            events: Vec::new(),
        })
    }
}

const TAPE: &str = "scenario.tape";
const AGAIN: &str = "again.tape";
/// What commands say for kvm-unit-tests' folder.
const IMAGES: &str = "{kut}";

/// Where a case runs, and what its placeholders mean.
struct Place {
    path: PathBuf,
    /// Removes the folder with the case, unless it is to be kept.
    _temporary: Option<tempfile::TempDir>,
    placeholders: Vec<(&'static str, String)>,
}

impl Place {
    fn new(runner: &Runner, scenario: &Scenario, case: &Case) -> Result<Self> {
        let (path, temporary) = match &runner.keep {
            Some(folder) => {
                let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
                let name = format!("{}.{}", scenario.name, case.on).chars().map(plain).collect::<String>();
                (folder.join(name), None)
            }
            None => {
                let folder = tempfile::tempdir()?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let mut placeholders = vec![("{dir}", ".".to_owned())];
        if case.on != ANY {
            let vendor = runner.search.load(case.backend())?.description.vendor;
            placeholders.extend([("{backend}", case.on.clone()), ("{vendor}", vendor.to_string())]);
        }
        if let Some(folder) = &runner.kvm_unit_tests {
            placeholders.push((IMAGES, absolute(folder)?.display().to_string()));
        }
        Ok(Self { path, _temporary: temporary, placeholders })
    }

    /// The words of a command, and the command as one would type it.
    fn words(&self, command: &str) -> Result<(Vec<String>, String)> {
        let mut text = command.to_owned();
        for (name, value) in &self.placeholders {
            text = text.replace(name, value);
        }
        let words = shlex::split(&text).with_context(|| format!("`{text}` has an open quote"))?;
        Ok((words, format!("vmtape {text}")))
    }
}

/// Rows run in folders of their own.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| path.display().to_string())
}
