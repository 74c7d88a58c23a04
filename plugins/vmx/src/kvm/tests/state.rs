//! What outlives an access: CPUID, saved VMs.

use super::{ASM, NO_ASM, WRITE, guest};
use crate::testing::{Guest, cpuid, silicon};
use vmtape_abi::{Backend, Errno};

/// KVM_SET_CPUID2 after KVM_RUN: only the same table.
#[test]
fn cpuid_is_fixed_once_the_guest_ran() {
    let mut guest = guest(NO_ASM);
    let mut state = guest.state;
    let same = guest.vm.get_cpuid(0);
    assert!(guest.vm.set_cpuid(0, &mut state, &same, &mut guest.host).is_ok());
    assert_eq!(guest.vm.set_cpuid(0, &mut state, &cpuid(40), &mut guest.host), Err(Errno::EINVAL));
}

/// A saved VM goes on byte for byte.
#[test]
fn save_and_restore() {
    let mut first = guest(ASM);
    let saved = first.vm.save();
    let mut second = Guest::new(silicon(46), 36, ASM);
    second.vm.restore(&saved).unwrap();
    assert_eq!(second.vm.save(), saved);
    assert_eq!(second.access(WRITE, false), first.access(WRITE, false));
    assert!(second.vm.restore(&saved[..saved.len() / 2]).is_err());
}
