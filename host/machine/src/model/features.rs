//! CPUID features by QEMU's names.

use super::qemu;
use std::collections::BTreeSet;
use vmtape_arch::{
    cpuid::{CpuidEntry, find},
    host::{Silicon, Vendor},
};

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// Who has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Every 64-bit processor.
    Baseline,
    Intel,
    /// The software CPU, whatever the vendor.
    Everyone,
    Amd,
    /// AMD's with virtual GIF, with virtual VMLOAD and VMSAVE, with virtual NMI.
    VirtualGif,
    VirtualVmload,
    VirtualNmi,
    /// AMD's with next-RIP save, which all have but the one below the recordings.
    NextRip,
    /// Only where a model asks for it by name.
    OnRequest,
    /// Hosts with 5-level paging.
    FiveLevel,
    /// Hosts with 1 GiB pages.
    GbPages,
}

/// A feature: name, leaf, subleaf, register, bit. See: SDM vol. 2A CPUID; APM vol. 3 appendix E
#[derive(Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub bit: u32,
    owner: Owner,
}

const fn feature(name: &'static str, leaf: u32, register: Register, bit: u32, owner: Owner) -> Feature {
    Feature { name, leaf, subleaf: 0, register, bit, owner }
}

const EXTENDED: u32 = 0x8000_0001;
/// Address widths, and features of AMD's beside them.
pub(super) const WIDTHS: u32 = 0x8000_0008;
/// SVM's own leaf, which is there where `svm` is.
pub(super) const SVM: u32 = 0x8000_000a;
/// KVM's own leaves, which are there where one of its features is.
pub(super) const KVM_SIGNATURE: u32 = 0x4000_0000;
pub(super) const KVM: u32 = 0x4000_0001;
/// One name for two bits, as in QEMU.
pub(super) const KVMCLOCK: &str = "kvmclock";

