use crate::{
    commands::{
        replay::{Elsewhere, Mode, Plugins},
        report::{self, Detail},
    },
    machine_args::{PluginArgs, create, parse_kvm},
    output::{ExitCode, print_json, printable, usage},
    progress::Trials,
};
use anyhow::{Context, Result, bail};
use clap::{ValueEnum, ValueHint};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
};
use tracing::subscriber::NoSubscriber;
use vmtape_abi::Backend;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{
    MachineSpec,
    model::{CpuOption, silicon_cpuid},
};
use vmtape_replay::{
    Error,
    bisect::{
        self, Bench, Criterion, Finding, Step, cpuid, exits, faults, kvm, late, plugin, search::Mark, tapes,
        width,
    },
    report::Verdict,
    spec,
};
use vmtape_traces::Tape;

/// Find the smallest cause of a divergence: the exit, the patch of KVM, the width, the CPUID bits, the plugin's build, or the fault
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::BISECT)]
pub struct Args {
    /// The tape whose guest is tried
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,

    /// Axis exits: a second tape, instead of another configuration; axis plugin: builds of the tape's backend, oldest first
    #[arg(value_hint = ValueHint::FilePath)]
    others: Vec<PathBuf>,

    /// What to search
    #[arg(long, value_enum)]
    axis: Axis,

    #[command(flatten)]
    elsewhere: Elsewhere,

    #[command(flatten)]
    plugins: PluginArgs,

    /// What makes a trial bad: divergence, end (the run ends otherwise than the tape), or prints=TEXT
    /// (default: divergence; end where the guest's own CPUID is changed)
    #[arg(long, value_name = "WHAT")]
    verdict: Option<VerdictArg>,

    /// Whether the guest runs in a trial
    #[arg(long, value_enum, default_value = "run")]
    mode: Mode,

    /// The good end: a release (axis kvm) or a width (axis width); default: the tape's, or a width that is good
    #[arg(long, value_name = "END")]
    good: Option<String>,

    /// The bad end: a release, a series or a width; default: the newest, the oldest or any release that is bad; a width that is
    #[arg(long, value_name = "END")]
    bad: Option<String>,

    /// Axis width: whose (default: both hosts' where another backend is tried, else the tried host's)
    #[arg(long, value_enum)]
    side: Option<SideArg>,

    /// Axis cpuid: the CPU model that is bad or, with -b, --host or --kvm, the one to start from (default: max)
    #[arg(long, value_name = "MODEL", allow_hyphen_values = true)]
    cpu: Option<String>,

    /// Tell everything of the divergence: page walks, rules, the exits up to there
    #[arg(long, conflicts_with = "json")]
    explain: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Axis {
    /// The first exit that differs
    Exits,
    /// The release of KVM, and the single patch
    Kvm,
    /// The smallest width of the host, or of the guest
    Width,
    /// The smallest set of CPUID changes
    Cpuid,
    /// The first of several builds of a plugin
    Plugin,
    /// The fewest of the tape's faults from which the same follows
    Faults,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SideArg {
    /// That of the host on which the tape's guest is tried
    Host,
    /// That of the tape's host too: its guest is taped again for each trial
    Hosts,
    /// The guest's own: it is taped again with it
    Guest,
}

/// `divergence`, `end`, `prints=TEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum VerdictArg {
    Divergence,
    End,
    Prints(String),
}

impl FromStr for VerdictArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "divergence" => Ok(Self::Divergence),
            None if text == "end" => Ok(Self::End),
            Some(("prints", text)) if !text.is_empty() => Ok(Self::Prints(text.to_owned())),
            _ => Err("neither divergence, nor end, nor prints=TEXT".into()),
        }
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    args.check()?;
    match (args.axis, &args.others[..]) {
        (Axis::Plugin, _) | (_, []) => {}
        (Axis::Exits, [other]) => return args.two_tapes(other),
        _ => {
            return Err(usage(
                "more files than the tape belong to --axis plugin, or one more to --axis exits",
            ));
        }
    }
    let tape = Tape::open_whole(&args.tape)?;
    let plugins = Plugins::new(&args.plugins);
    let bar = Trials::new("bisect");
    let create = |machine: &MachineSpec| plugins.create(machine);
    let describe = |name: &str| {
        // The builds that are searched need not be installed, and some may not load.
        let mut builds = args.others.iter().filter_map(|path| LoadedPlugin::load(path).ok());
        if let Some(build) = builds.find(|build| build.name() == name) {
            return Ok(build.description.clone());
        }
        let plugin = plugins.get(name).map_err(|error| Error::Other(format!("{error:#}")))?;
        Ok(plugin.description.clone())
    };
    let mut bench = Bench {
        // Which of the builds that are searched knows what, the search finds.
        machine: if args.others.is_empty() { plugins.machine_of(&tape)? } else { spec::machine(&tape)? },
        tape: &tape,
        create: &create,
        describe: &describe,
        criterion: args.criterion(),
        command: format!("vmtape replay {}", args.tape.display()),
        progress: &|step| match step {
            Step::Trial(what) => bar.begin(what),
            Step::At { at, of } => bar.reached(at, of),
        },
        trials: Vec::new(),
        wanted: None,
        only: false,
        bad: None,
    };
    // What the backend warns of in a trial is the trial's business.
    let finding =
        tracing::subscriber::with_default(NoSubscriber::default(), || args.bisect(&mut bench, &plugins))?;
    bar.end();
    print(&finding, args)
}

