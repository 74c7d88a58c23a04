//! CPU models in the syntax of QEMU, and the CPUID tables that they stand for.

mod change;
mod features;
mod leaves;
mod topology;

pub use change::CpuidChange;
pub use features::{FEATURES, Feature, Register, named};
pub use leaves::{guest_phys_bits, silicon_cpuid, silicon_cpuid_with};
pub(crate) use topology::for_vcpu;

use crate::Error;
use features::FeatureSet;
use vmtape_arch::{
    cpuid::CpuidEntry,
    host::{Silicon, Vendor},
};

/// Widths that a guest can be given.
const PHYS_BITS: std::ops::RangeInclusive<u8> = 32..=52;

/// A CPU model: which features it starts from and which identity it shows.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub name: &'static str,
    pub summary: &'static str,
    /// Features on top of the baseline of every 64-bit processor; `None`: everything that the host has.
    features: Option<&'static [&'static str]>,
}

/// Every model, by QEMU's names.
pub const MODELS: &[Model] = &[
    Model { name: "max", summary: "all that the software CPU and its host offer", features: None },
    Model { name: "host", summary: "the same as max", features: None },
    Model { name: "qemu64", summary: "a plain 64-bit processor", features: Some(features::QEMU64) },
    Model { name: "IvyBridge", summary: "Intel Xeon E3-12xx v2", features: Some(features::IVY_BRIDGE) },
    Model { name: "Icelake-Server", summary: "Intel Xeon (Icelake)", features: Some(features::ICELAKE) },
    Model { name: "EPYC", summary: "AMD EPYC", features: Some(features::EPYC) },
];

/// What a model can be given beside features.
const OPTIONS: &str = "phys-bits, host-phys-bits, host-phys-bits-limit, guest-phys-bits, vendor";

/// `--cpu`: a model and what is changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOption {
    model: &'static str,
    changes: Vec<(&'static Feature, bool)>,
    phys_bits: Option<u8>,
    host_phys_bits_limit: Option<u8>,
    guest_phys_bits: Option<u8>,
    vendor: Option<Vendor>,
}

impl CpuOption {
    /// Parses `MODEL,phys-bits=N,+FEATURE,-FEATURE,FEATURE=on|off,host-phys-bits=on|off,host-phys-bits-limit=N,...`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_words(text).map_err(|cause| Error::Model { text: text.to_owned(), cause })
    }

    fn parse_words(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let model = MODELS.iter().find(|model| model.name == name).ok_or_else(|| {
            let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
            format!("no model is named '{name}'; there are {}", names.join(", "))
        })?;
        let mut option = Self {
            model: model.name,
            changes: Vec::new(),
            phys_bits: None,
            host_phys_bits_limit: None,
            guest_phys_bits: None,
            vendor: None,
        };
        for word in words {
            option.apply(word)?;
        }
        Ok(option)
    }

    fn apply(&mut self, word: &str) -> Result<(), String> {
        if let Some(feature) = word.strip_prefix('+') {
            self.changes.push((named(feature)?, true));
        } else if let Some(feature) = word.strip_prefix('-') {
            self.changes.push((named(feature)?, false));
        } else if let Some((key, value)) = word.split_once('=') {
            match key {
                "phys-bits" => self.phys_bits = Some(width(key, value)?),
                "host-phys-bits-limit" => self.host_phys_bits_limit = Some(width(key, value)?),
                "guest-phys-bits" => self.guest_phys_bits = Some(width(key, value)?),
                "host-phys-bits" => {
                    switch(key, value)?;
                }
                "vendor" => self.vendor = Some(named_vendor(value)?),
                _ => {
                    let feature = named(key)
                        .map_err(|none| format!("{none}, and no option is (there are {OPTIONS})"))?;
                    self.changes.push((feature, switch(key, value)?));
                }
            }
        } else {
            self.changes.push((named(word)?, true));
        }
        Ok(())
    }

    /// The guest's MAXPHYADDR on a host: as asked for, else the host's, down to the limit.
    pub fn phys_bits(&self, silicon: &Silicon) -> u8 {
        let limit = self.host_phys_bits_limit.unwrap_or(u8::MAX);
        self.phys_bits.unwrap_or(silicon.phys_bits.min(limit))
    }

    /// The CPUID table of vCPU 0. `supported` is what the backend's KVM_GET_SUPPORTED_CPUID says: what it lacks is left
    /// out, as VMMs do.
    pub fn cpuid(&self, silicon: &Silicon, supported: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let model = MODELS.iter().find(|model| model.name == self.model);
        // The guest may be told another vendor than its host's.
        let silicon = &Silicon { vendor: self.vendor.unwrap_or(silicon.vendor), ..*silicon };
        let mut set = match model.and_then(|model| model.features) {
            None => FeatureSet::all(silicon),
            Some(names) => FeatureSet::baseline().with(names).and(&FeatureSet::all(silicon)),
        };
        for (feature, on) in &self.changes {
            set.set(feature, *on);
        }
        let asked: Vec<&Feature> = self.changes.iter().filter(|(_, on)| *on).map(|(f, _)| *f).collect();
        set.keep_supported(supported, &asked);
        let guest_phys_bits = match (self.guest_phys_bits, self.phys_bits) {
            (Some(bits), _) => bits,
            // A VMM passes on what KVM says where the guest has the host's width.
            (None, None) => leaves::guest_phys_bits(supported),
            (None, Some(_)) => 0,
        };
        leaves::table(silicon, &set, self.phys_bits(silicon), guest_phys_bits)
    }
}

