//! A guest of 36 bits on a host of 46: each access with `allow_smaller_maxphyaddr` and without.
//!
//! See: kvm-unit-tests x86/access.c; selftests smaller_maxphyaddr_emulation_test; KVM vmx/vmx.c, mmu/paging_tmpl.h

use super::{ASM, BIT36, FETCH, ILLEGAL, NO_ASM, Outcome, READ, WRITE, guest, outcome};
use crate::testing::{DATA, Ended, GVA, Guest, PDE, PT, PTE, silicon};
use vmtape_abi::{Backend, MemoryRegion};
use vmtape_arch::{
    access::AccessKind,
    exception::Vector,
    exit::{Resume, ResumeKind, VmxReason},
    regs::{Cr0, Efer},
};
use vmtape_testing::FLDS;

const NX: u64 = 1 << 63;
/// KVM_INTERNAL_ERROR_EMULATION.
const EMULATION: u64 = 1;

const fn violation(qualification: u64) -> Option<Ended> {
    Some(Ended::Exit(VmxReason::EPT_VIOLATION, qualification))
}

/// #PF with this error code is intercepted; the qualification is its linear address.
const INTERCEPTED: Option<Ended> = Some(Ended::Exit(VmxReason::EXCEPTION_NMI, GVA));

const fn pf(code: u32) -> Outcome {
    Outcome::PageFault(code, GVA)
}

struct Row {
    what: &'static str,
    pde: u64,
    pte: u64,
    access: (AccessKind, bool),
    /// The first exit and the result, with the switch and without.
    with: (Option<Ended>, Outcome),
    without: (Option<Ended>, Outcome),
}

const TABLE: u64 = PT | 0x67;
const SUPERVISOR: bool = false;
const USER: bool = true;

const ROWS: &[Row] = &[
    Row {
        what: "supervisor read",
        pde: TABLE,
        pte: ILLEGAL | 0x1,
        access: (READ, SUPERVISOR),
        with: (violation(0x181), pf(0x9)),
        without: (violation(0x181), Outcome::Mmio(ILLEGAL)),
    },
    Row {
        what: "supervisor write, read-only page, CR0.WP",
        pde: TABLE,
        pte: ILLEGAL | 0x1,
        access: (WRITE, SUPERVISOR),
        with: (INTERCEPTED, pf(0xb)),
        without: (None, pf(0x3)),
    },
    Row {
        what: "user read of a supervisor's page",
        pde: TABLE,
        pte: ILLEGAL | 0x1,
        access: (READ, USER),
        with: (INTERCEPTED, pf(0xd)),
        without: (None, pf(0x5)),
    },
    Row {
        what: "user write",
        pde: TABLE,
        pte: ILLEGAL | 0x7,
        access: (WRITE, USER),
        with: (violation(0x182), pf(0xf)),
        without: (violation(0x182), Outcome::Mmio(ILLEGAL)),
    },
    Row {
        what: "fetch from a page without execution",
        pde: TABLE,
        pte: NX | ILLEGAL | 0x1,
        access: (FETCH, SUPERVISOR),
        with: (INTERCEPTED, pf(0x19)),
        without: (None, pf(0x11)),
    },
    // Even without the switch: to emulate what it takes for MMIO, KVM fetches the instruction by a walk of its own.
    Row {
        what: "fetch",
        pde: TABLE,
        pte: ILLEGAL | 0x1,
        access: (FETCH, SUPERVISOR),
        with: (violation(0x184), pf(0x19)),
        without: (violation(0x184), pf(0x19)),
    },
    Row {
        what: "bit 51, beyond the host's width",
        pde: TABLE,
        pte: 1 << 51 | DATA | 0x67,
        access: (READ, SUPERVISOR),
        with: (None, pf(0x9)),
        without: (None, pf(0x9)),
    },
    Row {
        what: "not present",
        pde: TABLE,
        pte: ILLEGAL,
        access: (READ, SUPERVISOR),
        with: (None, pf(0x0)),
        without: (None, pf(0x0)),
    },
    Row {
        what: "illegal address of a table, operand at the same offset as the entry",
        pde: BIT36 | PT | 0x1,
        pte: DATA | 0x67,
        access: (READ, SUPERVISOR),
        with: (violation(0x83), pf(0x9)),
        without: (violation(0x83), Outcome::Mmio(BIT36 | PT)),
    },
    Row {
        what: "2 MiB page with bit 13, reserved by the architecture",
        pde: DATA | 1 << 13 | 0x81,
        pte: 0,
        access: (READ, SUPERVISOR),
        with: (None, pf(0x9)),
        without: (None, pf(0x9)),
    },
];

