//! CPU models in the syntax of QEMU, and the CPUID tables that they stand for.

mod change;
mod features;
mod leaves;
mod qemu;
mod topology;

pub use change::CpuidChange;
pub use features::{FEATURES, Feature, Register, named};
pub use leaves::{guest_phys_bits, silicon_cpuid, silicon_cpuid_with};
pub(crate) use topology::for_vcpu;

use crate::Error;
use features::FeatureSet;
use qemu::{Known, NamedModel};
use vmtape_arch::{
    cpuid::CpuidEntry,
    host::{Silicon, Vendor},
};

/// Widths that a guest can be given.
const PHYS_BITS: std::ops::RangeInclusive<u8> = 32..=52;

/// QEMU's first name of a feature: lower case, `-` for `_`, aliases resolved.
pub fn plain_name(name: &str) -> String {
    qemu::plain(name)
}

/// Whether QEMU or this project has a CPUID feature of this name, modelled or not.
pub fn is_feature(name: &str) -> bool {
    named(name).is_ok() || qemu::known(name) == Some(Known::Feature)
}

/// Plain names of the features that a named model has.
pub fn named_features(model: &str) -> Option<std::collections::BTreeSet<String>> {
    qemu::find(model).map(|model| model.features)
}

/// Which features and identity a CPU starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Model {
    /// `max` and `host`: all that the software CPU and its host offer.
    Max,
    Named(NamedModel),
}

/// What can be set beside features.
const OPTIONS: &str = "phys-bits, host-phys-bits, host-phys-bits-limit, guest-phys-bits, vendor";

/// `--cpu`: a model and what is changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOption {
    model: Model,
    changes: Vec<(&'static Feature, bool)>,
    phys_bits: Option<u8>,
    host_phys_bits: Option<bool>,
    host_phys_bits_limit: Option<u8>,
    guest_phys_bits: Option<u8>,
    vendor: Option<VendorName>,
    ignored: Vec<String>,
}

