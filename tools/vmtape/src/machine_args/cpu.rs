//! The guest's CPU, as `--cpu` asks for it.

use super::read;
use crate::{files, libvirt, output::usage};
use anyhow::{Context, Result};
use std::path::Path;
use vmtape_abi::Backend;
use vmtape_arch::{
    cpuid::{CpuidEntry, maxphyaddr},
    host::Silicon,
};
use vmtape_machine::model::{CpuOption, silicon_cpuid};
use vmtape_traces::{
    Tape,
    import::{absent_leaves, cpuid_table},
};

/// A CPU that a file of libvirt's describes.
const LIBVIRT: &str = "libvirt:";

/// What `--cpu` says, in QEMU's words where it names a file of libvirt's.
pub(super) fn cpu_words(text: &str) -> Result<String> {
    let file = text.strip_prefix(LIBVIRT).or(text.ends_with(".xml").then_some(text));
    let Some(path) = file else { return Ok(text.to_owned()) };
    let bytes = read(Path::new(path))?;
    let xml = files::decode(bytes).with_context(|| format!("{path}: no text"))?;
    libvirt::domain_cpu(&files::unquoted(&xml)).with_context(|| path.to_owned())
}

/// A CPUID that comes from a tape instead of a model.
const TAPE: &str = "tape:";

/// The guest's CPUID table. That of an imported recording is laid over the table of the default model, because a
/// recording holds only what its guest asked for.
pub(super) fn guest_cpuid(text: &str, silicon: &Silicon, backend: &dyn Backend) -> Result<Vec<CpuidEntry>> {
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

/// Refuses a guest that is wider than its host, unless it is to be tried.
pub fn fits(cpuid: &[CpuidEntry], silicon: &Silicon, host: &str, force: bool) -> Result<()> {
    fits_bits(maxphyaddr(cpuid), silicon, host, force)
}

pub(super) fn fits_bits(guest: u8, silicon: &Silicon, host: &str, force: bool) -> Result<()> {
    if guest > silicon.phys_bits && !force {
        return Err(usage(format!(
            "the guest has {guest} physical address bits, host {host} only {}: it cannot run there (--force tries)",
            silicon.phys_bits
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// As an editor of another system saves it, and as a mail quotes it.
    #[test]
    fn a_domain_is_read_however_it_was_passed_on() -> Result<()> {
        const XML: &str = "<cpu mode='custom'>\n<model>EPYC-Rome</model>\n</cpu>\n";
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("domain.xml");
        let quoted: String = XML.lines().map(|line| format!("> {line}\n")).collect();
        let wide: Vec<u8> =
            "\u{feff}".encode_utf16().chain(XML.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        for bytes in [XML.into(), XML.replace('\n', "\r\n").into_bytes(), quoted.into_bytes(), wide] {
            fs::write(&path, bytes)?;
            assert_eq!(cpu_words(&path.display().to_string())?, "EPYC-Rome");
        }
        Ok(())
    }
}
