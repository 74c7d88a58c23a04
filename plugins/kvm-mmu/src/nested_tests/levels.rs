//! Levels: of silicon's tables, and of L1's nested ones under them.

use super::{tracking::Ended, *};

/// A five-level host gives a four-level L1 a root that stands for nothing of L1's; a five-level L1 has a root of its own.
#[test]
fn five_levels() {
    const TOP: u64 = 0x8_5000;
    for (host, la57) in [(4, false), (5, false), (5, true)] {
        let mut bench = Bench::of(Format::X86 { width: 46 }, |config| config.max_tdp_level = host);
        if la57 {
            bench.l1.cr4 = Cr4::new().with_pae(true).with_la57(true).into_bits();
            bench.put(TOP, bench.link(NESTED[0]));
            bench.ncr3 = TOP;
        }
        bench.in_l1(|_| ());
        assert_eq!(bench.l2_access(GVA, &WalkAccess::default()), Ok(OFFSET + L2_PAGE + 0x123));
        let role = bench.mmu.context(0).root_role;
        assert_eq!((role.level(), role.passthrough()), (host, host == 5 && !la57));
        // Bits 8:7 of the upper levels are reserved.
        bench.in_l1(|bench| bench.l1_store(bench.ncr3, 0x1ff | if la57 { NESTED[0] } else { NESTED[1] }));
        let Err(Ended::Nested(fault)) = bench.l2_access(GVA, &WalkAccess::default()) else { panic!() };
        assert_eq!((fault.stage, fault.error.into_bits()), (Stage::NESTED_TABLE, 0xf));
    }
}

/// What a 32-bit L1 cannot address ends, although KVM and silicon disagree about it.
#[test]
fn addresses_beyond_a_32_bit_l1() {
    let mut bench = Bench::npt();
    bench.l1.cr4 = Cr4::new().with_pae(true).into_bits();
    bench.l1.efer = 0;
    bench.ncr3 = NESTED[1];
    bench.put(NESTED[1], NESTED[2] | 1);
    bench.l2.cr0 = Cr0::new().with_pe(true).into_bits();
    bench.in_l1(|_| ());
    let l2 = bench.l2;
    let code = FaultCode::new().with_u(true);
    let Handled::InjectNested(fault) = bench.mmu.page_fault(0, &l2, 1 << 32, code, &mut bench.host) else {
        panic!()
    };
    assert_eq!((fault.stage, fault.error.into_bits()), (Stage::NESTED_FINAL, 4));
}
