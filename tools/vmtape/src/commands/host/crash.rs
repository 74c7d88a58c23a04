//! `vmtape host crash`: a host crashes at every moment of its work on VMCSs; what the next kernel finds.

use crate::{
    machine_args::{PluginArgs, create, default_host, find_host, parse_backend, parse_kvm},
    output::{ExitCode, print_json, printable, usage},
};
use anyhow::{Context, Result, anyhow};
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, Write};
use vmtape_abi::{Backend, Errno};
use vmtape_arch::host::Silicon;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::crash::{Crash, Scene, Work, crash_everywhere};

/// Crash a host at every moment of its work on VMCSs, and show what the next kernel finds
///
/// An NMI comes between any two steps of adding VMCSs to a CPU's list, moving and clearing them, and turning virtualization
/// on and off. VMCSs that it leaves active are written back by silicon into memory that the next kernel has for its own. With several
/// profiles, or none (all releases), each has a line; with one, each work has. VMCSs are told by their vCPU. The exit code is 1 if
/// any moment leaves something behind.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backend and its options
    #[arg(short, long, value_name = "BACKEND", default_value = "vmx")]
    backend: String,

    #[command(flatten)]
    plugins: PluginArgs,

    /// A host's name, VENDOR-BITS, or a TOML file (default: one of the backend's vendor)
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// Which KVM: RELEASE, then +PATCH, -PATCH and PARAMETER=VALUE, separated by commas; may be given several times
    #[arg(long, value_name = "PROFILE", allow_hyphen_values = true)]
    kvm: Vec<String>,

    /// The longest list of VMCSs that is tried
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=16))]
    list: u32,

    /// Print each moment, with what the dying kernel says
    #[arg(long, conflicts_with = "found")]
    all: bool,

    /// Only what the walk finds while an entry comes to an empty list and goes from the middle of three
    #[arg(long)]
    found: bool,

    /// Print JSON: every moment
    #[arg(long)]
    json: bool,
}

/// What became of all moments under one KVM.
#[derive(Serialize, JsonSchema)]
struct Profile {
    kvm: String,
    crashes: Vec<Crash>,
}

#[derive(Serialize, JsonSchema)]
struct Report<'a> {
    backend: &'a str,
    host: &'a str,
    profiles: Vec<Profile>,
}

/// Fault points at which a host crashes.
const CRASHES: &str = "crash-";

pub fn run(args: &Args) -> Result<ExitCode> {
    let (name, options) = parse_backend(&args.backend)?;
    let plugin = args.plugins.search().load(&name)?;
    let (host, silicon) = match &args.host {
        Some(text) => (text.clone(), find_host(text)?),
        None => default_host(plugin.description.vendor)?,
    };
    let points = plugin.description.fault_points.iter().filter(|row| row.name.starts_with(CRASHES));
    let points: Vec<u32> = points.map(|row| row.id).collect();
    if points.is_empty() {
        return Err(usage(format!("backend {name} has no moment at which a host can crash")));
    }
    let releases = || plugin.description.profiles.iter().filter(|row| row.value == "release");
    let kvms =
        if args.kvm.is_empty() { releases().map(|row| row.name.clone()).collect() } else { args.kvm.clone() };
    let mut profiles = Vec::new();
    for kvm in kvms {
        let options = [&options[..], &parse_kvm(&kvm)?].concat();
        let crashes = Host { plugin: &plugin, silicon, options: &options }.crashes(&points, args)?;
        profiles.push(Profile { kvm, crashes });
    }
    let report = Report { backend: &name, host: &host, profiles };
    if args.json {
        print_json(&report)?;
    } else {
        print(&mut printable(), args, &report)?;
    }
    let clean = report.profiles.iter().flat_map(|profile| &profile.crashes).all(Crash::is_clean);
    Ok(if clean { ExitCode::SAME } else { ExitCode::DIFFERENT })
}

/// What hosts are made of.
struct Host<'a> {
    plugin: &'a LoadedPlugin,
    silicon: Silicon,
    options: &'a [(String, String)],
}

/// Why there is no host, or why it cannot be brought to where it is to crash.
struct Failed(anyhow::Error);

impl From<Errno> for Failed {
    fn from(Errno(errno): Errno) -> Self {
        Self(anyhow!("the backend fails with errno {errno} before the host crashes"))
    }
}

impl Host<'_> {
    fn create(&self) -> Result<Box<dyn Backend>, Failed> {
        create(self.plugin, self.silicon, self.options).map_err(Failed)
    }

    fn crashes(&self, points: &[u32], args: &Args) -> Result<Vec<Crash>> {
        let crashes = if args.found {
            self.found(points)
        } else {
            crash_everywhere(|| self.create(), points, args.list)
        };
        crashes.map_err(|Failed(error)| error).with_context(|| format!("backend {}", self.plugin.name()))
    }

    /// The experiment of the posting: an entry comes to an empty list, and one goes from the middle of three, with walks in between.
    fn found(&self, points: &[u32]) -> Result<Vec<Crash>, Failed> {
        let mut crashes = Vec::new();
        // Of the stores, those before and after which a walk was tried.
        let added = ["list_add(), after next->prev", "list_add(), after new->prev"];
        let deleted = ["list_del(), after next->prev", "list_del(), after prev->next"];
        for (list, work, stores) in [(0, Work::Add, added), (3, Work::Move(1), deleted)] {
            let mut moment = 1;
            while let Some(crash) = (Scene { list, work }).crash(&mut *self.create()?, points, moment)? {
                let tried = |line: &String| stores.iter().any(|store| line.contains(store));
                crashes.extend(crash.log.first().is_some_and(tried).then_some(crash));
                moment += 1;
            }
        }
        Ok(crashes)
    }
}

