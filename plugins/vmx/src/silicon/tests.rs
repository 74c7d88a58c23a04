//! What silicon is known to report: assertions of kvm-unit-tests and of the kernel's selftests, and what the recordings
//! of kvm_intel show.

use super::controls::{Controls, cr0_guest_owned, cr4_guest_owned};
use crate::testing::{DATA, Ended, GVA, Guest, PT, PTE, silicon};
use vmtape_arch::{
    access::AccessKind,
    exception::Vector,
    exit::VmxReason,
    regs::{Cr0, Cr4},
};

const READ: AccessKind = AccessKind::READ;
const WRITE: AccessKind = AccessKind::WRITE;
const FETCH: AccessKind = AccessKind::FETCH;
/// EPT rights.
const NONE: u64 = 0;
const R: u64 = 1;
const RW: u64 = 3;
const RX: u64 = 5;

fn guest(eptad: &str) -> Guest {
    let mut guest = Guest::new(silicon(46), 46, &[("eptad", eptad)]);
    guest.populate();
    guest
}

fn violation(qualification: u64) -> Ended {
    Ended::Exit(VmxReason::EPT_VIOLATION, qualification)
}

fn with_rights(gpa: u64, rights: u64, eptad: &str) -> Guest {
    let mut guest = guest(eptad);
    guest.edit_ept(gpa, |entry| entry & !7 | rights);
    guest
}

/// kvm-unit-tests x86/vmx_tests.c ept_access_test_*; selftests nested_tdp_fault_test.
#[test]
fn violations_of_the_final_address() {
    for (kind, rights, qualification) in [
        (READ, NONE, 0x181),
        (WRITE, NONE, 0x182),
        (FETCH, NONE, 0x184),
        (WRITE, R, 0x18a),
        (FETCH, R, 0x18c),
        (FETCH, RW, 0x19c),
        (WRITE, RX, 0x1aa),
    ] {
        let mut guest = with_rights(DATA, rights, "on");
        guest.gva = GVA | 0x123;
        assert_eq!(guest.access(kind, false), violation(qualification), "{kind} with rights {rights:#x}");
        assert_eq!(guest.exit.gpa, DATA | 0x123);
    }
}

/// kvm-unit-tests ept_access_test_paddr_*.
#[test]
fn violations_of_a_page_table() {
    for (eptad, rights, pte, kind, ended) in [
        ("on", NONE, 0x67, READ, violation(0x83)),
        ("off", NONE, 0x67, READ, violation(0x81)),
        ("off", R, 0x47, READ, violation(0x8b)),
        ("off", R, 0x67, READ, Ended::Mapped),
        ("off", R, 0x27, WRITE, violation(0x8b)),
        ("on", R, 0x67, READ, violation(0x8b)),
        ("on", RX, 0x67, READ, violation(0xab)),
    ] {
        let mut guest = with_rights(PT, rights, eptad);
        guest.set(PTE, DATA | pte);
        assert_eq!(guest.access(kind, false), ended, "eptad {eptad}, rights {rights:#x}, pte {pte:#x}");
    }
}

/// Advanced exit information: bits 11:9 describe the linear page.
#[test]
fn advanced_information() {
    let mut guest = with_rights(DATA, NONE, "on");
    for (pte, bits) in
        [(DATA | 0x67, 0x600), (DATA | 0x63, 0x400), (DATA | 0x65, 0x200), (1 << 63 | DATA | 0x67, 0xe00)]
    {
        guest.set(PTE, pte);
        guest.access(READ, false);
        assert_eq!(guest.exit.info1, 0x181 | bits, "pte {pte:#x}");
    }
}

