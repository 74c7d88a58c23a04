//! Which KVM: a release, named patches on top of it, and the module parameters. One table says everything.
//!
//! Handlers ask for a switch by its name in the table, never for a release, so that a release is no more than a set of
//! defaults.

use std::collections::BTreeMap;
use thiserror::Error;
use vmtape_abi::TableRow;
use vmtape_arch::open_enum;

/// Kernel releases that patches may refer to, oldest first.
pub const RELEASES: [&str; 37] = [
    "v5.6", "v5.7", "v5.8", "v5.9", "v5.10", "v5.11", "v5.12", "v5.13", "v5.14", "v5.15", "v5.16", "v5.17",
    "v5.18", "v5.19", "v6.0", "v6.1", "v6.2", "v6.3", "v6.4", "v6.5", "v6.6", "v6.7", "v6.8", "v6.9",
    "v6.10", "v6.11", "v6.12", "v6.13", "v6.14", "v6.15", "v6.16", "v6.17", "v6.18", "v6.19", "v7.0", "v7.1",
    "v7.2",
];

/// Releases whose switches are all modelled.
pub const PROFILES: [(&str, &str); 1] = [("v6.12", "Linux 6.12, which the recordings of the real KVM show")];

/// The profile of a machine that names none.
pub const DEFAULT_PROFILE: &str = "v6.12";

/// The backends that know an entry, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope(u8);

impl Scope {
    pub const VMX: Self = Self(1);
    pub const SVM: Self = Self(2);
    pub const NPT: Self = Self(4);
    pub const AMD: Self = Self(6);
    pub const ALL: Self = Self(7);

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What kind of switch an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A module parameter and its default.
    Parameter(u64),
    /// A change in KVM: on in releases from the first on, and before the second. `None`: in no release.
    Patch(Option<&'static str>, Option<&'static str>),
    /// What silicon does where no manual that we could read says it. On by default.
    Silicon,
}

/// One switch.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub switch: Switch,
    pub kind: Kind,
    pub scope: Scope,
    pub text: &'static str,
    pub source: &'static str,
}

open_enum! {
    /// A switch by number; its name is how options spell it.
    pub struct Switch(u32) {
        EPT = 1 => "ept",
        EPTAD = 2 => "eptad",
        ENABLE_APICV = 3 => "enable_apicv",
        UNRESTRICTED_GUEST = 4 => "unrestricted_guest",
        ALLOW_SMALLER_MAXPHYADDR = 5 => "allow_smaller_maxphyaddr",
        FLEXPRIORITY = 6 => "flexpriority",
        TDP_MMU = 7 => "tdp_mmu",
        MMIO_CACHING = 8 => "mmio_caching",
        FASTEOI = 13 => "fasteoi",
        NPT = 15 => "npt",
        NRIPS = 16 => "nrips",
        /// Numbers from 1000 on: silicon.
        EPT4_WIDE_GPA_VIOLATION = 1000 => "ept4-wide-gpa-violation",
        AMD_ACCESSED_BEFORE_NPF = 1001 => "amd-accessed-before-npf",
        NPT4_WIDE_GPA_FAULT = 1002 => "npt4-wide-gpa-fault",
        AMD_DIRTY_BEFORE_NPF = 1003 => "amd-dirty-before-npf",
    }
}

const fn entry(switch: Switch, kind: Kind, scope: Scope, text: &'static str, source: &'static str) -> Entry {
    Entry { switch, kind, scope, text, source }
}

