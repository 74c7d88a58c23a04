//! Each entry knows its own case, by its name and kind, and none that lacks what it is about.

use super::*;
use crate::{explain::Widths, observer::Entry as Paging};
use vmtape_arch::{access::Access, exception::Exception, exit::Resume, host::Vendor, level::Place};
use vmtape_traces::event::ExitEvent;

const GVA: u64 = 0xffff_9234_0000_0000;
/// A leaf of kvm-unit-tests' access: bit 36, in a guest that has 36 bits.
const NARROW: u64 = 0x10_0200_0001;
const ACCESSED: u64 = NARROW | 0x20;

/// An AMD host of 48 bits, a guest of 36, and the leaf above.
fn seen(outcome: Outcome) -> Seen {
    let leaf = Paging { level: 1, gpa: Some(0x210_2000), before: NARROW, after: NARROW };
    Seen {
        name: "there".into(),
        vendor: Vendor::AMD,
        widths: Widths { guest: 36, host: 48 },
        observations: Vec::new(),
        outcome,
        tables: vec![leaf],
    }
}

fn page_fault(code: u32) -> Outcome {
    Outcome::Exception { vector: Vector::PF, code: Some(code), address: Some(GVA) }
}

fn undefined() -> Outcome {
    Outcome::Exception { vector: Vector::UD, code: None, address: None }
}

fn left(kind: ResumeKind, suberror: u64) -> Outcome {
    Outcome::Left(Resume { data: [suberror, 0, 0, 0, 0, 0], ..Resume::new(kind) })
}

/// Silicon's walk to the leaf, and whether it ended in an exit.
fn walk(after: u64, verdict: Verdict) -> Observation {
    let leaf = Paging { level: 1, gpa: Some(0x210_2000), before: NARROW, after };
    let access = Access { gva: GVA, ..Access::default() };
    Observation::Walk(Box::new(Walk {
        access,
        paged: true,
        entries: vec![leaf],
        verdict,
        gpa: None,
        fault: Exception::default(),
    }))
}

fn exit_at(gpa: u64) -> Observation {
    let exit = Exit { gpa, ..Exit::default() };
    Observation::Event(Event::Exit(Box::new(ExitEvent { exit, ..ExitEvent::default() })))
}

fn does(outcome: Outcome, observations: Vec<Observation>) -> Seen {
    Seen { observations, ..seen(outcome) }
}

/// What the catalogue says: name and kind.
fn named(what: &str, insn: &[u8], expected: &Seen, actual: &Seen) -> Option<(String, Kind)> {
    let case = Case { what, focus: Some(GVA), insn, expected, actual };
    let (cause, _) = look_up(&case)?;
    assert!(!cause.source.is_empty() && !cause.sentence.is_empty() && cause.confirmed.is_none(), "{cause}");
    Some((cause.name, cause.kind))
}

fn is(found: Option<(String, Kind)>, name: &str, kind: Kind) {
    assert_eq!(found, Some((name.to_owned(), kind)));
}

#[test]
fn memory_slots() {
    let side = seen(Outcome::Completes);
    let slot = |result: &str| named(&format!("ioctl:KVM_SET_USER_MEMORY_REGION:{result}"), &[], &side, &side);
    is(slot("0>-22"), "memory-beyond-the-host", Kind::Patch);
    is(slot("-22>0"), "memory-beyond-the-host", Kind::Patch);
    assert_eq!(slot("-17>-22"), None);
    assert_eq!(named("ioctl:KVM_CHECK_EXTENSION:0>1", &[], &side, &side), None);
}

#[test]
fn addresses_that_four_levels_do_not_reach() {
    let right = seen(Outcome::Completes);
    for stuck in [Outcome::Endless, left(ResumeKind::MEMORY_FAULT, 0), left(ResumeKind::INTERNAL_ERROR, 4)] {
        let side = does(stuck.clone(), vec![exit_at(1 << 48)]);
        is(named("outcome:x", &[], &right, &side), "unmappable-address", Kind::Silicon);
        let below = does(stuck, vec![exit_at((1 << 48) - 1)]);
        assert_eq!(named("outcome:x", &[], &right, &below), None);
    }
}

