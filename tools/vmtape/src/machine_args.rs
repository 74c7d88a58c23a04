//! Options that describe a machine, shared by the commands that run one.

use crate::{
    embedded::EMBEDDED,
    files, libvirt, near,
    output::{Refused, is_quiet, usage},
    script_args::{ScriptArgs, asked_width},
};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum, ValueHint};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use vmtape_abi::{Backend, Description, TableRow, VmConfig};
use vmtape_arch::{
    cpuid::{CpuidEntry, maxphyaddr},
    host::{Silicon, Vendor},
};
use vmtape_backends::{Isolation, LoadedPlugin, Search};
use vmtape_machine::{
    Engine, GuestImage, Layout, MILESTONE_EVERY, MachineSpec, hosts,
    model::{CpuOption, silicon_cpuid},
};
use vmtape_replay::spec::{self, Budget};
use vmtape_traces::{
    Tape,
    import::{absent_leaves, cpuid_table},
};

/// How images are named that the program has itself.
const BUILTIN: &str = "builtin:";

/// Where plugins come from.
#[derive(Clone, Debug, Args)]
pub struct PluginArgs {
    /// A backend library, or a folder of them, to look at first (also: VMTAPE_PLUGIN_PATH)
    #[arg(long = "plugin", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    plugin: Vec<PathBuf>,

    /// Run the backend in a process of its own, which may take SECONDS for a call (30): its death ends the run, not the program
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "30", env = ISOLATE,
        hide_env = true, value_parser = clap::value_parser!(u64).range(1..))]
    isolate: Option<u64>,
}

/// What `--isolate` is for programs that this one starts.
pub const ISOLATE: &str = "VMTAPE_ISOLATE";

impl PluginArgs {
    pub fn search(&self) -> Search {
        let isolation = self.isolate.map(|seconds| Isolation {
            program: std::env::current_exe().unwrap_or_else(|_| "vmtape".into()),
            limit: Duration::from_secs(seconds),
        });
        Search::new(&self.plugin).or_embedded(EMBEDDED).isolated(isolation)
    }

    /// The seconds of `--isolate`.
    pub fn isolate(&self) -> Option<u64> {
        self.isolate
    }

