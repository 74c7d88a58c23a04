//! Named hosts, and hosts described in a file.

use crate::Error;
use serde::Deserialize;
use std::{fs, path::Path};
use vmtape_arch::host::{Silicon, Vendor};

/// A host that has a name.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub name: &'static str,
    pub summary: &'static str,
    pub silicon: Silicon,
}

/// Widths that silicon can have.
const PHYS_BITS: std::ops::RangeInclusive<u8> = 32..=52;

/// An Intel host of today: everything that virtualization offers, 2 MiB backing.
const fn intel(phys_bits: u8, ept_levels: u8, host_levels: u8) -> Silicon {
    Silicon {
        vendor: Vendor::INTEL,
        phys_bits,
        host_levels,
        ept_levels,
        gbpages: true,
        ept_ad: true,
        ept_advanced: true,
        apicv: true,
        nrips: false,
        decode_assists: false,
        backing_shift: 21,
        rmw_reads_first: false,
        encryption_bits: 0,
        pad: [0; 3],
    }
}

/// An AMD host of today.
const fn amd(phys_bits: u8, host_levels: u8) -> Silicon {
    Silicon {
        vendor: Vendor::AMD,
        phys_bits,
        host_levels,
        ept_levels: 4,
        gbpages: true,
        ept_ad: false,
        ept_advanced: false,
        apicv: false,
        nrips: true,
        decode_assists: true,
        backing_shift: 21,
        rmw_reads_first: false,
        encryption_bits: 0,
        pad: [0; 3],
    }
}

const fn host(name: &'static str, summary: &'static str, silicon: Silicon) -> Host {
    Host { name, summary, silicon }
}

/// Every named host.
pub const ALL: &[Host] = &[
    host("intel-39", "client processors", intel(39, 4, 4)),
    host(
        "intel-40-bochs",
        "the processor under the kvm_intel recordings",
        Silicon { gbpages: false, ..intel(40, 4, 4) },
    ),
    host("intel-46", "Xeon up to Cascade Lake", intel(46, 4, 4)),
    host("intel-52", "Ice Lake servers and later, 5-level paging and EPT", intel(52, 5, 5)),
    host("intel-52-4level", "52 bits, but only 4-level EPT", intel(52, 4, 4)),
    host("amd-40", "Opteron", amd(40, 4)),
    host("amd-48", "EPYC up to Milan", amd(48, 4)),
    host(
        "amd-48-qemu",
        "the processor under the kvm_amd recordings: no next-RIP save, no decode assists, read-modify-write reads first",
        Silicon { nrips: false, decode_assists: false, rmw_reads_first: true, ..amd(48, 4) },
    ),
    host("amd-52", "EPYC from Genoa on, 5-level paging", amd(52, 5)),
    host("amd-52-4level", "EPYC from Genoa on, kernel with 4-level paging", amd(52, 4)),
];

/// A host as a file describes it: a named one to start from, and what differs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct HostFile {
    base: Option<String>,
    vendor: Option<String>,
    phys_bits: Option<u8>,
    host_levels: Option<u8>,
    ept_levels: Option<u8>,
    gbpages: Option<bool>,
    ept_ad: Option<bool>,
    ept_advanced: Option<bool>,
    apicv: Option<bool>,
    nrips: Option<bool>,
    decode_assists: Option<bool>,
    rmw_reads_first: Option<bool>,
    encryption_bits: Option<u8>,
    /// `4K`, `2M` or `1G`.
    backing: Option<String>,
}

/// The host with this name, or described in the TOML file with this path; `NAME,backing=4K` changes how memory is backed.
pub fn find(text: &str) -> Result<Silicon, Error> {
    let (name, backing) = match text.split_once(",backing=") {
        Some((name, backing)) => (name, Some(backing)),
        None => (text, None),
    };
    let error = |cause: String| Error::Host { text: text.to_owned(), cause };
    let mut silicon = match ALL.iter().find(|host| host.name == name) {
        Some(host) => host.silicon,
        None if Path::new(name).extension().is_some_and(|extension| extension == "toml") => {
            let text = fs::read_to_string(name).map_err(|cause| error(cause.to_string()))?;
            parse(&text).map_err(error)?
        }
        None => by_width(name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|host| host.name).collect();
            error(format!(
                "neither a .toml file, nor VENDOR-BITS (32 to 52), nor one of {}",
                names.join(", ")
            ))
        })?,
    };
    if let Some(backing) = backing {
        silicon.backing_shift = backing_shift(backing).map_err(error)?;
    }
    Ok(silicon)
}

/// `intel-43`, `amd-44`: a host of today with any width; one of 52 bits has 5-level paging.
fn by_width(name: &str) -> Option<Silicon> {
    let (vendor, bits) = name.split_once('-')?;
    let bits = bits.parse().ok().filter(|bits| PHYS_BITS.contains(bits))?;
    let levels = if bits == 52 { 5 } else { 4 };
    match Vendor::from_name(vendor)? {
        Vendor::INTEL => Some(intel(bits, levels, levels)),
        _ => Some(amd(bits, levels)),
    }
}

