//! The walk against tables written from the manuals, and against a second formulation of the permission rules.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use vmtape_arch::paging::bits;

/// The walk, for tests that do not look at its steps.
fn walk<T: Tables>(
    paging: &Paging,
    gva: u64,
    access: &WalkAccess,
    policy: AdPolicy,
    tables: &mut T,
) -> Result<Walk, Failure<T::Stop>> {
    super::walk(paging, gva, access, policy, tables, &mut Steps::default())
}

/// Sparse memory of entries; `nested` is a final frame whose translation fails.
#[derive(Default)]
struct Memory {
    words: BTreeMap<u64, u64>,
    nested: Option<u64>,
    seen: Vec<Seen>,
}

impl Tables for Memory {
    type Stop = u64;

    fn read(&mut self, address: u64, _size: u8) -> Result<Option<u64>, u64> {
        Ok(Some(self.words.get(&address).copied().unwrap_or(0)))
    }

    fn update(&mut self, address: u64, old: u64, new: u64, _size: u8) -> Result<Update, u64> {
        let word = self.words.entry(address).or_default();
        if *word != old {
            return Ok(Update::Changed);
        }
        *word = new;
        Ok(Update::Done)
    }

    fn translate(&mut self, address: u64, _kind: AccessKind, _leaf: Leaf) -> Result<(), u64> {
        if self.nested == Some(address >> 12) { Err(address) } else { Ok(()) }
    }

    fn seen(&mut self, event: Seen) {
        self.seen.push(event);
    }
}

fn paging(mode: Mode, maxphyaddr: u8) -> Paging {
    Paging {
        mode,
        root: 0x1000,
        pdptr: [0; 4],
        pdpt: None,
        maxphyaddr,
        nx: true,
        wp: true,
        smep: false,
        smap: false,
        pke: false,
        pkru: 0,
        ac: false,
        gbpages: true,
        bit8_reserved: false,
        pse36: maxphyaddr.min(40),
        reports_fetch: true,
    }
}

const GVA: u64 = 0xffff_9234_0000_0000;
const READ: WalkAccess = WalkAccess { kind: AccessKind::READ, user: false, implicit: false };
const WRITE: WalkAccess = WalkAccess { kind: AccessKind::WRITE, user: false, implicit: false };

/// Tables at 0x1000, 0x2000, ... for `GVA`, with the given PDE and PTE.
fn four_level(pde: u64, pte: u64) -> Memory {
    let mut memory = Memory::default();
    for (table, level, entry) in
        [(0x1000, 4, 0x2007), (0x2000, 3, 0x3007), (0x3000, 2, pde), (0x4000, 1, pte)]
    {
        memory.words.insert(table + 8 * Mode::Level4.index(GVA, level), entry);
    }
    memory
}

fn pte(memory: &Memory) -> u64 {
    memory.words[&(0x4000 + 8 * Mode::Level4.index(GVA, 1))]
}

