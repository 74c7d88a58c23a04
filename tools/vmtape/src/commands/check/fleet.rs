//! Every host of a fleet against every other one: a guest is started on the first and checked against the second.

use super::{
    hosts::{KnownHost, LoadedHost},
    source::Template,
};
use crate::commands::replay::Plugins;
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_replay::check::{self, Assessment, Guest, Host, Verdict, footprint::Footprint};
use vmtape_traces::Tape;

/// What is known of one move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Safe,
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
            Verdict::Unsafe => Self::Unsafe,
            Verdict::Refused => Self::Refused,
        }
    }
}

/// A move of all guests from one host to another.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub from: String,
    pub to: String,
    pub outcome: Outcome,
    pub reason: String,
    /// The guest that decides, and what was found of it.
    pub guest: String,
    pub assessment: Option<Assessment>,
}

/// A host in a matrix.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    pub guests: Vec<String>,
    pub cpu: Vec<String>,
    pub hosts: Vec<Row>,
    pub cells: Vec<Cell>,
}

impl Matrix {
    pub fn cell(&self, from: &str, to: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.from == from && cell.to == to)
    }

    /// Moves between different hosts that are safe, and all of them.
    pub fn safe(&self) -> (usize, usize) {
        let moves = || self.cells.iter().filter(|cell| cell.from != cell.to);
        (moves().filter(|cell| cell.outcome == Outcome::Safe).count(), moves().count())
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
        Ok(Matrix { guests, cpu, hosts, cells })
    }

    /// One guest, started on one host, against all others.
    fn moves(&self, source: &KnownHost, template: &Template, to: &[KnownHost]) -> Vec<Cell> {
        let tape = self.folder.join("guest.tape");
        let started = template.start(source, self.plugins, &tape);
        let cell = |host: &KnownHost, outcome, reason| Cell {
            from: source.passport.name.clone(),
            to: host.passport.name.clone(),
            outcome,
            reason,
            guest: template.image.name.clone(),
            assessment: None,
        };
        let (loaded, machine) = match started {
            Ok(Some(started)) => started,
            Ok(None) => {
                let reason = format!(
                    "`{}` is wider than {}: the guest does not start",
                    template.cpu, source.passport.name
                );
                return to.iter().map(|host| cell(host, Outcome::NotStarted, reason.clone())).collect();
            }
            Err(error) => {
                let reason = format!("{error:#}");
                return to.iter().map(|host| cell(host, Outcome::Unknown, reason.clone())).collect();
            }
        };
        let assessed = || -> Result<Vec<Cell>> {
            let tape = Tape::open_whole(&tape)?;
            let create = |machine: &_| self.plugins.create(machine);
            let footprint = Footprint::of(&tape, &machine, &create)?;
            let guest = Guest {
                tape: &tape,
                machine,
                footprint,
                supported: loaded.supported.clone(),
                plugin: &loaded.plugin.description,
                assigned_device: self.assigned_device,
            };
            Ok(to
                .iter()
                .map(|host| match assess(&guest, host, self.plugins, "", &mut |_| ()) {
                    Ok(assessment) => Cell {
                        outcome: assessment.verdict.into(),
                        reason: assessment.reason.clone(),
                        assessment: Some(assessment),
                        ..cell(host, Outcome::Unknown, String::new())
                    },
                    Err(error) => cell(host, Outcome::Unknown, format!("{error:#}")),
                })
                .collect())
        };
        assessed().unwrap_or_else(|error| {
            to.iter().map(|host| cell(host, Outcome::Unknown, format!("{error:#}"))).collect()
        })
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
        to: &[KnownHost],
        guest: &Guest,
        assessments: &[Assessment],
        plugins: &Plugins,
    ) -> Result<Self> {
        let mut hosts = Vec::new();
        for host in to {
            hosts.push(row(host, &host.load(plugins, Some(&guest.machine))?));
        }
        let name = &guest.machine.image.name;
        let cells = assessments.iter().map(|assessment| Cell {
            from: source.passport.name.clone(),
            to: assessment.host.clone(),
            outcome: assessment.verdict.into(),
            reason: assessment.reason.clone(),
            guest: name.clone(),
            assessment: Some(assessment.clone()),
        });
        let cells = cells.collect();
        Ok(Self { guests: vec![name.clone()], cpu: vec![guest.machine.cpu.clone()], hosts, cells })
    }
}
