//! `vmtape host show`: what a VMM on a host is told of the addresses that it may use, and what is true.

use crate::{
    machine_args::{PluginArgs, create, parse_backend, parse_kvm, wrong_host},
    output::{ExitCode, print_json, printable},
};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, Write};
use vmtape_arch::host::Vendor;
use vmtape_machine::{
    Passport,
    enumeration::{Conclusion, Enumeration, Procfs},
    hosts,
};

/// Show what a host tells a VMM about the guest physical addresses that it can map
///
/// The exit code is 1 where a VMM cannot tell, or concludes something else than what is so.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A host's name, VENDOR-BITS, or a TOML file
    #[arg(value_name = "HOST")]
    host: String,

    /// The backend and its options (default: the host's own, with two-dimensional paging)
    #[arg(short, long, value_name = "BACKEND")]
    backend: Option<String>,

    #[command(flatten)]
    plugins: PluginArgs,

    /// Which KVM: RELEASE, then +PATCH, -PATCH and PARAMETER=VALUE, separated by commas
    #[arg(long, value_name = "PROFILE", allow_hyphen_values = true)]
    kvm: Option<String>,

    /// The VMM cannot read /proc/cpuinfo
    #[arg(long)]
    no_procfs: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
struct Report<'a> {
    host: &'a str,
    backend: &'a str,
    kvm: String,
    #[serde(flatten)]
    told: Enumeration,
    concluded: Conclusion,
    /// Address bits that the tables below the guest translate.
    mappable_bits: u8,
    five_level_ept: Option<bool>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let host = hosts::passport(&args.host).map_err(|error| wrong_host("host show", error))?;
    let (name, mut options) = parse_backend(args.backend.as_deref().unwrap_or(backend_of(&host)))?;
    if let Some(kvm) = args.kvm.as_deref().or(host.kvm.as_deref()) {
        options.extend(parse_kvm(kvm)?);
    }
    let plugin = args.plugins.search().load(&name)?;
    let vm = create(&plugin, host.silicon, &options)?;
    let told = Enumeration::of(&*vm, &host, !args.no_procfs);
    let kvm = vm.resolved().into_iter().find(|(name, _)| name == "kvm").map_or_else(String::new, |(_, v)| v);
    let mappable_bits = if told.two_dimensional { host.mappable_bits() } else { told.maxphyaddr };
    let report = Report {
        host: &host.name,
        backend: &name,
        kvm,
        concluded: told.conclude(),
        mappable_bits,
        five_level_ept: told.five_level_ept(),
        told,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&mut printable(), &report, &host)?;
    }
    let right = report.concluded.bits == Some(report.mappable_bits);
    Ok(if right { ExitCode::SAME } else { ExitCode::DIFFERENT })
}

/// The backend that virtualizes like a host, with two-dimensional paging where nothing else is said.
fn backend_of(host: &Passport) -> &str {
    let of_vendor = if host.silicon.vendor == Vendor::AMD { "svm-npt" } else { "vmx" };
    host.backend.as_deref().unwrap_or(of_vendor)
}

fn print(out: &mut impl Write, r: &Report, host: &Passport) -> io::Result<()> {
    let silicon = &host.silicon;
    writeln!(
        out,
        "{}: {}, {} physical address bits; backend {}, KVM {}",
        r.host, silicon.vendor, silicon.phys_bits, r.backend, r.kvm
    )?;
    let cap = match (r.told.ept_vpid_cap, r.five_level_ept) {
        (Some(cap), Some(true)) => format!("{cap:#x}, five-level EPT; for the kernel only"),
        (Some(cap), _) => format!("{cap:#x}, no five-level EPT; for the kernel only"),
        (None, _) => "not on this silicon".to_owned(),
    };
    writeln!(out, "  IA32_VMX_EPT_VPID_CAP             {cap}")?;
    let procfs = match r.told.procfs {
        Procfs::Unreadable => "cannot be read",
        Procfs::NoFlag => "no such flag on this silicon or in this kernel",
        Procfs::Absent => "absent",
        Procfs::Present => "present",
    };
    writeln!(out, "  /proc/cpuinfo ept_5level          {procfs}")?;
    writeln!(
        out,
        "  KVM_GET_SUPPORTED_CPUID 80000008  MAXPHYADDR {}, GuestPhysBits {}",
        r.told.maxphyaddr, r.told.guest_phys_bits
    )?;
    let ioctl = match r.told.max_usable_gpa {
        Some(gpa) => format!("{gpa:#x}"),
        None => "this KVM has no such ioctl".to_owned(),
    };
    writeln!(out, "  the largest usable gpa            {ioctl}")?;
    writeln!(out, "  KVM_CAP_SMALLER_MAXPHYADDR        {}", r.told.smaller_maxphyaddr)?;
    match r.concluded.bits {
        Some(bits) => {
            writeln!(out, "  a VMM concludes                   {bits} bits, from {}", r.concluded.from)
        }
        None => writeln!(out, "  a VMM concludes                   nothing: {}", r.concluded.from),
    }?;
    writeln!(out, "  the tables below the guest reach  {} bits", r.mappable_bits)
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report<'static>>];
