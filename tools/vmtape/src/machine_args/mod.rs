//! Options that describe a machine, shared by the commands that run one.

mod cpu;
mod host;
mod plugins;
mod words;

pub use cpu::fits;
pub use host::{default_host, find_host, wrong_host};
pub use plugins::{ISOLATE, PluginArgs, create, load, unknown_option};
pub use words::{agree, parse_backend, parse_kvm, parse_size};

use crate::{
    files, near,
    output::{is_quiet, usage},
    script_args::{ScriptArgs, asked_width},
};
use anyhow::Result;
use clap::{Args, ValueEnum, ValueHint};
use std::{
    io,
    path::{Path, PathBuf},
};
use vmtape_abi::Backend;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{Engine, GuestImage, Layout, MILESTONE_EVERY, MachineSpec};
use vmtape_replay::spec::Budget;

/// How images are named that the program has itself.
const BUILTIN: &str = "builtin:";

/// Where RAM lies.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LayoutArg {
    /// From zero up; VGA text memory is RAM
    Flat,
    /// As the small VMM of the kvm_intel recordings lays it out: a hole at 0xa0000-0xbffff
    Mvmm,
}

/// How instructions are executed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EngineArg {
    /// One after the other
    Interp,
    /// Hot 64-bit code is compiled, where this host is x86-64
    Jit,
}

impl From<EngineArg> for Engine {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Interp => Self::Interpreter,
            EngineArg::Jit => Self::Compiler,
        }
    }
}

/// A guest, the host it runs on, and the backend between them.
#[derive(Clone, Debug, Args)]
pub struct MachineArgs {
    /// builtin:NAME[,KEY=VALUE...], a multiboot image (kvm-unit-tests .flat), or a bzImage
    #[arg(value_name = "GUEST", value_hint = ValueHint::FilePath, required_unless_present = "kernel")]
    guest: Option<String>,

    /// The backend and its options: NAME[,OPTION=VALUE...], as in `vmx,ept=0`
    #[arg(short, long, value_name = "BACKEND")]
    backend: String,

    #[command(flatten)]
    pub plugins: PluginArgs,

    /// The guest's CPU: MODEL[,+FEATURE,-FEATURE,phys-bits=N], FILE.xml of libvirt, or tape:FILE for that of a recording
    ///
    /// What QEMU's -cpu takes: max, host, and its named models with their versions (EPYC-Rome-v2), which have 40 address
    /// bits unless phys-bits=N or host-phys-bits=on says otherwise. Also host-phys-bits-limit=N, guest-phys-bits=N and
    /// vendor=NAME (GenuineIntel, AuthenticAMD, HygonGenuine). What has no meaning here is said once and ignored. Of a file
    /// that ends in .xml, or has libvirt: before its name, the domain's <cpu> is taken.
    #[arg(long, value_name = "MODEL", default_value = "max", allow_hyphen_values = true)]
    cpu: String,

    /// A file with QEMU's command line: its -cpu, -smp, -m, -kernel, -append and -initrd, unless they are given here
    // The program puts them in its place before it reads its own line.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    qemu_args: Option<PathBuf>,

    /// The image of such a file.
    #[arg(long, hide = true)]
    kernel: Option<String>,

    /// The host's silicon: a name (intel-46, intel-52-4level, amd-48, ...) or a TOML file
    ///
    /// intel-N and amd-N of every width N from 32 to 52 are known, and some by name: `vmtape host show NAME` shows one.
    /// `vmtape host probe --help` says what stands in a file. Default: intel-46, or amd-48.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,

    /// Which KVM: RELEASE, then +PATCH, -PATCH and PARAMETER=VALUE, separated by commas
    ///
    /// As in v6.12,+early-memory-fault-exit,allow_smaller_maxphyaddr=on. `vmtape backends` lists releases and parameters,
    /// `vmtape backends --patches` the patches. Default: v6.12.
    #[arg(long, value_name = "PROFILE", allow_hyphen_values = true)]
    kvm: Option<String>,

    /// Guest memory, in MiB or with a suffix (256M, 1G)
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = words::parse_smp)]
    smp: Option<u32>,

    /// Physical CPUs; with more than one, vCPUs move from turn to turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pcpus: u32,

    /// Arguments for the guest
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    append: String,

    /// A file for the guest: Linux' initial RAM disk, kvm-unit-tests' environment; it is on the tape
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,

    /// Where RAM lies
    #[arg(long, value_enum, default_value = "flat")]
    layout: LayoutArg,

    /// Largest page with which the host backs guest memory
    #[arg(long, value_name = "SIZE", value_parser = ["4K", "2M", "1G"])]
    backing: Option<String>,

    /// Seed of the guest's random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Try a guest that is wider than its host
    #[arg(long)]
    force: bool,

    /// How the guest's instructions are executed; its tape is the same
    #[arg(long, value_enum, default_value = "interp")]
    engine: EngineArg,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    script: ScriptArgs,
}

