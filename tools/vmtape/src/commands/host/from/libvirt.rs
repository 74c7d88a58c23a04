//! `virsh domcapabilities` and `virsh capabilities`.

use super::evidence::Evidence;
use crate::libvirt::{self, Cpu, child};
use anyhow::{Context, Result, bail};
use vmtape_arch::host::Vendor;
use vmtape_machine::model::named_features;

pub fn read(text: &str) -> Result<Evidence> {
    let document = libvirt::parse(text)?;
    let root = document.root_element();
    let (what, cpu) = match root.tag_name().name() {
        "domainCapabilities" => {
            let cpu = child(root, "cpu").context("<domainCapabilities> has no <cpu>")?;
            let mode = |name| {
                let mut modes = cpu.children().filter(|node| node.has_tag_name("mode"));
                modes.find(|node| node.attribute("name") == Some(name))
            };
            let host = mode("host-model").filter(|mode| mode.attribute("supported") != Some("no"));
            ("virsh domcapabilities", host.context("the mode host-model is not supported there")?)
        }
        "capabilities" => {
            let host = child(root, "host").context("<capabilities> has no <host>")?;
            ("virsh capabilities", child(host, "cpu").context("its <host> has no <cpu>")?)
        }
        "cpu" => ("libvirt's <cpu>", root),
        other => bail!("<{other}> is neither <domainCapabilities> nor <capabilities>"),
    };
    let cpu = Cpu::of(cpu)?;
    let mut evidence = Evidence { complete: true, ..Evidence::of(what) };
    evidence.vendor = cpu.vendor.as_deref().and_then(|name| Vendor::from_name(&name.to_lowercase()));
    if let Some(model) = &cpu.model {
        let features = named_features(model).with_context(|| format!("no model is named '{model}'"))?;
        features.iter().for_each(|name| evidence.feature(name, true));
    }
    cpu.features.iter().for_each(|(name, on)| evidence.feature(name, *on));
    // As domain capabilities have it, `limit` is the width that the host has.
    evidence.phys_bits = cpu.width.and_then(|width| width.bits.or(width.limit));
    evidence.brand = cpu.model;
    evidence.remarks.push("features are those that KVM and QEMU give there".to_owned());
    Ok(evidence)
}
