//! What outlives an access: CPUID, saved VMs.

use super::{ASM, NO_ASM, WRITE, guest};
use crate::testing::{Guest, cpuid, silicon};
use vmtape_abi::{Backend, Errno, MemoryStatus};
use vmtape_arch::{
    exit::Resume,
    state::{Owner, StateKind},
};
use vmtape_kvm_mmu::fault_points::FaultPoint;

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

/// Each kind may be refused, with nothing changed.
#[test]
fn state_that_is_refused() {
    let mut guest = guest(NO_ASM);
    let mut state = guest.state;
    for (kind, _) in StateKind::NAMED {
        if !matches!(kind.owner(), Some(Owner::Backend(_))) {
            continue;
        }
        let Guest { vm, host, .. } = &mut guest;
        let bytes = vm.get_state(0, &mut state, *kind, host).unwrap();
        host.faults = vec![(FaultPoint::GET_STATE_REFUSED.0, 12)];
        assert_eq!(vm.get_state(0, &mut state, *kind, host), Err(Errno(-12)), "{kind}");
        let before = state;
        host.faults = vec![(FaultPoint::SET_STATE_REFUSED.0, 22)];
        assert_eq!(vm.set_state(0, &mut state, *kind, &bytes, host), Err(Errno::EINVAL), "{kind}");
        assert!(state == before && host.faults.is_empty(), "{kind}");
    }
}

/// KVM_BUG_ON: everything is -EIO from there on.
#[test]
fn a_vm_that_is_bugged() {
    let mut guest = guest(NO_ASM);
    let Guest { vm, host, state, .. } = &mut guest;
    host.faults = vec![(FaultPoint::VM_BUGGED.0, 1)];
    assert_eq!(vm.enter(0, state, host), Resume::errno(Errno::EIO.0));
    assert_eq!(vm.enter(0, state, host), Resume::errno(Errno::EIO.0));
    assert_eq!(vm.get_state(0, state, StateKind::REGS, host), Err(Errno::EIO));
}

/// A page that never arrives: since v6.2 a signal ends the wait. See: commit 766576874b97
#[test]
fn a_signal_ends_the_wait_for_a_page() {
    for (kvm, errno) in [("v6.1", Errno::EFAULT), ("v6.2", Errno::EINTR)] {
        let mut guest = Guest::new(silicon(46), 46, &[("kvm", kvm)]);
        guest.populate();
        guest.gva += 0x1000;
        guest.set(crate::testing::PTE + 8, (crate::testing::DATA + 0x1000) | 7);
        guest.host.absent.insert(crate::testing::DATA + 0x1000, MemoryStatus::MISSING);
        guest.access(WRITE, false);
        assert_eq!(guest.handle(), Resume::errno(errno.0), "{kvm}");
    }
}
