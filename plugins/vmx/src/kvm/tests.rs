//! A guest narrower than its host, with and without `allow_smaller_maxphyaddr`: what KVM makes of each access.
//!
//! The guest has 36 bits, its host 46. Expectations with the switch on are asserted by kvm-unit-tests (x86/access.c) and
//! selftests (smaller_maxphyaddr_emulation_test); with it off they follow from KVM's sources.

use crate::testing::{DATA, Ended, GVA, Guest, PD, PT, PTE, silicon};
use vmtape_abi::Backend;
use vmtape_arch::{access::AccessKind, exit::VmxReason, vcpu::VcpuState};

const BIT36: u64 = 1 << 36;
const NX: u64 = 1 << 63;
const ILLEGAL: u64 = BIT36 | DATA | 0x123;

fn guest(switch: &str) -> Guest {
    let mut guest = Guest::new(silicon(46), 36, &[("allow_smaller_maxphyaddr", switch)]);
    guest.populate();
    guest
}

struct Case {
    what: &'static str,
    pte: u64,
    kind: AccessKind,
    user: bool,
    /// Error code with the switch on.
    on: u32,
    /// Error code with it off; `None`: MMIO at the illegal address.
    off: Option<u32>,
}

/// An instruction fetch from the illegal address is exact either way: KVM's emulator walks the guest's tables to fetch.
const CASES: &[Case] = &[
    Case { what: "supervisor read", pte: 0x01, kind: AccessKind::READ, user: false, on: 0x9, off: None },
    Case {
        what: "write, read-only",
        pte: 0x01,
        kind: AccessKind::WRITE,
        user: false,
        on: 0xb,
        off: Some(0x3),
    },
    Case {
        what: "user read of supervisor",
        pte: 0x01,
        kind: AccessKind::READ,
        user: true,
        on: 0xd,
        off: Some(0x5),
    },
    Case { what: "user write", pte: 0x07, kind: AccessKind::WRITE, user: true, on: 0xf, off: None },
    Case { what: "fetch, NX", pte: NX | 1, kind: AccessKind::FETCH, user: false, on: 0x19, off: Some(0x11) },
    Case { what: "fetch", pte: 0x01, kind: AccessKind::FETCH, user: false, on: 0x19, off: Some(0x19) },
    Case { what: "not present", pte: 0x00, kind: AccessKind::READ, user: false, on: 0x0, off: Some(0x0) },
];

/// The error code that the guest sees in the end; `None`: it sees none.
fn error_seen(guest: &mut Guest, kind: AccessKind, user: bool) -> Option<u32> {
    match guest.access(kind, user) {
        Ended::Fault(code) => Some(code),
        Ended::Mapped => None,
        Ended::Exit(..) => {
            guest.handle();
            guest.injected()
        }
    }
}

#[test]
fn with_the_switch_every_fault_is_exact() {
    for case in CASES {
        let mut guest = guest("on");
        let pte = BIT36 | DATA | case.pte;
        guest.set(PTE, pte);
        assert_eq!(error_seen(&mut guest, case.kind, case.user), Some(case.on), "{}", case.what);
        assert_eq!(guest.get(PTE), pte, "{}: the entry is untouched", case.what);
        if case.on & 1 != 0 {
            assert_eq!(guest.state.cr2, GVA, "{}", case.what);
        }
    }
}

#[test]
fn without_it_the_reserved_bit_is_missed() {
    for case in CASES {
        let mut guest = guest("off");
        guest.set(PTE, BIT36 | DATA | case.pte);
        assert_eq!(error_seen(&mut guest, case.kind, case.user), case.off, "{}", case.what);
        assert_eq!(guest.host.mmio, case.off.is_none().then_some(ILLEGAL), "{}", case.what);
    }
}

/// The host's own reserved bits need no exit, whatever the switch.
#[test]
fn bits_beyond_the_host_fault_in_silicon() {
    for switch in ["on", "off"] {
        let mut guest = guest(switch);
        guest.set(PTE, 1 << 50 | DATA | 0x67);
        assert_eq!(guest.access(AccessKind::READ, false), Ended::Fault(0x9));
    }
}

/// An illegal address in an upper entry: the exit is on the table's address.
#[test]
fn an_illegal_table_address() {
    let mut guest = guest("on");
    guest.set(PD, BIT36 | PT | 0x67);
    assert_eq!(guest.access(AccessKind::READ, false), Ended::Exit(VmxReason::EPT_VIOLATION, 0x83));
    guest.handle();
    assert_eq!(guest.injected(), Some(0x9));
}

/// #PF is intercepted only where a guest is narrower than its host.
#[test]
fn interception_follows_the_widths() {
    let page_faults = |guest: &Guest| guest.state.intercepts.exceptions >> 14 & 1;
    assert_eq!(page_faults(&guest("on")), 1);
    assert_eq!(page_faults(&guest("off")), 0);
    assert_eq!(page_faults(&Guest::new(silicon(46), 46, &[("allow_smaller_maxphyaddr", "on")])), 0);
}

