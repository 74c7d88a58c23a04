//! The intercepts of `vmcb02`: L0's and L1's together.
//!
//! See: KVM arch/x86/kvm/svm/nested.c recalc_intercepts()

use crate::vm::{Shared, SvmVcpu};

/// `recalc_intercepts`: to be called whenever an intercept of `vmcb01` changes.
pub fn recalc(_shared: &Shared, _vcpu: &mut SvmVcpu) {}
