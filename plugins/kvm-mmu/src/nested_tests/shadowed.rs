//! `npt=0`: L2's tables are shadowed as L1's are, apart from them.

use super::*;

impl Bench {
    /// Without two-dimensional paging; L1 has the tables that [`Bench`] makes for L2, at the addresses that L2 believes in.
    fn shadow() -> Self {
        let mut bench = Self::of(Format::X86 { width: 46 }, |config| config.tdp = false);
        bench.put32(L2_DIRECTORY + 4 * (GVA >> 22), L2_TABLE | LINK.into_bits());
        bench.put32(L2_TABLE + 4 * (GVA >> 12 & 0x3ff), L2_PAGE | LINK.into_bits());
        bench.l1 = bench.l2;
        let l1 = bench.l1;
        bench.mmu.init(0, &l1);
        bench.mmu.reload(0, &l1, &mut bench.host);
        bench
    }

    fn shadow_access(&mut self, state: &VcpuState, access: &WalkAccess) -> Result<u64, Handled> {
        for _ in 0..16 {
            match self.mmu.shadow_access(0, state, GVA, access, &mut self.host) {
                GuestAccess::Mapped(mapping) => return Ok(mapping.hpa | GVA & 0xfff),
                GuestAccess::Fault(error) => {
                    let code = FaultCode::from_bits(error.into_bits().into());
                    match self.mmu.page_fault(0, state, GVA, code, &mut self.host) {
                        Handled::Resume => {}
                        other => return Err(other),
                    }
                }
                GuestAccess::Nested(stop) => panic!("{stop:?}"),
            }
        }
        panic!("no end");
    }
}

#[test]
fn l1_and_l2_with_one_cr3_share_no_page() {
    let mut bench = Bench::shadow();
    let (l1, l2, read) = (bench.l1, bench.l2, WalkAccess::default());
    assert_eq!(bench.shadow_access(&l1, &read), Ok(L2_PAGE + 0x123));
    bench.mmu.enter_shared(0, &l2, &mut bench.host);
    bench.mmu.reload(0, &l2, &mut bench.host);
    bench.host.notes.clear();
    assert_eq!(bench.shadow_access(&l2, &read), Ok(L2_PAGE + 0x123));
    let made: Vec<bool> = bench
        .host
        .notes
        .iter()
        .filter_map(|note| match note {
            Note::GetPage { role, created, .. } => {
                assert!(crate::role::PageRole::from_bits(*role).guest_mode());
                Some(*created)
            }
            _ => None,
        })
        .collect();
    assert_eq!(made, [true], "the table of the lowest level, for L2 alone");
    // L2's own fault is L2's, as far as the MMU can tell; L1's intercepts decide later.
    let table = L2_TABLE + 4 * (GVA >> 12 & 0x3ff);
    bench.put32(table, 0);
    bench.mmu.track_write(0, table, 4, &mut bench.host);
    let ended = bench.shadow_access(&l2, &read);
    let Err(Handled::Inject(fault)) = ended else { panic!("{ended:?}") };
    assert_eq!((fault.payload, fault.error_code), (GVA, 0));
    bench.mmu.leave_guest_mode(0, &l1, &mut bench.host);
    bench.mmu.reload(0, &l1, &mut bench.host);
    assert!(bench.mmu.take_nested_fault(0).is_none());
}

/// L2 with paging off on shadow pages: L1's addresses, one to one.
#[test]
fn l2_without_paging() {
    let mut bench = Bench::shadow();
    let l2 = VcpuState { cr0: Cr0::new().with_pe(true).into_bits(), ..bench.l2 };
    bench.mmu.enter_shared(0, &l2, &mut bench.host);
    bench.mmu.reload(0, &l2, &mut bench.host);
    // Beyond memory: MMIO.
    let ended = bench.shadow_access(&l2, &WalkAccess::default());
    assert_eq!(ended, Err(Handled::Emulate));
    assert!(bench.mmu.context(0).root_role.guest_mode());
}
