//! `vmtape migrate`: moves a running guest to another machine, and holds it against a twin that never moved.

mod faults;
mod live;
mod map;
mod plot;
pub mod policies;
mod remote;
mod route;
mod text;

use crate::{
    commands::{replay::Plugins, report::Detail},
    machine_args::PluginArgs,
    output::{ExitCode, print_json, printable, tell, usage},
};
pub use route::hops;

use anyhow::Result;
use clap::{ValueHint, builder::PossibleValuesParser, builder::TypedValueParser};
use plot::PlotArgs;
use std::{
    cell::{Cell, RefCell},
    fmt,
    path::PathBuf,
    str::FromStr,
};
use vmtape_faults::Verdict;
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_migrate::{
    Live, Method, Plan, classes::Class, handover::Handover, link::Address, policy::Policy, source::LogMode,
};
use vmtape_replay::{
    across::Sides,
    migration::{Fate, Journey, Moved, Way},
};
use vmtape_traces::Tape;

/// Move a running guest to another machine: memory and state go over a link, and from there on the guest is compared with a twin
/// that stays
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = crate::help::MIGRATE,
    override_usage = "vmtape migrate <TAPE> --at <MOMENT>... --to <HOST>... [OPTIONS]\n       \
                      vmtape migrate <TAPE> --listen <ADDRESS> --to <HOST> [OPTIONS]\n       \
                      vmtape migrate <TAPE> --connect <ADDRESS> --at <MOMENT> [OPTIONS]"
)]
pub struct Args {
    /// The tape of the guest
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,

    /// When it moves: start, exit=N or insn=N, and on to where it comes to rest; one for each --to. every-exit[=N] tries every exit, or
    /// every N-th, each by itself
    #[arg(long, value_name = "MOMENT", num_args = 1.., required_unless_present = "listen", conflicts_with = "listen")]
    at: Vec<Moment>,

    /// Where to, one after the other: BACKEND[,host=HOST][,kvm=RELEASE][,OPTION...] or HOST[,BACKEND][,OPTION...]
    #[arg(long, value_name = "HOST", num_args = 1.., required_unless_present = "connect", conflicts_with = "connect")]
    to: Vec<String>,

    /// Wait for a guest from another process, on unix:PATH or on loopback's tcp:PORT, and run it beside its twin
    #[arg(long, value_name = "ADDRESS", conflicts_with = "connect")]
    listen: Option<Address>,

    /// Have the guest leave to the process that listens there
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<Address>,

    /// A file in which this side writes down what it becomes, before it acts (with --listen and --connect)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    journal: Option<PathBuf>,

    /// Whether the guest stands still from the beginning (cold), its memory moves in rounds while it runs (precopy), follows it when it
    /// is needed (postcopy), or what was written in one round follows it (hybrid)
    #[arg(long, default_value = "cold", value_parser = words::<Method>(&["cold", "precopy", "postcopy", "hybrid"]))]
    method: Method,

    /// How the log of dirty pages is read; a machine that was built with rings has only those
    #[arg(long, default_value = "legacy", value_parser = words::<LogMode>(&["legacy", "manual", "ring"]))]
    log: LogMode,

