//! Guests that are started to be checked.

use super::hosts::{KnownHost, LoadedHost};
use crate::{
    commands::{record, replay::Plugins},
    machine_args,
    output::usage,
};
use anyhow::Result;
use std::{io, path::Path};
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_machine::{GuestImage, MachineSpec, model::CpuOption};
use vmtape_replay::spec::Budget;
use vmtape_traces::Options;

const BUILTIN: &str = "builtin:";
/// A guest that does not end by itself is long enough after so many instructions.
const MOST_INSTRUCTIONS: u64 = 50_000_000;

/// A guest without a host: what it is before it starts.
#[derive(Clone, Debug)]
pub struct Template {
    pub image: GuestImage,
    /// The CPU model, whose width may be its host's.
    pub cpu: String,
    /// Its tape, or its name as an option.
    argument: String,
    machine: MachineSpec,
    budget: Budget,
}

impl Template {
    /// The guest of a tape, to be started again.
    pub fn of(tape: &Path, machine: &MachineSpec, budget: Budget) -> Self {
        let (image, cpu) = (machine.image.clone(), machine.cpu.clone());
        Self { image, cpu, argument: tape.display().to_string(), machine: machine.clone(), budget }
    }

    /// A guest by name or file, as `record` takes it.
    pub fn named(name: &str, cpu: &str, like: &KnownHost) -> Result<Self> {
        let builtin = name.strip_prefix(BUILTIN);
        let bytes = match builtin {
            Some(name) => vmtape_guests::image(name).map_err(usage)?,
            None => machine_args::read(name.as_ref())?,
        };
        let info = builtin.and_then(vmtape_guests::find);
        let image = GuestImage { name: name.to_owned(), bytes };
        let machine = MachineSpec {
            memory: info.map_or(256, |guest| u64::from(guest.default_memory)) << 20,
            vcpus: info.map_or(1, |guest| guest.default_smp),
            cpu: cpu.to_owned(),
            ..MachineSpec::new(image.clone(), like.passport.silicon)
        };
        let budget = Budget { instructions: MOST_INSTRUCTIONS, ..Budget::default() };
        Ok(Self { image, cpu: cpu.to_owned(), argument: format!("--guest {name}"), machine, budget })
    }

    /// The same guest with another CPU model.
    pub fn with_cpu(&self, cpu: String) -> Self {
        Self { cpu: cpu.clone(), machine: MachineSpec { cpu, ..self.machine.clone() }, ..self.clone() }
    }

    /// The command that shows its move between two hosts again.
    pub fn again(&self, from: &KnownHost, to: &KnownHost) -> String {
        let to = if from.text == to.text { String::new() } else { format!(" {}", to.text) };
        format!("vmtape check {} --cpu {} --fleet {}{to}", self.argument, self.cpu, from.text)
    }

    /// Starts it on a host and tapes it. `None`: it is wider than the host.
    pub fn start(
        &self,
        host: &KnownHost,
        plugins: &Plugins,
        tape: &Path,
    ) -> Result<Option<(LoadedHost, MachineSpec)>> {
        let like = (self.machine.backend == host.backend).then_some(&self.machine);
        let loaded = host.load(plugins, like)?;
        let mut machine = loaded.machine(host, &self.machine);
        machine.cpu = limited(&self.cpu, host.passport.phys_bits_limit);
        let option = CpuOption::parse(&machine.cpu).map_err(usage)?;
        machine.cpuid = option.cpuid(&machine.silicon, &loaded.supported);
        machine.checkpoint_every = 0;
        if maxphyaddr(&machine.cpuid) > maxphyaddr(&loaded.supported) {
            return Ok(None);
        }
        let vm = plugins.create(&machine)?;
        record::tape(
            machine.clone(),
            (&loaded.plugin, vm),
            Vec::new(),
            &self.budget,
            (tape, Options::default()),
            Box::new(io::sink()),
        )?;
        Ok(Some((loaded, machine)))
    }
}

/// The model with the limit of a VMM, unless it names its width itself.
fn limited(cpu: &str, limit: Option<u8>) -> String {
    match limit {
        Some(bits) if !cpu.contains("phys-bits") => format!("{cpu},host-phys-bits-limit={bits}"),
        _ => cpu.to_owned(),
    }
}