impl CpuOption {
    /// Parses what QEMU's `-cpu` takes: `MODEL,phys-bits=N,+FEATURE,-FEATURE,FEATURE=on|off,host-phys-bits=on|off,...`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_words(text).map_err(|cause| Error::Model { text: text.to_owned(), cause })
    }

    fn parse_words(text: &str) -> Result<Self, String> {
        // QEMU looks at `+` and `-` when all else is set, and takes features away last.
        let sign = |word: &&str| {
            word.find(['+', '-']).map_or(0, |at| if at > 0 { 0 } else { 1 + u8::from(word.starts_with('-')) })
        };
        let mut words: Vec<&str> = text.split(',').collect();
        words[1..].sort_by_key(sign);
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        let model = match name {
            "max" | "host" => Model::Max,
            _ => Model::Named(qemu::find(name).ok_or_else(|| no_model(name))?),
        };
        let mut option = Self {
            model,
            changes: Vec::new(),
            phys_bits: None,
            host_phys_bits: None,
            host_phys_bits_limit: None,
            guest_phys_bits: None,
            vendor: None,
            ignored: Vec::new(),
        };
        for word in words.filter(|word| !word.is_empty()) {
            option.apply(word)?;
        }
        Ok(option)
    }

    fn apply(&mut self, word: &str) -> Result<(), String> {
        if let Some(feature) = word.strip_prefix('+') {
            return self.change(feature, true, word);
        }
        if let Some(feature) = word.strip_prefix('-') {
            return self.change(feature, false, word);
        }
        let (key, value) = word.split_once('=').unwrap_or((word, "on"));
        match qemu::plain(key).as_str() {
            "phys-bits" => self.phys_bits = width_or_none(key, value)?,
            "host-phys-bits" => self.host_phys_bits = Some(switch(key, value)?),
            "host-phys-bits-limit" => self.host_phys_bits_limit = width_or_none(key, value)?,
            "guest-phys-bits" => self.guest_phys_bits = Some(width(key, value)?),
            "vendor" => self.vendor = Some(vendor_of_text(value)?),
            name if qemu::known(name) == Some(Known::Property) => self.ignored.push(word.to_owned()),
            _ => {
                let on = switch(key, value);
                self.change(key, on.clone().unwrap_or(true), word)?;
                on?;
            }
        }
        Ok(())
    }

    /// Turns a feature on or off. One that QEMU knows and that is not modelled is off already.
    fn change(&mut self, name: &str, on: bool, word: &str) -> Result<(), String> {
        match (named(name), qemu::known(name)) {
            (Ok(feature), _) => self.changes.push((feature, on)),
            (Err(_), Some(_)) if on => self.ignored.push(word.to_owned()),
            (Err(_), Some(_)) => {}
            (Err(none), None) => return Err(format!("{none}, and no option is (there are {OPTIONS})")),
        }
        Ok(())
    }

    /// Words that QEMU understands and that change nothing here: features which are not modelled, and properties without
    /// a meaning.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Whether a feature is turned on by name.
    pub fn asks_for(&self, name: &str) -> bool {
        self.changes.iter().rfind(|(feature, _)| feature.name == name).is_some_and(|(_, on)| *on)
    }

    /// The guest's MAXPHYADDR on a host: as asked for, else the host's for `max` and `host` and QEMU's default for others.
    pub fn phys_bits(&self, silicon: &Silicon) -> u8 {
        if self.has_hosts_width() {
            return silicon.phys_bits.min(self.host_phys_bits_limit.unwrap_or(u8::MAX));
        }
        self.phys_bits.unwrap_or(qemu::DEFAULT_PHYS_BITS)
    }

    // See: QEMU target/i386/host-cpu.c host_cpu_adjust_phys_bits()
    fn has_hosts_width(&self) -> bool {
        self.host_phys_bits.unwrap_or(self.phys_bits.is_none() && self.model == Model::Max)
    }

    /// GuestPhysBits, which a VMM passes on as KVM gives it where the guest has the host's width, down to the same limit.
    // See: QEMU target/i386/kvm/kvm-cpu.c kvm_set_guest_phys_bits()
    fn guest_phys_bits(&self, supported: &[CpuidEntry]) -> u8 {
        let kvms = if self.has_hosts_width() { leaves::guest_phys_bits(supported) } else { 0 };
        self.guest_phys_bits.unwrap_or(kvms.min(self.host_phys_bits_limit.unwrap_or(u8::MAX)))
    }

    /// The CPUID table of vCPU 0. `supported` is what the backend's KVM_GET_SUPPORTED_CPUID says: what it lacks is left
    /// out, as VMMs do.
    pub fn cpuid(&self, silicon: &Silicon, supported: &[CpuidEntry]) -> Vec<CpuidEntry> {
        // The guest may be told another vendor than its host's.
        let name = self.vendor.unwrap_or(*vendor_name(silicon.vendor));
        let told = &Silicon { vendor: vendor_named(&name).unwrap_or(silicon.vendor), ..*silicon };
        let all = FeatureSet::all(told);
        let (mut set, identity) = match &self.model {
            Model::Max => (all, None),
            Model::Named(named) => (FeatureSet::of_names(&named.features).and(&all), Some(&named.identity)),
        };
        for (feature, on) in &self.changes {
            set.set(feature, *on);
        }
        let asked: Vec<&Feature> = self.changes.iter().filter(|(_, on)| *on).map(|(f, _)| *f).collect();
        set.keep_supported(supported, &asked);
        leaves::table(told, &name, &set, self.phys_bits(silicon), self.guest_phys_bits(supported), identity)
    }
}

fn no_model(name: &str) -> String {
    let names: Vec<_> = ["max", "host"].into_iter().chain(qemu::names()).collect();
    format!(
        "no model is named '{name}'; there are {} (of QEMU {}, and each with a version, as in EPYC-v2)",
        names.join(", "),
        qemu::version()
    )
}

/// A width, or zero for none.
fn width_or_none(key: &str, value: &str) -> Result<Option<u8>, String> {
    if value == "0" { Ok(None) } else { width(key, value).map(Some) }
}

