//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE as they are without nested guests: a header that says so, and nothing else.
//!
//! See: KVM x86.c kvm_arch_vcpu_ioctl(), vmx/nested.c vmx_get_nested_state(), vmx_set_nested_state(), svm/nested.c
//! svm_get_nested_state(), svm_set_nested_state()

use vmtape_abi::Errno;
use vmtape_arch::{
    host::Vendor,
    state::{Layout, NestedFlags, NestedFormat, NestedState},
};

fn format(vendor: Vendor) -> NestedFormat {
    if vendor == Vendor::AMD { NestedFormat::SVM } else { NestedFormat::VMX }
}

pub fn get(vendor: Vendor) -> Vec<u8> {
    NestedState::none(format(vendor)).to_bytes()
}

/// `bytes` may be more than the header, which says how many belong to it.
pub fn set(vendor: Vendor, bytes: &[u8]) -> Result<(), Errno> {
    let head =
        bytes.get(..size_of::<NestedState>()).and_then(NestedState::from_bytes).ok_or(Errno::EFAULT)?;
    let flags = head.flags.into_bits();
    let known = flags & !NestedFlags::KNOWN.into_bits() == 0;
    if (head.size as usize) < size_of::<NestedState>()
        || !known
        || head.flags.run_pending() && !head.flags.guest_mode()
        || NestedFormat(head.format) != format(vendor)
    {
        return Err(Errno::EINVAL);
    }
    let nothing = if vendor == Vendor::AMD {
        head.flags == NestedFlags::new().with_gif_set(true)
    } else {
        let vmx = &head.header;
        let off = vmx.vmxon_pa == NestedState::NOWHERE && vmx.vmcs12_pa == NestedState::NOWHERE;
        // KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE is the one flag.
        off && vmx.smm_flags == 0 && vmx.flags & !1 == 0 && flags == 0
    };
    if nothing { Ok(()) } else { Err(Errno::EINVAL) }
}
