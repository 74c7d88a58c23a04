//! Hosts that have a name.

use vmtape_arch::{
    flag::Flag,
    host::{Silicon, Vendor},
};

/// A host that has a name.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub name: &'static str,
    pub summary: &'static str,
    pub silicon: Silicon,
}

/// Widths that silicon can have.
pub(super) const PHYS_BITS: std::ops::RangeInclusive<u8> = 32..=52;

/// An Intel host of today: everything that virtualization offers, 2 MiB backing.
const fn intel(phys_bits: u8, ept_levels: u8, host_levels: u8) -> Silicon {
    Silicon {
        vendor: Vendor::INTEL,
        phys_bits,
        host_levels,
        ept_levels,
        gbpages: Flag::YES,
        ept_ad: Flag::YES,
        ept_advanced: Flag::YES,
        apicv: Flag::YES,
        nrips: Flag::NO,
        decode_assists: Flag::NO,
        backing_shift: 21,
        rmw_reads_first: Flag::NO,
        encryption_bits: 0,
        vgif: Flag::NO,
        vls: Flag::NO,
        vnmi: Flag::NO,
    }
}

/// An AMD host of today. Virtual GIF, VMLOAD, VMSAVE and NMI are offered from 52 bits on, though older ones have some of them.
const fn amd(phys_bits: u8, host_levels: u8) -> Silicon {
    let is_newest = if phys_bits == 52 { Flag::YES } else { Flag::NO };
    Silicon {
        vendor: Vendor::AMD,
        phys_bits,
        host_levels,
        ept_levels: 4,
        gbpages: Flag::YES,
        ept_ad: Flag::NO,
        ept_advanced: Flag::NO,
        apicv: Flag::NO,
        nrips: Flag::YES,
        decode_assists: Flag::YES,
        backing_shift: 21,
        rmw_reads_first: Flag::NO,
        encryption_bits: 0,
        vgif: is_newest,
        vls: is_newest,
        vnmi: is_newest,
    }
}

const fn host(name: &'static str, summary: &'static str, silicon: Silicon) -> Host {
    Host { name, summary, silicon }
}

/// Every named host.
pub const ALL: &[Host] = &[
    host("intel-39", "client processors", intel(39, 4, 4)),
    host(
        "intel-39-haswell",
        "clients of 2013: no APICv, and EPT violations tell less",
        Silicon { apicv: Flag::NO, ept_advanced: Flag::NO, ..intel(39, 4, 4) },
    ),
    host(
        "intel-40-bochs",
        "the processor under the kvm_intel recordings",
        Silicon { gbpages: Flag::NO, ..intel(40, 4, 4) },
    ),
    host("intel-46", "Xeon up to Cascade Lake", intel(46, 4, 4)),
    host("intel-52", "Ice Lake servers and later, 5-level paging and EPT", intel(52, 5, 5)),
    host("intel-52-4level", "52 bits, but only 4-level EPT", intel(52, 4, 4)),
    host("amd-40", "Opteron", amd(40, 4)),
    host("amd-48", "EPYC up to Milan", amd(48, 4)),
    host(
        "amd-48-qemu",
        "the processor under the kvm_amd recordings: no next-RIP save, no decode assists, read-modify-write reads first",
        Silicon { nrips: Flag::NO, decode_assists: Flag::NO, rmw_reads_first: Flag::YES, ..amd(48, 4) },
    ),
    host("amd-52", "EPYC from Genoa on, 5-level paging", amd(52, 5)),
    host("amd-52-4level", "EPYC from Genoa on, kernel with 4-level paging", amd(52, 4)),
];

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

/// The host that a description of this vendor starts from.
pub const fn of_today(vendor: Vendor) -> Silicon {
    if vendor.0 == Vendor::INTEL.0 { intel(46, 4, 4) } else { amd(48, 4) }
}

/// `intel-43`, `amd-44`: a host of today with any width; one of 52 bits has 5-level paging.
pub(super) fn by_width(name: &str) -> Option<Silicon> {
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
