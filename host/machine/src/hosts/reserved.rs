//! Guest physical addresses that devices of a host cannot reach, because the host keeps them for something else.
//!
//! An IOMMU translates no address in such a range, so that VFIO refuses memory there. What firmware keeps of *host* physical
//! addresses (TXT, SGX's EPC) is no guest's and stands in no list; memory that it shares with a device (RMRR) is in sysfs.
//!
//! See: Linux drivers/iommu/amd/iommu.c amd_iommu_get_resv_regions(), drivers/iommu/intel/iommu.c
//! intel_iommu_get_resv_regions(); tools/testing/selftests/kvm/lib/x86_64/processor.c vm_compute_max_gfn() (commit
//! c8cc43c1eae2)

use serde::{Deserialize, Serialize, Serializer};
use std::{fmt, str::FromStr};
use vmtape_arch::host::{Silicon, Vendor};

const GIB: u64 = 1 << 30;
/// IOAPIC_RANGE_START and _END, AMD's MSI_RANGE_START and _END.
pub const MSI_WINDOW: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);
/// HT_RANGE_START and _END.
const HYPER_TRANSPORT: (u64, u64) = (0xfd_0000_0000, 0xff_ffff_ffff);
/// Address bits of the first processors that show software their HyperTransport range, at the top of these.
const HYPER_TRANSPORT_BITS: u8 = 40;
/// What lies at the top of the address space from family 17h on.
const TOP: u64 = 12 * GIB;

/// A range, written `0xfd00000000-0xffffffffff` with both ends, and what it is kept for behind it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Reserved {
    pub first: u64,
    pub last: u64,
    pub what: String,
}

impl Reserved {
    fn new((first, last): (u64, u64), what: &str) -> Self {
        Self { first, last, what: what.to_owned() }
    }

    /// Whether a range of addresses, both ends included, has one in common with this one.
    pub fn meets(&self, first: u64, last: u64) -> bool {
        first <= self.last && self.first <= last
    }

    /// Addresses at which every host has its interrupts.
    pub fn is_msi_window(&self) -> bool {
        (self.first, self.last) == MSI_WINDOW
    }
}

/// What hosts with this silicon are known to reserve.
pub fn of_silicon(silicon: &Silicon) -> Vec<Reserved> {
    let mut ranges = vec![Reserved::new(MSI_WINDOW, "interrupts (MSI)")];
    let bits = silicon.phys_bits.saturating_sub(silicon.encryption_bits);
    if silicon.vendor == Vendor::AMD && bits >= HYPER_TRANSPORT_BITS {
        ranges.push(Reserved::new(HYPER_TRANSPORT, "HyperTransport"));
        if bits > HYPER_TRANSPORT_BITS {
            let what = "HyperTransport at the top; what silicon does there is unverified";
            ranges.push(Reserved::new(((1 << bits) - TOP, (1 << bits) - 1), what));
        }
    }
    ranges
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)?;
        if self.what.is_empty() { Ok(()) } else { write!(f, " {}", self.what) }
    }
}

impl Serialize for Reserved {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Reserved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (range, what) = text.split_once(' ').unwrap_or((text, ""));
        let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let ends = range.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
        match ends.filter(|(first, last)| first <= last && !what.contains(char::is_control)) {
            Some(ends) => Ok(Self::new(ends, what.trim())),
            None => Err(format!("reserved: {text:?} is no range such as 0xfd00000000-0xffffffffff")),
        }
    }
}

impl TryFrom<String> for Reserved {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::find;

    fn ranges(host: &str) -> Vec<(u64, u64)> {
        let silicon = find(host).expect(host);
        of_silicon(&silicon).into_iter().map(|range| (range.first, range.last)).collect()
    }

    /// The largest addresses that the kernel's selftests use: below 2^40, 2^48 or 2^52 less 12 GiB.
    #[test]
    fn amd_keeps_twelve_gib() {
        assert_eq!(ranges("intel-46"), [MSI_WINDOW]);
        assert_eq!(ranges("amd-39"), [MSI_WINDOW], "hidden from software");
        assert_eq!(ranges("amd-40"), [MSI_WINDOW, HYPER_TRANSPORT]);
        let top = |bits: u32| ((1u64 << bits) - 12 * GIB, (1u64 << bits) - 1);
        assert_eq!(ranges("amd-48"), [MSI_WINDOW, HYPER_TRANSPORT, top(48)]);
        assert_eq!(ranges("amd-52")[2], top(52));
        let encrypting = Silicon { encryption_bits: 5, ..find("amd-48").expect("named") };
        assert_eq!((of_silicon(&encrypting)[2].first, of_silicon(&encrypting)[2].last), top(43));
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in ["0xfd00000000-0xffffffffff HyperTransport", "0x0-0x0"] {
            assert_eq!(text.parse::<Reserved>().expect(text).to_string(), text);
        }
        for text in ["", "0x1000", "0x2000-0x1000", "1-2", "0x1-0x2 a\u{1b}b", "0x1-0x10000000000000000"] {
            assert!(text.parse::<Reserved>().is_err(), "{text}");
        }
    }
}
