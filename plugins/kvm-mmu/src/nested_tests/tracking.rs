//! L1 changes its nested tables between two runs of L2, and never flushes: what L2 finds is what the tables say now.

use super::*;
use crate::fault::RetPf;
use vmtape_abi::EmulatorMmu;

impl Bench {
    /// L1 stores eight bytes as silicon and KVM let it; how KVM came to it.
    pub(super) fn l1_store(&mut self, gpa: u64, value: u64) -> Option<Handled> {
        let l1 = self.l1;
        self.mmu.reload(0, &l1, &mut self.host);
        let access = WalkAccess { kind: WRITE, ..Default::default() };
        let mut handled = None;
        for _ in 0..8 {
            match self.mmu.tdp_access(0, &l1, gpa, &access, Caching::of(PAT_POWER_ON), &mut self.host).0 {
                GuestAccess::Mapped(mapping) => {
                    assert!(mapping.write.is_set());
                    assert!(self.host.write(mapping.hpa | gpa & 0xfff, &value.to_le_bytes()));
                    return handled;
                }
                GuestAccess::Nested(stop) => {
                    let code = FaultCode::from_bits(stop.npf_info().into_bits());
                    let found = self.mmu.page_fault(0, &l1, stop.gpa, code, &mut self.host);
                    handled = Some(found);
                    if matches!(found, Handled::Emulate | Handled::EmulateOrRetry) {
                        assert!(self.host.write(gpa, &value.to_le_bytes()));
                        self.mmu.emulator(0, None).wrote(gpa, 8, &mut self.host);
                        return handled;
                    }
                    assert_eq!(found, Handled::Resume);
                }
                GuestAccess::Fault(error) => panic!("L1 has no paging: {error:?}"),
            }
        }
        panic!("no end");
    }

    /// #VMEXIT, what L1 does then, and VMRUN.
    pub(super) fn in_l1<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
        let (l1, l2) = (self.l1, self.l2);
        self.mmu.leave_guest_mode(0, &l1, &mut self.host);
        let result = act(self);
        self.mmu.enter_npt(0, &l1, self.ncr3, &l2, &mut self.host);
        self.mmu.reload(0, &l2, &mut self.host);
        result
    }

    /// An access of L2 through silicon and KVM, until it succeeds or somebody has to hear of it.
    pub(super) fn l2_access(&mut self, gva: u64, access: &WalkAccess) -> Result<u64, Ended> {
        let l2 = self.l2;
        for _ in 0..64 {
            match self.mmu.tdp_access(0, &l2, gva, access, Caching::of(PAT_POWER_ON), &mut self.host).0 {
                GuestAccess::Mapped(mapping) => return Ok(mapping.hpa | gva & 0xfff),
                GuestAccess::Fault(error) => return Err(Ended::Fault(error)),
                GuestAccess::Nested(stop) => {
                    let code = FaultCode::from_bits(stop.npf_info().into_bits());
                    match self.mmu.page_fault(0, &l2, stop.gpa, code, &mut self.host) {
                        Handled::Resume => {}
                        Handled::InjectNested(fault) => return Err(Ended::Nested(fault)),
                        Handled::Emulate => return Err(Ended::Mmio),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        panic!("no end");
    }
}

/// How an access ends that has no mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Fault(PageFaultError),
    Nested(WalkFault),
    Mmio,
}

const OTHER: u64 = OFFSET + 0x9000;

#[test]
fn l1_changes_a_leaf_without_a_flush() {
    let mut bench = Bench::npt();
    let leaf = bench.nested_leaf(L2_PAGE);
    let new = bench.link(OTHER);
    bench.in_l1(|_| ());
    assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(OFFSET + L2_PAGE + 0x123));
    // Nothing tracks a table of the lowest level: L1 writes it after one fault that makes its shadow unsync.
    let how = bench.in_l1(|bench| bench.l1_store(leaf, new));
    assert_eq!(how, Some(Handled::Resume));
    assert!(bench.host.notes.iter().any(|note| matches!(note, Note::UnsyncPage { .. })));
    assert!(bench.host.notes.iter().any(|note| matches!(note, Note::SyncPage { .. })));
    assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(OTHER + 0x123));
    bench.in_l1(|bench| bench.l1_store(leaf, 0));
    let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &WalkAccess::default()) else { panic!() };
    assert_eq!(
        (fault.stage, fault.address, fault.error.into_bits()),
        (Stage::NESTED_FINAL, L2_PAGE | 0x123, 4)
    );
}

