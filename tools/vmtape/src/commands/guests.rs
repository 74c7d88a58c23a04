use crate::output::{ExitCode, print_json, usage};
use anyhow::{Context, Result};
use serde::Serialize;
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

/// List the built-in guests, or write one as an image that any hypervisor can run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write this guest as an ELF32 multiboot image (QEMU: -kernel)
    #[arg(long, value_name = "NAME", requires = "output")]
    export: Option<String>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", requires = "export")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "export")]
    json: bool,
}

#[derive(Serialize)]
struct Guest {
    name: &'static str,
    summary: &'static str,
    memory_mib: u32,
    vcpus: u32,
}

#[derive(Serialize)]
struct Report {
    guests: Vec<Guest>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if let (Some(name), Some(output)) = (&args.export, &args.output) {
        let image = vmtape_guests::image(name)
            .ok_or_else(|| usage(format!("no built-in guest `{name}` (see `vmtape guests`)")))?;
        fs::write(output, image).with_context(|| output.display().to_string())?;
        return Ok(ExitCode::SAME);
    }
    let guests: Vec<_> = vmtape_guests::list()
        .iter()
        .map(|guest| Guest {
            name: guest.name,
            summary: guest.summary,
            memory_mib: guest.default_memory,
            vcpus: guest.default_smp,
        })
        .collect();
    if args.json {
        print_json(&Report { guests })?;
        return Ok(ExitCode::SAME);
    }
    let mut out = io::stdout().lock();
    for guest in guests {
        writeln!(out, "{:10} {}", guest.name, guest.summary)?;
    }
    Ok(ExitCode::SAME)
}
