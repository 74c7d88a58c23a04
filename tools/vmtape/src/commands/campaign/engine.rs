//! The machines of a campaign, made when a job first needs them.

use crate::machine_args::{
    MachineArgs, PluginArgs, create, default_host, find_host, parse_backend, parse_kvm,
};
use anyhow::{Context, Result};
use clap::Parser;
use std::collections::BTreeMap;
use vmtape_abi::Backend;
use vmtape_backends::LoadedPlugin;
use vmtape_faults::{
    Point,
    campaign::{Campaign, Job, MachineChoice, Whose},
};
use vmtape_machine::MachineSpec;
use vmtape_replay::{
    Error,
    faults::{Bed, Quick, points},
    migration,
};

/// A machine as a command line has it.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    machine: MachineArgs,
}

/// A machine of the campaign, its plugin, and the fault points to which it comes.
pub struct Loaded {
    pub choice: MachineChoice,
    pub plugin: LoadedPlugin,
    pub points: Vec<Point>,
}

/// Loads the plugins of all machines.
pub fn load(campaign: &Campaign, plugins: &PluginArgs) -> Result<Vec<Loaded>> {
    let search = plugins.search();
    let load = |choice: &MachineChoice| -> Result<Loaded> {
        let (name, _) = parse_backend(&choice.backend)?;
        let plugin = search.load(&name)?;
        let options = resolved(choice, &plugin)?;
        let mut points = points(&plugin.description.fault_points);
        points.retain(|point| point.is_reached_with(&options));
        Ok(Loaded { choice: choice.clone(), plugin, points })
    };
    campaign.machines.iter().map(load).collect()
}

/// A machine's options, all of them.
fn resolved(choice: &MachineChoice, plugin: &LoadedPlugin) -> Result<Vec<(String, String)>> {
    let (_, mut options) = parse_backend(&choice.backend)?;
    options.extend(choice.kvm.as_deref().map(parse_kvm).transpose()?.unwrap_or_default());
    let silicon = match &choice.host {
        Some(host) => find_host(host)?,
        None => default_host(plugin.description.vendor)?.1,
    };
    Ok(create(plugin, silicon, &options)?.resolved())
}

/// The fault points that the plans of jobs may name.
pub struct Tables<'a> {
    loaded: &'a [Loaded],
    migration: Vec<Point>,
}

impl<'a> Tables<'a> {
    pub fn new(loaded: &'a [Loaded]) -> Self {
        Self { loaded, migration: migration::points() }
    }

    pub fn of(&self, whose: Whose) -> &[Point] {
        match whose {
            Whose::Machine(machine) => &self.loaded[machine].points,
            Whose::Migration => &self.migration,
        }
    }

    /// A job of the campaign.
    pub fn job(&self, campaign: &Campaign, index: u64, again: bool) -> Option<Job> {
        campaign.job(index, again, |whose| self.of(whose))
    }
}

/// The options that stand for a machine.
pub fn options(choice: &MachineChoice) -> Vec<String> {
    let mut words = vec!["-b".to_owned(), choice.backend.clone()];
    let options = [("--host", &choice.host), ("--kvm", &choice.kvm), ("--cpu", &choice.cpu)];
    for (option, value) in options {
        words.extend(value.iter().flat_map(|value| [option.to_owned(), value.clone()]));
    }
    words
}

impl Loaded {
    fn machine(&self, guest: &str) -> Result<MachineSpec> {
        self.machine_of(&self.choice, guest)
    }

    /// A machine of the same backend.
    pub fn machine_of(&self, choice: &MachineChoice, guest: &str) -> Result<MachineSpec> {
        let words = [vec!["vmtape".to_owned()], options(choice), vec![guest.to_owned()]].concat();
        let line = Line::try_parse_from(words).context("a machine of the campaign")?;
        let (spec, _) = line.machine.resolve_with(&self.plugin)?;
        Ok(spec)
    }

    /// A VM of it.
    pub fn create(&self, machine: &MachineSpec) -> Result<Box<dyn Backend>, Error> {
        create(&self.plugin, machine.silicon, &machine.options).map_err(|error| Error::Refused {
            backend: machine.backend.clone(),
            reason: format!("{error:#}"),
        })
    }
}

/// Makes a machine of what was loaded for it.
type Create<'a> = Box<dyn Fn(&MachineSpec) -> Result<Box<dyn Backend>, Error> + 'a>;

/// One for each machine.
pub type Creates<'a> = Vec<Create<'a>>;

pub fn creates(loaded: &[Loaded]) -> Creates<'_> {
    let create =
        |machine| -> Create<'_> { Box::new(move |spec: &MachineSpec| Loaded::create(machine, spec)) };
    loaded.iter().map(create).collect()
}

/// Guests on machines that have run without faults already.
pub struct Beds<'a> {
    loaded: &'a [Loaded],
    creates: &'a Creates<'a>,
    afresh: bool,
    beds: BTreeMap<(usize, String), Quick<'a>>,
}

/// Makes sure that each guest of the campaign is there and fits each of its machines, before the first job runs.
pub fn check(campaign: &Campaign, loaded: &[Loaded]) -> Result<()> {
    for guest in &campaign.guests {
        for machine in loaded {
            machine
                .machine(guest)
                .with_context(|| format!("the campaign's guest `{guest}` on {}", machine.choice.backend))?;
        }
    }
    Ok(())
}

impl<'a> Beds<'a> {
    /// `afresh`: each run builds its machine, instead of going back to a snapshot.
    pub fn new(loaded: &'a [Loaded], creates: &'a Creates<'a>, afresh: bool) -> Self {
        Self { loaded, creates, afresh, beds: BTreeMap::new() }
    }

    /// The bed of a guest on a machine.
    pub fn of(&mut self, machine: usize, guest: &str) -> Result<&mut Quick<'a>> {
        let key = (machine, guest.to_owned());
        if !self.beds.contains_key(&key) {
            let loaded = &self.loaded[machine];
            let spec =
                loaded.machine(guest).with_context(|| format!("{guest} on {}", loaded.choice.backend))?;
            let create = &*self.creates[machine];
            let bed = Bed::new(spec, Default::default(), create, &loaded.plugin.description)?;
            let quick = Quick::new(bed)?;
            self.beds.insert(key.clone(), if self.afresh { quick.afresh() } else { quick });
        }
        self.beds.get_mut(&key).context("a bed")
    }

    pub fn looked_at(&self) -> u64 {
        self.beds.values().map(|bed| bed.looked_at).sum()
    }
}
