use crate::{
    cli::Cli,
    machine_args::{PluginArgs, create, default_host},
    output::{self, ExitCode},
};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::{
    fs,
    io::{self, Write},
};
use vmtape_backends::LoadedPlugin;

/// The whole story on built-in guests, in under ten seconds
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    plugins: PluginArgs,
}

/// Where the tapes are left.
const FOLDER: &str = "vmtape-tour";
/// KVM_CAP_SMALLER_MAXPHYADDR: whether KVM corrects page faults for guests that are narrower than the host.
const SMALLER_MAXPHYADDR: u32 = 185;

const INTRODUCTION: &str = "\
A virtual machine that must be able to move to an older host is given a narrow physical address width: here 36 bits,
on hosts with 46. The guest then expects address bit 36 in a page-table entry to be reserved: touching it must raise a
page fault with the RSVD bit, and leave the entry alone. The CPU does not know: for it the bit is an ordinary one.
Whether the illusion holds depends on the CPU's vendor, on KVM, and on its options. What each backend says of itself:";

const RECORDED: &str = "\
The tape holds every exit of that run with its outcome. The same tape again, on the same backend, is identical, always:";

const SHADOW: &str = "\
AMD without nested paging: KVM walks the guest's tables itself, with the guest's own width. The guest sees no difference:";

const NESTED: &str = "\
AMD with nested paging: the CPU walks the guest's tables and sets accessed bits *before* it notices that the final address
has no translation. KVM cannot undo that, so it does not even try to hide the wider host. The guest sees it, and here is
where:";

const NEXT: &str = "\
The tapes are in ./vmtape-tour. What to try next:
  vmtape show vmtape-tour/vmx.tape | less         every exit, in the words of the kernel's tracepoints
  vmtape stat vmtape-tour/vmx.tape                how many exits of which kind, and bytes per exit
  vmtape record -b vmx --cpu max,phys-bits=36 -o off.tape builtin:illegal
                                                  KVM's default: the guest's own test fails under vmx as well
  vmtape record -b svm-npt --cpu max -o m.tape builtin:matrix; vmtape replay m.tape -b vmx
                                                  equal widths: all backends agree on 12288 permission tests
  vmtape bisect vmtape-tour/vmx.tape -b svm-npt --axis width
                                                  the smallest host on which the two differ
  vmtape record -b vmx --kvm v5.9-rc1 --cpu max,phys-bits=36 -o rc1.tape builtin:illegal; vmtape bisect rc1.tape --axis kvm
                                                  since which commit the guest sees something else
  vmtape check vmtape-tour/vmx.tape --to intel-52 amd-48 amd-48,svm
                                                  where this guest may move, and what breaks first
  vmtape scenarios                                every claim about widths, on every backend, with its source
  vmtape backends vmx                             rules, patches and parameters of a backend
  vmtape guests                                   more guests; kvm-unit-tests' .flat images and bzImages run too";

pub fn run(args: &Args) -> Result<ExitCode> {
    fs::create_dir_all(FOLDER).with_context(|| FOLDER.to_owned())?;
    say(INTRODUCTION)?;
    let search = args.plugins.search();
    for name in ["vmx", "vmx,allow_smaller_maxphyaddr=on", "svm", "svm-npt"] {
        let (backend, options) = crate::machine_args::parse_backend(name)?;
        capability(name, &search.load(&backend)?, &options)?;
    }
    let (tape, backend) = ("vmtape-tour/vmx.tape", "vmx,allow_smaller_maxphyaddr=on");
    say("Under vmx with that option the guest's own test passes:")?;
    command(
        &["record", "-b", backend, "--cpu", "max,phys-bits=36", "-o", tape, "builtin:illegal"],
        ExitCode::SAME,
    )?;
    say(RECORDED)?;
    command(&["replay", tape], ExitCode::SAME)?;
    say(SHADOW)?;
    command(&["replay", tape, "-b", "svm"], ExitCode::SAME)?;
    say(NESTED)?;
    command(&["replay", tape, "-b", "svm-npt", "--context", "1"], ExitCode::DIFFERENT)?;
    for name in ["svm", "svm-npt"] {
        let tape = format!("{FOLDER}/{name}.tape");
        quietly(&["record", "-b", name, "--cpu", "max,phys-bits=36", "-o", &tape, "builtin:illegal"])?;
    }
    say(NEXT)?;
    Ok(ExitCode::SAME)
}

/// Prints a paragraph.
fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "\n{text}")?;
    Ok(())
}

fn capability(name: &str, plugin: &LoadedPlugin, options: &[(String, String)]) -> Result<()> {
    let (_, silicon) = default_host(plugin.description.vendor)?;
    let value = create(plugin, silicon, options)?.check_extension(SMALLER_MAXPHYADDR);
    writeln!(io::stdout(), "  {name:34} KVM_CAP_SMALLER_MAXPHYADDR ({SMALLER_MAXPHYADDR}) = {value}")?;
    Ok(())
}

/// Shows a command and runs it; a tour that does not go as told is an error.
fn command(words: &[&str], expected: ExitCode) -> Result<()> {
    writeln!(io::stdout(), "\n$ vmtape {}", words.join(" "))?;
    let code = execute(words)?;
    ensure!(code == expected, "vmtape {} ended with {}, not {}", words.join(" "), code.0, expected.0);
    Ok(())
}

/// Runs a command whose output is of no interest.
fn quietly(words: &[&str]) -> Result<()> {
    let words: Vec<_> = words.iter().copied().chain(["--quiet"]).collect();
    execute(&words)?;
    Ok(())
}

fn execute(words: &[&str]) -> Result<ExitCode> {
    let cli = Cli::try_parse_from(["vmtape"].iter().chain(words))?;
    if cli.quiet {
        output::be_quiet();
    }
    cli.command.run()
}