fn check(row: &Row, options: &[(&str, &str)], expected: (Option<Ended>, Outcome)) {
    check_on(guest(options), row, &format!("{} {options:?}", row.what), expected);
}

fn check_on(mut guest: Guest, row: &Row, what: &str, (exit, result): (Option<Ended>, Outcome)) {
    guest.set(PDE, row.pde);
    guest.set(PTE, row.pte);
    let (kind, user) = row.access;
    let (ended, exits) = outcome(&mut guest, kind, user);
    assert_eq!(exits.first().copied(), exit, "{what}");
    assert_eq!(ended, result, "{what}");
    assert!(exits.len() <= 1, "{what}: {exits:x?}");
    assert_eq!(guest.get(PTE), row.pte, "{what}: the leaf is untouched");
}

#[test]
fn with_the_switch_every_fault_is_exact() {
    ROWS.iter().for_each(|row| check(row, ASM, row.with));
}

#[test]
fn without_it_the_reserved_bit_is_missed() {
    ROWS.iter().for_each(|row| check(row, NO_ASM, row.without));
}

/// Without EPT KVM walks for every fault, and does so with the guest's width: exact, whatever the parameter says.
#[test]
fn shadow_paging_is_exact() {
    for row in ROWS {
        for parameter in ["on", "off"] {
            let options = [("ept", "off"), ("allow_smaller_maxphyaddr", parameter)];
            let guest = Guest::new(silicon(46), 36, &options);
            check_on(guest, row, &format!("{} {options:?}", row.what), (INTERCEPTED, row.with.1));
        }
    }
}

/// access.c, `pte.p pte.36 pde.p`: the case that fails on AMD with nested paging, step by step.
#[test]
fn the_case_that_nested_paging_fails() {
    for (options, expected) in [(ASM, pf(0x9)), (NO_ASM, Outcome::Mmio(0x10_0200_0000))] {
        let mut guest = guest(options);
        guest.state.cr0 = Cr0::from_bits(guest.state.cr0).with_wp(false).into_bits();
        guest.state.efer = Efer::from_bits(guest.state.efer).with_nxe(false).into_bits();
        guest.set(PDE, PT | 1);
        guest.set(PTE, 0x10_0200_0001);
        assert_eq!(guest.access(READ, false), violation(0x181).unwrap());
        // No bit of the advanced information either: neither user nor writable nor NX.
        assert_eq!((guest.exit.gpa, guest.exit.info1), (0x10_0200_0000, 0x181));
        assert_eq!(outcome(&mut guest, READ, false).0, expected);
        assert_eq!(guest.get(PTE), 0x10_0200_0001);
    }
}

/// What the interception of #PF reports. See: SDM vol. 3C 25.9.2 Information for VM Exits Due to Vectored Events
#[test]
fn an_intercepted_page_fault() {
    let mut guest = guest(ASM);
    guest.set(PTE, ILLEGAL | 1);
    guest.access(WRITE, false);
    let exit = guest.exit;
    assert_eq!((exit.intr_info, exit.error_code, exit.info1), (0x8000_0b0e, 0x3, GVA));
    let controls = &guest.vm.vcpus[0].controls;
    assert_eq!((controls.pfec_mask, controls.pfec_match), (9, 1));
}

/// Without accessed and dirty bits in EPT entries a table is read, not written.
#[test]
fn an_illegal_table_without_ept_accessed_bits() {
    for (switch, expected) in [("on", pf(0x9)), ("off", Outcome::Mmio(BIT36 | PT))] {
        let mut guest = guest(&[("allow_smaller_maxphyaddr", switch), ("eptad", "off")]);
        guest.set(PDE, BIT36 | PT | 0x1);
        let (ended, exits) = outcome(&mut guest, READ, false);
        assert_eq!((ended, exits[0]), (expected, violation(0x81).unwrap()));
    }
}

/// The emulator takes the exit's address for the operand's only where the page offsets agree; otherwise it walks, and finds
/// the reserved bit. See: KVM x86.c emulator_read_write_onepage()
#[test]
fn the_page_offset_decides_what_is_emulated() {
    let mut guest = guest(NO_ASM);
    guest.gva = GVA | 0x8;
    guest.set(PDE, BIT36 | PT | 0x1);
    let (ended, exits) = outcome(&mut guest, READ, false);
    assert_eq!(exits, [violation(0x83).unwrap()]);
    assert_eq!(ended, Outcome::PageFault(0x9, GVA | 0x8));
}