#[test]
fn l1_changes_an_upper_entry_and_kvm_emulates_it() {
    let mut bench = Bench::npt();
    bench.in_l1(|_| ());
    assert!(bench.l2_access(GVA, &WalkAccess::default()).is_ok());
    // Another table of the lowest level that maps the page elsewhere.
    let table = 0x8_4000;
    for page in [L2_DIRECTORY, L2_TABLE] {
        bench.put(table + 8 * (page >> 12), bench.link(OFFSET + page));
    }
    bench.put(table + 8 * (L2_PAGE >> 12), bench.link(OTHER));
    let (directory, entry) = (NESTED[2], bench.link(table));
    let how = bench.in_l1(|bench| bench.l1_store(directory, entry));
    assert_eq!(how, Some(Handled::EmulateOrRetry), "the table is tracked");
    assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(OTHER + 0x123));
}

/// A table of L1's that is no table any more takes the shadows below it along; where the role does not say that it is for L2, they stay.
#[test]
fn pages_below_a_zapped_one_go_too() {
    for (guest_mode_first, zapped) in [(true, 2), (false, 1)] {
        let mut bench = Bench::of(Format::X86 { width: 46 }, |config| {
            config.npt_rules.guest_mode_first = guest_mode_first
        });
        bench.in_l1(|_| ());
        assert!(bench.l2_access(GVA, &WalkAccess::default()).is_ok());
        bench.host.notes.clear();
        // A write that is no entry: the directory and the table below it.
        bench.mmu.track_write(0, NESTED[2] + 2, 2, &mut bench.host);
        let zaps = bench.host.notes.iter().filter(|note| matches!(note, Note::ZapPage { .. })).count();
        assert_eq!(zaps, zapped);
        bench.in_l1(|_| ());
        assert!(bench.l2_access(GVA, &WalkAccess::default()).is_ok());
    }
}

/// A large page of L1's with a table in it, that L1 maps for itself: split where the release splits, gone where it does not.
#[test]
fn a_large_page_that_holds_a_table() {
    for (splits, faults_again) in [(true, false), (false, true)] {
        let mut bench = Bench::of(Format::X86 { width: 46 }, |config| {
            (config.backing_shift, config.tdp_splits_on_fault) = (21, splits);
        });
        let other = 0x1f_0000;
        bench.in_l1(|bench| bench.l1_store(other, 1));
        assert!(bench.l2_access(GVA, &WalkAccess::default()).is_ok());
        let leaf = bench.nested_leaf(L2_PAGE);
        let link = bench.link(OTHER);
        assert_eq!(bench.in_l1(|bench| bench.l1_store(leaf, link)), Some(Handled::Resume));
        let l1 = bench.l1;
        let again = bench.in_l1(|bench| {
            bench.mmu.reload(0, &l1, &mut bench.host);
            let read = WalkAccess::default();
            matches!(
                bench.mmu.tdp_access(0, &l1, other, &read, Caching::of(PAT_POWER_ON), &mut bench.host).0,
                GuestAccess::Nested(_)
            )
        });
        assert_eq!(again, faults_again);
        assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(OTHER + 0x123));
    }
}