/// Every feature that a model can have. What the interpreter does not execute is not here.
pub static FEATURES: &[Feature] = &{
    use Owner::*;
    [
        feature("fpu", 1, Edx, 0, Baseline),
        feature("vme", 1, Edx, 1, Baseline),
        feature("de", 1, Edx, 2, Baseline),
        feature("pse", 1, Edx, 3, Baseline),
        feature("tsc", 1, Edx, 4, Baseline),
        feature("msr", 1, Edx, 5, Baseline),
        feature("pae", 1, Edx, 6, Baseline),
        feature("mce", 1, Edx, 7, Baseline),
        feature("cx8", 1, Edx, 8, Baseline),
        feature("apic", 1, Edx, 9, Baseline),
        feature("sep", 1, Edx, 11, Baseline),
        feature("mtrr", 1, Edx, 12, Baseline),
        feature("pge", 1, Edx, 13, Baseline),
        feature("mca", 1, Edx, 14, Baseline),
        feature("cmov", 1, Edx, 15, Baseline),
        feature("pat", 1, Edx, 16, Baseline),
        feature("pse36", 1, Edx, 17, Baseline),
        feature("clflush", 1, Edx, 19, Baseline),
        feature("mmx", 1, Edx, 23, Baseline),
        feature("fxsr", 1, Edx, 24, Baseline),
        feature("sse", 1, Edx, 25, Baseline),
        feature("sse2", 1, Edx, 26, Baseline),
        feature("pni", 1, Ecx, 0, Everyone),
        feature("monitor", 1, Ecx, 3, OnRequest),
        feature("vmx", 1, Ecx, 5, OnRequest),
        feature("ssse3", 1, Ecx, 9, Everyone),
        feature("cx16", 1, Ecx, 13, Everyone),
        feature("pcid", 1, Ecx, 17, Everyone),
        feature("sse4.1", 1, Ecx, 19, Everyone),
        feature("sse4.2", 1, Ecx, 20, Everyone),
        feature("x2apic", 1, Ecx, 21, Everyone),
        feature("movbe", 1, Ecx, 22, Everyone),
        feature("popcnt", 1, Ecx, 23, Everyone),
        feature("tsc-deadline", 1, Ecx, 24, Everyone),
        feature("aes", 1, Ecx, 25, Everyone),
        feature("xsave", 1, Ecx, 26, Everyone),
        feature("avx", 1, Ecx, 28, OnRequest),
        feature("rdrand", 1, Ecx, 30, Everyone),
        feature("hypervisor", 1, Ecx, 31, Everyone),
        feature("fsgsbase", 7, Ebx, 0, Everyone),
        feature("tsc_adjust", 7, Ebx, 1, Everyone),
        feature("bmi1", 7, Ebx, 3, Everyone),
        feature("smep", 7, Ebx, 7, Everyone),
        feature("bmi2", 7, Ebx, 8, Everyone),
        feature("erms", 7, Ebx, 9, Everyone),
        feature("invpcid", 7, Ebx, 10, Everyone),
        feature("rdseed", 7, Ebx, 18, Everyone),
        feature("adx", 7, Ebx, 19, Everyone),
        feature("smap", 7, Ebx, 20, Everyone),
        feature("clflushopt", 7, Ebx, 23, Everyone),
        feature("clwb", 7, Ebx, 24, Everyone),
        feature("umip", 7, Ecx, 2, Everyone),
        feature("pku", 7, Ecx, 3, Everyone),
        feature("la57", 7, Ecx, 16, FiveLevel),
        feature("rdpid", 7, Ecx, 22, Everyone),
        feature("spec-ctrl", 7, Edx, 26, Intel),
        feature("stibp", 7, Edx, 27, Intel),
        feature("ssbd", 7, Edx, 31, Intel),
        Feature { subleaf: 1, ..feature("xsaveopt", 0xd, Eax, 0, Everyone) },
        Feature { subleaf: 1, ..feature("xsavec", 0xd, Eax, 1, Everyone) },
        Feature { subleaf: 1, ..feature("xgetbv1", 0xd, Eax, 2, Everyone) },
        Feature { subleaf: 1, ..feature("xsaves", 0xd, Eax, 3, Everyone) },
        feature("syscall", EXTENDED, Edx, 11, Baseline),
        feature("nx", EXTENDED, Edx, 20, Baseline),
        feature("mmxext", EXTENDED, Edx, 22, Amd),
        feature("fxsr_opt", EXTENDED, Edx, 25, Amd),
        feature("pdpe1gb", EXTENDED, Edx, 26, GbPages),
        feature("rdtscp", EXTENDED, Edx, 27, Everyone),
        feature("lm", EXTENDED, Edx, 29, Baseline),
        feature("lahf_lm", EXTENDED, Ecx, 0, Everyone),
        feature("svm", EXTENDED, Ecx, 2, OnRequest),
        feature("cr8legacy", EXTENDED, Ecx, 4, Amd),
        feature("abm", EXTENDED, Ecx, 5, Everyone),
        feature("3dnowprefetch", EXTENDED, Ecx, 8, Everyone),
        feature("ibpb", WIDTHS, Ebx, 12, Amd),
        feature("ibrs", WIDTHS, Ebx, 14, Amd),
        feature("amd-stibp", WIDTHS, Ebx, 15, Amd),
        feature("amd-ssbd", WIDTHS, Ebx, 24, Amd),
        feature("npt", SVM, Edx, 0, Amd),
        feature("lbrv", SVM, Edx, 1, NextRip),
        feature("nrip-save", SVM, Edx, 3, NextRip),
        feature("tsc-scale", SVM, Edx, 4, NextRip),
        feature("vmcb-clean", SVM, Edx, 5, Amd),
        feature("flushbyasid", SVM, Edx, 6, Amd),
        feature("pause-filter", SVM, Edx, 10, NextRip),
        feature("pfthreshold", SVM, Edx, 12, NextRip),
        feature("v-vmsave-vmload", SVM, Edx, 15, VirtualVmload),
        feature("vgif", SVM, Edx, 16, VirtualGif),
        feature("vnmi", SVM, Edx, 25, VirtualNmi),
        feature("svme-addr-chk", SVM, Edx, 28, Amd),
        feature(KVMCLOCK, KVM, Eax, 0, OnRequest),
        feature("kvm-nopiodelay", KVM, Eax, 1, OnRequest),
        feature("kvm-asyncpf", KVM, Eax, 4, OnRequest),
        feature("kvm-steal-time", KVM, Eax, 5, OnRequest),
        feature("kvm-pv-unhalt", KVM, Eax, 7, OnRequest),
        feature("kvm-pv-tlb-flush", KVM, Eax, 9, OnRequest),
        feature("kvm-asyncpf-vmexit", KVM, Eax, 10, OnRequest),
        feature("kvm-pv-ipi", KVM, Eax, 11, OnRequest),
        feature("kvm-poll-control", KVM, Eax, 12, OnRequest),
        feature("kvm-pv-sched-yield", KVM, Eax, 13, OnRequest),
        feature("kvm-asyncpf-int", KVM, Eax, 14, OnRequest),
        feature("kvmclock-stable-bit", KVM, Eax, 24, OnRequest),
    ]
};