#[test]
fn the_capability_follows_the_switch() {
    const SMALLER_MAXPHYADDR: u32 = 185;
    let check = |options: &[(&str, &str)]| {
        Guest::new(silicon(46), 46, options).vm.check_extension(SMALLER_MAXPHYADDR)
    };
    assert_eq!(check(&[("allow_smaller_maxphyaddr", "on")]), 1);
    assert_eq!(check(&[]), 0);
    assert_eq!(check(&[("ept", "off")]), 1);
}

/// Guest physical addresses that 4-level EPT cannot map: the guest has 52 bits, its host 52 and 4 levels.
mod unmappable {
    use super::*;
    use crate::testing::MEMORY;
    use vmtape_abi::{Errno, MemoryRegion};
    use vmtape_arch::exit::Resume;

    const BIT48: u64 = 1 << 48;

    fn wide(maxphyaddr: u8, ept_levels: u8, switch: &str) -> Guest {
        let silicon = vmtape_arch::host::Silicon { ept_levels, ..silicon(52) };
        let mut guest = Guest::new(silicon, maxphyaddr, &[("allow_smaller_maxphyaddr", switch)]);
        guest.populate();
        guest.set(PTE, BIT48 | DATA | 0x67);
        guest
    }

    #[test]
    fn without_a_slot_the_access_is_mmio() {
        let mut guest = wide(52, 4, "off");
        let violation = Ended::Exit(VmxReason::EPT_VIOLATION, 0x181);
        assert_eq!(guest.access(AccessKind::READ, false), violation);
        guest.handle();
        assert_eq!(guest.host.mmio, Some(BIT48 | DATA | 0x123));
    }

    /// KVM maps, silicon does not look: the same violation for ever.
    #[test]
    fn with_a_slot_there_is_no_progress() {
        let mut guest = wide(52, 4, "off");
        let region = MemoryRegion { slot: 1, flags: 0, gpa: BIT48, size: MEMORY, hpa: 0 };
        guest.vm.set_memory_region(&region, &mut guest.host).unwrap();
        for _ in 0..3 {
            assert_eq!(guest.access(AccessKind::READ, false), Ended::Exit(VmxReason::EPT_VIOLATION, 0x181));
            assert_eq!(guest.handle(), Resume::GUEST);
            assert_eq!(guest.host.mmio, None);
        }
    }

    /// Five levels are used only for guests that need them; a narrower one meets the limit of four.
    #[test]
    fn the_depth_follows_the_guest() {
        assert_eq!(wide(52, 5, "off").vm.shared.mmu.tdp_level(0), 5);
        assert_eq!(wide(52, 4, "off").vm.shared.mmu.tdp_level(0), 4);
        let mut narrow = wide(48, 5, "on");
        assert_eq!(narrow.vm.shared.mmu.tdp_level(0), 4);
        assert_eq!(error_seen(&mut narrow, AccessKind::READ, false), Some(0x9));
        let mut off = wide(48, 5, "off");
        assert_eq!(error_seen(&mut off, AccessKind::READ, false), None);
        assert_eq!(off.host.mmio, Some(BIT48 | DATA | 0x123));
    }

    #[test]
    fn slots_end_at_the_host_s_width() {
        let mut guest = Guest::new(silicon(46), 46, &[]);
        let region = MemoryRegion { slot: 1, flags: 0, gpa: 1 << 46, size: MEMORY, hpa: 0 };
        assert_eq!(guest.vm.set_memory_region(&region, &mut guest.host), Err(Errno::EINVAL));
    }
}

/// KVM_SET_CPUID2 after KVM_RUN: only the same table.
#[test]
fn cpuid_is_fixed_once_the_guest_ran() {
    let mut guest = guest("off");
    let mut state: VcpuState = guest.state;
    let same = guest.vm.get_cpuid(0);
    assert!(guest.vm.set_cpuid(0, &mut state, &same, &mut guest.host).is_ok());
    let other = crate::testing::cpuid(40);
    assert_eq!(guest.vm.set_cpuid(0, &mut state, &other, &mut guest.host), Err(vmtape_abi::Errno::EINVAL));
}

/// A saved VM goes on byte for byte.
#[test]
fn save_and_restore() {
    let mut first = guest("on");
    let saved = first.vm.save();
    let mut second = Guest::new(silicon(46), 36, &[("allow_smaller_maxphyaddr", "on")]);
    second.vm.restore(&saved).unwrap();
    assert_eq!(second.vm.save(), saved);
    assert_eq!(second.access(AccessKind::WRITE, false), first.access(AccessKind::WRITE, false));
    assert!(second.vm.restore(&saved[..saved.len() / 2]).is_err());
}
