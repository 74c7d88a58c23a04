mod trace;

use crate::{
    commands::report::{self, Detail},
    machine_args::{
        EngineArg, PluginArgs, agree, create, find_host, fits, load, parse_backend, parse_kvm, unknown_option,
    },
    output::{ExitCode, tell, usage},
    progress::{end_progress, progress_of},
};
use anyhow::Result;
use clap::{ValueEnum, ValueHint};
use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc};
use vmtape_abi::Backend;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{ChangesTold, MachineSpec, hosts, vmm::When};
use vmtape_replay::{Error, Report, across, exits, identical, report::Verdict, signature::Signature, spec};
use vmtape_traces::Tape;

/// Run a tape's guest again and compare: on the same backend every event, on another what the guest can observe
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::REPLAY)]
pub struct Args {
    /// The tape of the guest
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,

    #[command(flatten)]
    elsewhere: Elsewhere,

    #[command(flatten)]
    plugins: PluginArgs,

    /// Whether the guest runs
    #[arg(long, value_enum, default_value = "run")]
    mode: Mode,

    /// Go on after a difference and list them all, each signature once (only with --mode exits: a guest that has seen a
    /// difference runs another way, so there is nothing left to compare with)
    #[arg(long = "continue")]
    go_on: bool,

    /// Begin at the last checkpoint before this exit (same backend only; see record --checkpoint-every)
    #[arg(long, value_name = "EXIT")]
    from: Option<u64>,

    /// How the guest's instructions are executed, whatever the recording's were
    #[arg(long, value_enum, default_value = "interp")]
    engine: EngineArg,

    /// Tell everything of a difference: page walks, rules, the exits up to there, what exits cost
    #[arg(long, conflicts_with = "json")]
    explain: bool,

    /// Exits of context before a difference (with --explain)
    #[arg(long, value_name = "N", default_value_t = 3)]
    context: usize,

    /// Give the exit code that `git bisect run` needs: 0 same, 1 different, 125 could not test, 128 the command line makes no
    /// sense. With a signature, another divergence than this one could not test
    #[arg(long, value_name = "SIGNATURE", num_args = 0..=1, require_equals = true)]
    bisect: Option<Option<Signature>>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where a tape's guest runs instead of where it was recorded.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Elsewhere {
    /// Another backend and its options: NAME[,OPTION=VALUE...]
    #[arg(short, long, value_name = "BACKEND")]
    pub backend: Option<String>,

    /// Another host (default: the tape's, or the other vendor's with the same width and levels)
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Another KVM: RELEASE, then +PATCH, -PATCH and PARAMETER=VALUE, separated by commas
    #[arg(long, value_name = "PROFILE", allow_hyphen_values = true)]
    pub kvm: Option<String>,

    /// Compare with a guest that is wider than the host
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Run the guest again
    Run,
    /// Give the taped exits to the backend's handlers; the guest does not run
    Exits,
}

impl Args {
    /// The command that shows the same again.
    fn command_line(&self) -> String {
        let mut line = format!("vmtape replay {}{}", self.tape.display(), self.elsewhere.command_line());
        if self.mode == Mode::Exits {
            line += " --mode exits";
        }
        if self.go_on {
            line += " --continue";
        }
        line + &format!(" --context {}", self.context)
    }
}

impl Elsewhere {
    /// Whether anything but the tape's own machine is asked for.
    pub fn is_given(&self) -> bool {
        self.backend.is_some() || self.host.is_some() || self.kvm.is_some()
    }

    /// The options as they were given.
    pub fn command_line(&self) -> String {
        let options = [("-b", &self.backend), ("--host", &self.host), ("--kvm", &self.kvm)];
        let given =
            options.iter().filter_map(|(option, value)| Some(format!(" {option} {}", value.as_ref()?)));
        given.chain(self.force.then(|| " --force".to_owned())).collect()
    }

