//! Settings in the words of QEMU, libvirt and the kernel's modules, and whether they help.

use super::{
    fleet::{Matrix, Outcome, Question},
    hosts::{KnownHost, LoadedHost},
};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::{fmt, path::Path};
use vmtape_arch::{cpuid::maxphyaddr, host::Vendor};
use vmtape_machine::{MachineSpec, Passport, model};
use vmtape_replay::check::{
    finding::Finding,
    pins::{Need, Pins},
};

/// KVM's parameter that hides a host's width.
const HIDE_WIDTH: &str = "allow_smaller_maxphyaddr";

/// A setting of a host's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HostSetting {
    pub host: String,
    pub setting: String,
}

/// Settings and what a trial with them showed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Pinned {
    pub settings: Pins,
    /// For `-cpu MODEL,...`.
    pub qemu: String,
    pub libvirt: Vec<String>,
    /// Which versions know these settings.
    pub needs: Vec<Need>,
    #[serde(rename = "host_settings")]
    pub hosts: Vec<HostSetting>,
    /// Moves between different hosts that are safe with all of that, and all of them.
    pub safe: usize,
    pub moves: usize,
    /// Moves that no setting makes safe.
    pub left: Vec<Left>,
}

/// A move that is not safe with all settings, and why.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Left {
    pub from: String,
    pub to: String,
    #[serde(rename = "verdict")]
    pub outcome: Outcome,
    pub reason: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}: {}: {}", self.from, self.to, self.outcome.text(), self.reason)
    }
}

/// Collects the settings that the findings ask for, starts the guests with them, and checks again. `too_wide`: somewhere
/// the guest did not even start.
pub fn pin(
    findings: &[&Finding],
    too_wide: bool,
    question: &Question,
    from: &[KnownHost],
    to: &[KnownHost],
) -> Result<Pinned> {
    let loaded = to.iter().map(|host| Ok((host, host.load(question.plugins, None)?)));
    let loaded = loaded.collect::<Result<Vec<_>>>()?;
    let width = |(host, loaded): &(&KnownHost, LoadedHost)| {
        let told = maxphyaddr(&loaded.supported);
        told.min(host.passport.phys_bits_limit.unwrap_or(told))
    };
    let widest = loaded.iter().map(width).min().unwrap_or(u8::MAX);
    let mut settings = Pins::of(findings.iter().copied(), widest);
    if too_wide {
        settings.phys_bits = Some(settings.phys_bits.unwrap_or(widest).min(widest));
    }
    let mut hosts = std::mem::take(&mut settings.hide_width);
    if let Some(bits) = settings.phys_bits {
        // Pinned, the guest is narrower than every wider host.
        let wider =
            |host: &Passport, loaded: &LoadedHost| host.silicon.phys_bits > bits && !loaded.hides_width;
        let wider = loaded.iter().filter(|(host, loaded)| wider(&host.passport, loaded));
        hosts.extend(wider.map(|(host, _)| host.passport.name.clone()));
    }
    let mut left = trial(&settings, question, from, to)?;
    if left.1.iter().any(|left| hosts.contains(&left.from) || hosts.contains(&left.to)) {
        // Hosts that only these guests' moves have to do with; the others may stay as they are.
        hosts.retain(|name| left.1.iter().any(|left| left.from == *name || left.to == *name));
        settings.hide_width = hosts;
        left = trial(&settings, question, from, to)?;
    }
    let (moves, left) = left;
    if left.is_empty() {
        // Started with these settings, the guests put nothing where it would be in the way.
        settings.conflicts.clear();
    }
    let hosts = to.iter().filter(|host| settings.hide_width.contains(&host.passport.name)).map(host_setting);
    let hosts = hosts.collect();
    let (qemu, libvirt, needs) = (settings.qemu(), settings.libvirt(), settings.needs());
    Ok(Pinned { qemu, libvirt, needs, hosts, safe: moves - left.len(), moves, left, settings })
}