/// Memory that a VMM put above the guest's width: reached where nobody looks at the width.
#[test]
fn memory_beyond_the_guest_s_width() {
    for (options, expected, pte) in [(ASM, pf(0x9), ILLEGAL | 1), (NO_ASM, Outcome::Done, ILLEGAL | 0x21)] {
        let mut guest = guest(options);
        let region = MemoryRegion { slot: 1, flags: 0, gpa: BIT36, size: 1 << 26, hpa: 0 };
        guest.vm.set_memory_region(&region, &mut guest.host).unwrap();
        guest.populate();
        guest.set(PTE, ILLEGAL | 1);
        let (ended, exits) = outcome(&mut guest, READ, false);
        assert_eq!((ended, exits), (expected, vec![violation(0x181).unwrap()]));
        assert_eq!(guest.get(PTE), pte);
    }
}

/// FLDS, which KVM's emulator lacks: userspace hears of it either way. See: selftests smaller_maxphyaddr_emulation_test
#[test]
fn an_instruction_that_cannot_be_emulated() {
    for options in [ASM, NO_ASM] {
        let mut guest = guest(options);
        guest.host.insn = FLDS;
        guest.set(PTE, ILLEGAL | 0x67);
        let (Outcome::Userspace(resume), exits) = outcome(&mut guest, READ, false) else { panic!("no exit") };
        assert_eq!(exits, [violation(0x181).unwrap()]);
        assert_eq!(resume.kind, ResumeKind::INTERNAL_ERROR);
        // Of eight words the flag for instruction bytes, their number, the bytes themselves and NOPs behind them, and the exit's
        // reason. See: KVM x86.c prepare_emulation_failure_exit()
        let bytes = u64::from_le_bytes([2, FLDS[0], FLDS[1], 0x90, 0x90, 0x90, 0x90, 0x90]);
        assert_eq!(
            resume.data,
            [EMULATION, 8, 1, bytes, 0x9090_9090_9090_9090, VmxReason::EPT_VIOLATION.0.into()]
        );
    }
}

/// ... unless it is a user's, who takes #UD without anyone hearing of it. See: KVM x86.c handle_emulation_failure()
#[test]
fn a_user_s_instruction_that_cannot_be_emulated() {
    for options in [ASM, NO_ASM] {
        let mut guest = guest(options);
        guest.state.cpl = 3;
        guest.host.insn = FLDS;
        guest.set(PTE, ILLEGAL | 0x67);
        assert_eq!(guest.access(READ, true), violation(0x181).unwrap());
        assert_eq!(guest.handle(), Resume::GUEST);
        let event = guest.state.inject;
        assert_eq!((event.valid.is_set(), event.vector), (true, Vector::UD.0));
    }
}

/// Equal widths need no help: neither interception nor exits.
#[test]
fn equal_widths() {
    for options in [ASM, NO_ASM] {
        let mut guest = Guest::new(silicon(46), 46, options);
        guest.populate();
        assert_eq!(guest.state.intercepts.exceptions >> 14 & 1, 0);
        guest.set(PTE, 1 << 46 | DATA | 0x1);
        assert_eq!(outcome(&mut guest, WRITE, false), (pf(0x9 | 2), vec![]));
    }
    assert_eq!(guest(ASM).state.intercepts.exceptions >> 14 & 1, 1);
    assert_eq!(guest(NO_ASM).state.intercepts.exceptions >> 14 & 1, 0);
}

#[test]
fn the_capability_follows_the_switch() {
    const SMALLER_MAXPHYADDR: u32 = 185;
    let check = |options: &[(&str, &str)]| {
        Guest::new(silicon(46), 46, options).vm.check_extension(SMALLER_MAXPHYADDR)
    };
    assert_eq!(check(ASM), 1);
    assert_eq!(check(NO_ASM), 0);
    assert_eq!(check(&[]), 0);
    assert_eq!(check(&[("ept", "off")]), 1);
}

/// Once a page is mapped, nothing exits and nobody looks again: what a change of the guest's width cannot undo.
#[test]
fn a_mapped_page_is_not_looked_at_again() {
    let mut guest = Guest::new(silicon(46), 46, ASM);
    let region = MemoryRegion { slot: 1, flags: 0, gpa: 1 << 40, size: 1 << 26, hpa: 0 };
    guest.vm.set_memory_region(&region, &mut guest.host).unwrap();
    guest.set(PTE, 1 << 40 | DATA | 0x67);
    guest.populate();
    guest.vm.vcpus[0].core.last_vmentry_cpu = vmtape_kvm_core::vcpu::NEVER;
    let Guest { vm, state, host, .. } = &mut guest;
    vm.set_cpuid(0, state, &crate::testing::cpuid(36), host).unwrap();
    vm.enter(0, state, host);
    assert_eq!(outcome(&mut guest, READ, false), (Outcome::Done, vec![]));
}