#[test]
fn page_faults_by_width() {
    let right = does(page_fault(9), vec![walk(NARROW, Verdict::EXIT)]);
    is(named("outcome:x", &[], &right, &seen(page_fault(8))), "impossible-error-code", Kind::Patch);
    // The other one goes on, walked by silicon or by nobody.
    let lax = does(Outcome::Mmio { gpa: NARROW & !0xfff }, vec![walk(NARROW, Verdict::EXIT)]);
    is(named("outcome:x", &[], &right, &lax), "width-of-silicon", Kind::Clause);
    is(named("outcome:x", &[], &right, &seen(Outcome::Completes)), "role-without-width", Kind::Patch);
    let walked = Note::WalkerError { pferr: 9 };
    let kvm = does(
        Outcome::Completes,
        vec![Observation::Event(Event::Note { vcpu: 0, place: Place::L1, note: walked })],
    );
    is(named("outcome:x", &[], &right, &kvm), "width-of-silicon", Kind::Clause);
    let legal = Seen { widths: Widths { guest: 48, host: 48 }, ..lax };
    let right = Seen { widths: legal.widths, ..right };
    assert_eq!(named("outcome:x", &[], &right, &legal), None);
}

#[test]
fn accessed_bits() {
    let mmio = Outcome::Mmio { gpa: NARROW & !0xfff };
    let fault = does(page_fault(9), vec![walk(NARROW, Verdict::EXIT)]);
    let early = does(mmio.clone(), vec![walk(ACCESSED, Verdict::EXIT)]);
    is(named("entry:+A", &[], &fault, &early), "accessed-before-nested-fault", Kind::Silicon);
    // A walk that completes, or leaves its entries alone, is no such thing.
    for observation in [walk(ACCESSED, Verdict::NATIVE), walk(NARROW, Verdict::EXIT)] {
        let name =
            named("entry:+A", &[], &fault, &does(mmio.clone(), vec![observation])).map(|(name, _)| name);
        assert_ne!(name.as_deref(), Some("accessed-before-nested-fault"));
    }
    let set = Paging { level: 1, gpa: None, before: ACCESSED, after: ACCESSED };
    let (walker, other) = (Seen { tables: vec![set], ..seen(mmio.clone()) }, seen(mmio));
    is(named("entry:+A", &[], &other, &walker), "device-access-without-a-walk", Kind::Silicon);
    assert_eq!(named("entry:+A", &[], &other, &other), None);
    let (a, b) = (seen(page_fault(3)), seen(page_fault(3)));
    is(named("entry:+A", &[], &a, &b), "accessed-bits-of-a-faulting-walk", Kind::Clause);
    assert_eq!(named("entry:+A", &[], &a, &seen(page_fault(2))), None);
    assert_eq!(named("register:rax", &[], &a, &b), None);
}

#[test]
fn instructions() {
    let right = seen(Outcome::Completes);
    is(
        named("outcome:x", &[], &right, &seen(left(ResumeKind::INTERNAL_ERROR, 1))),
        "emulator-knows-not",
        Kind::Patch,
    );
    assert_eq!(named("outcome:x", &[], &right, &seen(left(ResumeKind::INTERNAL_ERROR, 3))), None);
    // Behind an exception.
    let resume = Resume { data: [1, 0, 0, 0, 0, 0], ..Resume::new(ResumeKind::INTERNAL_ERROR) };
    let ends = does(undefined(), vec![Observation::Event(Event::resume(0, resume))]);
    is(named("end", &[], &right, &ends), "emulator-knows-not", Kind::Patch);
    assert_eq!(named("register:rax", &[], &right, &ends), None);
    let intel = Seen { vendor: Vendor::INTEL, ..seen(undefined()) };
    for opcode in [0x05, 0x07, 0x34, 0x35] {
        is(
            named("outcome:x", &[0x0f, opcode], &right, &intel),
            "system-call-outside-64-bit-mode",
            Kind::Clause,
        );
    }
    assert_eq!(named("outcome:x", &[0x0f, 0x0b], &right, &intel), None);
    assert_eq!(named("outcome:x", &[0x0f, 0x05], &right, &seen(undefined())), None, "one vendor");
    is(
        named("outcome:x", &[], &seen(page_fault(0x25)), &right),
        "protection-keys-without-nested-paging",
        Kind::Patch,
    );
    assert_eq!(named("outcome:x", &[], &seen(page_fault(5)), &right), None);
    let other = Seen { vendor: Vendor::INTEL, ..seen(Outcome::Completes) };
    for insn in [&[0x0e][..], &[0x66, 0x1e], &[0x0f, 0xa8]] {
        is(named("memory", insn, &right, &other), "push-of-a-selector", Kind::Silicon);
        assert_eq!(named("memory", insn, &right, &right), None, "one vendor");
    }
    assert_eq!(named("memory", &[0x50], &right, &other), None);
    let debug = || Outcome::Exception { vector: Vector::DB, code: None, address: None };
    let skipped = Seen { vendor: Vendor::INTEL, ..seen(Outcome::Completes) };
    is(named("outcome:x", &[0xf1], &seen(debug()), &skipped), "int1-intercepted", Kind::Patch);
    assert_eq!(named("outcome:x", &[0xcc], &seen(debug()), &skipped), None);
    assert_eq!(named("outcome:x", &[0xf1], &seen(debug()), &right), None, "one vendor");
}

