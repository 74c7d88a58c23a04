//! Into L2: VMRUN as L1 executes it, and what `vmcb02` is made of.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_vmrun(), enter_svm_guest_mode()
