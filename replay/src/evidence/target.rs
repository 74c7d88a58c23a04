//! The host on which a recorded guest is judged: what it reaches, keeps, and has.

use crate::check::{
    finding::{DMA, Finding, Pin, Severity, Subject},
    footprint::{Kind, Place},
};
use std::collections::BTreeSet;
use vmtape_abi::{Backend, Query};
use vmtape_arch::{
    cpuid::{CpuidEntry, maxphyaddr},
    host::Vendor,
};
use vmtape_machine::{
    Passport,
    hosts::{Reserved, find},
    model::{guest_phys_bits, silicon_cpuid},
};

const WIDTH: &str = "KVM arch/x86/kvm/cpuid.c __do_cpuid_func() 0x80000008, mmu.h kvm_mmu_max_gfn()";
const MAPPABLE: &str = "KVM commit b628cb523c65: GuestPhysBits is the widest address that can be mapped";

/// A host and its KVM.
pub struct Target {
    pub passport: Passport,
    /// The backend and its options, as people are told.
    pub machine: String,
    pub supported: Vec<CpuidEntry>,
    /// KVM_CAP_SMALLER_MAXPHYADDR.
    pub hides_width: bool,
    /// There are tables below the guest's.
    pub two_dimensional: bool,
    /// The guest has an assigned device.
    pub assigned_device: bool,
    /// KVM_GET_MSR_INDEX_LIST there, and on a host of this vendor that has everything.
    pub(super) msrs: BTreeSet<u32>,
    pub(super) known_msrs: BTreeSet<u32>,
    pub(super) feature_msrs: BTreeSet<u32>,
    /// What processors of both vendors have, as far as it is modelled.
    pub(super) known: Vec<Vec<CpuidEntry>>,
    reserved: Vec<Reserved>,
}

impl Target {
    /// KVM_CAP_SMALLER_MAXPHYADDR.
    const SMALLER_MAXPHYADDR: u32 = 185;

    /// Asks a VM that was made on the host's silicon.
    pub fn new(passport: Passport, machine: String, vm: &dyn Backend, assigned_device: bool) -> Self {
        let everything = |vendor: Vendor| {
            // Five levels come with 52 bits.
            find(&format!("{vendor}-52")).map(|silicon| silicon_cpuid(&silicon)).unwrap_or_default()
        };
        let silicon = passport.cpuid();
        let list = |silicon: &[CpuidEntry]| vm.msr_index_list(silicon).into_iter().collect::<BTreeSet<_>>();
        Self {
            supported: vm.supported_cpuid(&silicon),
            hides_width: vm.check_extension(Self::SMALLER_MAXPHYADDR) != 0,
            two_dimensional: vm.query(0, Query::TWO_DIMENSIONAL) != Ok(0),
            msrs: list(&silicon),
            known_msrs: list(&everything(passport.silicon.vendor)),
            feature_msrs: vm.msr_feature_index_list().into_iter().collect(),
            known: [Vendor::INTEL, Vendor::AMD].map(everything).into(),
            reserved: passport.reserved(),
            passport,
            machine,
            assigned_device,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.passport.name
    }

    /// The widest guest that is started there.
    pub fn width(&self) -> u8 {
        let kvm = maxphyaddr(&self.supported);
        kvm.min(self.passport.phys_bits_limit.unwrap_or(kvm))
    }

    /// Address bits that the tables below the guest reach.
    pub(super) fn mappable(&self) -> u8 {
        let told = guest_phys_bits(&self.supported);
        if told != 0 { told } else { self.passport.mappable_bits() }
    }

    /// What is wrong with something at an address there; cautions among it.
    pub(super) fn reach(&self, place: &Place) -> Vec<Finding> {
        let (name, bits) = (self.name(), place.bits());
        let mut findings = Vec::new();
        if bits > self.width() {
            let (subject, words) = match place.kind {
                Kind::Slot => (Subject::Slot, "a memory slot there is refused"),
                Kind::Entry => (Subject::Width, "the entry is illegal there"),
                _ => (Subject::Width, "entries that lead there are illegal"),
            };
            let sentence = format!("this needs {bits} address bits, {name} gives {}: {words}", self.width());
            let severity = if place.kind == Kind::Slot { Severity::Refuses } else { Severity::Breaks };
            findings.push(Finding::new(severity, subject, sentence, WIDTH).pin(Pin::PhysBits(self.width())));
        } else if self.two_dimensional && place.kind != Kind::Entry && bits > self.mappable() {
            let sentence = format!(
                "this needs {bits} address bits, {name} maps {}: an access to it never ends",
                self.mappable()
            );
            let finding = Finding::new(Severity::Breaks, Subject::Mappable, sentence, MAPPABLE);
            findings.push(finding.pin(Pin::GuestPhysBits(self.mappable())));
        }
        findings.extend(self.keeps(place));
        findings.extend(self.iommu(place));
        findings.into_iter().map(|finding| finding.at(Some(place))).collect()
    }

    /// Addresses that the host keeps. Those of interrupts are the guest's local APICs'.
    fn keeps(&self, place: &Place) -> Option<Finding> {
        if place.kind == Kind::Entry {
            return None;
        }
        let first = if place.kind == Kind::Slot { place.at.unwrap_or(place.address) } else { place.address };
        let meets = |range: &&Reserved| !range.is_msi_window() && range.meets(first, place.address);
        let range = self.reserved.iter().find(meets)?;
        let (severity, words) = match self.assigned_device {
            true => (Severity::Breaks, "mapping this for DMA fails"),
            false => (Severity::Caution, "a device that is assigned later could not be mapped"),
        };
        let sentence = format!("{} keeps {range}: {words}", self.name());
        let finding = Finding::new(severity, Subject::Reserved, sentence, DMA);
        Some(finding.pin(Pin::KeepOut { first: range.first, last: range.last }))
    }

    fn iommu(&self, place: &Place) -> Option<Finding> {
        let bits =
            self.passport.iommu_bits.filter(|bits| place.kind != Kind::Entry && place.bits() > *bits)?;
        let severity = if self.assigned_device { Severity::Breaks } else { Severity::Caution };
        let sentence =
            format!("devices of {} reach {bits} address bits: mapping this for DMA fails", self.name());
        Some(Finding::new(severity, Subject::Iommu, sentence, DMA))
    }
}