    /// The machine to compare with: the tape's, with what the options change.
    pub fn machine(&self, expected: &MachineSpec, plugins: &Plugins) -> Result<MachineSpec> {
        let mut actual = expected.clone();
        let mut changes = Vec::new();
        if let Some(backend) = &self.backend {
            let (name, options) = parse_backend(backend)?;
            if name != expected.backend {
                // Options of the other backend are its own defaults for the same profile.
                actual.options.retain(|(key, _)| key == spec::PROFILE);
            }
            actual.backend = name;
            changes.extend(options);
        }
        if let Some(kvm) = &self.kvm {
            if actual.backend == expected.backend {
                // Another release has other defaults; what the recording's user chose stays.
                actual.options.retain(|(key, _)| key == spec::PROFILE);
                actual.options.extend(spec::chosen(expected, &|machine| plugins.create(machine))?);
            }
            changes.extend(parse_kvm(kvm)?);
        }
        agree(&changes)?;
        let plugin = plugins.get(&actual.backend)?;
        match &self.host {
            Some(host) => {
                actual.silicon = find_host(host)?;
                actual.silicon.backing_shift = expected.silicon.backing_shift;
                actual.host = host.clone();
            }
            None if plugin.description.vendor != expected.silicon.vendor => {
                let vendor = plugin.description.vendor;
                actual.silicon = hosts::counterpart(&expected.silicon, vendor);
                actual.host = format!("{vendor}-{}", actual.silicon.phys_bits);
            }
            None => {}
        }
        is_known(&plugin, &actual)?;
        for (key, value) in changes {
            actual.options.retain(|(name, _)| *name != key);
            actual.options.push((key, value));
        }
        fits(&actual.cpuid, &actual.silicon, &actual.host, self.force)?;
        let created = create(&plugin, actual.silicon, &actual.options);
        // What a build refuses of the tape's own machine nobody has asked for.
        let created = created.map_err(|error| match self.is_given() {
            true => error,
            false => Error::Refused { backend: actual.backend.clone(), reason: format!("{error:#}") }.into(),
        });
        actual.options = created?.resolved();
        actual.describe_by(&plugin.description);
        Ok(actual)
    }
}

/// Refuses what a tape has of a backend and this build of it does not: nobody who typed a command has asked for that.
fn is_known(plugin: &LoadedPlugin, machine: &MachineSpec) -> Result<(), Error> {
    match unknown_option(plugin, &machine.options) {
        None => Ok(()),
        Some(what) => {
            let reason = format!("the tape has {what}, which {} does not know", plugin.build);
            Err(Error::Refused { backend: machine.backend.clone(), reason })
        }
    }
}

/// Plugins that a replay uses, each loaded once.
pub struct Plugins {
    search: vmtape_backends::Search,
    loaded: RefCell<BTreeMap<String, Rc<LoadedPlugin>>>,
}

impl Plugins {
    pub fn new(args: &PluginArgs) -> Self {
        Self { search: args.search(), loaded: RefCell::default() }
    }

    /// The machine of a tape. A backend that is not here is missed where it is needed.
    pub fn machine_of(&self, tape: &Tape) -> Result<MachineSpec> {
        let machine = spec::machine(tape)?;
        if let Ok(plugin) = self.get(&machine.backend) {
            is_known(&plugin, &machine)?;
        }
        Ok(machine)
    }

    pub fn get(&self, name: &str) -> Result<Rc<LoadedPlugin>> {
        if let Some(plugin) = self.loaded.borrow().get(name) {
            return Ok(plugin.clone());
        }
        let plugin = Rc::new(load(&self.search, name)?);
        self.loaded.borrow_mut().insert(name.to_owned(), plugin.clone());
        Ok(plugin)
    }

    /// In words, which builds recorded a tape, as far as they are not the ones that are here.
    pub fn other_builds(&self, tape: &Tape) -> Result<Vec<String>> {
        let metadata = tape.metadata();
        let plugin = self.get(&metadata.backend)?;
        let pairs =
            [(Some(metadata.origin.as_str()), env!("VMTAPE_BUILD")), (metadata.build(), &plugin.build)];
        let other = pairs.into_iter().filter_map(|(there, here)| Some((there?, here)));
        let other = other.filter(|(there, here)| there != here);
        let mut told: Vec<_> = other
            .map(|(there, here)| format!("{} was recorded by {there}; this is {here}", tape.name()))
            .collect();
        // A backend that the program has in itself is of its build.
        told.dedup();
        Ok(told)
    }