/// Starts the guests with these settings and checks them again: how many moves there are, and those that are not safe.
fn trial(
    settings: &Pins,
    question: &Question,
    from: &[KnownHost],
    to: &[KnownHost],
) -> Result<(usize, Vec<Left>)> {
    let set =
        |hosts: &[KnownHost]| hosts.iter().map(|host| with_settings(host, settings)).collect::<Vec<_>>();
    let words = settings.model(|name| model::named(name).is_ok());
    let pinned = |cpu: &str| if words.is_empty() { cpu.to_owned() } else { format!("{},{words}", bare(cpu)) };
    let templates: Vec<_> = question.templates.iter().map(|t| t.with_cpu(pinned(&t.cpu))).collect();
    let matrix = Question { templates: &templates, ..*question }.ask(&set(from), &set(to), &mut |_| ())?;
    // Within a fleet, staying at home is no move.
    let matrix = Matrix { of_tape: from.len() == 1, ..matrix };
    let left = matrix.moves().filter(|cell| cell.outcome != Outcome::Safe).map(|cell| Left {
        from: cell.from.clone(),
        to: cell.to.clone(),
        outcome: cell.outcome,
        reason: cell.reason.clone(),
    });
    Ok((matrix.moves().count(), left.collect()))
}

/// A model without the widths that were chosen before.
fn bare(cpu: &str) -> String {
    cpu.split(',').filter(|word| !word.contains("phys-bits")).collect::<Vec<_>>().join(",")
}

/// The host with its own part of the settings. AMD's nested paging has none: what its silicon does cannot be hidden.
fn with_settings(host: &KnownHost, settings: &Pins) -> KnownHost {
    let mut host = host.clone();
    if settings.hide_width.contains(&host.passport.name) && host.passport.silicon.vendor == Vendor::INTEL {
        host.options.get_or_insert_default().push((HIDE_WIDTH.to_owned(), "on".to_owned()));
    }
    host
}

fn host_setting(host: &KnownHost) -> HostSetting {
    let setting = if host.passport.silicon.vendor == Vendor::INTEL {
        format!("kvm_intel.{HIDE_WIDTH}=1")
    } else {
        "nothing hides its width but shadow paging (kvm_amd.npt=0): a guest that relies on reserved bits above its width \
         must not come here"
            .to_owned()
    };
    HostSetting { host: host.passport.name.clone(), setting }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings.is_empty() {
            writeln!(f, "pin: nothing needs to be pinned")?;
            return Ok(());
        }
        writeln!(f, "pin:")?;
        if !self.qemu.is_empty() {
            writeln!(f, "  QEMU:    -cpu MODEL,{}", self.qemu)?;
        }
        for (n, line) in self.libvirt.iter().enumerate() {
            writeln!(f, "  {:8} {line}", if n == 0 { "libvirt:" } else { "" })?;
        }
        for need in &self.needs {
            writeln!(f, "  known:   {need}")?;
        }
        for HostSetting { host, setting } in &self.hosts {
            writeln!(f, "  {host}: {setting}")?;
        }
        for conflict in &self.settings.conflicts {
            writeln!(f, "  cannot be had: {conflict}")?;
        }
        writeln!(f, "  tried: {} of {} moves are safe with that", self.safe, self.moves)?;
        for left in &self.left {
            writeln!(f, "    left: {left}")?;
        }
        Ok(())
    }
}

/// The command that shows a comparison again.
pub fn replay_command(tape: &Path, guest: &MachineSpec, host: &KnownHost, text: &str) -> String {
    let first = text
        .split(',')
        .find(|word| vmtape_machine::hosts::passport(word.trim_start_matches("host=")).is_ok());
    let place = first.map_or(host.passport.name.as_str(), |word| word.trim_start_matches("host="));
    let mut line = format!("vmtape replay {} -b {} --host {place}", tape.display(), host.backend);
    let options = host.options.iter().flatten();
    let words: Vec<_> = options
        .map(|(key, value)| match (key.as_str(), value.is_empty()) {
            (vmtape_replay::spec::PROFILE, _) => value.clone(),
            (key, true) => key.to_owned(),
            (key, false) => format!("{key}={value}"),
        })
        .collect();
    if !words.is_empty() {
        line += &format!(" --kvm {}", words.join(","));
    }
    if maxphyaddr(&guest.cpuid) > host.passport.silicon.phys_bits {
        line += " --force";
    }
    line
}