impl Args {
    /// Refuses options that belong to another axis, which would be passed over in silence.
    fn check(&self) -> Result<()> {
        let ends = matches!(self.axis, Axis::Kvm | Axis::Width);
        let misplaced = [
            ("--good", self.good.is_some() && !ends, "kvm or width"),
            ("--bad", self.bad.is_some() && !ends, "kvm or width"),
            ("--side", self.side.is_some() && self.axis != Axis::Width, "width"),
            ("--cpu", self.cpu.is_some() && self.axis != Axis::Cpuid, "cpuid"),
        ];
        match misplaced.iter().find(|(_, is_misplaced, _)| *is_misplaced) {
            Some((option, _, axis)) => Err(usage(format!("{option} belongs to --axis {axis}"))),
            None => Ok(()),
        }
    }

    /// Opened without reading every byte, which is what takes time.
    fn two_tapes(&self, other: &Path) -> Result<ExitCode> {
        if self.elsewhere.is_given() || self.verdict.is_some() {
            return Err(usage("two tapes are compared as they are: no -b, --host, --kvm or --verdict"));
        }
        let open = |path: &Path| -> Result<Tape> {
            let tape = Tape::open(path)?;
            match tape.damage() {
                Some(damage) => bail!("{damage}"),
                None => Ok(tape),
            }
        };
        print(&tapes::bisect(&open(&self.tape)?, &open(other)?)?, self)
    }

    fn bisect(&self, bench: &mut Bench, plugins: &Plugins) -> Result<Finding> {
        match self.axis {
            Axis::Exits => {
                let actual = self.elsewhere.machine(&bench.machine, plugins)?;
                let options = self.elsewhere.command_line();
                Ok(match bench.criterion {
                    Criterion::Divergence(_) => exits::bisect(bench, actual, &options)?,
                    _ => late::bisect(bench, actual, &options)?,
                })
            }
            Axis::Kvm => self.bisect_kvm(bench, plugins),
            Axis::Width => self.bisect_width(bench, plugins),
            Axis::Cpuid => self.bisect_cpuid(bench, plugins),
            Axis::Plugin => self.bisect_plugins(bench),
            Axis::Faults => self.bisect_faults(bench),
        }
    }

    fn criterion(&self) -> Criterion {
        let mode = match self.mode {
            Mode::Run => bisect::Mode::Run,
            Mode::Exits => bisect::Mode::Exits,
        };
        match &self.verdict {
            Some(VerdictArg::Divergence) => Criterion::Divergence(mode),
            Some(VerdictArg::End) => Criterion::End,
            Some(VerdictArg::Prints(text)) => Criterion::Prints(text.clone()),
            // A guest that is told something else sees that at once: only how it fares says more.
            None if self.changes_guest() && !self.elsewhere.is_given() => Criterion::End,
            None => Criterion::Divergence(mode),
        }
    }

    fn changes_guest(&self) -> bool {
        self.axis == Axis::Cpuid || self.axis == Axis::Width && self.side == Some(SideArg::Guest)
    }

    fn bisect_kvm(&self, bench: &mut Bench, plugins: &Plugins) -> Result<Finding> {
        let elsewhere = Elsewhere { kvm: None, ..self.elsewhere.clone() };
        let mut machine = elsewhere.machine(&bench.machine, plugins)?;
        machine.options = spec::chosen(&machine, bench.create)?;
        let (mut bad, mut suffix) = (self.bad.clone(), String::new());
        for (name, value) in self.elsewhere.kvm.as_deref().map(parse_kvm).transpose()?.unwrap_or_default() {
            if name == spec::PROFILE {
                bad.get_or_insert(value);
                continue;
            }
            suffix += &if value.is_empty() { format!(",{name}") } else { format!(",{name}={value}") };
            machine.options.push((name, value));
        }
        bench.command += &elsewhere.command_line();
        let request = kvm::Request { machine, suffix, good: self.good.clone(), bad };
        Ok(kvm::bisect(bench, &request)?)
    }

    fn bisect_width(&self, bench: &mut Bench, plugins: &Plugins) -> Result<Finding> {
        let machine = self.elsewhere.machine(&bench.machine, plugins)?;
        bench.command += &Elsewhere { host: None, ..self.elsewhere.clone() }.command_line();
        let width = |text: &Option<String>| -> Result<Option<u8>> {
            text.as_ref()
                .map(|text| text.parse().map_err(|_| usage(format!("`{text}` is not a width"))))
                .transpose()
        };
        let request = width::Request {
            side: match self.side {
                Some(SideArg::Guest) => width::Side::Guest,
                Some(SideArg::Hosts) => width::Side::Hosts,
                None if self.elsewhere.backend.is_some() => width::Side::Hosts,
                Some(SideArg::Host) | None => width::Side::Host,
            },
            machine,
            good: width(&self.good)?,
            bad: width(&self.bad)?,
            force: self.elsewhere.force,
        };
        Ok(width::bisect(bench, &request)?)
    }

