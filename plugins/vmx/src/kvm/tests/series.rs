//! How a guest narrower than its host came to be supported: patch by patch, release by release.
//!
//! See: the postings of February, June and July 2020; KVM commits 897861479c06, a0c134347baf, 1dbf5d68af6f, 8c4182bd27ca,
//! ec7771ab471b, 3edd68399dc1, b96e6506c2ea, e7177339d7b5

use super::{BIT36, FETCH, ILLEGAL, Outcome, READ, WRITE, guest, outcome};
use crate::testing::{DATA, Ended, GVA, Guest, PDE, PT, PTE, silicon};
use vmtape_abi::Backend;
use vmtape_arch::exit::{ResumeKind, VmxReason};

const ASM: (&str, &str) = ("allow_smaller_maxphyaddr", "on");
/// The #PF of the first posting: error code RSVD alone, CR2 the guest physical address.
const IMPOSSIBLE: Outcome = Outcome::PageFault(0x8, ILLEGAL);

fn pf(code: u32) -> Outcome {
    Outcome::PageFault(code, GVA)
}

/// What becomes of a read and of a write of the illegal page (supervisor, read-only).
fn results(options: &[(&str, &str)]) -> (Outcome, Outcome) {
    let run = |kind| {
        let mut guest = guest(options);
        guest.set(PTE, ILLEGAL | 1);
        outcome(&mut guest, kind, false).0
    };
    (run(READ), run(WRITE))
}

#[test]
fn releases() {
    let unsupported = (Outcome::Mmio(ILLEGAL), pf(0x3));
    let exact = (pf(0x9), pf(0xb));
    for (release, by_default, with_parameter) in [
        ("v5.6", unsupported, unsupported),
        ("v5.7", unsupported, unsupported),
        ("v5.9-rc1", exact, exact),
        ("v5.9", unsupported, exact),
        ("v5.14", unsupported, exact),
        ("v6.12", unsupported, exact),
        ("v7.2", unsupported, exact),
        ("v1-series", (IMPOSSIBLE, pf(0x3)), (IMPOSSIBLE, pf(0x3))),
    ] {
        assert_eq!(results(&[("kvm", release)]), by_default, "{release}");
        assert_eq!(results(&[("kvm", release), ASM]), with_parameter, "{release} with the parameter");
    }
}

/// Each merged piece on its own: what is lost without it.
#[test]
fn pieces() {
    for (piece, expected) in [
        ("-pf-fixup", (pf(0x9), pf(0x3))),
        ("-need-pf-intercept", (pf(0x9), pf(0x3))),
        ("-ept-violation-emulate", (Outcome::Mmio(ILLEGAL), pf(0xb))),
        ("-pfec-mask-match", (pf(0x9), pf(0xb))),
        ("-smaller-maxphyaddr", (Outcome::Mmio(ILLEGAL), pf(0x3))),
        ("-smaller-maxphyaddr-default-off", (pf(0x9), pf(0xb))),
    ] {
        assert_eq!(results(&[ASM, (piece, "")]), expected, "{piece}");
    }
}

/// Which #PF exits only to be injected as it was: each without mask and match, and what their history let through.
#[test]
fn mask_and_match_save_exits() {
    const NOT_PRESENT: (u64, u32) = (0, 0x0);
    const RESERVED_ANYWAY: (u64, u32) = (1 << 51 | 1, 0x9);
    for ((entry, code), width, options, expected) in [
        (NOT_PRESENT, 36, &[ASM][..], 0),
        (NOT_PRESENT, 36, &[ASM, ("-pfec-mask-match", "")], 1),
        // Written once and for all at first, also for guests whose faults are not intercepted.
        (NOT_PRESENT, 46, &[("kvm", "v5.8")], 0),
        (NOT_PRESENT, 46, &[("kvm", "v5.9-rc1")], 1),
        (NOT_PRESENT, 46, &[("kvm", "v5.9-rc7")], 1),
        (NOT_PRESENT, 46, &[("kvm", "v5.9")], 0),
        (RESERVED_ANYWAY, 36, &[("kvm", "v5.13"), ASM], 1),
        (RESERVED_ANYWAY, 36, &[("kvm", "v5.14"), ASM], 0),
    ] {
        let mut guest = Guest::new(silicon(46), width, options);
        guest.populate();
        guest.set(PTE, entry);
        let (result, exits) = outcome(&mut guest, READ, false);
        assert_eq!((result, exits.len()), (pf(code), expected), "{code:#x} {options:?}");
    }
}