/// The feature with this name, or one that QEMU has for it.
pub fn named(name: &str) -> Result<&'static Feature, String> {
    let plain = qemu::plain(name);
    FEATURES
        .iter()
        .find(|feature| qemu::plain(feature.name) == plain)
        .ok_or_else(|| format!("no feature is named '{name}'"))
}

impl Feature {
    /// Sets or clears the feature in the entry of its leaf.
    pub fn set(&self, entry: &mut CpuidEntry, on: bool) {
        let word = match self.register {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        };
        *word = *word & !(1 << self.bit) | u32::from(on) << self.bit;
    }
}

/// Which features are on, by their place in [`FEATURES`].
#[derive(Clone, Debug)]
pub struct FeatureSet(Vec<bool>);

impl FeatureSet {
    fn of(has: impl Fn(&Feature) -> bool) -> Self {
        Self(FEATURES.iter().map(has).collect())
    }

    /// Everything that the host has and that nobody needs to ask for.
    pub fn all(silicon: &Silicon) -> Self {
        Self::of(|feature| match feature.owner {
            Owner::Baseline | Owner::Everyone => true,
            Owner::Intel => silicon.vendor == Vendor::INTEL,
            Owner::Amd => silicon.vendor == Vendor::AMD,
            Owner::VirtualGif => silicon.vendor == Vendor::AMD && silicon.vgif.is_set(),
            Owner::VirtualVmload => silicon.vendor == Vendor::AMD && silicon.vls.is_set(),
            Owner::VirtualNmi => silicon.vendor == Vendor::AMD && silicon.vnmi.is_set(),
            Owner::NextRip => silicon.vendor == Vendor::AMD && silicon.nrips.is_set(),
            Owner::OnRequest => false,
            Owner::FiveLevel => silicon.host_levels == 5,
            Owner::GbPages => silicon.gbpages.is_set(),
        })
    }

    /// The features with these names, as far as they are modelled.
    pub fn of_names(names: &BTreeSet<String>) -> Self {
        Self::of(|feature| names.contains(&qemu::plain(feature.name)))
    }

    /// What is in both.
    pub fn and(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(on, other)| *on &= other);
        self
    }

    pub fn set(&mut self, feature: &Feature, on: bool) {
        for (state, candidate) in self.0.iter_mut().zip(FEATURES) {
            if candidate == feature {
                *state = on;
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().zip(FEATURES).any(|(on, feature)| *on && feature.name == name)
    }

    /// Drops what the backend does not support, except what was asked for by name, and what a VMM adds: HYPERVISOR, and
    /// TSC_DEADLINE where the local APIC is in the kernel (KVM_CAP_TSC_DEADLINE_TIMER).
    pub fn keep_supported(&mut self, supported: &[CpuidEntry], asked: &[&Feature]) {
        for (on, feature) in self.0.iter_mut().zip(FEATURES) {
            let known = find(supported, feature.leaf, feature.subleaf)
                .is_some_and(|entry| register(entry, feature.register) >> feature.bit & 1 != 0);
            let added = ["hypervisor", "tsc-deadline"].contains(&feature.name);
            *on &= known || added || asked.contains(&feature);
        }
    }

    /// The bits of one register.
    pub fn bits(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.0
            .iter()
            .zip(FEATURES)
            .filter(|(on, f)| **on && f.leaf == leaf && f.subleaf == subleaf && f.register == register)
            .fold(0, |bits, (_, feature)| bits | 1 << feature.bit)
    }
}

fn register(entry: &CpuidEntry, register: Register) -> u32 {
    match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    }
}