/// SDM vol. 3C 29.3.3.1 EPT Misconfigurations.
#[test]
fn misconfigurations() {
    let misconfigured = Ended::Exit(VmxReason::EPT_MISCONFIG, 0);
    for (what, edit) in [
        ("write-only", (|e| e & !7 | 2) as fn(u64) -> u64),
        ("write and execute", |e| e & !7 | 6),
        ("memory type 2", |e| e & !0x38 | 2 << 3),
        ("memory type 7", |e| e | 7 << 3),
        ("beyond MAXPHYADDR", |e| e | 1 << 46),
    ] {
        let mut guest = guest("on");
        guest.edit_ept(DATA, edit);
        assert_eq!(guest.access(READ, false), misconfigured, "{what}");
        // The same bit in an entry that is not present is a violation.
        guest.edit_ept(DATA, |entry| entry & !7);
        assert_eq!(guest.access(READ, false), violation(0x181), "{what}, not present");
    }
}

/// A guest #PF wins over the final page's violation, an EPT fault on a table over what the entry would have said, and
/// neither leaves an accessed bit behind.
#[test]
fn priorities() {
    let mut guest = with_rights(DATA, NONE, "on");
    guest.set(PTE, DATA | 0x21);
    assert_eq!(guest.access(READ, true), Ended::Fault(5));
    guest.set(PTE, DATA | 0x01);
    assert_eq!(guest.access(READ, false), violation(0x181));
    assert_eq!(guest.get(PTE), DATA | 0x01);
    guest.edit_ept(PT, |entry| entry & !7);
    guest.set(PTE, 0);
    assert_eq!(guest.access(READ, false), violation(0x83));
}

/// Address bits 51:48 under 4-level EPT always violate, with bits 6:3 clear; switched off, they are ignored.
#[test]
fn wide_addresses_under_4_level_ept() {
    let wide = |options: &[(&str, &str)]| {
        let mut guest = Guest::new(silicon(52), 52, options);
        guest.populate();
        guest.set(PTE, 1 << 48 | DATA | 0x67);
        guest.access(READ, false)
    };
    assert_eq!(wide(&[]), violation(0x181));
    assert_eq!(wide(&[("ept4-wide-gpa-violation", "off")]), Ended::Mapped);
}

/// What the recordings show: MOV to CR4 exits where PAE is set, not where zero is written over zero.
#[test]
fn control_register_masks() {
    let controls = Controls {
        cr0_mask: !cr0_guest_owned(true),
        cr4_mask: !cr4_guest_owned(true, 0),
        ..Default::default()
    };
    let (cr0, cr4) = (Cr0::new(), Cr4::new());
    assert!(!controls.cr_write_exits(4, 0, 0));
    assert!(controls.cr_write_exits(4, 0, cr4.with_pae(true).into_bits()));
    assert!(!controls.cr_write_exits(4, 0, cr4.with_pge(true).with_osfxsr(true).into_bits()));
    assert!(!controls.cr_write_exits(0, 0, cr0.with_ts(true).with_wp(true).into_bits()));
    assert!(controls.cr_write_exits(0, 0, cr0.with_pg(true).into_bits()));
    assert!(!controls.cr_write_exits(3, 0, 0x1000));
    let shadow =
        Controls { cr0_mask: !cr0_guest_owned(false), cr4_mask: !cr4_guest_owned(false, 0), ..controls };
    assert!(shadow.cr_write_exits(0, 0, cr0.with_wp(true).into_bits()));
    assert!(shadow.cr_write_exits(4, 0, cr4.with_pge(true).into_bits()));
}

/// SDM vol. 3C 26.2: #PF exits iff the exception bitmap's bit equals whether mask and match agree.
#[test]
fn page_fault_error_code_mask_and_match() {
    let pf = 1 << Vector::PF.0;
    let smaller = Controls { exceptions: pf, pfec_mask: 9, pfec_match: 1, ..Default::default() };
    assert!(smaller.exception_exits(Vector::PF, 0b0101));
    assert!(!smaller.exception_exits(Vector::PF, 0b1001), "RSVD is already right");
    assert!(!smaller.exception_exits(Vector::PF, 0b0100), "not present is already right");
    let inverted = Controls { exceptions: 0, ..smaller };
    assert!(!inverted.exception_exits(Vector::PF, 0b0101));
    assert!(inverted.exception_exits(Vector::PF, 0b1001));
}
