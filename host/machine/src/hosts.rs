//! Named hosts, and hosts described in a file.

use crate::{
    Error,
    passport::{Passport, backing_shift},
};
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

/// The silicon of [`passport`]; `NAME,backing=4K` changes how memory is backed, `NAME,phys-bits=43` its width alone.
pub fn find(text: &str) -> Result<Silicon, Error> {
    let mut words = text.split(',');
    let mut silicon = passport(words.next().unwrap_or_default())?.silicon;
    for word in words {
        let changed = match word.split_once('=') {
            Some(("backing", value)) => backing_shift(value).map(|shift| silicon.backing_shift = shift),
            Some(("phys-bits", value)) => width(value).map(|width| silicon.phys_bits = width),
            _ => Err(format!("`{word}` is neither backing=SIZE nor phys-bits=N")),
        };
        changed.map_err(|cause| error(text, cause))?;
    }
    Ok(silicon)
}

/// Whether there can be such silicon. What a tape says of its host is nobody's word.
pub(crate) fn check(silicon: &Silicon) -> Result<(), String> {
    let known = |what: &str, value: u8, possible: &[u8]| match possible.contains(&value) {
        true => Ok(()),
        false => Err(format!("{what} is {value}, none of {possible:?}")),
    };
    if !PHYS_BITS.contains(&silicon.phys_bits) {
        return Err(format!("MAXPHYADDR is {}, not within 32 to 52", silicon.phys_bits));
    }
    known("the number of the host's paging levels", silicon.host_levels, &[4, 5])?;
    if silicon.vendor == Vendor::INTEL {
        known("the number of EPT's levels", silicon.ept_levels, &[4, 5])?;
    }
    known("the binary logarithm of a backing page's size", silicon.backing_shift, &[12, 21, 30])
}

fn width(text: &str) -> Result<u8, String> {
    let width = text.parse().ok().filter(|width| PHYS_BITS.contains(width));
    width.ok_or_else(|| format!("phys-bits={text} is not within 32 to 52"))
}

/// The host with this name, or the one described in the TOML file with this path.
pub fn passport(name: &str) -> Result<Passport, Error> {
    let path = Path::new(name);
    if let Some(silicon) =
        ALL.iter().find(|host| host.name == name).map(|host| host.silicon).or(by_width(name))
    {
        Ok(Passport::new(name, silicon))
    } else if path.extension().is_some_and(|extension| extension == "toml") {
        let unreadable = |cause| Error::Passport { path: name.to_owned(), cause };
        let text = fs::read_to_string(path).map_err(|cause| unreadable(cause.to_string()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Passport::parse(&stem, &text).map_err(unreadable)
    } else {
        let names: Vec<_> = ALL.iter().map(|host| host.name).collect();
        Err(error(
            name,
            format!("neither a .toml file, nor VENDOR-BITS (32 to 52), nor one of {}", names.join(", ")),
        ))
    }
}

fn error(text: &str, cause: String) -> Error {
    Error::Host { text: text.to_owned(), cause }
}

/// The host that a description of this vendor starts from.
pub const fn of_today(vendor: Vendor) -> Silicon {
    if vendor.0 == Vendor::INTEL.0 { intel(46, 4, 4) } else { amd(48, 4) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passport::check;

    #[test]
    fn every_named_host_is_possible() {
        for host in ALL {
            assert_eq!(check(&Passport::new(host.name, host.silicon)), Ok(()), "{}", host.name);
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
