//! How a VMM learns which guest physical addresses its host can map.
//!
//! Silicon says in an MSR how many levels EPT has, which only the kernel reads. From there three ways lead to a VMM: a flag in
//! /proc/cpuinfo, GuestPhysBits in KVM_GET_SUPPORTED_CPUID, and an ioctl that was proposed and never merged. Each is missing in
//! some kernels, or cannot be read in some sandboxes.
//!
//! See: KVM commit b628cb523c65; Linux commit b1a3c366cbc7

use super::passport::Passport;
use crate::model::guest_phys_bits;
use schemars::JsonSchema;
use serde::Serialize;
use vmtape_abi::{Backend, Query};
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_traces::hex;

/// KVM_CAP_SMALLER_MAXPHYADDR.
const CAP_SMALLER_MAXPHYADDR: u32 = 185;
/// VMX_EPT_PAGE_WALK_5_BIT of IA32_VMX_EPT_VPID_CAP.
const EPT_PAGE_WALK_5: u64 = 1 << 7;
/// Address bits that four levels translate.
const FOUR_LEVELS: u8 = 48;

/// What /proc/cpuinfo says of five-level EPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Procfs {
    /// The VMM may not read it.
    Unreadable,
    /// This silicon or this kernel knows no such flag, so that its absence says nothing.
    NoFlag,
    Absent,
    Present,
}

/// Everything that a VMM can ask, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Enumeration {
    /// IA32_VMX_EPT_VPID_CAP, where silicon has it. A VMM does not see it.
    #[serde(serialize_with = "hex::word_or_null")]
    #[schemars(with = "Option<String>")]
    pub ept_vpid_cap: Option<u64>,
    pub procfs: Procfs,
    /// KVM_GET_SUPPORTED_CPUID 0x80000008 EAX bits 7:0 and 23:16.
    pub maxphyaddr: u8,
    pub guest_phys_bits: u8,
    /// The largest usable guest physical address, where KVM has the ioctl.
    #[serde(serialize_with = "hex::word_or_null")]
    #[schemars(with = "Option<String>")]
    pub max_usable_gpa: Option<u64>,
    /// KVM_CHECK_EXTENSION(KVM_CAP_SMALLER_MAXPHYADDR).
    pub smaller_maxphyaddr: i64,
    /// Tables below the guest are in use, as /sys/module says.
    pub two_dimensional: bool,
}

/// What a VMM makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Conclusion {
    /// Address bits that the guest's devices and memory may use; `None`: nothing tells.
    pub bits: Option<u8>,
    /// Who says so.
    pub from: &'static str,
}

impl Enumeration {
    /// Asks a VM's backend on a host.
    pub fn of(backend: &dyn Backend, host: &Passport, procfs_readable: bool) -> Self {
        let supported = backend.supported_cpuid(&host.cpuid());
        let ept_vpid_cap = backend.query(0, Query::EPT_VPID_CAP).ok();
        let procfs = match ept_vpid_cap {
            _ if !procfs_readable => Procfs::Unreadable,
            Some(cap) if backend.query(0, Query::PROCFS_TELLS_LEVELS) == Ok(1) => {
                if cap & EPT_PAGE_WALK_5 != 0 { Procfs::Present } else { Procfs::Absent }
            }
            _ => Procfs::NoFlag,
        };
        Self {
            ept_vpid_cap,
            procfs,
            maxphyaddr: maxphyaddr(&supported),
            guest_phys_bits: guest_phys_bits(&supported),
            max_usable_gpa: backend.query(0, Query::MAX_USABLE_GPA).ok(),
            smaller_maxphyaddr: backend.check_extension(CAP_SMALLER_MAXPHYADDR),
            two_dimensional: backend.query(0, Query::TWO_DIMENSIONAL) != Ok(0),
        }
    }

    /// Silicon's EPT has five levels.
    pub fn five_level_ept(&self) -> Option<bool> {
        self.ept_vpid_cap.map(|cap| cap & EPT_PAGE_WALK_5 != 0)
    }

    /// The best answer that a VMM can find, most exact source first.
    pub fn conclude(&self) -> Conclusion {
        let width = self.maxphyaddr;
        let capped = width.min(FOUR_LEVELS);
        let (bits, from) = match (self.max_usable_gpa, self.guest_phys_bits, self.procfs) {
            (Some(gpa), ..) => (Some((u64::BITS - gpa.leading_zeros()) as u8), "the ioctl"),
            (_, 1.., _) => (Some(self.guest_phys_bits), "GuestPhysBits"),
            _ if !self.two_dimensional => (Some(width), "no tables below the guest"),
            _ if width <= FOUR_LEVELS => (Some(width), "MAXPHYADDR, which four levels reach"),
            (.., Procfs::Present) => (Some(width), "ept_5level in /proc/cpuinfo"),
            (.., Procfs::Absent) => (Some(capped), "no ept_5level in /proc/cpuinfo"),
            (.., Procfs::Unreadable) => (None, "/proc/cpuinfo cannot be read"),
            (.., Procfs::NoFlag) => (None, "this kernel shows no such flag"),
        };
        Conclusion { bits, from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 52 bits on silicon with four-level EPT, seen through each combination of channels.
    #[test]
    fn the_most_exact_channel_wins() {
        let nothing = Enumeration {
            ept_vpid_cap: Some(0x40),
            procfs: Procfs::NoFlag,
            maxphyaddr: 52,
            guest_phys_bits: 0,
            max_usable_gpa: None,
            smaller_maxphyaddr: 0,
            two_dimensional: true,
        };
        let bits = |seen: &Enumeration| seen.conclude().bits;
        assert_eq!(bits(&nothing), None);
        assert_eq!(bits(&Enumeration { procfs: Procfs::Unreadable, ..nothing }), None);
        assert_eq!(bits(&Enumeration { procfs: Procfs::Absent, ..nothing }), Some(48));
        assert_eq!(bits(&Enumeration { procfs: Procfs::Present, ..nothing }), Some(52));
        let cpuid = Enumeration { guest_phys_bits: 48, procfs: Procfs::Unreadable, ..nothing };
        assert_eq!(bits(&cpuid), Some(48));
        let ioctl = Enumeration { max_usable_gpa: Some((1 << 48) - 1), ..nothing };
        assert_eq!(bits(&ioctl), Some(48));
        assert_eq!(bits(&Enumeration { maxphyaddr: 46, ..nothing }), Some(46));
        assert_eq!(bits(&Enumeration { two_dimensional: false, ..nothing }), Some(52));
        assert_eq!(nothing.five_level_ept(), Some(false));
    }
}
