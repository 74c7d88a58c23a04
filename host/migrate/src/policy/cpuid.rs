//! The guest's CPUID against what KVM supports on the destination.
//!
//! See: QEMU 10.2.2 target/i386/cpu.c x86_cpu_filter_features(), which only `enforce` makes an error; Cloud Hypervisor ae44c2971
//! arch/src/x86_64/mod.rs CpuidFeatureEntry::checked_feature_entry_list()

use super::{Finding, Policy};
use vmtape_arch::cpuid::{CpuidEntry, find};
use vmtape_machine::model::{FEATURES, Feature, Register};

/// What a VMM gives whatever KVM says that it supports.
const OF_THE_VMM: [&str; 2] = ["tsc-deadline", "hypervisor"];
/// The leaves that Cloud Hypervisor compares.
const LEAVES_OF_CH: [u32; 5] = [1, 7, 0x1d, 0x1e, 0x8000_0001];

pub(super) fn judge(policy: Policy, guest: &[CpuidEntry], supported: &[CpuidEntry]) -> Option<Finding> {
    let compared = |feature: &&Feature| policy != Policy::Ch || LEAVES_OF_CH.contains(&feature.leaf);
    let missing = FEATURES
        .iter()
        .filter(compared)
        .filter(|feature| !OF_THE_VMM.contains(&feature.name))
        .filter(|feature| has(guest, feature) && !has(supported, feature));
    let names: Vec<_> = missing.map(|feature| feature.name).collect();
    if names.is_empty() {
        return None;
    }
    let refuses = policy != Policy::Qemu;
    Some(Finding::new("cpuid", refuses, format!("not there: {}", names.join(", "))))
}

fn has(table: &[CpuidEntry], feature: &Feature) -> bool {
    find(table, feature.leaf, feature.subleaf).is_some_and(|entry| {
        let register = match feature.register {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        };
        register >> feature.bit & 1 != 0
    })
}
