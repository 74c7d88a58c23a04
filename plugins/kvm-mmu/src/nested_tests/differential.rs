//! Random tables of L1 and L2, and random accesses: what the model finds by silicon's walk, KVM's shadow and KVM's own walk is
//! what a plain reading of both tables finds.

use super::{tracking::Ended, *};
use proptest::{collection::vec, prelude::*, sample::select};

/// Physical widths: everybody's, so that silicon and KVM agree about reserved bits.
const WIDTH: u8 = 40;
/// L2's tables in 64-bit mode, from the top, and the frames that L1 maps for it.
const L2_TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const FRAMES: u64 = 16;
/// Linear pages of L2's that the lowest table maps.
const PAGES: u64 = 8;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// L1 stores an entry of its nested tables: in the table of this level, at this index.
    Nested { level: usize, index: u64, entry: u64 },
    /// L2's table of this level changes, and L2's TLB is flushed.
    Guest { level: usize, index: u64, entry: u64 },
    /// L2 accesses a page.
    Access { page: u64, access: WalkAccess },
}

fn flags() -> impl Strategy<Value = u64> {
    // Mostly sound.
    prop_oneof![
        6 => Just(P | W | U),
        1 => select(vec![0, P, P | W, P | U, P | W | U | NX, P | U | NX, W | U]),
        1 => select(vec![P | W | U | 1 << WIDTH, P | W | U | 1 << 51, P | W | U | 1 << 8, P | W | U | 1 << 13]),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let nested = (flags(), 0..FRAMES, 0..4usize, 0..FRAMES, any::<bool>(), any::<bool>()).prop_map(
        |(flags, frame, level, target, large, rare)| match level {
            0 | 1 => {
                // No memory, a table of L1's, or a frame that L1 has for L2.
                let page = match (rare, target) {
                    (true, 0) => 0x4000_0000,
                    (true, 1) => NESTED[3],
                    _ => OFFSET + (target << 12),
                };
                Op::Nested { level: 3, index: frame, entry: flags | page }
            }
            2 if large => Op::Nested { level: 2, index: 0, entry: flags | PS },
            2 => Op::Nested { level: 2, index: 0, entry: flags | NESTED[3] },
            _ if large && rare => Op::Nested { level: 1, index: 0, entry: flags | PS },
            _ if large => Op::Nested { level: 1, index: 0, entry: flags | NESTED[2] },
            _ => Op::Nested { level: 0, index: 0, entry: flags | NESTED[1] },
        },
    );
    let guest =
        (flags(), 0..PAGES, 0..4usize, 0..FRAMES).prop_map(|(flags, page, level, target)| match level {
            0..=2 => Op::Guest { level: 3, index: page, entry: flags | target << 12 },
            _ => Op::Guest { level: 2, index: 0, entry: flags | L2_TABLES[3] },
        });
    let kind = select(vec![AccessKind::READ, AccessKind::WRITE, AccessKind::FETCH]);
    let access = (0..PAGES, kind, any::<bool>()).prop_map(|(page, kind, user)| Op::Access {
        page,
        access: WalkAccess { kind, user, implicit: false },
    });
    prop_oneof![2 => nested, 1 => guest, 4 => access]
}

/// Tables as a book describes them: no more than memory and an address.
struct Naive<'a> {
    host: &'a mut TestHost,
}

impl Naive<'_> {
    fn word(&mut self, gpa: u64) -> Option<u64> {
        if gpa + 8 <= RAM as u64 { self.host.read_u64(gpa) } else { None }
    }

    fn is_reserved(entry: u64, level: u32) -> bool {
        let wide = entry & ADDRESS & !((1 << WIDTH) - 1) != 0;
        let upper = level == 4 && entry & (PS | 1 << 8) != 0;
        let low = match level {
            3 => 0x3fff_e000,
            2 => 0x001f_e000,
            _ => 0,
        };
        wide || upper || entry & PS != 0 && entry & low != 0
    }

    /// What the entries on the way say, through `read`; the address, or the error code.
    fn descend<E>(
        address: u64,
        root: u64,
        access: &WalkAccess,
        mut read: impl FnMut(u64) -> Result<Option<u64>, E>,
    ) -> Result<Result<u64, u32>, E> {
        let (write, fetch) = (access.kind == AccessKind::WRITE, access.kind == AccessKind::FETCH);
        let code = u32::from(write) << 1 | u32::from(access.user) << 2 | u32::from(fetch) << 4;
        let (mut table, mut rights) = (root, W | U | NX);
        for level in (1..=4).rev() {
            let shift = 12 + 9 * (level - 1);
            let Some(entry) = read(table + 8 * (address >> shift & 0x1ff))?.filter(|entry| entry & P != 0)
            else {
                return Ok(Err(code));
            };
            if Self::is_reserved(entry, level) {
                return Ok(Err(code | 9));
            }
            rights &= entry ^ NX;
            if level > 1 && entry & PS == 0 {
                table = entry & ADDRESS;
                continue;
            }
            let may = (!write || rights & W != 0) && (!access.user || rights & U != 0);
            let offset = address & ((1 << shift) - 1);
            let allowed = may && (!fetch || rights & NX != 0);
            return Ok(if allowed {
                Ok(entry & ADDRESS & !((1 << shift) - 1) | offset)
            } else {
                Err(code | 1)
            });
        }
        unreachable!("the lowest level ends a walk")
    }

    fn nested(&mut self, gpa: u64, kind: AccessKind) -> Result<u64, u32> {
        let access = WalkAccess { kind, user: true, implicit: false };
        let walked: Result<_, ()> = Self::descend(gpa, NESTED[0], &access, |at| Ok(self.word(at)));
        walked.unwrap()
    }

    /// L1's address of an access of L2; or whose fault it is, where, and with which code.
    fn access(&mut self, gva: u64, access: &WalkAccess) -> Result<u64, (Stage, u64, u32)> {
        let walked = Self::descend(gva, L2_TABLES[0], access, |at| match self.nested(at, WRITE) {
            Ok(gpa) => Ok(self.word(gpa)),
            Err(code) => Err((Stage::NESTED_TABLE, at, code)),
        })?;
        let gpa = walked.map_err(|code| (Stage::GUEST, gva, code))?;
        self.nested(gpa, access.kind).map_err(|code| (Stage::NESTED_FINAL, gpa, code))
    }
}

