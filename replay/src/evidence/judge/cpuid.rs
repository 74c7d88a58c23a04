//! Leaves of CPUID that the guest has read.

use super::Judge;
use crate::check::finding::{Finding, Pin, Severity, Subject};
use vmtape_arch::cpuid::{CpuidEntry, find};
use vmtape_machine::model::{FEATURES, Feature, Register, named, vendor_named};

const FEATURE: &str = "SDM vol. 2A CPUID; APM vol. 3 appendix E";
const WIDTH: &str = "KVM arch/x86/kvm/cpuid.c __do_cpuid_func() 0x80000008, cpuid_query_maxphyaddr()";
const UNMODELLED: &str = "feature bits of CPUID that are not modelled";

/// Features that a VMM adds itself, whatever the host has.
const ADDED_BY_VMM: [&str; 2] = ["hypervisor", "tsc-deadline"];
/// Features by which a guest becomes a hypervisor.
const HYPERVISOR: [&str; 2] = ["vmx", "svm"];
/// Leaves of which every bit is a feature.
const FEATURE_WORDS: [(u32, Register); 6] = [
    (1, Register::Ecx),
    (1, Register::Edx),
    (7, Register::Ebx),
    (7, Register::Ecx),
    (0x8000_0001, Register::Ecx),
    (0x8000_0001, Register::Edx),
];

impl Judge<'_> {
    /// Whether a feature that some processor has is not there.
    pub(super) fn lacks(&self, feature: &Feature) -> bool {
        let called = |name: &String| named(name).is_ok_and(|known| known == feature);
        let withheld = self.target.passport.without.iter().any(called);
        let known = self.target.known.iter().any(|table| has(table, feature));
        withheld || known && !has(&self.target.supported, feature)
    }

    pub(super) fn missing(&mut self, feature: &Feature, how: &str) {
        let register = format!("{:?}", feature.register).to_uppercase();
        let sentence = format!(
            "CPUID leaf {:#x} {register}[{}] ({}) is not there on {}, and {how}",
            feature.leaf,
            feature.bit,
            feature.name,
            self.target.name()
        );
        let finding = Finding::new(Severity::Breaks, Subject::Feature, sentence, FEATURE);
        self.find(finding.pin(Pin::Without(vec![feature.name.to_owned()])));
    }

    /// A leaf that the guest has read.
    pub(super) fn leaf(&mut self, entry: &CpuidEntry) -> Result<(), &'static str> {
        let told = FEATURES.iter().filter(|f| f.leaf == entry.function && f.subleaf == entry.index);
        let told: Vec<_> = told.filter(|feature| set(entry, feature)).collect();
        for feature in &told {
            if HYPERVISOR.contains(&feature.name) {
                let sentence = format!(
                    "the guest may be a hypervisor ({}): its nested state is not judged",
                    feature.name
                );
                self.find(Finding::new(Severity::Caution, Subject::Nested, sentence, FEATURE));
            } else if !ADDED_BY_VMM.contains(&feature.name) && self.lacks(feature) {
                self.missing(feature, "the guest has read that it has it");
            }
        }
        match entry.function {
            0 => self.vendor(entry),
            0xd if entry.index == 0 => self.components(entry.eax),
            0x8000_0008 => self.widths(entry.eax),
            _ => {}
        }
        let unmodelled = FEATURE_WORDS
            .iter()
            .filter(|(leaf, _)| *leaf == entry.function && entry.index == 0)
            .any(|(leaf, register)| {
                let known =
                    FEATURES.iter().filter(|f| (f.leaf, f.register) == (*leaf, *register) && f.subleaf == 0);
                word(entry, *register) & !known.fold(0, |bits, feature| bits | 1 << feature.bit) != 0
            });
        if unmodelled { Err(UNMODELLED) } else { Ok(()) }
    }

    fn vendor(&mut self, entry: &CpuidEntry) {
        let name = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat();
        let vendor = name.as_slice().try_into().ok().and_then(vendor_named);
        let there = self.target.passport.silicon.vendor;
        if let Some(vendor) = vendor.filter(|vendor| *vendor != there) {
            let sentence = format!(
                "the guest sees a CPUID of {vendor}'s, {} is {there}: system calls of 32-bit code, model-specific registers and \
                 errata differ",
                self.target.name()
            );
            self.find(Finding::new(Severity::Caution, Subject::Vendor, sentence, FEATURE));
        }
    }

    /// Components of the extended state that the guest may enable.
    fn components(&mut self, bits: u32) {
        let lost = bits & !find(&self.target.supported, 0xd, 0).map_or(0, |leaf| leaf.eax);
        if lost != 0 {
            let numbers: Vec<_> =
                (0..32).filter(|bit| lost >> bit & 1 != 0).map(|bit| bit.to_string()).collect();
            let sentence = format!(
                "extended state: component {} is promised to the guest and cannot be restored on {}; whether it is enabled no \
                 event tells",
                numbers.join(", "),
                self.target.name()
            );
            self.find(Finding::new(Severity::Caution, Subject::State, sentence, FEATURE));
        }
    }

    fn widths(&mut self, eax: u32) {
        let (guest, mappable) = (eax as u8, (eax >> 16) as u8);
        let (width, name) = (self.target.width(), self.target.name().to_owned());
        if guest > width {
            let sentence = format!("the guest has {guest} physical address bits, {name} has {width}");
            let finding = Finding::new(Severity::Refuses, Subject::Width, sentence, WIDTH);
            self.find(finding.pin(Pin::PhysBits(width)));
        } else if mappable.max(guest) > self.target.mappable() && self.target.two_dimensional {
            let reach = self.target.mappable();
            let promised = if mappable == 0 { guest } else { mappable };
            let sentence =
                format!("the guest was promised {promised} bits that can be mapped, {name} maps {reach}");
            let finding = Finding::new(Severity::Caution, Subject::Mappable, sentence, WIDTH);
            self.find(finding.pin(Pin::GuestPhysBits(reach)));
        }
    }
}

fn word(entry: &CpuidEntry, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

fn set(entry: &CpuidEntry, feature: &Feature) -> bool {
    word(entry, feature.register) >> feature.bit & 1 != 0
}

fn has(table: &[CpuidEntry], feature: &Feature) -> bool {
    find(table, feature.leaf, feature.subleaf).is_some_and(|entry| set(entry, feature))
}
