//! A guest narrower than its host, access by access, in both forms.
//!
//! The codes under shadow paging are those that kvm-unit-tests expects of a CPU with the guest's width
//! (x86/access.c ac_emulate_access()); under nested paging they follow from silicon that walks with its own.

use super::bench::*;
use crate::create;
use vmtape_abi::{Backend, VmConfig};
use vmtape_arch::{
    access::AccessKind,
    exit::SvmExitCode,
    host::{Silicon, Vendor},
};
use vmtape_testing::FLDS;

const NPF_FINAL: u64 = 1 << 32;
const NPF_TABLE: u64 = 1 << 33;

/// One access of a guest that is told 36 bits, on a host with 46.
struct Row {
    pde: u64,
    pte: u64,
    wp: bool,
    nxe: bool,
    kind: AccessKind,
    user: bool,
    /// Under shadow paging: the error code.
    shadow: u32,
    /// Under nested paging: how it ends, EXITINFO1 of the last exit unless that was about mapping the tables, and what
    /// silicon set in the leaf.
    nested: End,
    npf: Option<u64>,
    set: u64,
}

const ILLEGAL: u64 = DATA | BIT36;

fn rows() -> Vec<Row> {
    let row = Row {
        pde: pde(7),
        pte: ILLEGAL | 1,
        wp: false,
        nxe: false,
        kind: READ,
        user: false,
        shadow: 0,
        nested: End::Fault(0),
        npf: None,
        set: 0,
    };
    vec![
        // A supervisor read. The directory entry need not be writable.
        Row {
            pde: pde(1),
            shadow: 0x9,
            nested: End::Mmio(ILLEGAL),
            npf: Some(NPF_FINAL | 0x4),
            set: ACCESSED,
            ..row
        },
        // Permission faults: silicon sees them first, and does not know that the bit is reserved.
        Row { wp: true, kind: WRITE, shadow: 0xb, nested: End::Fault(0x3), ..row },
        Row { user: true, shadow: 0xd, nested: End::Fault(0x5), ..row },
        Row { pte: ILLEGAL | 1 | NX, nxe: true, kind: FETCH, shadow: 0x19, nested: End::Fault(0x11), ..row },
        // A user's write.
        Row {
            pte: ILLEGAL | 7,
            kind: WRITE,
            user: true,
            shadow: 0xf,
            nested: End::Mmio(ILLEGAL),
            npf: Some(NPF_FINAL | 0x6),
            set: ACCESSED | DIRTY,
            ..row
        },
        // A fetch: what KVM emulates it first has to fetch, which walks the guest's tables by its width and finds the bit.
        // See: KVM x86.c kvm_fetch_guest_virt()
        Row {
            pte: ILLEGAL | 7,
            nxe: true,
            kind: FETCH,
            shadow: 0x19,
            nested: End::Fault(0x19),
            npf: Some(NPF_FINAL | 0x14),
            set: ACCESSED,
            ..row
        },
        // Beyond the host's width too: no exit but those that map the tables.
        Row { pte: DATA | 7 | 1 << 51, shadow: 0x9, nested: End::Fault(0x9), ..row },
        // Not present hides everything else.
        Row { pte: ILLEGAL | 6, ..row },
        // In an entry that points to a table. The access has the page offset of the table's entry: it becomes MMIO there.
        Row {
            pde: pde(7) | BIT36,
            pte: DATA | 7,
            shadow: 0x9,
            nested: End::Mmio(BIT36 | TABLES[3]),
            npf: Some(NPF_TABLE | 0x6),
            ..row
        },
        // Reserved by the format of a 2 MiB entry, whoever walks.
        Row { pde: DATA | 0x83 | 1 << 13, pte: DATA | 7, shadow: 0x9, nested: End::Fault(0x9), ..row },
    ]
}

impl Row {
    fn build(&self, npt: bool) -> Bench {
        let mut bench = Setup { npt, pde: self.pde, pte: self.pte, ..Default::default() }.build();
        let state = bench.state();
        state.cr0 = state.cr0().with_wp(self.wp).into_bits();
        state.efer = state.efer().with_nxe(self.nxe).into_bits();
        bench
    }

    fn text(&self) -> String {
        format!("pde {:#x} pte {:#x} {} user={}", self.pde, self.pte, self.kind, self.user)
    }
}

#[test]
fn shadow_paging_is_exact_about_the_guests_width() {
    for row in rows() {
        let mut bench = row.build(false);
        let (end, exits) = bench.run(row.kind, row.user);
        assert_eq!(end, End::Fault(row.shadow), "{}", row.text());
        assert_eq!(bench.pte(), row.pte, "a fault leaves the leaf alone: {}", row.text());
        assert_eq!(exits.len(), 1);
        assert_eq!(exits[0].reason, SvmExitCode::EXCP_PF.0);
        assert_eq!((exits[0].info1 & 1, exits[0].info2), (0, GVA), "the shadow table had nothing there");
    }
}

#[test]
fn under_nested_paging_the_hosts_width_decides() {
    for row in rows() {
        let mut bench = row.build(true);
        let (end, exits) = bench.run(row.kind, row.user);
        assert_eq!(end, row.nested, "{}", row.text());
        assert_eq!(bench.pte(), row.pte | row.set, "{}", row.text());
        let maps_a_table = |info1: u64, gpa: u64| info1 == NPF_TABLE | 0x6 && gpa < RAM;
        let last = exits.iter().rfind(|exit| !maps_a_table(exit.info1, exit.info2));
        assert_eq!(last.map(|exit| exit.info1), row.npf, "{}", row.text());
        assert!(exits.iter().all(|exit| exit.reason == SvmExitCode::NPF.0), "no page fault is intercepted");
    }
}