fn error(result: Result<Walk, Failure<u64>>) -> u32 {
    match result {
        Err(Failure::Fault(error)) => error.into_bits(),
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn a_bit_above_the_width_is_reserved_and_changes_nothing() {
    // The example of KVM_CAP_SMALLER_MAXPHYADDR: bit 36 with a guest width of 36.
    let mut memory = four_level(0x4001, 0x10_0200_0001);
    let result = walk(&paging(Mode::Level4, 36), GVA, &READ, AdPolicy::AfterTranslation, &mut memory);
    assert_eq!(error(result), 9);
    assert_eq!(pte(&memory), 0x10_0200_0001);
    assert!(!memory.seen.iter().any(|s| matches!(s, Seen::Accessed { .. })));
}

#[test]
fn vendors_differ_in_the_accessed_bit_before_a_nested_fault() {
    for (policy, expected) in [
        (AdPolicy::AfterTranslation, 0x10_0200_0001),
        (AdPolicy::BeforeTranslation { dirty: true }, 0x10_0200_0021),
    ] {
        let mut memory = four_level(0x4001, 0x10_0200_0001);
        memory.nested = Some(0x100_2000);
        let result = walk(&paging(Mode::Level4, 46), GVA, &READ, policy, &mut memory);
        assert!(matches!(result, Err(Failure::Stopped(0x10_0200_0000))));
        assert_eq!(pte(&memory), expected, "{policy:?}");
    }
}

#[test]
fn the_dirty_bit_before_a_nested_fault_is_a_switch() {
    for (dirty, expected) in [(true, 0x200_0067), (false, 0x200_0027)] {
        let mut memory = four_level(0x4007, 0x200_0007);
        memory.nested = Some(0x2000);
        let policy = AdPolicy::BeforeTranslation { dirty };
        let result = walk(&paging(Mode::Level4, 46), GVA, &WRITE, policy, &mut memory);
        assert!(matches!(result, Err(Failure::Stopped(_))));
        assert_eq!(pte(&memory), expected);
    }
}

#[test]
fn accessed_everywhere_dirty_in_the_leaf_only() {
    let mut memory = four_level(0x4007, 0x200_0007);
    let (paging, mut steps) = (paging(Mode::Level4, 46), Steps::default());
    let policy = AdPolicy::AfterTranslation;
    let done = super::walk(&paging, GVA + 5, &WRITE, policy, &mut memory, &mut steps).unwrap();
    assert_eq!(done.gpa, 0x200_0005);
    let after: Vec<u64> = steps.iter().map(|step| step.after & 0x60).collect();
    assert_eq!(after, [0x20, 0x20, 0x20, 0x60]);
    assert!(done.dirty);
}

#[test]
fn tables_that_map_themselves_are_walked_again() {
    // One table at all four levels: every entry is the same word.
    let mut memory = Memory::default();
    memory.words.insert(0x1000, 0x1003);
    let done = walk(&paging(Mode::Level4, 46), 0, &WRITE, AdPolicy::AfterTranslation, &mut memory).unwrap();
    assert_eq!(done.gpa, 0x1000);
    assert_eq!(memory.words[&0x1000], 0x1063);
}

#[test]
fn reserved_bits_as_the_manual_lists_them() {
    let entry = |ps: bool| Pte::new().with_p(true).with_ps(ps);
    let long = Paging { nx: false, ..paging(Mode::Level4, 46) };
    let high = bits(46, 51) | bits(63, 63);
    assert_eq!(long.reserved(entry(false), 4), high | 1 << 7);
    assert_eq!(Paging { bit8_reserved: true, ..long }.reserved(entry(false), 4), high | 3 << 7);
    assert_eq!(long.reserved(entry(false), 3), high);
    assert_eq!(long.reserved(entry(true), 3), high | 0x3fff_e000);
    assert_eq!(Paging { gbpages: false, ..long }.reserved(entry(true), 3), high | 1 << 7);
    assert_eq!(long.reserved(entry(true), 2), high | 0x1f_e000);
    assert_eq!(long.reserved(entry(true), 1), high);
    let full = paging(Mode::Level5, 52);
    assert_eq!(full.reserved(entry(false), 1), 0);
    assert_eq!(full.reserved(entry(false), 5), 1 << 7);
    let pae = paging(Mode::Pae, 36);
    assert_eq!(pae.reserved(entry(false), 1), bits(36, 62));
    assert_eq!(pae.reserved(entry(true), 2), bits(36, 62) | 0x1f_e000);
    let old = paging(Mode::Bits32 { pse: true }, 36);
    assert_eq!(old.reserved(entry(true), 2), bits(17, 21));
    assert_eq!(Paging { pse36: 40, ..old }.reserved(entry(true), 2), bits(21, 21));
    assert_eq!(old.reserved(entry(false), 1), 0);
    assert_eq!(paging(Mode::Bits32 { pse: false }, 36).reserved(entry(true), 2), 0);
}

#[test]
fn other_modes_reach_their_pages() {
    let mut memory = Memory::default();
    memory.words.insert(0x1000 + 4 * 3, 0x0060_2083);
    let pse = paging(Mode::Bits32 { pse: true }, 40);
    let done = walk(&pse, 0xc0_1234, &READ, AdPolicy::AfterTranslation, &mut memory);
    assert_eq!(error(done), 9, "bit 21");
    memory.words.insert(0x1000 + 4 * 3, 0x0040_2083);
    let done = walk(&pse, 0xc0_1234, &READ, AdPolicy::AfterTranslation, &mut memory).unwrap();
    assert_eq!((done.gpa, done.page_shift), (0x1_0040_1234, 22));

    let mut memory = Memory::default();
    memory.words.insert(0x5000, 0x0060_00e3);
    let pae = Paging { pdptr: [0, 0x5001, 0, 0], ..paging(Mode::Pae, 40) };
    let done = walk(&pae, 0x4000_0123, &READ, AdPolicy::AfterTranslation, &mut memory).unwrap();
    assert_eq!((done.gpa, done.page_shift), (0x60_0123, 21));
    assert_eq!(error(walk(&pae, 0, &READ, AdPolicy::AfterTranslation, &mut memory)), 0);

    let none = paging(Mode::None, 40);
    let done = walk(&none, 0xffff_f123, &WRITE, AdPolicy::AfterTranslation, &mut Memory::default()).unwrap();
    assert_eq!(done.gpa, 0xffff_f123);
}

#[test]
fn order_within_a_walk() {
    let run = |pde, pte| {
        error(walk(&paging(Mode::Level4, 40), GVA, &WRITE, AdPolicy::None, &mut four_level(pde, pte)))
    };
    assert_eq!(run(0x4006, 1 << 45 | 1), 2, "an absent upper entry hides all below");
    assert_eq!(run(1 << 45 | 0x4007, 0), 0xb, "a reserved upper entry hides an absent one");
    assert_eq!(run(0x4001, 1 << 45 | 0x200_0001), 0xb, "reserved comes before permissions");
    assert_eq!(run(0x4001, 0x200_0007), 3);
}

/// The permission rules as a list of refusals, one sentence of the manual each.
/// See: SDM vol. 3A 4.6.1 Determination of Access Rights, 4.6.2 Protection Keys
fn refused(p: &Paging, acc: Acc, pkey: u8, a: &WalkAccess) -> bool {
    let (fetch, write) = (a.kind == AccessKind::FETCH, a.kind == AccessKind::WRITE);
    let data = !fetch;
    let (ad, wd) = (p.pkru >> (2 * pkey) & 1 != 0, p.pkru >> (2 * pkey + 1) & 1 != 0);
    [
        a.user && !acc.user(),
        a.user && write && !acc.write(),
        !a.user && write && !acc.write() && p.wp,
        fetch && !acc.exec(),
        !a.user && fetch && acc.user() && p.smep,
        !a.user && data && acc.user() && p.smap && a.implicit,
        !a.user && data && acc.user() && p.smap && !p.ac,
        p.pke && data && acc.user() && ad,
        p.pke && write && acc.user() && wd && a.user,
        p.pke && write && acc.user() && wd && p.wp,
    ]
    .contains(&true)
}

proptest! {
    #[test]
    fn permissions_equal_the_list_of_refusals(
        acc in 0u8..8, pkey in 0u8..16, kind in 0u8..3, flags in 0u32..256, pkru: u32,
    ) {
        let bit = |n: u32| flags >> n & 1 != 0;
        let p = Paging { wp: bit(0), smep: bit(1), smap: bit(2), pke: bit(3), ac: bit(4), pkru,
            ..paging(Mode::Level4, 46) };
        let user = bit(5);
        let access = WalkAccess { kind: AccessKind(kind), user, implicit: !user && bit(6) };
        let acc = Acc::from_bits(acc);
        prop_assert_eq!(p.permit(acc, pkey, &access).is_err(), refused(&p, acc, pkey, &access));
    }

    #[test]
    fn a_fault_changes_nothing_and_success_sets_every_bit(pde: u64, pte_value: u64, kind in 0u8..3, user: bool) {
        let mut memory = four_level(pde & !0xf_f000 | 0x4000, pte_value);
        let before = memory.words.clone();
        let access = WalkAccess { kind: AccessKind(kind), user, implicit: false };
        let (paging, mut steps) = (paging(Mode::Level4, 46), Steps::default());
        let policy = AdPolicy::AfterTranslation;
        match super::walk(&paging, GVA, &access, policy, &mut memory, &mut steps) {
            Ok(_) => prop_assert!(steps.iter().all(|s| memory.words[&s.address] == s.after && s.after & 0x20 != 0)),
            Err(_) => prop_assert_eq!(before, memory.words),
        }
    }
}
