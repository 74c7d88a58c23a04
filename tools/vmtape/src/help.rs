//! What stands below the options in the long help: examples, exit codes, and what scripts may rely on.

/// Below `vmtape --help`.
pub const PROGRAM: &str = "\
Exit codes:
    0  same, safe, pass; a run that ended, whatever the guest says (but see `run --guest-status`)
    1  different, unsafe, fail: a divergence, a run that cannot go on, a cause that `bisect` found
    2  the command line makes no sense: an option, a host, a CPU model, a release of KVM
  125  could not test: a file that cannot be read, a plugin that does not load or that broke; and no
       difference was found, but not everything could be compared (verdict `unknown`)
  128  the same as 2 under `replay --bisect`, so that `git bisect run` stops
  141  whoever read the output went away first

Data goes to stdout, all else to stderr; progress and colours only to a terminal (see NO_COLOR).
`--json` prints one object; while its schema_version is 2, fields are added, none is taken away.
GUEST is builtin:NAME (see `vmtape guests`), a kvm-unit-tests .flat image, or a bzImage.

Examples:
  vmtape tour
  vmtape record -b svm-npt --cpu max,phys-bits=36 -o a.tape builtin:illegal
  vmtape replay a.tape -b vmx";

pub const BACKENDS: &str = "\
Examples:
  vmtape backends
  vmtape backends vmx --kvm v5.9
  vmtape backends --patches
  vmtape backends --plugin ./libvmtape_mine.so mine --json";

pub const GUESTS: &str = "\
Examples:
  vmtape guests
  vmtape guests touch
  vmtape guests --export touch,gpa=0x1000000000 -o touch.elf";

pub const RECORD: &str = "\
Exit codes: 0 the run ended, 1 it cannot go on, 2 usage, 125 could not test.

Examples:
  vmtape record -b vmx -o a.tape builtin:matrix
  vmtape record -b svm --host amd-52 --kvm v6.1,+role-has-cpuid -o a.tape builtin:smp2
  vmtape record -b vmx,allow_smaller_maxphyaddr=on --cpu max,phys-bits=36 -o a.tape access.flat
  vmtape record -b svm --kvm v5.10 --set-cpuid exit=1000,phys-bits=36 -o a.tape builtin:late
  vmtape record -b vmx -o a.tape vmlinuz --initrd initrd.gz --append console=ttyS0";

pub const INJECT: &str = "\
A plan says what goes wrong when. The run with it is held against the same run without faults,
instruction by instruction; `vmtape replay` repeats its tape, and needs neither plan nor seed.

Exit codes: 0 the verdict is as the plan expects (or it expects nothing), 1 it is another one,
2 usage, 125 could not test.

Examples:
  vmtape inject plan.toml -b vmx builtin:touch -o a.tape
  vmtape inject plan.toml -b svm --host amd-52 builtin:dirty --shrink small.toml
  vmtape inject on a.tape plan.toml -o b.tape
  vmtape inject points -b svm-npt";

pub const CAMPAIGN: &str = "\
A specification in TOML says how many plans, from which seed, over which guests and machines
(host/faults/README.md). Plan i is a function of the specification and i: no shard needs another.
Results are written whole or not at all; a shard that was stopped goes on where it was.

Exit codes: 0 done (report: nothing found), 1 report: something was found, 2 usage, 125 could not
test, or the campaign is worth nothing: a job is missing, is not deterministic or failed, or a
canary gave a wrong verdict.

Examples:
  vmtape campaign plan campaign.toml --shards 8 -o plan.toml
  vmtape campaign run plan.toml --shard 0/8 -o results
  vmtape campaign jobs plan.toml --engine parallel > run.sh
  vmtape campaign merge plan.toml results -o results.jsonl
  vmtape campaign report plan.toml results -o findings
  vmtape campaign show plan.toml 17";

pub const RUN: &str = "\
Exit codes: 0 the run ended, 1 it cannot go on, 2 usage, 125 could not test.

Examples:
  vmtape run -b vmx builtin:hello
  vmtape run -b vmx,ept=off --host intel-39 --cpu EPYC,phys-bits=39,-smap --smp 2 builtin:smp2
  vmtape run -b svm-npt --guest-status -m 1G --append 'a b' test.flat
  vmtape run -b svm-npt --check-extension 185 --query shadow-pages,exit=100 --json builtin:matrix";

pub const REPAIR: &str = "\
The tape ends where the recording was cut, and replays up to there.

