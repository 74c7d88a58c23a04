//! `replay --mode exits` of an imported recording: its exits are judged, since there is no machine to give them to.

use super::{Args, Plugins};
use crate::{
    commands::{
        check::hosts::KnownHost,
        report::{self, Detail},
    },
    machine_args::{default_host, parse_backend},
    output::{ExitCode, tell, usage},
    progress::{end_progress, progress_of},
};
use anyhow::{Context, Result};
use vmtape_arch::{exit::Isa, host::Vendor};
use vmtape_replay::{Error, evidence};
use vmtape_traces::Tape;

/// What progress counts.
const EXITS: &str = "exits";

pub fn judge(args: &Args, tape: &Tape, plugins: &Plugins) -> Result<ExitCode> {
    if args.from.is_some() {
        return Err(usage("--from restores a checkpoint, and an imported recording has none"));
    }
    let target = host(args, tape, plugins)?.target(plugins, false)?;
    let bar = progress_of("replay", tape.totals()?.exits, EXITS);
    let mut tick = |exits| bar.set_position(exits);
    let evidence = evidence::judge(tape, &target, &mut tick)?;
    bar.set_position(evidence.exits);
    end_progress(&bar, EXITS);
    let reproduce = args.command_line();
    let report = evidence::verdict::report(tape.name(), &evidence, &target, args.go_on, &reproduce);
    let code = report::print(&report, args.json, Detail::of(args.explain))?;
    Ok(match (&args.bisect, &report.divergence) {
        (Some(Some(wanted)), Some(found)) if *wanted != found.signature => {
            tell(format!("the divergence is {}, not {wanted}: could not test", found.signature));
            ExitCode::COULD_NOT_TEST
        }
        _ => code,
    })
}

/// The host that was asked for; else one of the vendor that the trace's exits are of, which is no more than a guess.
fn host(args: &Args, tape: &Tape, plugins: &Plugins) -> Result<KnownHost> {
    let elsewhere = &args.elsewhere;
    let host = match (&elsewhere.host, &elsewhere.backend) {
        (Some(host), _) => host.clone(),
        (None, backend) => {
            let vendor = match backend {
                Some(text) => plugins.get(&parse_backend(text)?.0)?.description.vendor,
                None => recorded_on(tape)?,
            };
            let (name, _) = default_host(vendor)?;
            tell(format!("the trace does not tell its host, and none is given: {name} is taken (--host)"));
            name
        }
    };
    let words = [Some(&host), elsewhere.backend.as_ref(), elsewhere.kvm.as_ref()];
    let words: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
    KnownHost::parse(&words.join(","))
}

fn recorded_on(tape: &Tape) -> Result<Vendor> {
    let isa =
        evidence::isa(tape)?.with_context(|| Error::NothingCompared { tape: tape.name().to_owned() })?;
    Ok(if isa == Isa::VMX { Vendor::INTEL } else { Vendor::AMD })
}
