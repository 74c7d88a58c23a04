//! Out of L2: who gets an exit, and #VMEXIT to L1.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_exit_handled(), nested_svm_vmexit()
