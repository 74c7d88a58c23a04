//! The host, by name or file.

use crate::{near, output::usage};
use anyhow::Result;
use std::fs;
use vmtape_arch::host::{Silicon, Vendor};
use vmtape_machine::hosts;

/// A host by name or file.
pub fn find_host(text: &str) -> Result<Silicon> {
    hosts::find(text).map_err(|error| wrong_host("--host", error))
}

/// A wrong name is the command line's fault, a wrong file is not.
pub fn wrong_host(whose: &str, error: vmtape_machine::Error) -> anyhow::Error {
    match error {
        vmtape_machine::Error::Passport { ref path, .. } => match fs::metadata(path) {
            // As an error of the system, by which it is known that the file is not there.
            Err(absent) => anyhow::Error::new(absent).context(format!("{whose}: {path}")),
            Ok(_) => anyhow::Error::new(error).context(whose.to_owned()),
        },
        vmtape_machine::Error::Host { ref text, .. } => {
            usage(format!("{whose}: {error}{}", near::host(text)))
        }
        _ => usage(format!("{whose}: {error}")),
    }
}

/// The host of a backend that was given none.
pub fn default_host(vendor: Vendor) -> Result<(String, Silicon)> {
    let name = if vendor == Vendor::AMD { "amd-48" } else { "intel-46" };
    Ok((name.to_owned(), find_host(name)?))
}
