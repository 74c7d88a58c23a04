//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE.
//!
//! See: KVM arch/x86/kvm/svm/nested.c svm_get_nested_state(), svm_set_nested_state()