    /// Bytes per second of virtual time, with a suffix (K, M, G)
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = crate::machine_args::parse_size)]
    bandwidth: u64,

    /// Virtual time that the guest may stand still, in milliseconds or with a suffix (2us)
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = nanoseconds)]
    downtime: u64,

    /// Rounds after which memory is considered not to converge, so that the guest stays
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Slow the guest down where it writes faster than is sent
    #[arg(long)]
    auto_converge: bool,

    /// Whose last messages
    #[arg(long, default_value = "strict", value_parser = words::<Handover>(&["strict", "qemu", "qemu-noreturn", "ch", "propolis"]))]
    handover: Handover,

    /// Whose rules say which guest a destination takes
    #[arg(long, default_value = "strict", value_parser = words::<Policy>(&["strict", "qemu", "libvirt", "ch"]))]
    policy: Policy,

    /// Move nothing: print what each policy says of the guest at the first moment, and of each machine
    #[arg(long, conflicts_with_all = ["listen", "connect"])]
    policies: bool,

    /// Both sides share a device whose generation decides who may run the guest; between two processes it is a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = NO_FILE, value_hint = ValueHint::FilePath)]
    witness: Option<PathBuf>,

    /// Attempts to make each move, where the guest stays
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts: u32,

    /// Fault classes of a map (--at every-exit): all, or names, as in lost-regs, or what several begin with, as in lost
    #[arg(long, value_name = "CLASS", value_delimiter = ',', conflicts_with_all = ["faults", "cut", "kill", "plan"])]
    classes: Vec<String>,

    /// Exits of context before a difference
    #[arg(long, value_name = "N", default_value_t = 3)]
    context: usize,

    #[command(flatten)]
    plot: PlotArgs,

    /// A fault plan in TOML (host/faults/README.md; `when` has `phase`). With `expect` the exit code says whether it came so
    #[arg(long, value_name = "PLAN", value_hint = ValueHint::FilePath, conflicts_with = "faults")]
    plan: Option<PathBuf>,

    #[command(flatten)]
    plugins: PluginArgs,

    /// Tell everything of a difference from the twin: page walks, rules, the exits up to there
    #[arg(long, conflicts_with = "json")]
    explain: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--witness` has that names no file.
const NO_FILE: &str = "-";

/// A moment, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    At(When),
    /// Every so many exits.
    Every(u64),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            None if text == "every-exit" => Ok(Self::Every(1)),
            Some(("every-exit", step)) => match step.parse() {
                Ok(step) if step > 0 => Ok(Self::Every(step)),
                _ => Err(format!("{text}: `{step}` is not a count of exits")),
            },
            _ if text == "create" => {
                Err("before there are vCPUs there is no guest that could move".to_owned())
            }
            _ => text.parse().map(Self::At),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(when) => when.fmt(f),
            Self::Every(1) => f.write_str("every-exit"),
            Self::Every(step) => write!(f, "every-exit={step}"),
        }
    }
}

fn nanoseconds(text: &str) -> std::result::Result<u64, String> {
    let (digits, ns) = match text.strip_suffix("us") {
        Some(digits) => (digits, 1000),
        None => (text.strip_suffix("ms").unwrap_or(text), 1_000_000),
    };
    let count: Option<u64> = digits.parse().ok();
    let time = count.and_then(|count| count.checked_mul(ns));
    time.ok_or_else(|| format!("`{text}` is no time (300ms, 2us)"))
}

/// A parser of one of some words, which a help lists.
fn words<T>(known: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: std::str::FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(known).try_map(|text| text.parse::<T>())
}

/// Classes of faults by their names.
fn classes(names: &[String]) -> Result<Vec<Class>> {
    let mut classes: Vec<Class> = Vec::new();
    for name in names {
        let named = Class::named(name);
        if named.is_empty() {
            let all: Vec<_> = Class::all().into_iter().map(|class| class.name).collect();
            return Err(usage(format!("--classes: `{name}` is none of all, {}", all.join(", "))));
        }
        let new = named.into_iter().filter(|class| classes.iter().all(|known| known.name != class.name));
        classes.extend(new.collect::<Vec<_>>());
    }
    Ok(classes)
}

impl Args {
    /// One for each machine.
    fn moments(&self) -> Result<Vec<When>> {
        if self.listen.is_some() {
            // The other process says when.
            return if self.to.len() == 1 {
                Ok(vec![When::Start])
            } else {
                Err(usage("--listen: one --to is needed"))
            };
        }
        let every = self.at.iter().any(|moment| matches!(moment, Moment::Every(_)));
        if !every && !self.classes.is_empty() {
            return Err(usage("--classes: they are of a map, --at every-exit"));
        }
        if every && (self.at.len() != 1 || self.to.len() != 1) {
            return Err(usage("--at every-exit: one moment and one machine, in one process"));
        }
        if self.policies && !every {
            // One moment is enough for all.
            let Moment::At(at) = self.at[0] else { return Ok(Vec::new()) };
            return Ok(vec![at; self.to.len()]);
        }
        let wanted = if self.connect.is_some() { 1 } else { self.to.len() };
        if self.at.len() != wanted {
            let at = self.at.len();
            return Err(usage(format!("{at} moments (--at) for {wanted} machines: one is needed for each")));
        }
        let when = |moment: &Moment| match *moment {
            Moment::At(when) => when,
            Moment::Every(_) => When::Start,
        };
        Ok(self.at.iter().map(when).collect())
    }

    fn plan(&self) -> Plan {
        Plan {
            method: self.method,
            log: self.log,
            bandwidth: self.bandwidth,
            downtime_ns: self.downtime,
            rounds: self.rounds as usize,
            auto_converge: self.auto_converge,
            handover: self.handover,
            attempts: self.attempts,
            ..Plan::default()
        }
    }

    /// The command that does the same again.
    fn command_line(&self) -> String {
        let mut line = format!("vmtape migrate {}", self.tape.display());
        for (name, values) in
            [("at", self.at.iter().map(Moment::to_string).collect()), ("to", self.to.clone())]
        {
            if !values.is_empty() {
                line += &format!(" --{name} {}", values.join(" "));
            }
        }
        for (name, address) in [("listen", &self.listen), ("connect", &self.connect)] {
            line += &address.as_ref().map_or(String::new(), |address| format!(" --{name} {address}"));
        }
        let plan = [
            ("method", self.method.to_string(), Method::default().to_string()),
            ("log", self.log.to_string(), LogMode::default().to_string()),
            ("handover", self.handover.to_string(), Handover::default().to_string()),
            ("policy", self.policy.to_string(), Policy::default().to_string()),
            (
                "bandwidth",
                format!("{}K", self.bandwidth >> 10),
                format!("{}K", Plan::default().bandwidth >> 10),
            ),
            (
                "downtime",
                format!("{}us", self.downtime / 1000),
                format!("{}us", Plan::default().downtime_ns / 1000),
            ),
            ("rounds", self.rounds.to_string(), "30".to_owned()),
            ("attempts", self.attempts.to_string(), "1".to_owned()),
            ("classes", self.classes.join(","), String::new()),
        ];
        for (name, value, default) in plan {
            if value != default {
                line += &format!(" --{name} {value}");
            }
        }
        if self.auto_converge {
            line += " --auto-converge";
        }
        if let Some(path) = &self.witness {
            let file = path.display();
            line += &if path.as_os_str() == NO_FILE {
                " --witness".to_owned()
            } else {
                format!(" --witness={file}")
            };
        }
        line + &self.plot.command_line()
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open_whole(&args.tape)?;
    let plugins = Plugins::new(&args.plugins);
    let expected = plugins.machine_of(&tape)?;
    let hops = route::hops(&args.moments()?, &args.to, &expected, &plugins)?;
    let plot = args.plot.plot()?;
    let planned = args.plan.as_deref().map(faults::Planned::read).transpose()?;
    let points = || match &planned {
        Some(planned) => planned.points(),
        None => plot.points(),
    };
    let display = live::Display::new(args.bandwidth);
    let watch = |live: &Live| display.show(live);
    let actual = hops.last().map_or_else(|| expected.clone(), |hop| hop.to.clone());
    let journey = Journey {
        hops,
        plan: args.plan(),
        policy: args.policy,
        witness: args.witness.is_some(),
        points: &points,
        watch: &watch,
        flush_twin: Cell::new(false),
        asked: RefCell::default(),
    };
    let create = |machine: &MachineSpec| plugins.create(machine);
    let (recorder, plugin) = (plugins.get(&expected.backend)?, plugins.get(&actual.backend)?);
    let sides = Sides {
        way: Some(Way::Journey(&journey)),
        at: When::Start,
        tape: &tape,
        expected,
        actual,
        create: &create,
        expected_plugin: &recorder.description,
        plugin: &plugin.description,
        context: args.context,
        explain: true,
        reproduce: args.command_line(),
        inputs: None,
    };
    match (&args.listen, &args.connect, args.at.first()) {
        (.., Some(Moment::At(at))) if args.policies => policies::run(args, *at, &sides, &journey),
        (Some(address), ..) => remote::listen(args, address, &sides, &journey, &display),
        (_, Some(address), Some(Moment::At(at))) => {
            remote::connect(args, address, *at, &sides, &journey, &display)
        }
        (_, None, Some(Moment::Every(step))) => map::run(args, *step, &sides, &journey),
        _ => in_one_process(args, &sides, planned.as_ref(), &display),
    }
}

fn in_one_process(
    args: &Args,
    sides: &Sides,
    planned: Option<&faults::Planned>,
    display: &live::Display,
) -> Result<ExitCode> {
    let moved = sides.migrate(&mut |instructions| display.message(format!("{instructions} instructions")))?;
    display.finish();
    let printed = print(args, &moved)?;
    let Some((verdict, expected)) = planned.map(|planned| planned.verdict(&moved)) else {
        return Ok(printed);
    };
    let words = match expected {
        None => "",
        Some(true) => ", as expected",
        Some(false) => ", which the plan does not expect",
    };
    tell(format!("{verdict}{words}"));
    Ok(expected.map_or(printed, |expected| if expected { ExitCode::SAME } else { ExitCode::DIFFERENT }))
}

fn print(args: &Args, moved: &Moved) -> Result<ExitCode> {
    if args.json {
        print_json(moved)?;
    } else {
        text::print(&mut printable(), moved, Detail::of(args.explain))?;
    }
    Ok(code(moved.fate))
}

fn code(fate: Fate) -> ExitCode {
    match fate {
        Fate::Moved => ExitCode::SAME,
        Fate::Wrong(Verdict::Unknown) | Fate::Ended => ExitCode::COULD_NOT_TEST,
        _ => ExitCode::DIFFERENT,
    }
}

/// What it prints as JSON: one move, a map, the table of policies, or one side of a move between processes.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[
    crate::output::schema::<Moved>,
    crate::output::schema::<vmtape_replay::migration::Heat>,
    crate::output::schema::<policies::Table>,
    crate::output::schema::<vmtape_migrate::Outcome>,
];
