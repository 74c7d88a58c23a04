//! The settings with which a guest may live on all of some hosts.

use super::finding::{Finding, Pin};
use schemars::JsonSchema;
use serde::Serialize;
use std::{collections::BTreeSet, fmt};
use vmtape_traces::hex;

/// What to give the guest, and what to set on hosts. `None` and empty: as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Pins {
    pub phys_bits: Option<u8>,
    pub guest_phys_bits: Option<u8>,
    /// Features to switch off, by QEMU's names.
    pub without: BTreeSet<String>,
    /// Addresses, both ends included, that memory and BARs have to keep out of: no setting of the CPU's, but of who places them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", serialize_with = "hex::ranges")]
    #[schemars(with = "Vec<[String; 2]>")]
    pub keep_out: BTreeSet<(u64, u64)>,
    /// Hosts whose KVM has to hide its width.
    pub hide_width: BTreeSet<String>,
    /// What cannot be had, in words.
    pub conflicts: Vec<String>,
}

/// A setting, and the first version of a program that knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Need {
    pub program: &'static str,
    pub setting: &'static str,
    pub since: &'static str,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} {} on", self.setting, self.program, self.since)
    }
}

impl Pins {
    /// The settings that take all these findings away. `widest`: the widest guest that every host takes.
    pub fn of<'f>(findings: impl IntoIterator<Item = &'f Finding>, widest: u8) -> Self {
        let mut pins = Self::default();
        let mut at_least = 0;
        let lower = |known: &mut Option<u8>, bits: u8| *known = Some(known.map_or(bits, |k| k.min(bits)));
        for pin in findings.into_iter().flat_map(|finding| &finding.pins) {
            match pin {
                Pin::PhysBits(bits) => lower(&mut pins.phys_bits, *bits),
                Pin::AtLeastPhysBits(bits) => at_least = at_least.max(*bits),
                Pin::GuestPhysBits(bits) => lower(&mut pins.guest_phys_bits, *bits),
                Pin::Without(names) => pins.without.extend(names.iter().cloned()),
                Pin::KeepOut { first, last } => {
                    pins.keep_out.insert((*first, *last));
                }
                Pin::HideWidth(host) => {
                    pins.hide_width.insert(host.clone());
                }
            }
        }
        pins.reach(at_least, widest);
        pins
    }

    /// The guest needs so many bits, whatever the hosts allow.
    fn reach(&mut self, at_least: u8, widest: u8) {
        let most = self.phys_bits.unwrap_or(widest).min(widest);
        if at_least > most {
            self.conflicts.push(format!(
                "the guest's memory or BARs need {at_least} physical address bits, the hosts allow {most}: no width fits; \
                 move what is up there, or leave hosts out"
            ));
        } else if self.phys_bits.is_none() && at_least > 0 {
            self.phys_bits = Some(at_least);
        }
        // No address that is legal for the guest may be promised beyond its own width.
        if let (Some(width), Some(mappable)) = (self.phys_bits, &mut self.guest_phys_bits) {
            *mappable = width.min(*mappable);
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// For QEMU's `-cpu`, behind the model's name.
    pub fn qemu(&self) -> String {
        let width = self.phys_bits.map(|bits| format!("host-phys-bits=off,phys-bits={bits}"));
        let mappable = self.guest_phys_bits.map(|bits| format!("guest-phys-bits={bits}"));
        let without = self.without.iter().map(|name| format!("-{name}"));
        width.into_iter().chain(mappable).chain(without).collect::<Vec<_>>().join(",")
    }

    /// The settings that not every QEMU and libvirt knows, each with the first version that does.
    // See: QEMU hw/i386/pc.c pc_compat_9_0; libvirt docs/formatdomain.rst `maxphysaddr`
    pub fn needs(&self) -> Vec<Need> {
        let need = |program, setting, since| Need { program, setting, since };
        let width = [
            need("QEMU", "phys-bits", "2.7"),
            need("libvirt", "maxphysaddr", "8.7.0"),
            need("libvirt", "maxphysaddr limit", "9.3.0"),
        ];
        let width = width.into_iter().filter(|_| self.phys_bits.is_some());
        let mappable = self.guest_phys_bits.map(|_| need("QEMU", "guest-phys-bits", "9.1"));
        width.chain(mappable).collect()
    }

    /// As [`Pins::qemu`], in the words of this program's `--cpu`: what it knows of them.
    pub fn model(&self, known: impl Fn(&str) -> bool) -> String {
        let without = self.without.iter().filter(|name| known(name)).cloned().collect();
        Self { without, ..self.clone() }.qemu()
    }

    /// Lines of libvirt's domain XML. Its `emulate` gives QEMU `phys-bits` alone, which the models `host` and `max` ignore:
    /// they have `host-phys-bits` on, and take a limit.
    // See: libvirt docs/formatdomain.rst `maxphysaddr`; QEMU target/i386/host-cpu.c host_cpu_adjust_phys_bits()
    pub fn libvirt(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(bits) = self.phys_bits {
            lines.push(format!("<maxphysaddr mode='emulate' bits='{bits}'/>"));
            lines.push(format!(
                "<!-- in <cpu mode='host-passthrough'> and 'maximum': <maxphysaddr mode='passthrough' limit='{bits}'/> -->"
            ));
        }
        lines.extend(self.without.iter().map(|name| format!("<feature policy='disable' name='{name}'/>")));
        if let Some(bits) = self.guest_phys_bits {
            lines.push("<!-- no element of libvirt's own for guest-phys-bits: -->".to_owned());
            lines.push(format!(
                "<qemu:commandline><qemu:arg value='-global'/><qemu:arg value='x86_64-cpu.guest-phys-bits={bits}'/>\
                 </qemu:commandline>"
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::{Severity, Subject};

    fn findings(pins: &[Pin]) -> Vec<Finding> {
        let finding = || Finding::new(Severity::Caution, Subject::Width, "", "");
        pins.iter().map(|pin| finding().pin(pin.clone())).collect()
    }

    #[test]
    fn the_narrowest_host_decides() {
        let pins = Pins::of(
            &findings(&[
                Pin::PhysBits(46),
                Pin::PhysBits(39),
                Pin::GuestPhysBits(48),
                Pin::Without(vec!["la57".into()]),
            ]),
            39,
        );
        let needs: Vec<_> = pins.needs().iter().map(Need::to_string).collect();
        assert_eq!(needs.last().map(String::as_str), Some("guest-phys-bits from QEMU 9.1 on"), "{needs:?}");
        assert_eq!(pins.qemu(), "host-phys-bits=off,phys-bits=39,guest-phys-bits=39,-la57");
        assert_eq!(
            pins.libvirt(),
            [
                "<maxphysaddr mode='emulate' bits='39'/>",
                "<!-- in <cpu mode='host-passthrough'> and 'maximum': <maxphysaddr mode='passthrough' limit='39'/> -->",
                "<feature policy='disable' name='la57'/>",
                "<!-- no element of libvirt's own for guest-phys-bits: -->",
                "<qemu:commandline><qemu:arg value='-global'/><qemu:arg value='x86_64-cpu.guest-phys-bits=39'/>\
                 </qemu:commandline>",
            ]
        );
    }

    #[test]
    fn memory_that_no_host_reaches_is_a_conflict() {
        assert_eq!(Pins::of(&findings(&[Pin::AtLeastPhysBits(41)]), 46).phys_bits, Some(41));
        let torn = Pins::of(&findings(&[Pin::PhysBits(39), Pin::AtLeastPhysBits(41)]), 46);
        assert!(torn.conflicts[0].contains("41"), "{torn:?}");
        let narrow = Pins::of(&findings(&[Pin::AtLeastPhysBits(37)]), 36);
        assert_eq!((narrow.phys_bits, narrow.conflicts.len()), (None, 1));
    }
}
