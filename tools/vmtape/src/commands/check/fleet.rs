//! Every host of a fleet against every other one: a guest is started on the first and checked against the second.

use super::{
    hosts::{KnownHost, LoadedHost},
    source::Template,
};
use crate::commands::replay::Plugins;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::Path;
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_machine::vmm::When;
use vmtape_replay::check::{self, Assessment, Guest, Host, Verdict, finding::Severity, footprint::Footprint};
use vmtape_traces::Tape;

/// What is known of one move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Safe,
    /// Safe for a guest that does not rely on reserved bits.
    Conditional,
    Unsafe,
    Refused,
    /// The guest does not start on the first host.
    NotStarted,
    /// It could not be tried.
    Unknown,
}

impl Outcome {
    pub fn text(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Conditional => "conditional",
            Self::Unsafe => "unsafe",
            Self::Refused => "refused",
            Self::NotStarted => "not started",
            Self::Unknown => "unknown",
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Safe => Self::Safe,
            Verdict::Conditional => Self::Conditional,
            Verdict::Unsafe => Self::Unsafe,
            Verdict::Refused => Self::Refused,
            Verdict::Unknown => Self::Unknown,
        }
    }
}

/// A move of all guests from one host to another.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cell {
    pub from: String,
    pub to: String,
    #[serde(rename = "verdict")]
    pub outcome: Outcome,
    pub reason: String,
    /// The guest that decides, and what was found of it.
    #[serde(rename = "decided_by")]
    pub guest: String,
    pub assessment: Option<Assessment>,
}

impl Cell {
    /// A move that was not tried, or could not be.
    fn untried(from: &KnownHost, to: &KnownHost, guest: &str, outcome: Outcome, reason: String) -> Self {
        let (from, to) = (from.passport.name.clone(), to.passport.name.clone());
        Self { from, to, outcome, reason, guest: guest.to_owned(), assessment: None }
    }

    fn of(from: &KnownHost, to: &KnownHost, guest: &str, answer: Result<Assessment>) -> Self {
        match answer {
            Ok(assessment) => Self {
                outcome: assessment.verdict.into(),
                reason: assessment.reason.clone(),
                assessment: Some(assessment),
                ..Self::untried(from, to, guest, Outcome::Unknown, String::new())
            },
            Err(error) => Self::untried(from, to, guest, Outcome::Unknown, format!("{error:#}")),
        }
    }
}

/// A host in a matrix.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Row {
    pub name: String,
    pub backend: String,
    pub vendor: String,
    pub phys_bits: u8,
    /// What its KVM tells guests, and what it maps.
    pub kvm_phys_bits: u8,
    pub mappable_bits: u8,
    pub iommu_bits: Option<u8>,
    pub guest_levels: u8,
    pub hides_width: bool,
}

/// The matrix, row by row.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Matrix {
    pub guests: Vec<String>,
    pub cpu: Vec<String>,
    pub hosts: Vec<Row>,
    pub cells: Vec<Cell>,
    /// The one row of a tape, whose destinations were all asked for.
    #[serde(skip)]
    pub of_tape: bool,
}

impl Matrix {
    pub fn cell(&self, from: &str, to: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.from == from && cell.to == to)
    }

    /// What is to be known of moves that may well be safe, each with the moves, in the order in which it comes.
    pub fn cautions(&self) -> Vec<(&str, Vec<String>)> {
        let mut cautions: Vec<(&str, Vec<String>)> = Vec::new();
        for cell in self.moves() {
            let findings = cell.assessment.iter().flat_map(|assessment| &assessment.findings);
            for finding in findings.filter(|finding| finding.severity == Severity::Caution) {
                let name = format!("{} -> {}", cell.from, cell.to);
                match cautions.iter_mut().find(|(sentence, _)| *sentence == finding.sentence) {
                    Some((_, moves)) => moves.push(name),
                    None => cautions.push((&finding.sentence, vec![name])),
                }
            }
        }
        cautions
    }

    /// The cells that count: within a fleet, staying at home is no move.
    pub fn moves(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|cell| self.of_tape || cell.from != cell.to)
    }
}

/// What is asked.
pub struct Question<'a> {
    pub plugins: &'a Plugins,
    pub templates: &'a [Template],
    pub assigned_device: bool,
    /// Where tapes are put while they are needed.
    pub folder: &'a Path,
}