/// Without nested tables L2 uses L1's addresses, through a root of its own.
#[test]
fn l2_without_nested_tables_has_a_root_of_its_own() {
    for tdp_mmu in [true, false] {
        let mut bench = Bench::of(Format::X86 { width: 46 }, |config| config.tdp_mmu = tdp_mmu);
        let (l1, mut l2) = (bench.l1, bench.l2);
        bench.mmu.init(0, &l1);
        bench.mmu.reload(0, &l1, &mut bench.host);
        let of_l1 = bench.mmu.context(0).root.unwrap();
        l2.cr3 += OFFSET;
        bench.put32(OFFSET + L2_DIRECTORY + 4 * (GVA >> 22), (OFFSET + L2_TABLE) | LINK.into_bits());
        bench.l2 = l2;
        bench.mmu.enter_shared(0, &l2, &mut bench.host);
        bench.mmu.reload(0, &l2, &mut bench.host);
        let of_l2 = bench.mmu.context(0).root.unwrap();
        assert_ne!(of_l1.hpa, of_l2.hpa);
        assert!(bench.mmu.context(0).root_role.guest_mode());
        assert!(!bench.mmu.vcpu(0).is_nested() && bench.mmu.vcpu(0).level() == Level::L2);
        assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(L2_PAGE + 0x123));
        bench.mmu.leave_guest_mode(0, &l1, &mut bench.host);
        bench.mmu.reload(0, &l1, &mut bench.host);
        assert_eq!(bench.mmu.context(0).root.unwrap().hpa, of_l1.hpa);
    }
}

/// Large pages of L1's nested table; and one whose reserved bits are set.
#[test]
fn large_pages_of_l1s_nested_table() {
    let large = LINK.with_ps(true).into_bits();
    for (entry, at) in [(NESTED[2], large), (NESTED[1], large)] {
        let mut bench = Bench::npt();
        let (l2_directory, l2_leaf) = (L2_DIRECTORY + 4 * (GVA >> 22), L2_TABLE + 4 * (GVA >> 12 & 0x3ff));
        // L2 sees L1's memory as it is.
        bench.put32(l2_directory, L2_TABLE | LINK.into_bits());
        bench.put32(l2_leaf, L2_PAGE | LINK.into_bits());
        bench.put(entry, at);
        bench.in_l1(|_| ());
        assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(L2_PAGE + 0x123));
        bench.in_l1(|bench| bench.l1_store(entry, at | 1 << 13));
        let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &WalkAccess::default()) else { panic!() };
        assert_eq!((fault.stage, fault.error.into_bits()), (Stage::NESTED_TABLE, 0xf));
    }
}

/// L1 in 32-bit modes: its nested table has fewer levels than silicon's.
#[test]
fn nested_tables_without_long_mode_are_shadowed() {
    for pae in [true, false] {
        for level in [4, 5] {
            let mut bench = Bench::of(Format::X86 { width: 46 }, |config| config.max_tdp_level = level);
            bench.l1.cr4 = Cr4::new().with_pae(pae).into_bits();
            bench.l1.efer = 0;
            bench.ncr3 = if pae { NESTED[1] } else { NESTED[2] };
            if pae {
                bench.put(NESTED[1], NESTED[2] | 1);
            } else {
                bench.put32(NESTED[2], NESTED[3] | LINK.into_bits());
                for page in [L2_DIRECTORY, L2_TABLE, L2_PAGE] {
                    bench.put32(NESTED[3] + 4 * (page >> 12), (OFFSET + page) | LINK.into_bits());
                }
            }
            bench.in_l1(|_| ());
            assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(OFFSET + L2_PAGE + 0x123));
            if pae {
                bench.in_l1(|bench| bench.l1_store(NESTED[1], 0));
                let ended = bench.l2_access(GVA, &WalkAccess::default());
                let Err(Ended::Nested(fault)) = ended else { panic!("{ended:?}") };
                assert_eq!(fault.stage, Stage::NESTED_TABLE);
            }
        }
    }
}

