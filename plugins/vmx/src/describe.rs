//! What the plugin says of itself.

use crate::rules;
use vmtape_abi::Description;
use vmtape_arch::{exit::Isa, host::Vendor};
use vmtape_kvm_core::{
    caps,
    profile::{self, Scope},
};
use vmtape_kvm_mmu::fault_points::{self, Reach};

/// `Plugin::describe`.
pub fn description() -> Description {
    let (parameters, patches, profiles) = profile::tables(Scope::VMX);
    Description {
        name: "vmx".into(),
        summary: "Intel VMX with extended page tables (ept=off: shadow paging), and kvm_intel".into(),
        isa: Isa::VMX,
        vendor: Vendor::INTEL,
        rules: rules::rows(),
        patches,
        parameters,
        fault_points: fault_points::rows(&Reach {
            tdp: true,
            shadow: true,
            vmx: true,
            insn_bytes: false,
            either: Some("ept"),
        }),
        profiles,
        capabilities: caps::rows(),
    }
}
