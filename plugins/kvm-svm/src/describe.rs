//! What the plugins say of themselves.

use crate::rules;
use vmtape_abi::Description;
use vmtape_arch::{exit::Isa, host::Vendor};
use vmtape_kvm_core::{
    caps,
    profile::{self, Scope},
};
use vmtape_kvm_mmu::fault_points::{self, Reach};

/// `Plugin::describe` for one of the two forms.
pub fn description(npt: bool) -> Description {
    let (name, summary, scope) = match npt {
        true => ("svm-npt", "AMD SVM with nested paging, and kvm_amd (npt=1)", Scope::NPT),
        false => ("svm", "AMD SVM with shadow paging, and kvm_amd (npt=0)", Scope::SVM),
    };
    let (parameters, patches, profiles) = profile::tables(scope);
    Description {
        name: name.into(),
        summary: summary.into(),
        isa: Isa::SVM,
        vendor: Vendor::AMD,
        rules: rules::rows(npt),
        patches,
        parameters,
        fault_points: fault_points::rows(&Reach {
            tdp: npt,
            shadow: !npt,
            vmx: false,
            insn_bytes: true,
            either: None,
        }),
        profiles,
        capabilities: caps::rows(),
    }
}
