//! JSON: QEMU's query-cpu-model-expansion, Firecracker's templates, Cloud Hypervisor's configurations and CPU profiles.

use super::{evidence::Evidence, templates};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use vmtape_arch::host::Vendor;

/// Properties that are no features.
const PHYS_BITS: &str = "phys-bits";
const HOST_PHYS_BITS: &str = "host-phys-bits";
const LIMIT: &str = "host-phys-bits-limit";
const GUEST_PHYS_BITS: &str = "guest-phys-bits";

pub fn read(text: &str) -> Result<Evidence> {
    // A session with QEMU is a greeting and answers, one after the other: the last one that fits counts.
    let mut found = None;
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        found = one(&value.context("no JSON")?)?.or(found);
    }
    found.context(
        "neither an answer to query-cpu-model-expansion, nor a CPU template of Firecracker's, nor a configuration or CPU \
         profile of Cloud Hypervisor's",
    )
}

fn one(value: &Value) -> Result<Option<Evidence>> {
    if value.get("cpuid_modifiers").is_some() {
        return templates::firecracker(value).map(Some);
    }
    if let Some(adjustments) = value.get("adjustments") {
        return templates::cloud_hypervisor_profile(adjustments).map(Some);
    }
    if let Some(cpus) = value.get("cpus").filter(|cpus| cpus.is_object()) {
        return templates::cloud_hypervisor(cpus).map(Some);
    }
    if let Some(error) = value.get("error") {
        bail!(
            "QEMU answered with an error: {}",
            error.get("desc").and_then(Value::as_str).unwrap_or("unknown")
        );
    }
    let model = [value.pointer("/return/model"), value.get("model"), Some(value)];
    let model = model.into_iter().flatten().find(|model| model.get("props").is_some_and(Value::is_object));
    let props = model.and_then(|model| Some((model.get("name"), model.get("props")?.as_object()?)));
    Ok(props.map(|(name, props)| expansion(name.and_then(Value::as_str), props)))
}

fn expansion(name: Option<&str>, props: &Map<String, Value>) -> Evidence {
    let mut evidence = Evidence::of("query-cpu-model-expansion");
    let number =
        |name: &str| props.get(name)?.as_u64().and_then(|n| u8::try_from(n).ok()).filter(|n| *n != 0);
    evidence.vendor = match props.get("vendor").and_then(Value::as_str) {
        Some("GenuineIntel") => Some(Vendor::INTEL),
        Some("AuthenticAMD" | "HygonGenuine") => Some(Vendor::AMD),
        _ => None,
    };
    let own = props.get(HOST_PHYS_BITS) != Some(&Value::Bool(true));
    evidence.phys_bits = number(PHYS_BITS).filter(|_| own);
    evidence.phys_bits_limit = number(LIMIT).filter(|_| !own);
    evidence.guest_phys_bits = number(GUEST_PHYS_BITS);
    let id = props.get("model-id").and_then(Value::as_str);
    evidence.brand = id.or(name).map(str::to_owned);
    for (name, value) in props {
        if let (Value::Bool(on), true) = (value, vmtape_machine::model::is_feature(name)) {
            evidence.feature(name, *on);
        }
    }
    evidence.remarks.push("features are those that KVM and QEMU give there".to_owned());
    evidence
}
