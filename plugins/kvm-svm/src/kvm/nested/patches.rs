//! What decides about a nested guest besides its VMCB: KVM's release and parameters, and L1's CPUID.

use crate::vm::Shared;
use vmtape_kvm_core::{
    cpuid::{Feature, GuestCpuid, feature},
    profile::{Options, Switch},
};

/// L1 as KVM sees it. Questions about features are `guest_cpu_cap_has`, or the `*_enabled` of 6.1: the parameter, the release
/// and L1's CPUID together.
#[derive(Clone, Copy)]
pub struct L1<'a> {
    pub options: &'a Options,
    pub cpuid: &'a GuestCpuid,
    /// The module's parameter `npt`.
    npt: bool,
    /// Next-RIP save is used.
    nrips: bool,
    /// Virtual VMLOAD and VMSAVE, and virtual NMI.
    vls: bool,
    vnmi: bool,
}

impl<'a> L1<'a> {
    pub fn new(shared: &'a Shared, cpuid: &'a GuestCpuid) -> Self {
        Self {
            options: &shared.kvm.options,
            cpuid,
            npt: shared.kvm.tdp(),
            nrips: shared.nrips(),
            vls: shared.vls(),
            vnmi: shared.vnmi(),
        }
    }

    /// Whether KVM has this change.
    pub fn on(&self, switch: Switch) -> bool {
        self.options.on(switch)
    }

    /// `kvm_vcpu_is_legal_gpa`.
    pub fn is_legal_gpa(&self, gpa: u64) -> bool {
        gpa & self.cpuid.reserved_gpa_bits() == 0
    }

    fn may(&self, parameter: Switch, change: Switch, told: Feature) -> bool {
        self.on(parameter) && self.on(change) && self.cpuid.has(told)
    }

    pub fn npt(&self) -> bool {
        self.npt && self.cpuid.has(feature::NPT)
    }

    pub fn nrips(&self) -> bool {
        self.nrips && self.cpuid.has(feature::NRIPS)
    }

    pub fn lbrv(&self) -> bool {
        self.may(Switch::LBRV, Switch::NESTED_LBRV, feature::LBRV)
    }

    pub fn tsc_ratio(&self) -> bool {
        self.may(Switch::TSC_SCALING, Switch::NESTED_TSC_SCALING, feature::TSCRATEMSR)
    }

    pub fn vgif(&self) -> bool {
        self.may(Switch::VGIF, Switch::NESTED_VGIF, feature::VGIF)
    }

    pub fn vnmi(&self) -> bool {
        self.vnmi && self.cpuid.has(feature::VNMI)
    }

    pub fn pause_filter(&self) -> bool {
        self.on(Switch::NESTED_PAUSE_FILTER) && self.cpuid.has(feature::PAUSEFILTER)
    }

    pub fn pause_threshold(&self) -> bool {
        self.on(Switch::NESTED_PAUSE_FILTER) && self.cpuid.has(feature::PFTHRESHOLD)
    }

    /// Not for a guest that thinks it is an Intel CPU.
    pub fn vls(&self) -> bool {
        let told = self.on(Switch::NESTED_VLS) && self.cpuid.has(feature::V_VMSAVE_VMLOAD);
        self.vls && told && self.cpuid.amd_compatible()
    }
}