/// An nCR3 without memory behind it is an empty table.
#[test]
fn a_nested_table_outside_memory() {
    let mut bench = Bench::npt();
    for ncr3 in [0x4000_0000, 1 << 55 | NESTED[0]] {
        bench.ncr3 = ncr3;
        bench.in_l1(|_| ());
        assert!(bench.mmu.has_invisible_nested_root(0), "{ncr3:#x}");
        let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &WalkAccess::default()) else { panic!() };
        assert_eq!((fault.stage, fault.error.into_bits()), (Stage::NESTED_TABLE, 6), "{ncr3:#x}");
    }
    bench.ncr3 = NESTED[0];
    bench.in_l1(|_| ());
    assert!(!bench.mmu.has_invisible_nested_root(0));
    assert!(bench.l2_access(GVA, &WalkAccess::default()).is_ok());
}

/// L1 gives L2 a page that is no memory: whoever is behind it hears of L1's address.
#[test]
fn mmio_of_l2() {
    let mut bench = Bench::npt();
    bench.in_l1(|_| ());
    bench.put(bench.nested_leaf(L2_PAGE), bench.link(0xfee0_0000));
    for _ in 0..2 {
        assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Err(Ended::Mmio));
    }
    let marks = |note: &&Note| matches!(note, Note::MarkMmioSpte { gfn: 0xfee00, .. });
    let hits = |note: &&Note| matches!(note, Note::HandleMmioPageFault { gfn: 0xfee00, .. });
    assert_eq!(bench.host.notes.iter().filter(marks).count(), 1);
    assert_eq!(bench.host.notes.iter().filter(hits).count(), 1);
    assert_eq!(bench.walk(READ), Ok(0xfee0_0123));
}

/// As EXITINFO1 has them in the recording of kvm-unit-tests' svm_npt under 6.12.117.
#[test]
fn fault_codes_of_svm_npt() {
    let (nx, no_user, no_write) = (1u64 << 63, 4u64, 2u64);
    let fetch = WalkAccess { kind: AccessKind::FETCH, ..Default::default() };
    let read = WalkAccess::default();
    let write = WalkAccess { kind: WRITE, ..Default::default() };
    let leaf = |page: u64| (OFFSET + page) | LINK.into_bits();
    let rows = [
        (L2_PAGE, leaf(L2_PAGE) | nx, fetch, 0x1_0000_0015, L2_PAGE | 0x123),
        (L2_PAGE, 0, read, 0x1_0000_0004, L2_PAGE | 0x123),
        (L2_PAGE, leaf(L2_PAGE) & !no_user, read, 0x1_0000_0005, L2_PAGE | 0x123),
        (L2_PAGE, leaf(L2_PAGE) & !no_write, write, 0x1_0000_0007, L2_PAGE | 0x123),
        (L2_DIRECTORY, leaf(L2_DIRECTORY) & !no_write, read, 0x2_0000_0007, L2_DIRECTORY + 4 * (GVA >> 22)),
        (L2_PAGE, leaf(L2_PAGE) | 1 << 45, fetch, 0x1_0000_001d, L2_PAGE | 0x123),
    ];
    for (page, entry, access, info1, info2) in rows {
        let mut bench = Bench::npt();
        bench.in_l1(|_| ());
        bench.put(bench.nested_leaf(page), entry);
        let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &access) else { panic!() };
        assert_eq!((fault.npf_info().into_bits(), fault.address), (info1, info2));
    }
}

