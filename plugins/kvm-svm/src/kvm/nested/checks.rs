//! What KVM refuses to run L2 with.
//!
//! See: KVM arch/x86/kvm/svm/nested.c __nested_vmcb_check_save(), __nested_vmcb_check_controls()
