//! L2: what `kvm_amd` keeps for a guest's guest, and how a vCPU gets into it and out again.
//!
//! Three VMCBs have names: `vmcb12` lies in L1's memory, `vmcb01` is what silicon runs L1 with, `vmcb02` what it runs L2 with.
//!
//! See: KVM arch/x86/kvm/svm/nested.c, svm.h struct svm_nested_state

pub mod checks;
pub mod emulated;
pub mod enter;
pub mod events;
pub mod exit;
pub mod instructions;
pub mod intercepts;
pub mod lbr;
pub mod msrpm;
pub mod pat;
pub mod patches;
pub mod smm;
pub mod state;
pub mod vmcb12;

use crate::{
    silicon::vmcb::{Msrpm, Vmcb},
    vm::{SvmVcpu, VmcbInfo},
};
use serde::{Deserialize, Serialize};
use vmcb12::Vmcb12;

/// INVALID_GPA.
pub const INVALID_GPA: u64 = u64::MAX;

/// `struct svm_nested_state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nested {
    /// What silicon runs L2 with. It keeps L2's registers after #VMEXIT, which L1's clean bits speak of.
    pub vmcb02: VmcbInfo,
    /// The map that `vmcb02` points to where L1 intercepts MSRs: L0's and L1's together.
    pub msrpm: Msrpm,
    /// Whether `vmcb02` points to it, rather than to L0's.
    pub msrpm_merged: bool,
    /// KVM's copy of `vmcb12`, from VMRUN to #VMEXIT.
    pub vmcb12: Vmcb12,
    /// Where `vmcb12` lies, as L1's guest physical address; 0 while L1 runs.
    pub vmcb12_gpa: u64,
    /// Of the last VMRUN that came through; the clean bits of another `vmcb12` mean nothing.
    pub last_vmcb12_gpa: u64,
    /// `nested_run_pending`: L1 has executed VMRUN, and L2 has not run yet.
    pub run_pending: bool,
    /// The global interrupt flag as L1 has it.
    pub gif: bool,
    /// An INIT was pending when GIF was set, and nothing has made KVM look for events since (KVM_REQ_EVENT).
    pub init_overlooked: bool,
    /// The instruction count when L2 was entered first.
    pub entered_at: u64,
    /// MSR_AMD64_TSC_RATIO: L2's clock by L1's, a fixed-point number of 8.32 bits.
    pub tsc_ratio: u64,
    /// KVM_REQ_GET_NESTED_STATE_PAGES: L1's map is read before the next entry, since its memory may have come after the state.
    pub pages_wanted: bool,
    /// L1's registers while SMM is active, where L2 ran before: 5.10's `hsave`.
    pub hsave: Option<Box<Vmcb>>,
    /// gPAT follows IA32_PAT until KVM_RUN (`legacy_gpat_semantics` of the series' third version).
    pub legacy_gpat: bool,
    /// KVM_RUN gives gPAT the value of IA32_PAT (`restore_gpat_from_pat` of its second version).
    pub restore_gpat: bool,
}

/// SVM_TSC_RATIO_DEFAULT.
pub use vmtape_arch::vcpu::TSC_RATIO_ONE as TSC_RATIO_DEFAULT;

impl Default for Nested {
    fn default() -> Self {
        Self {
            vmcb02: VmcbInfo::default(),
            msrpm: Msrpm::default(),
            msrpm_merged: false,
            vmcb12: Vmcb12::default(),
            vmcb12_gpa: 0,
            last_vmcb12_gpa: INVALID_GPA,
            run_pending: false,
            gif: true,
            init_overlooked: false,
            entered_at: 0,
            tsc_ratio: TSC_RATIO_DEFAULT,
            pages_wanted: false,
            hsave: None,
            legacy_gpat: false,
            restore_gpat: false,
        }
    }
}

impl Nested {
    /// `svm_free_nested`: what L1's clean bits would speak of is gone.
    pub fn forget(&mut self) {
        self.vmcb02 = VmcbInfo::default();
        (self.msrpm, self.msrpm_merged) = (Msrpm::default(), false);
        self.last_vmcb12_gpa = INVALID_GPA;
    }
}

impl SvmVcpu {
    /// `is_guest_mode`: L2 runs, or is about to.
    pub fn is_guest_mode(&self) -> bool {
        self.core.guest_mode
    }
}