/// The first posting, check by check; nothing happens without the function of its first patch.
#[test]
fn the_first_posting() {
    let violation = ("+v1-ept-violation-check", "");
    let function = ("+v1-rsvd-pf", "");
    assert_eq!(results(&[violation]).0, Outcome::Mmio(ILLEGAL));
    assert_eq!(results(&[function]).0, Outcome::Mmio(ILLEGAL));
    assert_eq!(results(&[violation, function]).0, IMPOSSIBLE);
    // An illegal table is no other case, and the leaf's entry plays no part.
    let mut guest = guest(&[("kvm", "v1-series")]);
    guest.set(PDE, BIT36 | PT | 1);
    assert_eq!(outcome(&mut guest, READ, false).0, Outcome::PageFault(0x8, BIT36 | PT));
}

/// Its check of EPT misconfigurations matters only where a violation at the same address was let through.
#[test]
fn the_first_posting_and_misconfigurations() {
    let misconfiguration = [Ended::Exit(VmxReason::EPT_MISCONFIG, 0)];
    for (options, second) in [
        (&[("+v1-rsvd-pf", ""), ("+v1-ept-misconfig-check", "")][..], IMPOSSIBLE),
        (&[ASM, ("-ept-violation-emulate", "")], Outcome::Mmio(ILLEGAL)),
        (&[], Outcome::Mmio(ILLEGAL)),
    ] {
        let mut guest = guest(options);
        guest.set(PTE, ILLEGAL | 1);
        assert_eq!(outcome(&mut guest, READ, false).0, Outcome::Mmio(ILLEGAL));
        let (ended, exits) = outcome(&mut guest, READ, false);
        assert_eq!((ended, &exits[..]), (second, &misconfiguration[..]), "{options:?}");
    }
}

/// `translate_gpa`'s check changes nothing for a guest of at least 32 bits: its entries and CR3 are checked anyway.
#[test]
fn translate_gpa_s_check_is_redundant() {
    for release in ["v5.14", "v5.15"] {
        assert_eq!(results(&[("kvm", release), ASM]), (pf(0x9), pf(0xb)), "{release}");
    }
    for patch in ["+translate-gpa-check", "+v1-translate-gpa-check"] {
        assert_eq!(results(&[ASM, (patch, "")]), (pf(0x9), pf(0xb)), "{patch}");
    }
}

/// ... except below 32 bits, where 4-byte entries reserve nothing and the walk leaves a fault that nobody filled in.
#[test]
fn why_translate_gpa_s_check_was_reverted() {
    for (release, expected) in [("v5.14", Outcome::PageFault(0x8, 0)), ("v5.15", Outcome::Done)] {
        let mut guest = Guest::protected(20, &[("kvm", release), ASM]);
        assert_eq!(outcome(&mut guest, READ, false).0, expected, "{release}");
        let warned = guest.host.logged.iter().any(|line| line.contains("uninitialized"));
        assert_eq!(warned, release == "v5.14");
    }
}

/// A fetch from what KVM takes for MMIO: the exception of the emulator's own walk, which its decoder must not forget.
#[test]
fn a_fetch_fails_to_decode() {
    let run = |options: &[(&str, &str)]| {
        let mut guest = guest(options);
        guest.set(PTE, ILLEGAL | 1);
        outcome(&mut guest, FETCH, false).0
    };
    assert_eq!(run(&[]), pf(0x19));
    let Outcome::Userspace(resume) = run(&[("-decode-keeps-fault", "")]) else { panic!("no exit") };
    assert_eq!((resume.kind, resume.data[0]), (ResumeKind::INTERNAL_ERROR, 1));
    // Where the walk finds nothing wrong, there is still no instruction to be had from a device.
    let mut guest = guest(&[]);
    guest.set(PTE, 1 << 35 | DATA | 1);
    let (Outcome::Userspace(resume), _) = outcome(&mut guest, FETCH, false) else { panic!("no exit") };
    assert_eq!((resume.kind, resume.data[0]), (ResumeKind::INTERNAL_ERROR, 1));
}

/// KVM_CHECK_EXTENSION of the postings: the capability came with the merged version.
#[test]
fn the_postings_have_no_capability() {
    assert_eq!(guest(&[("kvm", "v1-series")]).vm.check_extension(185), 0);
}
