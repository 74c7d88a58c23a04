//! State that KVM does not give away, whoever asks for it.

use super::Finding;
use vmtape_arch::{
    cpuid::{CpuidEntry, find},
    state::xfeature,
};

/// CPUID.7.0 ECX[3].
const PKU: u32 = 1 << 3;

/// KVM_GET_XSAVE has the components that the guest's XCR0 may have; a guest with protection keys and without XSAVE has none, and RDPKRU
/// and WRPKRU all the same.
/// See: KVM x86.c kvm_vcpu_ioctl_x86_get_xsave2(), kvm_load_guest_xsave_state()
pub(super) fn judge(guest: &[CpuidEntry]) -> Option<Finding> {
    let has_keys = find(guest, 7, 0).is_some_and(|entry| entry.ecx & PKU != 0);
    let moves = find(guest, 0xd, 0).is_some_and(|entry| u64::from(entry.eax) & xfeature::PKRU != 0);
    let text = "the guest has protection keys and no XSAVE: PKRU does not move".to_owned();
    (has_keys && !moves).then(|| Finding::new("state", false, text))
}