/// The host of a vendor that is closest to another's silicon: same width, same paging levels.
pub fn counterpart(silicon: &Silicon, vendor: Vendor) -> Silicon {
    let levels =
        silicon.host_levels.max(if silicon.vendor == Vendor::INTEL { silicon.ept_levels } else { 4 });
    let like = if vendor == Vendor::AMD {
        amd(silicon.phys_bits, levels)
    } else {
        intel(silicon.phys_bits, levels, silicon.host_levels)
    };
    Silicon { gbpages: silicon.gbpages, backing_shift: silicon.backing_shift, ..like }
}

fn parse(text: &str) -> Result<Silicon, String> {
    let file: HostFile = toml::from_str(text).map_err(|cause| cause.to_string())?;
    let vendor = match file.vendor.as_deref() {
        Some(name) => {
            Some(Vendor::from_name(name).ok_or_else(|| format!("vendor '{name}' is neither intel nor amd"))?)
        }
        None => None,
    };
    let base = match (&file.base, vendor) {
        (Some(name), _) => {
            ALL.iter()
                .find(|host| host.name == *name)
                .ok_or_else(|| format!("no host is named '{name}'"))?
                .silicon
        }
        (None, Some(Vendor::INTEL)) => intel(46, 4, 4),
        (None, Some(_)) => amd(48, 4),
        (None, None) => return Err("a host needs `vendor` or `base`".into()),
    };
    let silicon = Silicon {
        vendor: vendor.unwrap_or(base.vendor),
        phys_bits: file.phys_bits.unwrap_or(base.phys_bits),
        host_levels: file.host_levels.unwrap_or(base.host_levels),
        ept_levels: file.ept_levels.unwrap_or(base.ept_levels),
        gbpages: file.gbpages.unwrap_or(base.gbpages),
        ept_ad: file.ept_ad.unwrap_or(base.ept_ad),
        ept_advanced: file.ept_advanced.unwrap_or(base.ept_advanced),
        apicv: file.apicv.unwrap_or(base.apicv),
        nrips: file.nrips.unwrap_or(base.nrips),
        decode_assists: file.decode_assists.unwrap_or(base.decode_assists),
        backing_shift: file.backing.as_deref().map_or(Ok(base.backing_shift), backing_shift)?,
        rmw_reads_first: file.rmw_reads_first.unwrap_or(base.rmw_reads_first),
        encryption_bits: file.encryption_bits.unwrap_or(base.encryption_bits),
        pad: [0; 3],
    };
    check(&silicon)?;
    Ok(silicon)
}

fn check(silicon: &Silicon) -> Result<(), String> {
    if !PHYS_BITS.contains(&silicon.phys_bits) {
        return Err(format!("phys-bits={} is not within 32..52", silicon.phys_bits));
    }
    for (what, levels) in [("host-levels", silicon.host_levels), ("ept-levels", silicon.ept_levels)] {
        if !(4..=5).contains(&levels) {
            return Err(format!("{what}={levels} is neither 4 nor 5"));
        }
    }
    Ok(())
}

fn backing_shift(text: &str) -> Result<u8, String> {
    match text {
        "4K" => Ok(12),
        "2M" => Ok(21),
        "1G" => Ok(30),
        _ => Err(format!("backing '{text}' is none of 4K, 2M, 1G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_host_is_possible() {
        for host in ALL {
            assert_eq!(check(&host.silicon), Ok(()), "{}", host.name);
            assert_eq!(find(host.name).expect("named"), host.silicon);
        }
    }

    #[test]
    fn any_width_has_a_host() {
        assert_eq!(find("intel-43").expect("any width").phys_bits, 43);
        for name in ["intel-31", "intel-53", "via-40", "intel-", "intel"] {
            assert!(find(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let silicon = parse("base = 'intel-52'\nept-levels = 4\nbacking = '4K'").expect("valid");
        assert_eq!((silicon.phys_bits, silicon.ept_levels, silicon.backing_shift), (52, 4, 12));
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for (text, mentions) in [
            ("vendor = 'via'", "via"),
            ("phys-bits = 40", "vendor"),
            ("vendor = 'amd'\nphys-bits = 99", "99"),
            ("base = 'intel-9000'", "intel-9000"),
            ("vendor = 'amd'\nwidth = 3", "width"),
            ("vendor = 'amd'\nbacking = '3M'", "3M"),
        ] {
            let cause = parse(text).expect_err(text);
            assert!(cause.contains(mentions), "{text}: {cause}");
        }
    }

    #[test]
    fn a_counterpart_keeps_the_width() {
        for host in ALL {
            for vendor in [Vendor::INTEL, Vendor::AMD] {
                let other = counterpart(&host.silicon, vendor);
                assert_eq!(
                    (other.vendor, other.phys_bits),
                    (vendor, host.silicon.phys_bits),
                    "{}",
                    host.name
                );
            }
        }
    }
}