#[test]
fn large_pages_beyond_36_bits() {
    let with = |entry, outcome| {
        let leaf = Paging { level: 2, gpa: Some(0x20_0000), before: entry, after: entry };
        Seen { tables: vec![leaf], widths: Widths { guest: 48, host: 48 }, ..seen(outcome) }
    };
    let found = |entry| {
        let mmio = with(entry, Outcome::Mmio { gpa: 0xa6_0219_9e80 });
        named("outcome:x", &[], &mmio, &with(entry, page_fault(0xb)))
    };
    is(found(0x0214_c087), "pse-36", Kind::Patch);
    assert_eq!(found(0x0201_e087), None, "36 bits");
    assert_eq!(found(0x0214_c007), None, "a table");
}

/// An exit in silicon's walk, and KVM's walk of the same tables behind it; on either vendor's silicon.
#[test]
fn tables_where_no_memory_is() {
    let exit = |isa, reason, info1| {
        let exit = Exit { isa, reason, info1, gpa: 0xffff_f000, ..Exit::default() };
        Observation::Event(Event::Exit(Box::new(ExitEvent { exit, ..ExitEvent::default() })))
    };
    let failed = || {
        let note = Note::WalkerError { pferr: 0 };
        Observation::Event(Event::Note { vcpu: 0, place: Place::L1, note })
    };
    let right = seen(page_fault(0));
    let npf = |info1| exit(Isa::SVM, SvmExitCode::NPF.0, info1);
    let violation = |info1| exit(Isa::VMX, VmxReason::EPT_VIOLATION.0, info1);
    for left in [npf(0x2_0000_0006), violation(0x83)] {
        let stuck = does(Outcome::Endless, vec![left, failed()]);
        is(named("outcome:x", &[], &right, &stuck), "tables-without-memory", Kind::Patch);
    }
    for left in [npf(0x1_0000_0006), violation(0x183)] {
        let found = named("outcome:x", &[], &right, &does(Outcome::Endless, vec![left, failed()]));
        assert_eq!(found, None, "what the walk leads to");
    }
    let quiet = does(Outcome::Endless, vec![npf(0x2_0000_0006)]);
    assert_eq!(named("outcome:x", &[], &right, &quiet), None, "KVM did not walk");
}

/// The stack of an exception's delivery lies in a page table; and in a page that is none, or that the guest may not write.
#[test]
fn deliveries_onto_page_tables() {
    const VALID: u32 = 1 << 31;
    let fault = |code: u32, intr_info: u32| {
        let exception =
            Exception { vector: Vector::PF, error_code: code, payload: GVA, ..Exception::default() };
        let (isa, reason) = (Isa::SVM, SvmExitCode::EXCP_PF.0);
        let exit = Exit { isa, reason, intr_info, exception, ..Exit::default() };
        Observation::Event(Event::Exit(Box::new(ExitEvent { exit, ..ExitEvent::default() })))
    };
    let told = |note| Observation::Event(Event::Note { vcpu: 0, place: Place::L1, note });
    let emulated =
        || told(Note::EmulateInsn { rip: 0, csbase: 0, len: 1, insn: 0xcc, mode: 0, failed: false });
    let mapped = || told(Note::SpteRequested { gfn: 0, pfn: 0, level: 1 });
    let device = || told(Note::MarkMmioSpte { gfn: 0, access: 0 });
    let general = || Outcome::Exception { vector: Vector::GP, code: Some(0), address: None };
    let fine = seen(Outcome::Completes);
    let found = |outcome, observations| named("outcome:x", &[], &fine, &does(outcome, observations));
    let refused = || told(Note::WalkerError { pferr: 3 });
    for (outcome, observations) in [
        (Outcome::Endless, vec![fault(3, VALID)]),
        (general(), vec![fault(3, VALID), emulated(), refused()]),
        (general(), vec![fault(3, VALID), emulated()]),
        (general(), vec![fault(2, VALID), mapped(), emulated()]),
    ] {
        is(found(outcome, observations), "delivery-onto-page-tables", Kind::Patch);
    }
    for (outcome, observations) in [
        (Outcome::Endless, vec![fault(3, 0)]),
        (Outcome::Endless, vec![fault(3, VALID), refused()]),
        (general(), vec![fault(3, VALID)]),
        (general(), vec![fault(2, VALID), mapped(), device(), emulated()]),
        (general(), vec![fault(1, VALID), emulated()]),
    ] {
        assert_eq!(found(outcome, observations), None);
    }
}