    /// Makes a VM for a replayed machine.
    pub fn create(&self, machine: &MachineSpec) -> Result<Box<dyn Backend>, Error> {
        let plugin = self.get(&machine.backend).map_err(|error| Error::Other(format!("{error:#}")))?;
        create(&plugin, machine.silicon, &machine.options).map_err(|error| Error::Refused {
            backend: machine.backend.clone(),
            reason: format!("{error:#}"),
        })
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open_whole(&args.tape)?;
    let plugins = Plugins::new(&args.plugins);
    if args.mode == Mode::Exits && spec::is_recording(&tape) {
        return trace::judge(args, &tape, &plugins);
    }
    let expected = MachineSpec { engine: args.engine.into(), ..plugins.machine_of(&tape)? };
    let actual = args.elsewhere.machine(&expected, &plugins)?;
    let others = plugins.other_builds(&tape)?;
    let alike = !args.elsewhere.is_given() || same_machine(&expected, &actual);
    let report = compare(args, &tape, &plugins, expected, actual);
    // Whatever does not repeat itself may owe that to another build.
    if report.as_ref().map_or(true, |report| alike && report.verdict == Verdict::Different) {
        others.iter().for_each(tell);
    }
    let report = report?;
    let code = report::print(&report, args.json, Detail::of(args.explain))?;
    Ok(match (&args.bisect, &report.divergence) {
        (Some(Some(wanted)), Some(found)) if *wanted != found.signature => {
            tell(format!("the divergence is {}, not {wanted}: could not test", found.signature));
            ExitCode::COULD_NOT_TEST
        }
        _ => code,
    })
}

/// The first divergence of a tape from a replay of it elsewhere, for other commands.
pub fn first_divergence(
    tape: PathBuf,
    elsewhere: &Elsewhere,
    plugins: &PluginArgs,
) -> Result<(Tape, Report)> {
    let args = Args {
        tape,
        elsewhere: elsewhere.clone(),
        plugins: plugins.clone(),
        mode: Mode::Run,
        go_on: false,
        from: None,
        engine: EngineArg::Interp,
        explain: false,
        context: 0,
        bisect: None,
        json: false,
    };
    let tape = Tape::open_whole(&args.tape)?;
    let plugins = Plugins::new(&args.plugins);
    let expected = plugins.machine_of(&tape)?;
    let actual = args.elsewhere.machine(&expected, &plugins)?;
    let report = compare(&args, &tape, &plugins, expected, actual)?;
    Ok((tape, report))
}

fn compare(
    args: &Args,
    tape: &Tape,
    plugins: &Plugins,
    mut expected: MachineSpec,
    actual: MachineSpec,
) -> Result<Report> {
    let reproduce = args.command_line();
    let [expected_name, actual_name] = across::names(&expected, &actual);
    // Another build of the tape's backend may know more options than the tape: it is to repeat the tape all the same.
    let alike = !args.elsewhere.is_given() || same_machine(&expected, &actual);
    let totals = tape.totals()?;
    let exits = args.mode == Mode::Exits || alike;
    let (length, unit) = if exits { (totals.exits, "exits") } else { (totals.icount, "instructions") };
    let bar = progress_of("replay", length, unit);
    let create = |machine: &MachineSpec| plugins.create(machine);
    if args.from.is_some() && (args.mode == Mode::Exits || !alike) {
        return Err(usage(
            "--from restores a checkpoint of the tape's own backend: not with -b or --mode exits",
        ));
    }
    if args.go_on && args.mode == Mode::Run {
        return Err(usage(
            "--continue needs --mode exits: a guest that has seen a difference runs another way from there on, and there is \
             nothing left to compare with; a taped exit has its registers and memory with it",
        ));
    }
    let plugin = plugins.get(&actual.backend)?;
    let recorder = plugins.get(&expected.backend)?;
    expected.describe_by(&recorder.description);
    let sides = across::Sides {
        way: None,
        at: When::Start,
        tape,
        expected,
        actual,
        create: &create,
        expected_plugin: &recorder.description,
        plugin: &plugin.description,
        context: args.context,
        explain: true,
        reproduce,
        inputs: None,
    };
    let mut report;
    if args.mode == Mode::Exits {
        let method = match (alike, sides.expected.register_changes != ChangesTold::Nothing) {
            (true, true) => {
                "each taped exit is given to the backend's handlers; every event must be the same, and what becomes of registers that the tape tells of"
            }
            (true, false) => {
                "each taped exit is given to the backend's handlers; every event must be the same (the tape does not tell what becomes of registers: --mode run)"
            }
            (false, _) => "what the guest sees of each taped exit is compared, not what it did without exits",
        };
        report = Report::new(method, tape.name(), actual_name);
        let mut tick = |exits| bar.set_position(exits);
        let method = exits::Method { same: alike, go_on: args.go_on, ..Default::default() };
        exits::replay(&sides, method, &mut report, &mut tick)?;
    } else if alike {
        let method = "the same backend runs the guest again; every event is compared";
        report = Report::new(method, tape.name(), actual_name);
        let mut tick = |exits| bar.set_position(exits);
        let machine = sides.actual.clone();
        identical::replay(tape, machine, &create, args.from, &mut report, &sides.reproduce, &mut tick)?;
    } else {
        let method = format!("both backends run the guest; {}", across::COMPARED);
        report = Report::new(method, format!("{} ({})", expected_name, tape.name()), actual_name);
        let mut tick = |instructions| bar.set_position(instructions);
        sides.compare(&mut report, &mut tick)?;
    }
    bar.set_position(if exits { report.compared.exits } else { report.compared.instructions });
    end_progress(&bar, unit);
    Ok(report)
}

fn same_machine(a: &MachineSpec, b: &MachineSpec) -> bool {
    (&a.backend, &a.silicon, sorted(&a.options)) == (&b.backend, &b.silicon, sorted(&b.options))
}

fn sorted(options: &[(String, String)]) -> Vec<(String, String)> {
    let mut options = options.to_vec();
    options.sort();
    options
}