fn print(out: &mut impl Write, args: &Args, report: &Report<'_>) -> io::Result<()> {
    writeln!(out, "{} on {}", report.backend, report.host)?;
    match &report.profiles[..] {
        profiles if args.all || args.found => {
            profiles.iter().try_for_each(|profile| print_moments(out, profile))
        }
        [profile] => print_works(out, profile),
        profiles => print_profiles(out, profiles),
    }
}

/// Every moment, with the kernel's messages.
fn print_moments(out: &mut impl Write, Profile { kvm, crashes }: &Profile) -> io::Result<()> {
    writeln!(out, "KVM {kvm}")?;
    for crash in crashes {
        // Where a moment is, the kernel says first.
        let (at, said) = match crash.log.split_first() {
            Some((first, said)) if crash.moment > 0 => (first.as_str(), said),
            _ => ("after it", &crash.log[..]),
        };
        writeln!(out, "  {}; {at}: {}", crash.scene, verdict(crash))?;
        said.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
    }
    Ok(())
}

fn verdict(crash: &Crash) -> String {
    match (crash.next_kernel, crash.aftermath.is_clean()) {
        (false, _) => format!("the crash faults, no other kernel runs{}", crash.aftermath),
        (true, true) => "the next kernel runs; nothing is left behind".to_owned(),
        (true, false) => format!("the next kernel runs{}", crash.aftermath),
    }
}

/// How many of some moments end how.
#[derive(Default, PartialEq, Eq)]
struct Tally {
    moments: usize,
    leave_active: usize,
    most_bytes: usize,
    without_kernel: usize,
    deaf: usize,
}

impl Tally {
    fn of<'a>(crashes: impl IntoIterator<Item = &'a Crash>) -> Self {
        let mut tally = Self::default();
        for crash in crashes {
            let after = &crash.aftermath;
            tally.moments += 1;
            tally.leave_active += usize::from(!after.active.is_empty());
            tally.most_bytes = tally.most_bytes.max(after.bytes());
            tally.without_kernel += usize::from(!crash.next_kernel);
            tally.deaf += usize::from(!after.deaf.is_empty() || !after.virtualizing.is_empty());
        }
        tally
    }

    fn row(&self) -> String {
        let Self { moments, leave_active, most_bytes, without_kernel, deaf } = self;
        format!("{moments:>7} {leave_active:>8} {most_bytes:>11} {without_kernel:>10} {deaf:>6}")
    }
}

const HEAD: &str = "moments   active overwritten  no kernel   CPUs";

/// Each work, and the VMCSs that stay active at its worst moment.
fn print_works(out: &mut impl Write, Profile { kvm, crashes }: &Profile) -> io::Result<()> {
    writeln!(out, "{:<34} {HEAD}", format!("KVM {kvm}"))?;
    for group in crashes.chunk_by(|a, b| a.scene == b.scene) {
        let worst = group.iter().map(|crash| &crash.aftermath.active).max_by_key(|active| active.len());
        let name = |vmcs: &vmtape_machine::crash::ActiveVmcs| {
            format!(" {}{}", vmcs.vcpu, if vmcs.shadow { "s" } else { "" })
        };
        let worst: String = worst.into_iter().flatten().map(name).collect();
        writeln!(out, "  {:<32} {}{worst}", group[0].scene.to_string(), Tally::of(group).row())?;
    }
    writeln!(out, "  {:<32} {}", "all", Tally::of(crashes).row())?;
    legend(out)
}

/// Each profile; neighbours that do the same share a line.
fn print_profiles(out: &mut impl Write, profiles: &[Profile]) -> io::Result<()> {
    writeln!(out, "{:<34} {HEAD}", "KVM")?;
    for group in profiles.chunk_by(|a, b| a.crashes == b.crashes) {
        let (first, last) = (&group[0].kvm, &group[group.len() - 1].kvm);
        let name = if first == last { first.clone() } else { format!("{first} to {last}") };
        writeln!(out, "  {name:<32} {}", Tally::of(&group[0].crashes).row())?;
    }
    legend(out)
}

fn legend(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "moments at which the host crashes; those that leave VMCSs active, and the most bytes of the next kernel's memory\n\
         that silicon overwrites then; those after which no kernel starts; those that leave a CPU in VMX or SVM, or deaf to INIT"
    )
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report<'static>>];
