//! Which KVM: a release, named patches on top of it, and the module parameters. One table says everything.
//!
//! Handlers ask for a switch by its name in the table, never for a release, so that a release is no more than a set of
//! defaults.

mod entry;
mod gpat;
mod nested;
mod parameters;
mod patches;
mod quirks;
mod release;
mod set;
mod smm;
mod switch;
#[cfg(test)]
mod tests;

pub use entry::{Entry, Kind, Scope};
pub use release::{DEFAULT, Profile, RELEASES};
pub use switch::Switch;

use release::position;
use set::SwitchSet;
use thiserror::Error;
use vmtape_abi::{NESTED_PAGING, TableRow};
use vmtape_kvm_mmu::{NptRules, Unmappable, memory_type::EptTypes};

/// THE registry: every switch of every backend.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    [
        parameters::PARAMETERS,
        patches::SMALLER_MAXPHYADDR,
        patches::MAPPABLE_WIDTH,
        patches::CPUID_AFTER_RUN,
        patches::DIRTY_LOGGING,
        patches::MEMORY_TYPES,
        patches::MISSING_MEMORY,
        patches::PARAVIRTUAL,
        patches::CRASH,
        patches::EMULATION,
        patches::MSR_LISTS,
        nested::NESTED_OLD,
        nested::NESTED_6_1,
        nested::NESTED_6_12,
        nested::NESTED_7_2,
        gpat::GPAT,
        smm::SMM,
        parameters::SILICON,
    ]
    .into_iter()
    .flatten()
}

/// The part of the registry that some backends know.
fn entries_of(scope: Scope) -> impl Iterator<Item = &'static Entry> {
    entries().filter(move |entry| entry.scope.meets(scope))
}

/// Options that do not fit; the text is for the user.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    #[error("unknown KVM profile {0:?}; known: {1}")]
    Profile(String, String),
    #[error("unknown parameter or patch {name:?} for {plugin}; known: {known}")]
    Unknown { name: String, plugin: String, known: String },
    #[error("{name}: {value:?} is neither on nor off")]
    Value { name: String, value: String },
}

/// Options, resolved: every switch of the plugin has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    profile: Profile,
    scope: Scope,
    /// The switches that are on.
    on: SwitchSet,
    /// Quirks that the VMM has disabled since the VM was made.
    disabled_quirks: u64,
}

impl Options {
    /// Resolves the options of a machine for one plugin: profile first, then switches in order.
    pub fn parse(scope: Scope, plugin: &str, options: &[(String, String)]) -> Result<Self, OptionError> {
        let profile = match options.iter().rev().find(|(name, _)| name == "kvm") {
            None => Profile::find(DEFAULT).expect("the default is a release"),
            Some((_, wanted)) => Profile::find(wanted).ok_or_else(|| {
                let known: Vec<_> = release::rows().map(|row| row.0).collect();
                OptionError::Profile(wanted.clone(), known.join(", "))
            })?,
        };
        let on = entries_of(scope).filter(|e| profile.default(e)).map(|e| e.switch).collect();
        let mut resolved = Self { profile, scope, on, disabled_quirks: 0 };
        for (name, value) in options.iter().filter(|(name, _)| name != "kvm") {
            resolved.set_by_name(plugin, name, value)?;
        }
        resolved.settle();
        Ok(resolved)
    }

    fn set_by_name(&mut self, plugin: &str, name: &str, value: &str) -> Result<(), OptionError> {
        let (name, value) = match (name.strip_prefix('+'), name.strip_prefix('-')) {
            (Some(name), _) => (name, "on"),
            (_, Some(name)) => (name, "off"),
            _ => (name, value),
        };
        let known = entries_of(self.scope).find(|e| e.switch.name() == Some(name));
        let entry = known.ok_or_else(|| OptionError::Unknown {
            name: name.into(),
            plugin: plugin.into(),
            known: entries_of(self.scope).filter_map(|e| e.switch.name()).collect::<Vec<_>>().join(", "),
        })?;
        let bad_value = || OptionError::Value { name: name.into(), value: value.into() };
        if let Some(clears_rf) = self.prefix_value(entry, value) {
            self.on.set(Switch::FORCE_EMULATION_PREFIX, true);
            self.on.set(Switch::FEP_CLEAR_RFLAGS_RF, clears_rf);
            return Ok(());
        }
        self.on.set(entry.switch, parse_value(value).ok_or_else(bad_value)?);
        Ok(())
    }

    /// The values of `force_emulation_prefix` that are more than a boolean: whether bit 1 is set. It was a boolean before.
    fn prefix_value(&self, entry: &Entry, value: &str) -> Option<bool> {
        let flag = entries_of(self.scope).find(|e| e.switch == Switch::FEP_CLEAR_RFLAGS_RF)?;
        let number = value.parse::<u8>().ok().filter(|number| (1..=3).contains(number))?;
        let is_flags = entry.switch == Switch::FORCE_EMULATION_PREFIX && flag.has_come(self.profile.release);
        is_flags.then_some(number & 2 != 0)
    }