    /// What the user gave.
    pub fn paths(&self) -> &[PathBuf] {
        &self.plugin
    }
}

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
    #[arg(long, value_name = "N", value_parser = parse_smp)]
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
        check_resolved(plugin, &backend.resolved())?;
        let cpu = cpu_words(&self.cpu)?;
        let cpuid = guest_cpuid(&cpu, &silicon, &*backend)?;
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
            fits_bits(bits, &silicon, &host, self.force)?;
        }
        let mut spec = MachineSpec {
            image: self.guest()?,
            cmdline: self.append.clone(),
            initrd: self.initrd.as_deref().map(read).transpose()?,
            memory,
            vcpus,
            layout,
            cpuid,
            cpu,
            host,
            silicon,
            backend: name,
            options: backend.resolved(),
            seed: self.seed,
            checkpoint_every: 0,
            script,
            milestone_every: MILESTONE_EVERY,
            cpu_revision: vmtape_machine::CPU_REVISION,
            fault_points: Vec::new(),
            pcpus: self.pcpus,
            retries: 0,
            platform: vmtape_machine::Platform::CURRENT,
            nested_paging: String::new(),
            engine: self.engine.into(),
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

/// A CPU that a file of libvirt's describes.
const LIBVIRT: &str = "libvirt:";

/// What `--cpu` says, in QEMU's words where it names a file of libvirt's.
fn cpu_words(text: &str) -> Result<String> {
    let file = text.strip_prefix(LIBVIRT).or(text.ends_with(".xml").then_some(text));
    let Some(path) = file else { return Ok(text.to_owned()) };
    let bytes = read(Path::new(path))?;
    let xml = String::from_utf8(bytes).with_context(|| format!("{path}: no text"))?;
    libvirt::domain_cpu(&xml).with_context(|| path.to_owned())
}

/// A CPUID that comes from a tape instead of a model.
const TAPE: &str = "tape:";

/// The guest's CPUID table. That of an imported recording is laid over the table of the default model, because a
/// recording holds only what its guest asked for.
fn guest_cpuid(text: &str, silicon: &Silicon, backend: &dyn Backend) -> Result<Vec<CpuidEntry>> {
    let (model, tape) = match text.strip_prefix(TAPE) {
        Some(path) => ("max", Some(path)),
        None => (text, None),
    };
    let option = CpuOption::parse(model).map_err(usage)?;
    if !option.ignored().is_empty() {
        tracing::warn!("--cpu: not modelled, and ignored: {}", option.ignored().join(", "));
    }
    if option.asks_for("vmx") {
        tracing::warn!("--cpu: vmx is not modelled: the guest is told of it, and its VMXON ends the run");
    }
    let mut table = option.cpuid(silicon, &backend.supported_cpuid(&silicon_cpuid(silicon)));
    if let Some(path) = tape {
        let tape = Tape::open(path.as_ref())?;
        for (function, index) in absent_leaves(&tape)? {
            table.retain(|entry| (entry.function, entry.index) != (function, index));
        }
        for taped in cpuid_table(&tape)? {
            table.retain(|entry| (entry.function, entry.index) != (taped.function, taped.index));
            table.push(taped);
        }
        table.sort_by_key(|entry| (entry.function, entry.index));
    }
    Ok(table)
}

/// A host by name or file.
pub fn find_host(text: &str) -> Result<Silicon> {
    hosts::find(text).map_err(|error| wrong_host("--host", error))
}

/// A wrong name is the command line's fault, a wrong file is not.
pub fn wrong_host(whose: &str, error: vmtape_machine::Error) -> anyhow::Error {
    match error {
        vmtape_machine::Error::Passport { ref path, .. } => match fs::metadata(path) {
            // As an error of the system, by which it is known that the file is not there.
            Err(absent) => anyhow::Error::new(absent).context(format!("{whose}: {path}")),
            Ok(_) => anyhow::Error::new(error).context(whose.to_owned()),
        },
        vmtape_machine::Error::Host { ref text, .. } => {
            usage(format!("{whose}: {error}{}", near::host(text)))
        }
        _ => usage(format!("{whose}: {error}")),
    }
}

/// The host of a backend that was given none.
pub fn default_host(vendor: Vendor) -> Result<(String, Silicon)> {
    let name = if vendor == Vendor::AMD { "amd-48" } else { "intel-46" };
    Ok((name.to_owned(), find_host(name)?))
}

/// Refuses a guest that is wider than its host, unless it is to be tried.
pub fn fits(cpuid: &[CpuidEntry], silicon: &Silicon, host: &str, force: bool) -> Result<()> {
    fits_bits(maxphyaddr(cpuid), silicon, host, force)
}

fn fits_bits(guest: u8, silicon: &Silicon, host: &str, force: bool) -> Result<()> {
    if guest > silicon.phys_bits && !force {
        return Err(usage(format!(
            "the guest has {guest} physical address bits, host {host} only {}: it cannot run there (--force tries)",
            silicon.phys_bits
        )));
    }
    Ok(())
}

/// Files that a guest is given are smaller; devices have no end at all.
const LARGEST_FILE: u64 = 1 << 30;

/// Reads an image, or another file for a guest.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    files::read(path, LARGEST_FILE)
}

/// Loads a backend. A name that is near to another one may have been meant for that.
pub fn load(search: &Search, name: &str) -> Result<LoadedPlugin> {
    search.load(name).map_err(|error| match &error {
        vmtape_backends::Error::NotFound { found, .. } => {
            let hint = near::hint(name, found.split(", "));
            anyhow::Error::new(error).context(format!("-b {name}{hint}"))
        }
        _ => error.into(),
    })
}