fn bench(tdp_mmu: bool) -> Bench {
    let mut bench = Bench::of(Format::X86 { width: 46 }, |config| {
        config.host_width = WIDTH;
        config.tdp_mmu = tdp_mmu;
    });
    bench.l2.cr4 = Cr4::new().with_pae(true).into_bits();
    bench.l2.efer = Efer::new().with_lme(true).with_lma(true).with_nxe(true).into_bits();
    bench.l2.cr3 = L2_TABLES[0];
    for frame in 0..FRAMES {
        bench.put(NESTED[3] + 8 * frame, (OFFSET + (frame << 12)) | P | W | U);
    }
    // Nothing lies where the tables of a 32-bit L2 would.
    for table in L2_TABLES {
        bench.host.memory[(OFFSET + table) as usize..][..0x1000].fill(0);
    }
    for tables in L2_TABLES.windows(2) {
        bench.put(OFFSET + tables[0], tables[1] | P | W | U);
    }
    for page in 0..PAGES {
        bench.put(OFFSET + L2_TABLES[3] + 8 * page, ((8 + page) << 12) | P | W | U);
    }
    bench.in_l1(|_| ());
    bench
}

/// The model's answer in the words of the naive one. MMIO is an address without memory.
fn told(
    ended: Result<u64, Ended>,
    naive: &Result<u64, (Stage, u64, u32)>,
    gva: u64,
) -> Result<u64, (Stage, u64, u32)> {
    match ended {
        Ok(hpa) => Ok(hpa),
        Err(Ended::Mmio) => (*naive).map(|gpa| if gpa >= RAM as u64 { gpa } else { u64::MAX }),
        Err(Ended::Fault(error)) => Err((Stage::GUEST, gva, error.into_bits())),
        Err(Ended::Nested(fault)) => Err((fault.stage, fault.address, fault.error.into_bits())),
    }
}

fn run(ops: &[Op], tdp_mmu: bool) {
    let mut bench = bench(tdp_mmu);
    for op in ops {
        match *op {
            Op::Nested { level, index, entry } => {
                bench.in_l1(|bench| bench.l1_store(NESTED[level] + 8 * index, entry));
            }
            Op::Guest { level, index, entry } => bench.put(OFFSET + L2_TABLES[level] + 8 * index, entry),
            Op::Access { page, access } => {
                let gva = page << 12 | 0x18;
                let expected = Naive { host: &mut bench.host }.access(gva, &access);
                let found = bench.l2_access(gva, &access);
                assert_eq!(told(found, &expected, gva), expected, "{op:?}");
                // KVM's own walk, for its emulator; nested faults have the page's address.
                let l2 = bench.l2;
                let walk = bench.mmu.walk_guest(0, &l2, gva, &access, access.pferr(), &mut bench.host);
                let walked = walk.map(|(walk, _)| walk.gpa);
                let walked = walked.map_err(|fault| (fault.stage, fault.address, fault.error.into_bits()));
                let by_page = expected.map_err(|(stage, at, code)| {
                    if stage == Stage::GUEST { (stage, at, code) } else { (stage, at & !0xfff, code) }
                });
                assert_eq!(walked, by_page, "{op:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn both_dimensions_are_as_the_tables_say(ops in vec(op(), 1..60), tdp_mmu: bool) {
        run(&ops, tdp_mmu);
    }
}