fn width(key: &str, value: &str) -> Result<u8, String> {
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    };
    match parsed {
        Some(bits) if PHYS_BITS.contains(&bits) => Ok(bits),
        _ => Err(format!("{key}={value} is not a width within 32..52")),
    }
}

// See: QEMU target/i386/cpu.c x86_cpuid_set_vendor()
fn vendor_of_text(text: &str) -> Result<VendorName, String> {
    text.as_bytes()
        .try_into()
        .map_err(|_| format!("vendor={text} has not the twelve characters of a name such as GenuineIntel"))
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(format!("{key}={value} is neither on nor off")),
    }
}

/// The name that CPUID leaf 0 spells, as EBX, EDX and ECX hold it.
pub type VendorName = [u8; 12];

pub(crate) fn vendor_name(vendor: Vendor) -> &'static VendorName {
    if vendor == Vendor::AMD { b"AuthenticAMD" } else { b"GenuineIntel" }
}

/// Whose architecture a processor of this name has.
// See: KVM arch/x86/kvm/cpuid.h guest_cpuid_is_amd_compatible(); arch/x86/kvm/kvm_emulate.h is_guest_vendor_hygon()
pub fn vendor_named(name: &VendorName) -> Option<Vendor> {
    match name {
        b"AuthenticAMD" | b"HygonGenuine" => Some(Vendor::AMD),
        b"GenuineIntel" => Some(Vendor::INTEL),
        _ => None,
    }
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

    /// See: QEMU target/i386/host-cpu.c host_cpu_adjust_phys_bits(), kvm/kvm-cpu.c kvm_set_guest_phys_bits()
    #[test]
    fn a_named_model_has_40_bits_unless_it_is_to_have_the_hosts() {
        for (text, bits) in [
            ("EPYC-Milan-v2", 40),
            ("EPYC,phys-bits=0", 40),
            ("EPYC,phys-bits=43", 43),
            ("kvm64,host-phys-bits", 48),
            ("EPYC,phys-bits=43,host-phys-bits=on", 48),
            ("EPYC,host-phys-bits=on,host-phys-bits-limit=39", 39),
            ("max,host-phys-bits=off", 40),
            ("EPYC,phys-bits=0x2a", 42),
        ] {
            assert_eq!(maxphyaddr(&table(text, "amd-48")), bits, "{text}");
        }
    }

    #[test]
    fn a_limit_holds_for_guest_phys_bits_too() {
        let silicon = crate::hosts::find("amd-52").expect("named");
        let mut supported = silicon_cpuid(&silicon);
        supported.iter_mut().filter(|e| e.function == 0x8000_0008).for_each(|e| e.eax |= 48 << 16);
        let bits = |text| guest_phys_bits(&CpuOption::parse(text).expect(text).cpuid(&silicon, &supported));
        assert_eq!((bits("max"), bits("max,host-phys-bits-limit=39"), bits("EPYC")), (48, 39, 0));
    }

    /// Command lines from bug reports and manuals.
    #[test]
    fn what_qemu_takes_is_taken() {
        for (text, ignored) in [
            ("host,migratable=no,+invtsc", &["migratable=no", "+invtsc"][..]),
            ("host,kvm=off,hv_vendor_id=whatever", &["kvm=off", "hv_vendor_id=whatever"]),
            (
                "EPYC-Rome-v2,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff",
                &["hv-relaxed", "hv-vapic", "hv-spinlocks=0x1fff"],
            ),
            ("Haswell-noTSX-v2,-hle,-rtm,-tsx-ctrl", &[]),
            ("Skylake-Server,enforce,level=0x16", &["enforce", "level=0x16"]),
            ("qemu64,+sse4_1,+sse4-2,+ssse3,+pclmuldq,+lzcnt", &["+pclmuldq"]),
            ("base,tsc-freq=2000000000", &["tsc-freq=2000000000"]),
            (
                "max,full-cpuid-auto-level=off,hotpluggable=on",
                &["full-cpuid-auto-level=off", "hotpluggable=on"],
            ),
            ("max,tsc-deadline=on,l3-cache=on,pmu=off", &["l3-cache=on", "pmu=off"]),
        ] {
            assert_eq!(CpuOption::parse(text).expect(text).ignored(), ignored, "{text}");
        }
        let popcnt = |text| find(&table(text, "intel-46"), 1, 0).expect("leaf 1").ecx >> 23 & 1;
        assert_eq!((popcnt("x86-64-v1"), popcnt("x86-64-v2"), popcnt("x86-64-v4")), (0, 1, 1));
        let sse41 = |text| find(&table(text, "intel-46"), 1, 0).expect("leaf 1").ecx >> 19 & 1;
        assert_eq!((sse41("qemu64"), sse41("qemu64,+sse4_1"), sse41("Penryn")), (0, 1, 1));
    }

    #[test]
    fn a_named_model_has_its_own_identity() {
        let entries = table("EPYC-Rome", "amd-48");
        let leaf = |number| find(&entries, number, 0).expect("a leaf");
        assert_eq!((leaf(1).eax, leaf(0x8000_0001).eax), (0x83_0f10, 0x83_0f10));
        assert_eq!(leaf(0x8000_0002).eax.to_le_bytes(), *b"AMD ");
        let intel = table("Haswell", "intel-46");
        let leaf = |number| find(&intel, number, 0).expect("a leaf");
        assert_eq!((leaf(0x8000_0000).ebx, leaf(0x8000_0001).eax), (0, 0), "reserved there");
    }

    /// Hygon's processors are AMD's by another name. See: QEMU target/i386/cpu.h CPUID_VENDOR_HYGON
    #[test]
    fn a_vendor_is_any_twelve_characters() {
        for (text, name, repeats) in [
            ("Dhyana,vendor=HygonGenuine", b"HygonGenuine", true),
            ("EPYC", b"AuthenticAMD", true),
            ("max,vendor=KVMKVMKVMKVM", b"KVMKVMKVMKVM", true),
            ("Haswell,vendor=GenuineIntel", b"GenuineIntel", false),
        ] {
            let entries = table(text, "amd-48");
            let spelled = |number| {
                let leaf = find(&entries, number, 0).expect("a leaf");
                [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat()
            };
            assert_eq!(spelled(0), name, "{text}");
            assert_eq!(spelled(0x8000_0000) == name, repeats, "{text}");
        }
        let refused = CpuOption::parse("max,vendor=Hygon").expect_err("five characters").to_string();
        assert!(refused.contains("vendor=Hygon"), "{refused}");
    }

    #[test]
    fn features_come_and_go() {
        let pku = |text| find(&table(text, "intel-46"), 7, 0).expect("leaf 7").ecx >> 3 & 1;
        assert_eq!((pku("max"), pku("max,-pku"), pku("max,pku=off"), pku("max,pku=off,+pku")), (1, 0, 0, 1));
    }

    /// See: QEMU target/i386/cpu.c x86_cpu_parse_featurestr(), x86_cpu_expand_features()
    #[test]
    fn signs_come_last_whatever_their_place() {
        let pku = |text| find(&table(text, "intel-46"), 7, 0).expect("leaf 7").ecx >> 3 & 1;
        assert_eq!((pku("max,-pku,+pku"), pku("max,-pku,pku=on"), pku("max,+pku,pku=off")), (0, 0, 1));
    }

    #[test]
    fn virtualization_is_hidden_unless_asked_for() {
        let vmx = |text| find(&table(text, "intel-46"), 1, 0).expect("leaf 1").ecx >> 5 & 1;
        assert_eq!((vmx("max"), vmx("max,+vmx")), (0, 1));
    }

    /// SVM's leaf comes with SVM; what silicon has of it is a feature each.
    #[test]
    fn svm_has_a_leaf_of_its_own() {
        let leaf = |text| find(&table(text, "amd-48"), 0x8000_000a, 0).copied();
        assert_eq!(leaf("max"), None);
        let edx = |text| leaf(text).expect("a leaf").edx;
        assert_eq!((edx("max,+svm"), edx("max,+svm,-npt")), (0x1000_147b, 0x1000_147a));
        assert_eq!(find(&table("max,+svm", "amd-48"), 0x8000_0000, 0).expect("leaf").eax, 0x8000_000a);
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