    fn bisect_cpuid(&self, bench: &mut Bench, plugins: &Plugins) -> Result<Finding> {
        let machine = self.elsewhere.machine(&bench.machine, plugins)?;
        let both = self.elsewhere.is_given();
        let model = match (&self.cpu, both) {
            (Some(model), _) => model,
            (None, true) => "max",
            (None, false) => return Err(usage("--axis cpuid needs --cpu, or -b, --host or --kvm")),
        };
        let silicon = bench.machine.silicon;
        let supported = plugins.create(&bench.machine)?.supported_cpuid(&silicon_cpuid(&silicon));
        let table = CpuOption::parse(model).map_err(usage)?.cpuid(&silicon, &supported);
        let taped = bench.machine.cpuid.clone();
        let (from, to, model) = match both {
            true => (table, taped, model.to_owned()),
            false => (taped, table, bench.machine.cpu.clone()),
        };
        bench.command += &self.elsewhere.command_line();
        Ok(cpuid::bisect(bench, &cpuid::Request { machine, to, from, model, both })?)
    }

    fn bisect_faults(&self, bench: &Bench) -> Result<Finding> {
        if self.elsewhere.is_given() || self.verdict.is_some() {
            return Err(usage(
                "--axis faults tries the tape's own machine: no -b, --host, --kvm or --verdict",
            ));
        }
        let plugin = (bench.describe)(&bench.machine.backend)?;
        let request = faults::Request {
            tape: bench.tape,
            create: bench.create,
            plugin: &plugin,
            progress: bench.progress,
        };
        Ok(request.bisect()?)
    }

    fn bisect_plugins(&self, bench: &mut Bench) -> Result<Finding> {
        if self.others.is_empty() {
            return Err(usage("--axis plugin needs builds: vmtape bisect TAPE --axis plugin A.so B.so C.so"));
        }
        // A build in the middle is opened only if the search gets there: a misspelt name would go unnoticed.
        for path in &self.others {
            fs::metadata(path).with_context(|| path.display().to_string())?;
        }
        let creates: Vec<_> =
            self.others.iter().map(|path| move |machine: &MachineSpec| build(path, machine)).collect();
        let builds: Vec<_> = self
            .others
            .iter()
            .zip(&creates)
            .map(|(path, create)| plugin::Build { name: path.display().to_string(), create })
            .collect();
        Ok(plugin::bisect(bench, &builds)?)
    }
}

/// A VM of one build of a machine's backend.
fn build(path: &Path, machine: &MachineSpec) -> Result<Box<dyn Backend>, Error> {
    let refused = |reason: String| Error::Refused { backend: machine.backend.clone(), reason };
    let plugin = LoadedPlugin::load(path).map_err(|error| refused(error.to_string()))?;
    if plugin.name() != machine.backend {
        return Err(refused(format!("{} is the backend `{}`", path.display(), plugin.name())));
    }
    create(&plugin, machine.silicon, &machine.options).map_err(|error| refused(format!("{error:#}")))
}

fn print(finding: &Finding, args: &Args) -> Result<ExitCode> {
    if args.json {
        print_json(finding)?;
    } else {
        let detail = Detail::of(args.explain);
        write(&mut printable(), finding, detail).context("stdout")?;
    }
    Ok(match finding.verdict {
        Verdict::Same => ExitCode::SAME,
        Verdict::Different => ExitCode::DIFFERENT,
        Verdict::Unknown | Verdict::Nothing => ExitCode::COULD_NOT_TEST,
    })
}

fn write(out: &mut impl Write, finding: &Finding, detail: Detail) -> io::Result<()> {
    writeln!(out, "{}", finding.line)?;
    for note in &finding.notes {
        writeln!(out, "  {note}")?;
    }
    if let Some(signature) = &finding.signature {
        writeln!(out, "  signature: {signature}")?;
    }
    if !finding.trials.is_empty() {
        writeln!(out, "  tried:")?;
    }
    let mut shown: Vec<&str> = Vec::new();
    for trial in &finding.trials {
        let mark = match trial.mark {
            Mark::Good => "good",
            Mark::Bad => "bad",
            Mark::Skip => "skip",
        };
        // What was said in full once is known.
        let known = shown.contains(&trial.shows.as_str());
        let shows = if known && trial.mark == Mark::Bad { "the same divergence" } else { &trial.shows };
        shown.push(&trial.shows);
        writeln!(out, "    {mark:4}  {}: {shows}", trial.what)?;
    }
    if let Some(divergence) = &finding.divergence {
        report::write_divergence(out, divergence, detail)?;
    }
    if !finding.reproduce.is_empty() {
        writeln!(out, "  again: {}", finding.reproduce)?;
    }
    Ok(())
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Finding>];
