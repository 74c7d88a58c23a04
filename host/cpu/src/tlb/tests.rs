use super::*;

const BOTH: [Geometry; 2] = [Geometry::DirectMapped, Geometry::SetAssociative];

fn mapping(hpa: u64, shift: u8) -> Mapping {
    Mapping { hpa, read: true.into(), guest_page_shift: shift, ..Mapping::default() }
}

fn finds(tlb: &mut Tlb, gva: u64) -> bool {
    tlb.find(Context::User, gva, AccessKind::READ).is_some()
}

#[test]
fn a_hit_needs_context_permission_and_one_page() {
    for geometry in BOTH {
        let mut tlb = Tlb::new(geometry);
        tlb.insert(Context::User, 0x1234, &mapping(0x8000, 12), AccessKind::READ);
        let read = |tlb: &Tlb, gva, size| tlb.lookup(Context::User, gva, size, AccessKind::READ);
        assert_eq!(tlb.find(Context::User, 0x1ff8, AccessKind::READ), Some(0x8ff8));
        assert_eq!(read(&tlb, 0x1ff8, 8), Some(0x8ff8));
        assert_eq!(read(&tlb, 0x1ff9, 8), None);
        assert_eq!(tlb.lookup(Context::User, 0x1000, 1, AccessKind::WRITE), None);
        assert_eq!(tlb.find(Context::User, 0x1000, AccessKind::WRITE), None);
        assert_eq!(tlb.lookup(Context::Supervisor, 0x1000, 1, AccessKind::READ), None);
        assert_eq!(tlb.find(Context::Supervisor, 0x1000, AccessKind::READ), None);
        tlb.flush(Flush::Page(0x1000));
        assert_eq!(read(&tlb, 0x1000, 1), None);
        assert!(!finds(&mut tlb, 0x1000));
    }
}

#[test]
fn a_large_page_goes_as_a_whole() {
    for geometry in BOTH {
        let mut tlb = Tlb::new(geometry);
        tlb.insert(Context::User, 0x20_1000, &mapping(0x8000, 21), AccessKind::READ);
        assert!(finds(&mut tlb, 0x20_1000));
        tlb.flush(Flush::Page(0x3f_f000));
        assert!(!finds(&mut tlb, 0x20_1000));
        assert_eq!(tlb.lookup(Context::User, 0x20_1000, 1, AccessKind::READ), None);
    }
}

#[test]
fn a_mark_ends_writing_without_a_walk() {
    for geometry in BOTH {
        let mut tlb = Tlb::new(geometry);
        tlb.insert(
            Context::User,
            0x1000,
            &Mapping { write: true.into(), ..mapping(0x8000, 12) },
            AccessKind::READ,
        );
        let write = |tlb: &Tlb| tlb.lookup(Context::User, 0x1234, 8, AccessKind::WRITE);
        for ram_epoch in 1..2 * EPOCHS {
            assert_eq!(write(&tlb), None);
            assert_eq!(tlb.find(Context::User, 0x1234, AccessKind::WRITE), Some(0x8234));
            tlb.allow_write(Context::User, 0x1234);
            assert_eq!(write(&tlb), Some(0x8234));
            tlb.sync(ram_epoch);
        }
        assert_eq!(tlb.lookup(Context::User, 0x1234, 8, AccessKind::READ), Some(0x8234));
        tlb.flush(Flush::All);
        assert_eq!(tlb.find(Context::User, 0x1234, AccessKind::WRITE), None);
    }
}

#[test]
fn epochs_wrap_without_reviving_entries() {
    for geometry in BOTH {
        let mut tlb = Tlb::new(geometry);
        tlb.insert(Context::User, 0x1000, &mapping(0, 12), AccessKind::READ);
        for _ in 0..2 * EPOCHS {
            tlb.flush(Flush::All);
            assert!(!finds(&mut tlb, 0x1000));
            assert_eq!(tlb.lookup(Context::User, 0x1000, 1, AccessKind::READ), None);
        }
    }
}

/// How many of so many pages in a row from each of these addresses on are there once all have been entered twice.
fn kept(geometry: Geometry, starts: &[u64], pages: u64) -> usize {
    let mut tlb = Tlb::new(geometry);
    let all = || (0..pages).flat_map(|n| starts.iter().map(move |start| start + n * PAGE_SIZE));
    for gva in all().chain(all()) {
        if !finds(&mut tlb, gva) {
            tlb.insert(Context::User, gva, &mapping(gva, 12), AccessKind::READ);
        }
    }
    all().filter(|gva| finds(&mut tlb, *gva)).count()
}

#[test]
fn buffers_a_power_of_two_apart_fit_together() {
    for distance in (22..47).map(|shift| 1 << shift) {
        assert_eq!(kept(Geometry::DirectMapped, &[0, distance], 1024), 1024);
        let kept = kept(Geometry::SetAssociative, &[0, distance], 1024);
        assert!(kept > 2040, "{kept} of 2048 pages are there, {distance:#x} apart");
    }
    assert!(kept(Geometry::SetAssociative, &[0x40_0000], 6 << 10) > 6000);
}

#[test]
fn what_the_second_level_drops_is_not_in_the_first() {
    let mut tlb = Tlb::new(Geometry::SetAssociative);
    let pages = 0..3 * 8 * ENTRIES as u64;
    for gva in pages.clone().map(|page| page * PAGE_SIZE) {
        tlb.insert(Context::User, gva, &mapping(gva, 12), AccessKind::READ);
        assert!(finds(&mut tlb, gva));
    }
    let of_second =
        pages.clone().filter(|n| tlb.second.find(Context::User, n * PAGE_SIZE, tlb.epoch).is_some());
    assert_eq!(of_second.count(), 8 * ENTRIES);
    for gva in pages.map(|page| page * PAGE_SIZE) {
        let first = tlb.lookup(Context::User, gva, 1, AccessKind::READ);
        assert!(first.is_none() || finds(&mut tlb, gva), "{gva:#x}");
    }
}

#[test]
fn code_that_went_is_fetched_again() {
    let code = Mapping { fetch: true.into(), ..mapping(0, 12) };
    let versions = |geometry, kind| {
        let mut tlb = Tlb::new(geometry);
        tlb.insert(Context::User, 0, &code, AccessKind::READ);
        assert!(tlb.find(Context::User, 0, kind).is_some());
        let before = tlb.version();
        for page in 1..64 * ENTRIES as u64 {
            tlb.insert(Context::User, page * PAGE_SIZE, &mapping(0, 12), AccessKind::READ);
        }
        tlb.version() - before
    };
    assert_eq!(BOTH.map(|geometry| versions(geometry, AccessKind::FETCH)), [0, 1]);
    assert_eq!(BOTH.map(|geometry| versions(geometry, AccessKind::READ)), [0, 0], "it was data");
}