    /// What a module parameter was before it was one: a constant, or nothing at all. The kernel ignores a parameter that
    /// it does not have.
    fn settle(&mut self) {
        let variable = self.on(Switch::SMALLER_MAXPHYADDR);
        let parameter = self.on(Switch::SMALLER_MAXPHYADDR_DEFAULT_OFF);
        let is_parameter = |e: &Entry| e.switch == Switch::ALLOW_SMALLER_MAXPHYADDR;
        if entries_of(self.scope).any(is_parameter) {
            let asked = self.on(Switch::ALLOW_SMALLER_MAXPHYADDR);
            self.on.set(Switch::ALLOW_SMALLER_MAXPHYADDR, variable && (asked || !parameter));
        }
        let is_split = |e: &&Entry| e.switch == Switch::EAGER_PAGE_SPLIT;
        let splits = entries_of(self.scope).find(is_split).is_some_and(|e| e.has_come(self.profile.release));
        if !splits || !self.on(Switch::TDP_MMU) {
            self.on.set(Switch::EAGER_PAGE_SPLIT, false);
        }
        for quirk in [Switch::FIX_HYPERCALL_INSN, Switch::IGNORE_GUEST_PAT] {
            let entry = entries_of(self.scope).find(|e| e.switch == quirk);
            if entry.is_some_and(|e| !e.has_come(self.profile.release)) {
                self.on.set(quirk, true);
            }
        }
    }

    /// Whether a switch is on. A switch that the plugin does not have is off.
    pub fn on(&self, switch: Switch) -> bool {
        self.on.contains(switch)
    }

    /// Overrides a switch, as KVM's hardware setup does where silicon lacks something.
    pub fn set(&mut self, switch: Switch, on: bool) {
        self.on.set(switch, on);
    }

    /// The profile's name, as a tape keeps it.
    pub fn profile(&self) -> &'static str {
        self.profile.name
    }

    /// `allow_smaller_maxphyaddr` as KVM_CHECK_EXTENSION tells it: with two-dimensional paging the parameter on VMX and false
    /// on SVM, true under shadow paging, false where the variable does not exist yet.
    /// See: KVM vmx/vmx.c vmx_hardware_setup(), svm/svm.c svm_hardware_setup()
    pub fn allow_smaller_maxphyaddr(&self, tdp: bool) -> bool {
        self.on(Switch::SMALLER_MAXPHYADDR) && (!tdp || self.on(Switch::ALLOW_SMALLER_MAXPHYADDR))
    }

    /// KVM's walk refuses addresses beyond the guest's width: posted with the first version, merged with the third, reverted.
    pub fn translate_gpa_check(&self) -> bool {
        self.on(Switch::TRANSLATE_GPA_CHECK) || self.on(Switch::V1_TRANSLATE_GPA_CHECK)
    }

    /// The memory type of EPT entries. See: KVM vmx/vmx.c vmx_get_mt_mask() of each release
    pub fn ept_types(&self) -> EptTypes {
        let noncoherent = self.on(Switch::NONCOHERENT_DMA);
        match () {
            () if noncoherent && !self.on(Switch::NO_GUEST_MTRRS) => EptTypes::GuestMtrrs,
            () if noncoherent || !self.on(Switch::IGNORE_GUEST_PAT) => EptTypes::GuestPat,
            () => EptTypes::IgnoreGuest,
        }
    }

    /// What becomes of memory that the nested tables cannot map. Of the two exits that were proposed, the more telling one
    /// wins.
    pub fn unmappable(&self) -> Unmappable {
        match () {
            () if self.on(Switch::EARLY_MEMORY_FAULT_EXIT) => Unmappable::MemoryFault,
            () if self.on(Switch::EARLY_INTERNAL_ERROR_EXIT) => Unmappable::InternalError,
            () => Unmappable::Map,
        }
    }

    /// How the walk of L1's nested page table is set up.
    pub fn npt_rules(&self) -> NptRules {
        NptRules {
            of_l1: self.on(Switch::NESTED_WALK_OF_L1),
            with_wp: self.on(Switch::NESTED_WALK_WP),
            guest_mode_first: self.on(Switch::NESTED_GUEST_MODE_FIRST),
        }
    }

    /// Everything by name, so that a tape never depends on a default.
    pub fn resolved(&self) -> Vec<(String, String)> {
        let name = |switch: Switch| switch.name().unwrap_or_default().to_owned();
        let profile = ("kvm".to_owned(), self.profile.name.to_owned());
        let switches = entries_of(self.scope).map(|e| (name(e.switch), word(self.on(e.switch)).to_owned()));
        std::iter::once(profile).chain(switches).collect()
    }
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn parse_value(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "y" | "yes" | "true" | "1" | "" => Some(true),
        "off" | "n" | "no" | "false" | "0" => Some(false),
        _ => None,
    }
}

/// The rows of the registry that a plugin exports: parameters, patches (silicon rules among them), profiles.
pub fn tables(scope: Scope) -> (Vec<TableRow>, Vec<TableRow>, Vec<TableRow>) {
    let parameter = |e: &&Entry| matches!(e.kind, Kind::Parameter(_));
    let (parameters, patches): (Vec<_>, Vec<_>) = entries_of(scope).partition(parameter);
    let profiles = release::rows().zip(0..).map(|(release::Row(name, kind, release, text), id)| TableRow {
        id,
        name: name.into(),
        text,
        value: kind.into(),
        since: release.into(),
        ..Default::default()
    });
    let rows = |entries: Vec<&Entry>| entries.into_iter().map(row).collect();
    (rows(parameters), rows(patches), profiles.collect())
}

fn row(e: &Entry) -> TableRow {
    let (until, undone_by) = e.until.unwrap_or_default();
    TableRow {
        id: e.switch.0,
        name: e.switch.name().unwrap_or_default().into(),
        text: e.text.into(),
        source: e.source.into(),
        value: match e.kind {
            Kind::Parameter(on) => word(on),
            Kind::Silicon => "silicon",
            Kind::Patch => e.since.unwrap_or("never merged"),
        }
        .into(),
        commit: e.commit.into(),
        subject: e.subject.into(),
        since: e.since.unwrap_or_default().into(),
        until: until.into(),
        undone_by: undone_by.into(),
        role: match e.switch {
            Switch::EPT | Switch::NPT => NESTED_PAGING,
            _ => "",
        }
        .into(),
    }
}
