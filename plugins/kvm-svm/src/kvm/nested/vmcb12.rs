//! KVM's copy of `vmcb12`.

use crate::silicon::vmcb::Vmcb;

/// `svm->nested.ctl` and `svm->nested.save`.
pub type Vmcb12 = Vmcb;