/// Refuses a release, patch or parameter that a backend does not know, and says which one may be meant.
fn known(plugin: &LoadedPlugin, options: &[(String, String)]) -> Result<()> {
    let refused = |reason| Err(Refused { backend: plugin.name().to_owned(), reason }.into());
    let description = &plugin.description;
    let releases = names(&description.profiles);
    let words = names(&description.parameters).chain(names(&description.patches));
    // A tape names every option of its machine.
    let all: BTreeSet<&str> = words.clone().collect();
    for (name, value) in options {
        let mut profiles = releases.clone().chain([LATEST]);
        if name == spec::PROFILE && releases.len() > 0 && !profiles.any(|release| release == value) {
            let hint = near::hint(value, releases.clone());
            let others = releases.filter(|release| *release != LATEST);
            let known = others.chain([LATEST]).collect::<Vec<_>>().join(", ");
            return refused(format!("no release `{value}`{hint}; there are {known}"));
        }
        let word = name.trim_start_matches(['+', '-']);
        if name != spec::PROFILE && !all.is_empty() && !all.contains(word) {
            let hint = near::hint(word, words.clone());
            if !hint.is_empty() {
                return refused(format!("no parameter or patch `{word}`{hint}"));
            }
        }
    }
    Ok(())
}

fn names(rows: &[TableRow]) -> impl ExactSizeIterator<Item = &str> + Clone {
    rows.iter().map(|row| row.name.as_str())
}

/// Refuses a backend that resolves options to some that its own tables do not have: it would refuse its own tapes.
fn check_resolved(plugin: &LoadedPlugin, options: &[(String, String)]) -> Result<()> {
    let Description { parameters, patches, .. } = &plugin.description;
    let known: BTreeSet<&str> = names(parameters).chain(names(patches)).collect();
    match options.iter().find(|(name, _)| name != spec::PROFILE && !known.contains(name.as_str())) {
        None => Ok(()),
        Some((name, _)) => {
            bail!(
                "the backend {} broke: `resolved` gives the option `{name}`, which its tables do not have",
                plugin.name()
            )
        }
    }
}

/// The first option of a tape's machine that a backend does not know, in words.
pub fn unknown_option(plugin: &LoadedPlugin, options: &[(String, String)]) -> Option<String> {
    let description = &plugin.description;
    let known: BTreeSet<&str> = names(&description.parameters).chain(names(&description.patches)).collect();
    // Some backends do not say what they know.
    let is_known = |name: &str| known.is_empty() || known.contains(name);
    let releases = &description.profiles;
    let is_release = |value: &str| releases.is_empty() || releases.iter().any(|row| row.name == value);
    options.iter().find_map(|(name, value)| match name == spec::PROFILE {
        true => (!is_release(value)).then(|| format!("the release `{value}`")),
        false => (!is_known(name)).then(|| format!("the option `{name}`")),
    })
}

/// The newest release that a backend knows.
const LATEST: &str = "latest";

/// Creates a VM; a backend that refuses the silicon or an option is the command line's fault.
pub fn create(
    plugin: &LoadedPlugin,
    silicon: Silicon,
    options: &[(String, String)],
) -> Result<Box<dyn Backend>> {
    known(plugin, options)?;
    plugin
        .create(&VmConfig { silicon, options: options.to_vec() })
        .map_err(|reason| Refused { backend: plugin.name().to_owned(), reason }.into())
}

/// `NAME[,OPTION=VALUE...]`.
pub fn parse_backend(text: &str) -> Result<(String, Vec<(String, String)>)> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(usage(format!("-b {text}: a backend's name is needed (see `vmtape backends`)")));
    }
    let options = parts.map(|part| parse_option(part, "-b", text)).collect::<Result<_>>()?;
    Ok((name, options))
}

