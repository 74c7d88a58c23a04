//! KVM_GET_XCRS and KVM_SET_XCRS.
//!
//! See: KVM x86.c kvm_vcpu_ioctl_x86_get_xcrs(), kvm_vcpu_ioctl_x86_set_xcrs()

use crate::{Vcpu, cr};
use vmtape_abi::Errno;
use vmtape_arch::{
    state::{Xcrs, xfeature},
    vcpu::VcpuState,
};

/// XCR_XFEATURE_ENABLED_MASK: the number of XCR0.
const XCR0: u32 = 0;

pub fn get(state: &VcpuState) -> Xcrs {
    Xcrs::of_xcr0(state.xcr0)
}

pub fn set(core: &mut Vcpu, state: &mut VcpuState, xcrs: &Xcrs) -> Result<(), Errno> {
    let known = xcrs.xcrs.get(..xcrs.nr_xcrs as usize).filter(|_| xcrs.flags == 0).ok_or(Errno::EINVAL)?;
    match known.iter().find(|xcr| xcr.xcr == XCR0) {
        Some(xcr) => cr::set_xcr0(core, state, xcr.value).map_err(|_| Errno::EINVAL),
        None => Ok(()),
    }
}

/// `kvm_caps.supported_xcr0` of the modelled silicon. Shadow paging does without protection keys.
pub fn of_host(tdp: bool) -> u64 {
    xfeature::FP | xfeature::SSE | xfeature::YMM | if tdp { xfeature::PKRU } else { 0 }
}
