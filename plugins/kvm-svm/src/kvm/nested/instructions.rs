//! SVM's instructions, which always exit.
//!
//! See: KVM arch/x86/kvm/svm/svm.c vmrun_interception(), vmload_vmsave_interception(), stgi_interception(),
//! clgi_interception(), invlpga_interception(), skinit_interception(); nested.c nested_svm_check_permissions()

use crate::kvm::handlers::{Cx, not_modelled};
use vmtape_arch::{
    exception::Exception,
    exit::{Resume, SvmExitCode},
};

/// The handler of an instruction by its exit code.
pub fn handle(cx: &mut Cx<'_>, code: SvmExitCode) -> Resume {
    if code == SvmExitCode::SKINIT {
        return cx.inject(Exception::ud());
    }
    if cx.state.efer().svme() {
        return not_modelled(cx);
    }
    cx.inject(Exception::ud())
}