/// `RELEASE,+PATCH,-PATCH,PARAMETER=VALUE`, each part optional.
pub fn parse_kvm(text: &str) -> Result<Vec<(String, String)>> {
    let options: Vec<_> = text
        .split(',')
        .map(|part| match part.chars().next() {
            Some('+' | '-') => Ok((part.to_owned(), String::new())),
            Some(_) if part.contains('=') => parse_option(part, "--kvm", text),
            Some(_) => Ok((spec::PROFILE.to_owned(), part.to_owned())),
            None => Err(usage(format!("--kvm {text}: an empty part"))),
        })
        .collect::<Result<_>>()?;
    let mut releases = options.iter().filter(|(name, _)| name == spec::PROFILE).map(|(_, release)| release);
    match (releases.next(), releases.next()) {
        (Some(first), Some(second)) => {
            Err(usage(format!("--kvm {text}: both {first} and {second}: one release is needed")))
        }
        _ => Ok(options),
    }
}

/// Refuses options that want two things: one in `-b` and another one in `--kvm`, say.
pub fn agree(options: &[(String, String)]) -> Result<()> {
    for (n, (name, value)) in options.iter().enumerate() {
        let other = options[..n].iter().find(|(earlier, other)| earlier == name && other != value);
        if let Some((_, other)) = other {
            return Err(usage(format!("{name}={other} and {name}={value}: which of them?")));
        }
        let opposite = match name.split_at_checked(1) {
            Some(("+", patch)) => format!("-{patch}"),
            Some(("-", patch)) => format!("+{patch}"),
            _ => continue,
        };
        if options.iter().any(|(other, _)| *other == opposite) {
            return Err(usage(format!("{name} and {opposite}: which of them?")));
        }
    }
    Ok(())
}

fn parse_option(part: &str, option: &str, text: &str) -> Result<(String, String)> {
    match part.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(usage(format!("{option} {text}: `{part}` is not OPTION=VALUE"))),
    }
}

/// A memory size in QEMU's syntax: MiB without a suffix.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.to_ascii_uppercase() {
        t if t.ends_with('K') => (t.trim_end_matches('K').to_owned(), 10),
        t if t.ends_with('G') => (t.trim_end_matches('G').to_owned(), 30),
        t => (t.trim_end_matches('M').to_owned(), 20),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a size (256M, 1G)"))?;
    match number.checked_mul(1 << shift) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(format!("`{text}` is not a size of memory")),
    }
}

/// `N` or QEMU's `cpus=N`, with sockets and the rest ignored.
fn parse_smp(text: &str) -> Result<u32, String> {
    let first = text.split(',').next().unwrap_or_default();
    let digits = first.strip_prefix("cpus=").unwrap_or(first);
    match digits.parse() {
        Ok(count) if (1..=vmtape_machine::MAX_VCPUS).contains(&count) => Ok(count),
        _ => Err(format!("between 1 and {} vCPUs are possible", vmtape_machine::MAX_VCPUS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(options: Vec<(String, String)>) -> Vec<String> {
        options.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn backends_and_profiles() {
        let (name, options) = parse_backend("vmx,ept=0,eptad=1").unwrap();
        assert_eq!((name.as_str(), pairs(options)), ("vmx", vec!["ept=0".into(), "eptad=1".into()]));
        assert!(parse_backend("vmx,ept").is_err());
        let chosen = parse_backend("vmx,ept=0").unwrap().1;
        let both = |text: &str| agree(&[chosen.clone(), parse_kvm(text).unwrap()].concat());
        assert!(both("v6.12,ept=0,+fix").is_ok() && both("ept=1").is_err() && both("+fix,-fix").is_err());
        assert!(parse_backend("").is_err());
        let profile = parse_kvm("v6.12,+fix,-other,ignore_msrs=1").unwrap();
        assert_eq!(pairs(profile), ["kvm=v6.12", "+fix=", "-other=", "ignore_msrs=1"]);
        assert!(parse_kvm("v6.12,").is_err() && parse_kvm("v6.12,v5.9").is_err());
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(parse_size("256"), Ok(256 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        for bad in ["lots", "0", "", "-1", "99999999999999999999", "9999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_smp("cpus=2,sockets=1"), Ok(2));
        assert!(parse_smp("0").is_err() && parse_smp("255").is_err());
    }
}
