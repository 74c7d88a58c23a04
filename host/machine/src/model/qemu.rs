//! The CPU models and properties that QEMU has, from what QEMU itself tells (`qemu.toml`): facts about machines that people
//! have, many of them more than this project models.

use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

/// The addresses of a named model that is told no width. See: QEMU target/i386/cpu.h TCG_PHYS_ADDR_BITS
pub const DEFAULT_PHYS_BITS: u8 = 40;

/// Names of features that other tools give; QEMU's own aliases stand in the file.
const FOREIGN_ALIASES: &[(&str, &str)] = &[("lzcnt", "abm")];
/// Properties that are aliases of others, of each device, or of earlier releases.
/// See: QEMU target/i386/cpu.c x86_cpu_initfn(), x86_cpu_properties[]; hw/core/qdev.c
const OTHER_PROPERTIES: &[&str] = &[
    "tsc-freq",
    "hotpluggable",
    "hotplugged",
    "full-cpuid-auto-level",
    "intel-pt-auto-level",
    "x-intel-pt-auto-level",
    "x-hv-synic-kvm-only",
];

/// Levels of the x86-64 psABI, as Proxmox and others offer them for models: what each adds to the one before.
/// See: System V Application Binary Interface, AMD64, Table 3.1 Micro-Architecture Levels
const LEVELS: [(&str, &str); 5] = [
    ("x86-64-v1", ""),
    ("x86-64-v2", "cx16 lahf-lm popcnt pni sse4.1 sse4.2 ssse3"),
    ("x86-64-v2-AES", "aes"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
];
/// The model that has what every 64-bit processor has.
const BASELINE: &str = "qemu64";
/// A model without any feature.
const EMPTY: &str = "base";

static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("qemu.toml")).expect("a file of this crate"));

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Table {
    version: String,
    features: String,
    properties: String,
    feature_aliases: BTreeMap<String, String>,
    aliases: BTreeMap<String, String>,
    model: Vec<Row>,
}

/// A version of a model, or what it changes in the one before.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Row {
    name: String,
    like: Option<String>,
    family: Option<u32>,
    model: Option<u32>,
    stepping: Option<u32>,
    id: Option<String>,
    add: String,
    remove: String,
}

/// A named model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedModel {
    /// With its version, as in `EPYC-v1`.
    pub name: String,
    pub identity: Identity,
    /// Names of its features as QEMU spells them.
    pub features: BTreeSet<String>,
}

/// Who a processor says that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    family: u32,
    model: u32,
    stepping: u32,
    /// The brand string.
    pub id: String,
}

impl Identity {
    /// Leaf 1 EAX. See: SDM vol. 2A CPUID, Version Information
    pub fn signature(&self) -> u32 {
        const LARGEST_FAMILY: u32 = 0xf;
        let family = self.family.min(LARGEST_FAMILY);
        let extended_family = self.family - family;
        extended_family << 20
            | (self.model >> 4) << 16
            | family << 8
            | (self.model & 0xf) << 4
            | self.stepping
    }
}

/// The release that the facts are of.
pub fn version() -> &'static str {
    &TABLE.version
}

/// Every name of a model, without those of single versions.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.aliases.keys().map(String::as_str).chain(LEVELS.iter().map(|(name, _)| *name)).chain([EMPTY])
}

/// A model by its name, alias or version.
pub fn find(name: &str) -> Option<NamedModel> {
    if let Some(level) = LEVELS.iter().position(|(level, _)| *level == name) {
        let mut model = NamedModel { name: name.to_owned(), ..find(BASELINE)? };
        let names = LEVELS[..=level].iter().flat_map(|(_, names)| names.split_whitespace());
        model.features.extend(names.map(plain));
        return Some(model);
    }
    if name == EMPTY {
        return Some(NamedModel { name: name.to_owned(), ..NamedModel::default() });
    }
    let version = match TABLE.aliases.get(name) {
        Some(version) => version.as_str(),
        None => versioned_alias(name).unwrap_or(name),
    };
    let row = TABLE.model.iter().find(|row| row.name == version)?;
    let mut model = row.like.as_deref().and_then(find).unwrap_or_default();
    model.name.clone_from(&row.name);
    let identity = &mut model.identity;
    identity.family = row.family.unwrap_or(identity.family);
    identity.model = row.model.unwrap_or(identity.model);
    identity.stepping = row.stepping.unwrap_or(identity.stepping);
    if let Some(id) = &row.id {
        identity.id.clone_from(id);
    }
    model.features.extend(row.add.split_whitespace().map(str::to_owned));
    row.remove.split_whitespace().for_each(|name| _ = model.features.remove(name));
    Some(model)
}

/// `Haswell-noTSX-v2`, as people write it for the alias of `Haswell-v2`.
fn versioned_alias(name: &str) -> Option<&'static str> {
    let (alias, version) = name.rsplit_once("-v")?;
    let target = TABLE.aliases.get(alias)?;
    (target.rsplit_once("-v")?.1 == version).then_some(target)
}

/// What QEMU makes of a word that is no option of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// A CPUID feature.
    Feature,
    /// Something else that can be set.
    Property,
}

/// Whether QEMU knows a feature or property by this name.
pub fn known(name: &str) -> Option<Known> {
    let name = plain(name);
    let has = |words: &str| words.split_whitespace().any(|word| word == name);
    if has(&TABLE.features) || name.starts_with("vmx-") {
        return Some(Known::Feature);
    }
    (has(&TABLE.properties)
        || OTHER_PROPERTIES.contains(&name.as_str())
        || name.starts_with("hv-")
        || name.starts_with("kvm-"))
    .then_some(Known::Property)
}

/// QEMU's first name of a feature: lower case, `-` for `_`, aliases resolved.
pub fn plain(name: &str) -> String {
    let name = name.replace('_', "-").to_lowercase();
    let foreign =
        FOREIGN_ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, name)| (*name).to_owned());
    foreign.or_else(|| TABLE.feature_aliases.get(&name).cloned()).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_a_model() {
        for name in
            names().filter(|name| *name != EMPTY).chain(TABLE.model.iter().map(|row| row.name.as_str()))
        {
            let model = find(name).unwrap_or_else(|| panic!("{name}"));
            assert!(model.features.contains("fpu"), "{name}");
            assert!(model.features.iter().all(|feature| known(feature) == Some(Known::Feature)), "{name}");
        }
    }

    #[test]
    fn versions_build_on_each_other() {
        let has = |name: &str, feature: &str| find(name).expect(name).features.contains(feature);
        assert!(!has("EPYC-v1", "ibpb") && has("EPYC-v2", "ibpb") && has("EPYC-v3", "ibpb"));
        assert!(has("Haswell", "hle") && !has("Haswell-noTSX", "hle"));
        assert_eq!(find("Haswell-noTSX-v2"), find("Haswell-v2"));
        assert_eq!((find("Haswell-noTSX-v3"), find("EPYC-v99")), (None, None));
    }

    /// Values that CPUID dumps of these processors show.
    #[test]
    fn signatures_are_those_of_the_processors() {
        for (name, signature) in
            [("EPYC", 0x80_0f12), ("IvyBridge", 0x3_06a9), ("Skylake-Server", 0x5_0654), ("qemu64", 0x6_0fb1)]
        {
            assert_eq!(find(name).expect(name).identity.signature(), signature, "{name}");
        }
    }
}