Exit codes: 0 the tape is made, 2 usage (the recording is whole), 125 could not test.

Examples:
  vmtape repair a.tape.partial -o a.tape";

pub const REPLAY: &str = "\
`--mode exits` gives the taped exits to handlers, and the guest does not run. What it did between
them is known only for the tape's own machine (backend, options, host): with another one, no
difference at exits is the verdict `unknown`, never `same`. So it is for an imported trace, whose
exits are judged for the host (-b, --host, --kvm) by what their events tell.

Exit codes: 0 same, 1 different, 2 usage, 125 could not test, or unknown.

Examples:
  vmtape replay a.tape
  vmtape replay a.tape -b svm-npt --host amd-52 --kvm v5.9
  vmtape replay a.tape --kvm v6.12,-pf-fixup --mode exits
  git bisect run sh -c 'make || exit 125; vmtape replay --bisect --plugin ./mine.so a.tape'";

pub const DIFF: &str = "\
Tapes that are not equal event by event tell nothing of what their guests did between exits: where
no difference shows, the verdict is `unknown`.

Exit codes: 0 same, 1 different, 2 usage, 125 could not test, or unknown.

Examples:
  vmtape diff a.tape b.tape
  vmtape diff real.tape ours.tape --json";

pub const CHECK: &str = "\
SAFE: nothing differs. CONDITIONAL: nothing differs but for a guest that relies on address bits that
are reserved for it and not for the host. UNSAFE: the guest sees a difference. REFUSED: it cannot be
there. Cautions are what this guest does not mind, but another one might.

Of an imported trace only what its exits tell is judged, and the answer says how many and why not
the others; faults that do not tell enough make it `unknown`.

Exit codes: 0 safe everywhere, 1 not safe somewhere, 2 usage, 125 could not test, or unknown.

Examples:
  vmtape check a.tape --to amd-48 intel-52,vmx,v6.12,allow_smaller_maxphyaddr=on ./my-host.toml
  vmtape check a.tape --to amd-48 --at exit=1000 --json
  vmtape check --fleet hosts/old.toml hosts/new.toml --pin --html fleet.html
  vmtape check --fleet intel-39 intel-46 intel-52 --guest builtin:illegal --cpu max,phys-bits=39";

pub const MIGRATE: &str = "\
The guest moves at the moment given, or as soon after it as it comes to rest. Memory goes in rounds
(--method precopy) or at once; time is virtual, and none of it passes while the guest stands still.
A --to without host= is on the host where the guest is.

MOVED: it runs there, and nothing differs from the twin that stayed. REFUSED, DETECTED: it did not
move, and goes on where it was. SILENT CORRUPTION: nobody noticed, and it is another guest now.
TWO RUNNING, PARKED, LOST: the hand-over failed.

Exit codes: 0 moved and the same, 1 anything else that was found, 2 usage, 125 could not test.

Examples:
  vmtape migrate a.tape --at exit=40 --to svm-npt,host=amd-52,kvm=v6.1
  vmtape migrate a.tape --at insn=500000 --to vmx --method precopy --log manual --bandwidth 2G
  vmtape migrate a.tape --at exit=10 exit=50 --to intel-46 intel-52 --json
  vmtape migrate a.tape --at every-exit --to intel-52
  vmtape migrate a.tape --listen unix:/tmp/m --to svm
  vmtape migrate a.tape --connect unix:/tmp/m --at exit=9
  vmtape migrate a.tape --at exit=10 --to vmx --handover ch --cut done=0";

pub const REPORT: &str = "\
The page stands alone: no scripts, nothing from elsewhere, for light and dark, phones and
paper. It is written whole or not at all. What is missing on it is named at its end.

Drawn are tapes; the --json of replay and migrate (also with --at every-exit) in files that
end in .json; results (.jsonl) and findings of campaigns.

Exit codes: 0 the page is written, 2 usage, 125 there is nothing to draw, or it cannot be read.

Examples:
  vmtape report a.tape -o report.html
  vmtape replay a.tape -b svm --json > run/replay.json
  vmtape migrate a.tape --at every-exit --to svm --json > run/map.json
  vmtape report a.tape run -o report.html";

pub const BISECT: &str = "\
The tape's own machine is the good end. The result is one line (`first bad: ...`) and its evidence.
A trial that shows another divergence first is skipped, never taken for the one that is looked for.

