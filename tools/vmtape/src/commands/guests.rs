use crate::{
    files,
    output::{ExitCode, print_json, printable, usage},
};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    io::{self, Write},
    path::PathBuf,
};

/// List the built-in guests and their parameters, or write one as an image that any hypervisor can run
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::GUESTS)]
pub struct Args {
    /// Only this guest
    #[arg(conflicts_with = "export")]
    name: Option<String>,
    /// Write this guest as an ELF32 multiboot image (QEMU: -kernel)
    #[arg(long, value_name = "NAME[,KEY=VALUE...]", requires = "output")]
    export: Option<String>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", requires = "export")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "export")]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
struct Guest {
    name: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    memory_mib: u32,
    vcpus: u32,
}

#[derive(Serialize, JsonSchema)]
struct Parameter {
    name: &'static str,
    values: String,
    /// Empty where the guest derives it.
    default: &'static str,
    summary: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct Report {
    guests: Vec<Guest>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if let (Some(name), Some(output)) = (&args.export, &args.output) {
        let image = vmtape_guests::image(name).map_err(usage)?;
        files::write(output, |out| Ok(out.write_all(&image)?))?;
        return Ok(ExitCode::SAME);
    }
    let guests: Vec<_> = match &args.name {
        Some(name) => vec![describe(
            vmtape_guests::find(name)
                .ok_or_else(|| usage(vmtape_guests::GuestError::UnknownGuest(name.clone())))?,
        )],
        None => vmtape_guests::list().iter().map(describe).collect(),
    };
    if args.json {
        print_json(&Report { guests })?;
        return Ok(ExitCode::SAME);
    }
    print(&guests, &mut printable())?;
    Ok(ExitCode::SAME)
}

fn describe(guest: &vmtape_guests::GuestInfo) -> Guest {
    let parameters = guest.parameters.iter().map(|parameter| Parameter {
        name: parameter.name,
        values: parameter.values(),
        default: parameter.default,
        summary: parameter.summary,
    });
    Guest {
        name: guest.name,
        summary: guest.summary,
        parameters: parameters.collect(),
        memory_mib: guest.default_memory,
        vcpus: guest.default_smp,
    }
}

fn print(guests: &[Guest], out: &mut impl Write) -> io::Result<()> {
    for guest in guests {
        writeln!(out, "{:10} {}", guest.name, guest.summary)?;
        for parameter in &guest.parameters {
            let word = format!(",{}={}", parameter.name, parameter.values);
            let default = if parameter.default.is_empty() {
                String::new()
            } else {
                format!(" [{}]", parameter.default)
            };
            writeln!(out, "  {word:38} {}{default}", parameter.summary)?;
        }
    }
    Ok(())
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report>];