/// When to stop a guest that does not stop by itself.
#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// Stop after so many instructions
    #[arg(long, value_name = "N")]
    max_insns: Option<u64>,

    /// Stop after so many exits
    #[arg(long, value_name = "N")]
    max_exits: Option<u64>,
}

impl MachineArgs {
    /// The budget of the run.
    pub fn budget(&self) -> Budget {
        Budget {
            instructions: self.limits.max_insns.unwrap_or(u64::MAX),
            exits: self.limits.max_exits.unwrap_or(u64::MAX),
            interrupted: None,
        }
    }

    /// Where the guest's serial output goes. JSON wants stdout for itself.
    pub fn serial(&self, json: bool) -> Box<dyn io::Write> {
        match (is_quiet(), json) {
            (true, _) => Box::new(io::sink()),
            (false, true) => Box::new(io::stderr()),
            (false, false) => Box::new(io::stdout()),
        }
    }

    /// Loads the backend, resolves everything, and gives the machine's specification with a VM for it.
    pub fn resolve(&self) -> Result<(MachineSpec, Box<dyn Backend>, LoadedPlugin)> {
        let (name, _) = parse_backend(&self.backend)?;
        let plugin = load(&self.plugins.search(), &name)?;
        let (spec, backend) = self.resolve_with(&plugin)?;
        Ok((spec, backend, plugin))
    }

    /// As [`MachineArgs::resolve`], with the backend's plugin at hand.
    pub fn resolve_with(&self, plugin: &LoadedPlugin) -> Result<(MachineSpec, Box<dyn Backend>)> {
        let (name, mut options) = parse_backend(&self.backend)?;
        options.extend(self.kvm.as_deref().map(parse_kvm).transpose()?.unwrap_or_default());
        agree(&options)?;
        let (host, mut silicon) = match &self.host {
            Some(host) => (host.clone(), find_host(host)?),
            None => default_host(plugin.description.vendor)?,
        };
        if let Some(backing) = &self.backing {
            silicon.backing_shift = match backing.as_str() {
                "4K" => 12,
                "2M" => 21,
                _ => 30,
            };
        }
        let backend = create(plugin, silicon, &options)?;
        plugins::check_resolved(plugin, &backend.resolved())?;
        let cpu = cpu::cpu_words(&self.cpu)?;
        let cpuid = cpu::guest_cpuid(&cpu, &silicon, &*backend)?;
        fits(&cpuid, &silicon, &host, self.force)?;
        let builtin = self.image().strip_prefix(BUILTIN).and_then(vmtape_guests::find);
        let memory = self.memory.unwrap_or(builtin.map_or(256 << 20, |g| u64::from(g.default_memory) << 20));
        let vcpus = self.smp.unwrap_or(builtin.map_or(1, |guest| guest.default_smp));
        let layout = match self.layout {
            LayoutArg::Flat => Layout::Flat,
            LayoutArg::Mvmm => Layout::VgaHole,
        };
        let script = self.script.steps(layout.slots(memory))?;
        script.iter().try_for_each(|step| step.check(vcpus)).map_err(usage)?;
        for bits in script.iter().filter_map(asked_width) {
            cpu::fits_bits(bits, &silicon, &host, self.force)?;
        }
        let mut spec = MachineSpec {
            cmdline: self.append.clone(),
            initrd: self.initrd.as_deref().map(read).transpose()?,
            memory,
            vcpus,
            layout,
            cpuid,
            cpu,
            host,
            backend: name,
            options: backend.resolved(),
            seed: self.seed,
            script,
            milestone_every: MILESTONE_EVERY,
            pcpus: self.pcpus,
            engine: self.engine.into(),
            ..MachineSpec::new(self.guest()?, silicon)
        };
        spec.describe_by(&plugin.description);
        Ok((spec, backend))
    }

    fn image(&self) -> &str {
        self.guest.as_deref().or(self.kernel.as_deref()).unwrap_or_default()
    }

    fn guest(&self) -> Result<GuestImage> {
        let name = self.image();
        let bytes = match name.strip_prefix(BUILTIN) {
            Some(name) => builtin(name)?,
            None => read(Path::new(name))?,
        };
        Ok(GuestImage { name: name.to_owned(), bytes })
    }
}

/// The image of a built-in guest.
fn builtin(name: &str) -> Result<Vec<u8>> {
    vmtape_guests::image(name).map_err(|error| {
        let known = vmtape_guests::list().iter().map(|guest| guest.name);
        let hint = if vmtape_guests::find(name).is_some() { String::new() } else { near::hint(name, known) };
        usage(format!("{error}{hint}"))
    })
}

/// Files that a guest is given are smaller; devices have no end at all.
const LARGEST_FILE: u64 = 1 << 30;

/// Reads an image, or another file for a guest.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    files::read(path, LARGEST_FILE)
}