/// THE table.
pub const TABLE: &[Entry] = &{
    use Kind::{Parameter, Silicon};
    [
        entry(Switch::EPT, Parameter(1), Scope::VMX, "Extended page tables; off: shadow paging", "vmx/vmx.c"),
        entry(Switch::EPTAD, Parameter(1), Scope::VMX, "Accessed and dirty bits in EPT entries", "vmx/vmx.c"),
        entry(
            Switch::ENABLE_APICV,
            Parameter(1),
            Scope::VMX,
            "APIC-register virtualization and virtual-interrupt delivery",
            "vmx/vmx.c",
        ),
        entry(
            Switch::UNRESTRICTED_GUEST,
            Parameter(1),
            Scope::VMX,
            "Real mode without emulation; needs EPT (off: not modelled, real mode runs in silicon either way)",
            "vmx/vmx.c",
        ),
        entry(
            Switch::ALLOW_SMALLER_MAXPHYADDR,
            Parameter(0),
            Scope::VMX,
            "A guest narrower than its host gets exact reserved bits; always on without EPT",
            "vmx/vmx.c vmx_hardware_setup(), commits 3edd68399dc1 and b96e6506c2ea",
        ),
        entry(Switch::FLEXPRIORITY, Parameter(1), Scope::VMX, "APIC-access page and TPR shadow", "vmx/vmx.c"),
        entry(
            Switch::TDP_MMU,
            Parameter(1),
            Scope::ALL,
            "The two-dimensional MMU of its own (off: the same mappings)",
            "mmu/mmu.c",
        ),
        entry(
            Switch::MMIO_CACHING,
            Parameter(1),
            Scope::ALL,
            "Map MMIO with entries that fault in a recognizable way",
            "mmu/spte.c kvm_mmu_spte_module_init()",
        ),
        entry(
            Switch::FASTEOI,
            Parameter(1),
            Scope::VMX,
            "EOI writes of the APIC page without decoding",
            "vmx/vmx.c",
        ),
        entry(Switch::NPT, Parameter(0), Scope::SVM, "Nested paging; the backend implies it", "svm/svm.c"),
        entry(Switch::NPT, Parameter(1), Scope::NPT, "Nested paging; the backend implies it", "svm/svm.c"),
        entry(Switch::NRIPS, Parameter(1), Scope::AMD, "Use next-RIP save where silicon has it", "svm/svm.c"),
        entry(
            Switch::EPT4_WIDE_GPA_VIOLATION,
            Silicon,
            Scope::VMX,
            "4-level EPT and a guest physical address with bits 51:48: always an EPT violation whose qualification bits 6:3 \
             are zero; off: those address bits are ignored",
            "Intel, 5-Level Paging and 5-Level EPT; bits 6:3 unverified",
        ),
        entry(
            Switch::AMD_ACCESSED_BEFORE_NPF,
            Silicon,
            Scope::NPT,
            "The guest's accessed bit is set before the nested fault of the final address",
            "KVM svm/svm.c svm_hardware_setup() comment, commit 3edd68399dc1",
        ),
        entry(
            Switch::AMD_DIRTY_BEFORE_NPF,
            Silicon,
            Scope::NPT,
            "With it, on writes, the guest's dirty bit is set before the nested fault",
            "unverified",
        ),
        entry(
            Switch::NPT4_WIDE_GPA_FAULT,
            Silicon,
            Scope::NPT,
            "4-level NPT and a guest physical address with bits 51:48: not-present nested page fault",
            "unverified",
        ),
    ]
};

/// Options that do not fit; the text is for the user.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    #[error("unknown KVM profile {0:?}; known: {1}")]
    Profile(String, String),
    #[error("unknown parameter or patch {name:?} for {plugin}; known: {known}")]
    Unknown { name: String, plugin: String, known: String },
    #[error("{name}: {value:?} is neither on nor off")]
    Value { name: String, value: String },
    #[error("{0}")]
    Contradiction(String),
}

/// Options, resolved: every switch of the plugin has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    profile: &'static str,
    scope: Scope,
    values: BTreeMap<Switch, u64>,
}

impl Options {
    /// Resolves the options of a machine for one plugin: profile first, then switches in order.
    pub fn parse(scope: Scope, plugin: &str, options: &[(String, String)]) -> Result<Self, OptionError> {
        let profile = match options.iter().rev().find(|(name, _)| name == "kvm") {
            None => DEFAULT_PROFILE,
            Some((_, wanted)) => {
                PROFILES.iter().find(|(name, _)| name == wanted).map(|(name, _)| *name).ok_or_else(|| {
                    let known = PROFILES.map(|(name, _)| name).join(", ");
                    OptionError::Profile(wanted.clone(), known)
                })?
            }
        };
        let rows = || TABLE.iter().filter(|e| e.scope.meets(scope));
        let mut values: BTreeMap<_, _> = rows().map(|e| (e.switch, default(e.kind, profile))).collect();
        for (name, value) in options.iter().filter(|(name, _)| name != "kvm") {
            let (name, value) = match (name.strip_prefix('+'), name.strip_prefix('-')) {
                (Some(name), _) => (name, "on"),
                (_, Some(name)) => (name, "off"),
                _ => (name.as_str(), value.as_str()),
            };
            let known = Switch::from_name(name).filter(|s| values.contains_key(s));
            let switch = known.ok_or_else(|| OptionError::Unknown {
                name: name.into(),
                plugin: plugin.into(),
                known: rows().filter_map(|e| e.switch.name()).collect::<Vec<_>>().join(", "),
            })?;
            let value = parse_value(value)
                .ok_or_else(|| OptionError::Value { name: name.into(), value: value.into() })?;
            values.insert(switch, value);
        }
        Ok(Self { profile, scope, values })
    }

