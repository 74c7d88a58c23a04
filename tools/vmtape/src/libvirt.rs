//! CPUs as libvirt's XML describes them, in the words of QEMU's `-cpu`.
//!
//! See: libvirt docs/formatdomain.rst "CPU model and topology", formatdomaincaps.rst, formatcaps.rst;
//! src/qemu/qemu_command.c qemuBuildCpuCommandLine()

use anyhow::{Context, Result, bail};
use roxmltree::{Document, Node, ParsingOptions};

/// A description of a CPU, word by word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// QEMU's name of the model.
    pub model: Option<String>,
    /// `AMD` or `Intel`.
    pub vendor: Option<String>,
    /// Features by name, and whether they are there.
    pub features: Vec<(String, bool)>,
    pub width: Option<Width>,
    /// The vendor that the guest is told (`vendor_id`).
    pub vendor_id: Option<String>,
}

/// `<maxphysaddr>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Width {
    /// The host's; otherwise `bits` of the guest's own.
    pub passthrough: bool,
    pub bits: Option<u8>,
    pub limit: Option<u8>,
}

/// Nodes of a file: the capabilities of a host have a few thousand.
const MOST_NODES: u32 = 200_000;

/// Reads a file of libvirt's.
pub fn parse(text: &str) -> Result<Document<'_>> {
    let options = ParsingOptions { nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).context("no XML")
}

/// The CPU of a domain, or an element `<cpu>` by itself, as `-cpu` takes it.
pub fn domain_cpu(text: &str) -> Result<String> {
    let document = parse(text)?;
    let root = document.root_element();
    let cpu = match root.tag_name().name() {
        "cpu" => root,
        "domain" => child(root, "cpu").context("the domain has no <cpu>: libvirt lets QEMU choose")?,
        "domainsnapshot" | "domstatus" => {
            let domain = child(root, "domain").context("there is no <domain>")?;
            child(domain, "cpu").context("the domain has no <cpu>: libvirt lets QEMU choose")?
        }
        other => bail!("<{other}> is neither a <domain> nor a <cpu>"),
    };
    let described = Cpu::of(cpu)?;
    let model = match cpu.attribute("mode").unwrap_or("custom") {
        // What libvirt would choose for the host's own model only the host knows.
        "host-passthrough" | "host-model" => "host".to_owned(),
        "maximum" => "max".to_owned(),
        "custom" => described.model.clone().context("<cpu mode='custom'> has no <model>")?,
        mode => bail!("<cpu mode='{mode}'> is no mode of libvirt's"),
    };
    Ok(described.words(&model))
}

impl Cpu {
    /// The words of a `<cpu>`, of a `<mode>` of domain capabilities, or of a host's `<cpu>`.
    pub fn of(node: Node) -> Result<Self> {
        let model = child(node, "model");
        let text = |name| child(node, name).and_then(|node| node.text()).map(|text| text.trim().to_owned());
        let mut features = Vec::new();
        for feature in node.children().filter(|node| node.has_tag_name("feature")) {
            let name = feature.attribute("name").context("a <feature> has no name")?;
            let on = !matches!(feature.attribute("policy"), Some("disable" | "forbid"));
            features.push((name.to_owned(), on));
        }
        Ok(Self {
            model: text("model").filter(|name| !name.is_empty()),
            vendor: text("vendor"),
            vendor_id: model.and_then(|node| node.attribute("vendor_id")).map(str::to_owned),
            width: child(node, "maxphysaddr").map(width).transpose()?,
            features,
        })
    }

    fn words(&self, model: &str) -> String {
        let mut words = vec![model.to_owned()];
        words.extend(
            self.features.iter().map(|(name, on)| format!("{name}={}", if *on { "on" } else { "off" })),
        );
        words.extend(self.vendor_id.iter().map(|name| format!("vendor={name}")));
        if let Some(width) = self.width {
            words.push(format!("host-phys-bits={}", if width.passthrough { "on" } else { "off" }));
            words.extend(width.bits.filter(|_| !width.passthrough).map(|bits| format!("phys-bits={bits}")));
            words.extend(width.limit.map(|bits| format!("host-phys-bits-limit={bits}")));
        }
        words.join(",")
    }
}

fn width(node: Node) -> Result<Width> {
    let number = |name| node.attribute(name).map(|text| text.parse()).transpose();
    let wrong = || "<maxphysaddr> has a number that is none";
    Ok(Width {
        passthrough: match node.attribute("mode") {
            Some("passthrough") => true,
            Some("emulate") => false,
            _ => bail!("<maxphysaddr> is neither mode='emulate' nor mode='passthrough'"),
        },
        bits: number("bits").with_context(wrong)?,
        limit: number("limit").with_context(wrong)?,
    })
}

/// The first child with this name.
pub fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|node| node.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Elements as formatdomain.rst and bug reports have them.
    #[test]
    fn a_domain_says_what_qemu_is_told() {
        for (xml, words) in [
            ("<cpu mode='host-passthrough' check='none' migratable='on'/>", "host"),
            (
                "<domain type='kvm'><name>a</name><cpu mode='custom' match='exact'><model fallback='forbid'>EPYC-Rome</model>\
                 <vendor>AMD</vendor><maxphysaddr mode='emulate' bits='42'/><feature policy='require' name='x2apic'/>\
                 <feature policy='disable' name='pku'/></cpu></domain>",
                "EPYC-Rome,x2apic=on,pku=off,host-phys-bits=off,phys-bits=42",
            ),
            (
                "<cpu mode='maximum'><maxphysaddr mode='passthrough' limit='39'/></cpu>",
                "max,host-phys-bits=on,host-phys-bits-limit=39",
            ),
            ("<cpu><model vendor_id='GenuineIntel'>kvm64</model></cpu>", "kvm64,vendor=GenuineIntel"),
        ] {
            assert_eq!(domain_cpu(xml).expect(xml), words);
            vmtape_machine::model::CpuOption::parse(words).expect(words);
        }
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        for xml in [
            "",
            "<domain/>",
            "<network/>",
            "<cpu/>",
            "<cpu mode='odd'/>",
            "<cpu><model>a</model><maxphysaddr bits='4'/></cpu>",
            "<!DOCTYPE a [<!ENTITY b 'b'>]><cpu/>",
        ] {
            assert!(domain_cpu(xml).is_err(), "{xml}");
        }
    }
}