Exit codes: 1 something is bad and was found, 0 nothing is, 2 usage, 125 could not test, or nothing
was found and some trials could not be judged.

Examples:
  vmtape bisect a.tape --axis exits -b svm-npt
  vmtape bisect a.tape b.tape --axis exits
  vmtape bisect a.tape --axis exits -b svm-npt --verdict end
  vmtape bisect a.tape --axis kvm --good v5.9-rc1 --bad v5.10
  vmtape bisect a.tape --axis width -b svm-npt
  vmtape bisect a.tape --axis cpuid --cpu EPYC --verdict prints=FAIL
  vmtape bisect a.tape --axis plugin monday.so tuesday.so wednesday.so
  vmtape bisect a.tape --axis faults";

pub const SHOW: &str = "\
Options that choose exits narrow each other. An exit that is chosen comes with silicon's walk of the
guest's tables that led to it; without options the whole tape is printed, in its order.

Examples:
  vmtape show a.tape
  vmtape show a.tape --from 1000 --count 3
  vmtape show a.tape --reason npf --gpa 0x1002000000-0x1002000fff
  vmtape show a.tape --vcpu 1 --grep RSVD --json
  vmtape show a.tape --ioctls
For scripts: --json, or `vmtape export --format jsonl`.";

pub const STAT: &str = "\
Examples:
  vmtape stat a.tape
  vmtape stat -v a.tape
  vmtape stat a.tape --json";

pub const SCENARIOS: &str = "\
Rows that need kvm-unit-tests are skipped unless VMTAPE_KUT names the x86 folder of a built one.

Exit codes: 0 everything is as its source says, 1 something deviates, 2 usage, 125 could not test.

Examples:
  vmtape scenarios --list
  vmtape scenarios --history smaller-maxphyaddr -b vmx
  vmtape scenarios --slow --json --junit scenarios.xml";

pub const IMPORT: &str = "\
Reads trace.dat of trace-cmd, perf.data, and text of tracefs (`trace`), `trace-cmd report` and
`perf script`; also within gzip or zstd.

Exit codes: 0 a tape was made, 2 usage, 125 nothing was understood or the trace cannot be read.

Examples:
  vmtape import -o real.tape trace.dat
  vmtape import -o real.tape trace.txt.gz
  perf script -i perf.data | vmtape import -o real.tape -";

pub const EXPORT: &str = "\
Examples:
  vmtape export a.tape -o a.txt
  vmtape export a.tape --format jsonl -o a.jsonl
  vmtape export a.tape --format chrome -o a.json
  vmtape export a.tape --redact=somekey -o for-others.tape
  vmtape export a.tape --reproducer -b vmx --host intel-46 -o test.c";

pub const COMPLETIONS: &str = "\
Examples:
  vmtape completions bash > ~/.local/share/bash-completion/completions/vmtape
  vmtape completions fish > ~/.config/fish/completions/vmtape.fish";

pub const MAN: &str = "\
Examples:
  vmtape man ~/.local/share/man/man1";

pub const HOST: &str = "\
Examples:
  vmtape host show intel-52-4level
  vmtape host probe -o this-host.toml
  vmtape host from cpuinfo.txt -o that-host.toml
  vmtape host crash -b vmx --kvm v5.6";

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::{Command, CommandFactory, Parser};

    /// At which clap wraps lines, however wide the terminal is.
    const WIDTH: usize = 100;

    /// The program and all its commands, whatever their depth.
    fn commands(command: &Command) -> Vec<Command> {
        std::iter::once(command.clone()).chain(command.get_subcommands().flat_map(commands)).collect()
    }

    #[test]
    fn examples_are_commands() {
        let texts = commands(&Cli::command()).into_iter().filter_map(|c| c.get_after_long_help().cloned());
        let texts: Vec<String> = texts.map(|text| text.to_string()).collect();
        for line in texts.iter().flat_map(|text| text.lines()) {
            assert!(line.len() <= WIDTH, "{line}: would be wrapped");
        }
        let lines: Vec<_> =
            texts.iter().flat_map(|text| text.lines()).filter_map(|l| l.strip_prefix("  vmtape ")).collect();
        assert!(lines.len() > 30, "{}", lines.len());
        for line in lines {
            let line = line.split(" > ").next().unwrap_or_default();
            let words = shlex::split(&format!("vmtape {line}")).expect("no open quote");
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn every_argument_is_explained() {
        for command in commands(&Cli::command()) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