fn width(key: &str, value: &str) -> Result<u8, String> {
    match value.parse() {
        Ok(bits) if PHYS_BITS.contains(&bits) => Ok(bits),
        _ => Err(format!("{key}={value} is not a width within 32..52")),
    }
}

fn named_vendor(name: &str) -> Result<Vendor, String> {
    [Vendor::INTEL, Vendor::AMD]
        .into_iter()
        .find(|vendor| name.as_bytes() == vendor_name(*vendor))
        .ok_or_else(|| format!("vendor={name} is neither GenuineIntel nor AuthenticAMD"))
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(format!("{key}={value} is neither on nor off")),
    }
}

/// The name that CPUID leaf 0 spells, as EBX, EDX and ECX hold it.
pub(crate) fn vendor_name(vendor: Vendor) -> &'static [u8; 12] {
    if vendor == Vendor::AMD { b"AuthenticAMD" } else { b"GenuineIntel" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::cpuid::{find, maxphyaddr};

    fn table(text: &str, host: &str) -> Vec<CpuidEntry> {
        let silicon = crate::hosts::find(host).expect("named");
        CpuOption::parse(text).expect(text).cpuid(&silicon, &silicon_cpuid(&silicon))
    }

    #[test]
    fn the_width_is_the_hosts_unless_asked_otherwise() {
        assert_eq!(maxphyaddr(&table("max", "intel-46")), 46);
        assert_eq!(maxphyaddr(&table("max,phys-bits=36", "amd-48")), 36);
        assert_eq!(maxphyaddr(&table("max,host-phys-bits=on,host-phys-bits-limit=39", "intel-46")), 39);
    }

    #[test]
    fn features_come_and_go() {
        let pku = |text| find(&table(text, "intel-46"), 7, 0).expect("leaf 7").ecx >> 3 & 1;
        assert_eq!((pku("max"), pku("max,-pku"), pku("max,pku=off"), pku("max,-pku,+pku")), (1, 0, 0, 1));
    }

    #[test]
    fn virtualization_is_hidden_unless_asked_for() {
        let vmx = |text| find(&table(text, "intel-46"), 1, 0).expect("leaf 1").ecx >> 5 & 1;
        assert_eq!((vmx("max"), vmx("max,+vmx")), (0, 1));
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for (text, mentions) in [
            ("no-such-model", "no-such-model"),
            ("max,phys-bits=99", "phys-bits=99"),
            ("max,+no-such-feature", "no-such-feature"),
            ("max,pku=maybe", "pku=maybe"),
            ("", "no model"),
        ] {
            let cause = CpuOption::parse(text).expect_err(text).to_string();
            assert!(cause.contains(mentions), "{text}: {cause}");
        }
    }
}