/// Whose EFER.NX makes bit 63 of L1's entries an ordinary one.
#[test]
fn nx_of_l1s_entries_by_release() {
    use crate::NptRules;
    let modern = NptRules::default();
    let of_l2 = NptRules { of_l1: false, guest_mode_first: false, ..modern };
    for (rules, nx_of_l2, code) in [
        (of_l2, false, 0x1_0000_000d),
        (of_l2, true, 0x1_0000_0015),
        (modern, false, 0x1_0000_0015),
        (NptRules { with_wp: true, ..modern }, false, 0x1_0000_0015),
    ] {
        let mut bench = Bench::of(Format::X86 { width: 46 }, |config| config.npt_rules = rules);
        bench.l2.efer = Efer::new().with_nxe(nx_of_l2).into_bits();
        bench.in_l1(|_| ());
        bench.put(bench.nested_leaf(L2_PAGE), bench.link(OFFSET + L2_PAGE) | 1 << 63);
        let fetch = WalkAccess { kind: AccessKind::FETCH, ..Default::default() };
        let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &fetch) else { panic!() };
        assert_eq!(fault.npf_info().into_bits(), code, "{rules:?}");
        assert_eq!(bench.mmu.context(0).root_role.cr0_wp(), rules.with_wp || !rules.of_l1);
        assert_eq!(bench.mmu.context(0).root_role.guest_mode(), rules.guest_mode_first);
    }
}

/// The shadow of a table of the lowest level is written by L1's emulator as well.
#[test]
fn write_protection_by_kind_of_result() {
    let mut bench = Bench::npt();
    bench.in_l1(|_| ());
    assert!(bench.l2_access(GVA, &WalkAccess::default()).is_ok());
    bench.in_l1(|bench| {
        let l1 = bench.l1;
        bench.mmu.reload(0, &l1, &mut bench.host);
        let mut fault = crate::fault::PageFault::new(NESTED[2], FaultCode::new().with_p(true).with_w(true));
        assert_eq!(bench.mmu.tdp_page_fault(0, &mut fault, &mut bench.host), RetPf::WriteProtected);
        // The entry is not there yet: it is made, but read-only.
        let mut fault = crate::fault::PageFault::new(NESTED[2], FaultCode::new().with_w(true));
        assert_eq!(bench.mmu.tdp_page_fault(0, &mut fault, &mut bench.host), RetPf::WriteProtected);
    });
}

/// L2 in PAE mode: silicon reads the pointers from memory with each walk, and checks them then.
#[test]
fn pointers_of_an_l2_in_pae_mode() {
    let mut bench = Bench::npt();
    bench.l2.cr4 = Cr4::new().with_pae(true).into_bits();
    bench.l2.pdptr = [!0; 4];
    let pointer = OFFSET + L2_DIRECTORY;
    let (directory, table) = (0x6000, 0x7000);
    for page in [directory, table] {
        bench.put(bench.nested_leaf(page), bench.link(OFFSET + page));
    }
    bench.put(pointer, directory | 1);
    bench.put(OFFSET + directory + 8 * (GVA >> 21), table | LINK.into_bits());
    bench.put(OFFSET + table + 8 * (GVA >> 12 & 0x1ff), L2_PAGE | LINK.into_bits());
    bench.in_l1(|_| ());
    let read = WalkAccess::default();
    assert_eq!(bench.l2_access(GVA, &read), Ok(OFFSET + L2_PAGE + 0x123));
    assert_eq!(bench.walk(READ), Ok(OFFSET + L2_PAGE + 0x123));
    // Bits 11:9 are ignored, bits from MAXPHYADDR on are not.
    bench.put(pointer, directory | 1 | 7 << 9);
    assert!(bench.l2_access(GVA, &read).is_ok());
    bench.put(pointer, directory | 1 | 1 << 62);
    assert_eq!(bench.l2_access(GVA, &read), Err(Ended::Fault(PageFaultError::from_bits(9))));
    bench.put(pointer, 0);
    assert_eq!(bench.l2_access(GVA, &read), Err(Ended::Fault(PageFaultError::from_bits(0))));
    bench.put(bench.nested_leaf(L2_DIRECTORY), 0);
    bench.in_l1(|bench| bench.l1_store(bench.nested_leaf(L2_DIRECTORY), 0));
    let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &read) else { panic!() };
    assert_eq!((fault.stage, fault.address, fault.error.into_bits()), (Stage::NESTED_TABLE, L2_DIRECTORY, 6));
}
