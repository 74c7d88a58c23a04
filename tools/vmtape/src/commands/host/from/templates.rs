//! CPU templates: what a VMM takes from the host's CPUID.
//!
//! See: firecracker docs/cpu_templates/cpu-templates.md; cloud-hypervisor docs/cpu.md

use super::evidence::Evidence;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use vmtape_arch::host::Vendor;
use vmtape_machine::model::{FEATURES, Feature, Register};

/// Bits of a register that a template decides, and their values.
#[derive(Clone, Copy, Debug, Default)]
struct Bitmap {
    decided: u32,
    value: u32,
}

impl Bitmap {
    /// `0bxxxx0000...1`, where `x` leaves the host's bit.
    fn parse(text: &str) -> Result<Self> {
        let digits = text.strip_prefix("0b").unwrap_or(text);
        let mut map = Self::default();
        for digit in digits.chars().filter(|digit| *digit != '_') {
            map = Self { decided: map.decided << 1, value: map.value << 1 };
            match digit {
                'x' => {}
                '0' => map.decided |= 1,
                '1' => map = Self { decided: map.decided | 1, value: map.value | 1 },
                _ => bail!("the bitmap {text:?} has other digits than 0, 1 and x"),
            }
        }
        Ok(map)
    }

    fn bit(self, bit: u32) -> Option<bool> {
        (self.decided >> bit & 1 != 0).then_some(self.value >> bit & 1 != 0)
    }

    /// A byte, if all of it is decided.
    fn byte(self) -> Option<u8> {
        (self.decided & 0xff == 0xff).then_some(self.value as u8)
    }
}

/// A template of Firecracker's, or what its helper dumps.
pub fn firecracker(template: &Value) -> Result<Evidence> {
    let mut evidence = Evidence::of("a CPU template of Firecracker's");
    let leaves = template.get("cpuid_modifiers").and_then(Value::as_array);
    for leaf in leaves.context("cpuid_modifiers is no list")? {
        let (function, index) = (number(leaf.get("leaf"))?, number(leaf.get("subleaf"))?);
        let modifiers = leaf.get("modifiers").and_then(Value::as_array);
        for modifier in modifiers.context("a leaf has no list of modifiers")? {
            let register =
                modifier.get("register").and_then(Value::as_str).context("a modifier has no register")?;
            let bitmap =
                modifier.get("bitmap").and_then(Value::as_str).context("a modifier has no bitmap")?;
            apply(&mut evidence, (function, index, register), Bitmap::parse(bitmap)?);
        }
    }
    evidence.remarks.push("what the template does not decide is the host's".to_owned());
    Ok(evidence)
}

fn apply(evidence: &mut Evidence, (function, index, register): (u32, u32, &str), bitmap: Bitmap) {
    let same = |feature: &&Feature| {
        let name = match feature.register {
            Register::Eax => "eax",
            Register::Ebx => "ebx",
            Register::Ecx => "ecx",
            Register::Edx => "edx",
        };
        (feature.leaf, feature.subleaf, name) == (function, index, register)
    };
    for feature in FEATURES.iter().filter(same) {
        if let Some(on) = bitmap.bit(feature.bit) {
            evidence.feature(feature.name, on);
        }
    }
    match (function, register) {
        (0x8000_0008, "eax") => evidence.phys_bits = bitmap.byte(),
        (0, "ebx") if bitmap.decided == u32::MAX => {
            evidence.vendor = match &bitmap.value.to_le_bytes() {
                b"Genu" => Some(Vendor::INTEL),
                b"Auth" | b"Hygo" => Some(Vendor::AMD),
                _ => None,
            }
        }
        _ => {}
    }
}

/// `"0x80000008"`, or a number.
fn number(value: Option<&Value>) -> Result<u32> {
    let found = match value {
        Some(Value::String(text)) => match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        },
        Some(value) => value.as_u64().and_then(|n| u32::try_from(n).ok()),
        None => Some(0),
    };
    found.context("a leaf's number is none")
}

/// A CPU profile of Cloud Hypervisor's: of each register, what stands in the place of the host's bits, and which of them stay.
///
/// See: cloud-hypervisor arch/src/x86_64/cpu_profiles/*.json
pub fn cloud_hypervisor_profile(adjustments: &Value) -> Result<Evidence> {
    let mut evidence = Evidence::of("a CPU profile of Cloud Hypervisor's");
    for adjustment in adjustments.as_array().context("adjustments is no list")? {
        let (place, bits) = (adjustment.get(0), adjustment.get(1));
        let at = |name: &str| place.and_then(|place| place.get(name));
        let word = |name: &str| number(bits.and_then(|bits| bits.get(name)));
        let register = at("register").and_then(Value::as_str).context("an adjustment has no register")?;
        let subleaf = number(at("sub_leaf").and_then(|range| range.get("start")))?;
        let bitmap = Bitmap { decided: !word("mask")?, value: word("replacements")? };
        apply(&mut evidence, (number(at("leaf"))?, subleaf, &register.to_lowercase()), bitmap);
    }
    evidence.remarks.push("what the profile leaves as it is is the host's".to_owned());
    Ok(evidence)
}

/// `cpus` of Cloud Hypervisor's configuration of a VM.
pub fn cloud_hypervisor(cpus: &Value) -> Result<Evidence> {
    /// What its names stand for.
    const FEATURES: [(&str, &[&str]); 1] = [("amx", &["amx-tile", "amx-int8", "amx-bf16"])];
    let mut evidence = Evidence::of("a configuration of Cloud Hypervisor's");
    let bits = cpus.get("max_phys_bits").and_then(Value::as_u64);
    evidence.phys_bits_limit = bits.map(|bits| u8::try_from(bits).unwrap_or(u8::MAX));
    for (name, features) in FEATURES {
        if let Some(on) = cpus.pointer(&format!("/features/{name}")).and_then(Value::as_bool) {
            features.iter().for_each(|feature| evidence.feature(feature, on));
        }
    }
    Ok(evidence)
}