impl Question<'_> {
    /// Fills the matrix: every guest on every host of the first kind, checked against every one of the second.
    pub fn ask(
        &self,
        from: &[KnownHost],
        to: &[KnownHost],
        progress: &mut dyn FnMut(String),
    ) -> Result<Matrix> {
        let mut cells: Vec<Cell> = Vec::new();
        for source in from {
            for template in self.templates {
                progress(format!("{} on {}", template.image.name, source.passport.name));
                for cell in self.moves(source, template, to) {
                    match cells.iter_mut().find(|known| (&known.from, &known.to) == (&cell.from, &cell.to)) {
                        Some(known) if known.outcome >= cell.outcome => {}
                        Some(known) => *known = cell,
                        None => cells.push(cell),
                    }
                }
            }
        }
        let mut hosts = Vec::new();
        for host in to.iter().chain(from) {
            if !hosts.iter().any(|row: &Row| row.name == host.passport.name) {
                hosts.push(row(host, &host.load(self.plugins, None)?));
            }
        }
        let mut cpu: Vec<_> = self.templates.iter().map(|template| template.cpu.clone()).collect();
        cpu.dedup();
        let guests = self.templates.iter().map(|template| template.image.name.clone()).collect();
        Ok(Matrix { guests, cpu, hosts, cells, of_tape: false })
    }

    /// One guest, started on one host, against all others.
    fn moves(&self, source: &KnownHost, template: &Template, to: &[KnownHost]) -> Vec<Cell> {
        let tape = self.folder.join("guest.tape");
        let started = template.start(source, self.plugins, &tape);
        let name = &template.image.name;
        let untried = |outcome, reason: String| {
            to.iter().map(|host| Cell::untried(source, host, name, outcome, reason.clone())).collect()
        };
        let (loaded, machine) = match started {
            Ok(Some(started)) => started,
            Ok(None) => {
                let cpu = &template.cpu;
                let reason =
                    format!("`{cpu}` is wider than {}: the guest does not start", source.passport.name);
                return untried(Outcome::NotStarted, reason);
            }
            Err(error) => return untried(Outcome::Unknown, format!("{error:#}")),
        };
        let assessed = || -> Result<Vec<Cell>> {
            let tape = Tape::open_whole(&tape)?;
            let create = |machine: &_| self.plugins.create(machine);
            let footprint = Footprint::of(&tape, &machine, When::Start, &create)?;
            let guest = Guest {
                tape: &tape,
                machine,
                footprint,
                supported: loaded.supported.clone(),
                plugin: &loaded.plugin.description,
                at: When::Start,
                assigned_device: self.assigned_device,
            };
            let assess = |host: &KnownHost| {
                let again = template.again(source, host);
                assess(&guest, host, self.plugins, &again, &mut |_| ())
            };
            Ok(to.iter().map(|host| Cell::of(source, host, name, assess(host))).collect())
        };
        assessed().unwrap_or_else(|error| untried(Outcome::Unknown, format!("{error:#}")))
    }
}

/// Checks one guest against one host.
pub fn assess(
    guest: &Guest,
    known: &KnownHost,
    plugins: &Plugins,
    reproduce: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Assessment> {
    let loaded = known.load(plugins, Some(&guest.machine))?;
    let host = Host {
        passport: &known.passport,
        machine: loaded.machine(known, &guest.machine),
        supported: loaded.supported,
        hides_width: loaded.hides_width,
        plugin: &loaded.plugin.description,
    };
    let create = |machine: &_| plugins.create(machine);
    Ok(check::check(guest, &host, &create, reproduce, progress)?)
}

fn row(host: &KnownHost, loaded: &LoadedHost) -> Row {
    let passport = &host.passport;
    Row {
        name: passport.name.clone(),
        backend: host.backend.clone(),
        vendor: passport.silicon.vendor.to_string(),
        phys_bits: passport.silicon.phys_bits,
        kvm_phys_bits: maxphyaddr(&loaded.supported),
        mappable_bits: passport.mappable_bits(),
        iommu_bits: passport.iommu_bits,
        guest_levels: passport.guest_levels,
        hides_width: loaded.hides_width,
    }
}

impl Matrix {
    /// The one row of a tape: from where it was recorded.
    pub fn of_tape(
        source: &KnownHost,
        guest: &Guest,
        answers: Vec<(&KnownHost, Result<Assessment>)>,
        plugins: &Plugins,
    ) -> Self {
        let name = guest.machine.image.name.clone();
        let loaded = |host: &KnownHost| Some(row(host, &host.load(plugins, Some(&guest.machine)).ok()?));
        let hosts = answers.iter().filter_map(|(host, _)| loaded(host)).collect();
        let cells = answers.into_iter().map(|(host, answer)| Cell::of(source, host, &name, answer)).collect();
        Self { cpu: vec![guest.machine.cpu.clone()], guests: vec![name], hosts, cells, of_tape: true }
    }
}