    /// Whether a switch is on. A switch that the plugin does not have is off.
    pub fn on(&self, switch: Switch) -> bool {
        self.values.get(&switch).is_some_and(|v| *v != 0)
    }

    /// Overrides a switch, as KVM's hardware setup does where silicon lacks something.
    pub fn set(&mut self, switch: Switch, on: bool) {
        self.values.insert(switch, on.into());
    }

    /// The release.
    pub fn profile(&self) -> &'static str {
        self.profile
    }

    /// Everything by name, so that a tape never depends on a default.
    pub fn resolved(&self) -> Vec<(String, String)> {
        let name = |switch: &Switch| switch.name().unwrap_or_default().to_owned();
        let word = |value: &u64| if *value != 0 { "on" } else { "off" };
        let profile = ("kvm".to_owned(), self.profile.to_owned());
        let switches = TABLE.iter().filter(|e| e.scope.meets(self.scope));
        std::iter::once(profile)
            .chain(switches.map(|e| (name(&e.switch), word(&self.values[&e.switch]).to_owned())))
            .collect()
    }
}

fn default(kind: Kind, profile: &str) -> u64 {
    let at = |release: &str| RELEASES.iter().position(|r| *r == release);
    match kind {
        Kind::Parameter(value) => value,
        Kind::Silicon => 1,
        Kind::Patch(since, until) => {
            let reached = |r: Option<&str>| r.is_some_and(|r| at(r) <= at(profile));
            (reached(since) && !reached(until)).into()
        }
    }
}

fn parse_value(text: &str) -> Option<u64> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "y" | "yes" | "true" | "1" | "" => Some(1),
        "off" | "n" | "no" | "false" | "0" => Some(0),
        _ => None,
    }
}

/// The rows of the table that a plugin exports: parameters, patches (silicon rules among them), profiles.
pub fn tables(scope: Scope) -> (Vec<TableRow>, Vec<TableRow>, Vec<TableRow>) {
    let row = |e: &Entry, value: String| TableRow {
        id: e.switch.0,
        name: e.switch.name().unwrap_or_default().into(),
        text: e.text.into(),
        source: e.source.into(),
        value,
    };
    let mine = || TABLE.iter().filter(|e| e.scope.meets(scope));
    let parameters = mine().filter_map(|e| match e.kind {
        Kind::Parameter(value) => Some(row(e, if value != 0 { "on" } else { "off" }.into())),
        _ => None,
    });
    let patches = mine().filter_map(|e| match e.kind {
        Kind::Patch(since, _) => Some(row(e, since.unwrap_or("never merged").into())),
        Kind::Silicon => Some(row(e, "silicon".into())),
        Kind::Parameter(_) => None,
    });
    let profiles = PROFILES.iter().enumerate().map(|(id, (name, text))| TableRow {
        id: id as u32,
        name: (*name).into(),
        text: (*text).into(),
        source: String::new(),
        value: String::new(),
    });
    (parameters.collect(), patches.collect(), profiles.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Options, OptionError> {
        let owned: Vec<_> = options.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Options::parse(Scope::VMX, "vmx", &owned)
    }

    #[test]
    fn defaults_and_overrides() {
        let options = parse(&[("ept", "off"), ("+allow_smaller_maxphyaddr", "")]).unwrap();
        assert!(!options.on(Switch::EPT) && options.on(Switch::ALLOW_SMALLER_MAXPHYADDR));
        assert!(options.on(Switch::EPTAD) && !options.on(Switch::NRIPS));
        assert_eq!(options.resolved()[0], ("kvm".into(), "v6.12".into()));
        let again = Options::parse(Scope::VMX, "vmx", &options.resolved());
        assert_eq!(again, Ok(options));
    }

    #[test]
    fn errors_name_what_is_unknown() {
        let text = |options| parse(options).unwrap_err().to_string();
        assert!(text(&[("kvm", "v4.4")]).contains("v4.4"));
        assert!(text(&[("nptt", "on")]).contains("nptt"));
        assert!(text(&[("ept", "maybe")]).contains("maybe"));
        assert!(text(&[("nrips", "on")]).contains("vmx"), "an AMD parameter is unknown to vmx");
    }
}
