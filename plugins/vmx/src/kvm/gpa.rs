//! Guest physical addresses out of the ordinary: beyond the guest's width, or beyond what EPT's levels translate. What KVM
//! does about them is a history of patches, so each piece asks for its switch.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c handle_ept_violation(), vmx.h vmx_need_pf_intercept()

use super::handlers::Cx;
use crate::{rules::Rule, vm::Shared};
use vmtape_arch::{
    exception::{Exception, PageFaultError},
    exit::Resume,
};
use vmtape_kvm_core::{cpuid::GuestCpuid, profile::Switch};

impl Shared {
    /// A piece of the series that `allow_smaller_maxphyaddr` turns on.
    fn supports_narrow_guests(&self, piece: Switch) -> bool {
        self.kvm.allow_smaller_maxphyaddr() && self.kvm.options.on(piece)
    }

    /// `vmx_need_pf_intercept`.
    pub fn needs_pf_intercept(&self, cpuid: &GuestCpuid) -> bool {
        let narrow = cpuid.maxphyaddr() < self.kvm.silicon.phys_bits;
        !self.kvm.tdp() || narrow && self.supports_narrow_guests(Switch::NEED_PF_INTERCEPT)
    }

    /// Which #PF exits under EPT, as error-code mask and match: those with P and without RSVD. All others are right already,
    /// since no walk with another width ends before or elsewhere.
    pub fn pf_mask_and_match(&self, intercepted: bool) -> (u32, u32) {
        let options = &self.kvm.options;
        let wanted = intercepted || !options.on(Switch::PFEC_WITH_INTERCEPT);
        if !self.kvm.tdp() || !options.on(Switch::PFEC_MASK_MATCH) || !wanted {
            return (0, 0);
        }
        let present = PageFaultError::new().with_p(true);
        let mask = present.with_rsvd(options.on(Switch::PFEC_SKIPS_RSVD));
        (mask.into_bits(), present.into_bits())
    }
}

impl Cx<'_> {
    /// The exit's address is beyond the guest's width (`kvm_vcpu_is_illegal_gpa`).
    fn is_illegal(&self) -> bool {
        self.exit.gpa & self.vcpu.core.cpuid.reserved_gpa_bits() != 0
    }

    /// A check of the series as first posted, and the #PF that it injects: no hardware raises RSVD without P, and CR2 is to
    /// hold a linear address.
    pub fn v1_check(&mut self, check: Switch) -> Option<Resume> {
        let options = &self.shared.kvm.options;
        let checks = options.on(check) && options.on(Switch::V1_RSVD_PF);
        if !checks || !self.is_illegal() {
            return None;
        }
        self.note(Rule::V1_RSVD_PF.note());
        Some(self.inject(Exception::pf(self.exit.gpa, PageFaultError::new().with_rsvd(true))))
    }

    /// The rule by which an EPT violation is emulated with a walk of KVM's own, instead of being mapped.
    pub fn emulates_violation(&self) -> Option<Rule> {
        let shared = &self.shared;
        let unmappable = || shared.kvm.mmu.is_unmappable(self.vcpu.core.id, self.exit.gpa);
        match () {
            () if self.is_illegal() && shared.supports_narrow_guests(Switch::EPT_VIOLATION_EMULATE) => {
                Some(Rule::SMALLER_MAXPHYADDR_GPA)
            }
            () if shared.kvm.options.on(Switch::CAP_ADVERTISED_GPA) && unmappable() => {
                Some(Rule::UNTRANSLATABLE_EMULATED)
            }
            () => None,
        }
    }

    /// A #PF that was intercepted under EPT (`vmx_handle_page_fault`).
    pub fn intercepted_page_fault(&mut self, error: PageFaultError) -> Resume {
        let gva = self.exit.info1;
        let fault = if self.shared.supports_narrow_guests(Switch::PF_FIXUP) {
            self.note(Rule::SMALLER_MAXPHYADDR_PF.note());
            self.shared.kvm.mmu.fixup_page_fault(self.vcpu.core.id, self.state, gva, error, self.host)
        } else {
            Exception::pf(gva, error)
        };
        self.inject(fault)
    }
}