#[test]
fn the_directory_entry_is_marked_by_silicon_even_where_the_access_fails() {
    for (npt, marked) in [(true, ACCESSED), (false, 0)] {
        let mut bench = Setup { npt, pde: pde(1), pte: ILLEGAL | 1, ..Default::default() }.build();
        bench.run(READ, false);
        assert_eq!(bench.entry(2), pde(1) | marked, "npt={npt}");
    }
}

#[test]
fn a_table_beyond_the_guests_width_is_walked_again_for_another_offset() {
    // The exit's address serves for operands with its page offset alone. See: KVM x86.c emulator_read_write_onepage()
    let setup = Setup { pde: pde(7) | BIT36, ..Default::default() };
    let (end, exits) = setup.build().run_at(0, GVA + 0x10, READ, false);
    assert_eq!(end, End::Fault(0x9));
    assert_eq!(exits.last().unwrap().info2, BIT36 | TABLES[3]);
}

#[test]
fn ram_beyond_the_guests_width_works_silently_under_nested_paging() {
    for (npt, expected, set) in [(true, End::Mapped(RAM), ACCESSED), (false, End::Fault(0x9), 0)] {
        let mut bench = Setup { npt, pte: BIT36 | 7, ..Default::default() }.build();
        bench.add_slot(1, BIT36, SECOND_RAM, RAM).unwrap();
        bench.enter(0);
        assert_eq!(bench.run(READ, false).0, expected, "npt={npt}");
        assert_eq!(bench.pte(), BIT36 | 7 | set, "npt={npt}");
    }
}

#[test]
fn an_instruction_that_the_emulator_lacks_fails_only_where_it_is_emulated() {
    // As selftests/kvm/x86/smaller_maxphyaddr_emulation_test.c has it, which loads with FLDS.
    const EMULATION: u64 = 1;
    for (npt, expected) in [(true, End::InternalError(EMULATION)), (false, End::Fault(0x9))] {
        let mut bench = Setup { npt, pte: ILLEGAL | 7, ..Default::default() }.build();
        bench.host.insn = FLDS;
        assert_eq!(bench.run(READ, false).0, expected, "npt={npt}");
    }
}

#[test]
fn mmio_is_remembered_where_an_entry_has_a_reserved_bit_left() {
    // See: KVM mmu/spte.c kvm_mmu_reset_all_pte_masks(), svm/svm.c svm_adjust_mmio_mask()
    const MMIO: u64 = 0x3000_0000;
    const PRESENT_RSVD: u64 = 0x9;
    for (host_width, encryption_bits, remembered) in [(48, 0, true), (52, 0, false), (52, 6, true)] {
        for npt in [false, true] {
            let setup = Setup { npt, host_width, encryption_bits, pte: MMIO | 7, ..Default::default() };
            let mut bench = setup.build();
            assert_eq!(bench.run(READ, false).0, End::Mmio(MMIO));
            let (end, exits) = bench.run(READ, false);
            assert_eq!((end, exits.len()), (End::Mmio(MMIO), 1));
            let again = exits[0].info1 & PRESENT_RSVD == PRESENT_RSVD;
            assert_eq!(again, remembered, "{host_width} bits less {encryption_bits}, npt={npt}");
        }
    }
}

#[test]
fn equal_widths_agree_in_both_forms() {
    for npt in [false, true] {
        let mut bench = Setup { npt, guest_width: 46, ..Default::default() }.build();
        assert_eq!(bench.intercepts_page_faults(), !npt);
        assert_eq!(bench.run(WRITE, true).0, End::Mapped(DATA));
        assert_eq!(bench.pte(), DATA | 0x67, "npt={npt}");
    }
}

#[test]
fn shadow_paging_sees_the_first_write_to_a_clean_page() {
    let mut bench = Setup { npt: false, guest_width: 46, ..Default::default() }.build();
    assert_eq!(bench.run(READ, false).0, End::Mapped(DATA));
    assert_eq!(bench.pte(), DATA | 0x27);
    let (end, exits) = bench.run(WRITE, false);
    assert_eq!(end, End::Mapped(DATA));
    assert_eq!(exits.iter().map(|exit| exit.info1).collect::<Vec<_>>(), [3], "present, but not writable yet");
    assert_eq!(bench.pte(), DATA | 0x67);
}

#[test]
fn capability_and_options() {
    let vm = |npt| Setup { npt, ..Default::default() }.build().vm;
    assert_eq!(vm(false).check_extension(185), 1);
    assert_eq!(vm(true).check_extension(185), 0);
    let silicon = silicon(46);
    let config = |npt: &str| VmConfig { silicon, options: vec![("npt".into(), npt.into())] };
    assert!(create(&config("off"), true).is_err());
    assert!(create(&config("off"), false).is_ok());
    let intel = VmConfig { silicon: Silicon { vendor: Vendor::INTEL, ..silicon }, options: Vec::new() };
    assert!(create(&intel, true).is_err());
}

#[test]
fn saved_state_restores_byte_for_byte() {
    for npt in [false, true] {
        let setup = Setup { npt, guest_width: 46, ..Default::default() };
        let mut bench = setup.build();
        bench.run(WRITE, true);
        let saved = bench.vm.save();
        let mut other = setup.build();
        other.vm.restore(&saved).unwrap();
        assert_eq!(other.vm.save(), saved);
        assert_eq!(other.run(READ, true).0, End::Mapped(DATA));
        assert!(other.vm.restore(&saved[..saved.len() / 2]).is_err());
    }
}
