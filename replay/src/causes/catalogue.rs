//! The entries. Each looks at what both sides did about one instruction and says, if it knows why they differ, so.
//!
//! Manuals: Intel SDM 325384-087, AMD APM volume 2, 24593 rev. 3.42.

#[cfg(test)]
mod tests;

use super::{
    case::{Case, Seen},
    cause::{Cause, Kind},
};
use crate::{
    exempt,
    explain::{Outcome, illegal_bit, is_malformed},
};
use vmtape_arch::{
    access::Verdict,
    event::EventKind,
    exception::{PageFaultError, Vector},
    exit::{Exit, Isa, Resume, ResumeKind, SvmExitCode, VmxReason},
    note::Note,
    paging::{Pte, bits},
};
use vmtape_traces::Event;

use crate::observer::{Observation, Walk};

/// A cause that is known by what it does.
struct Entry {
    name: &'static str,
    kind: Kind,
    source: &'static str,
    /// Whether a switch or a host may take it away, so that trials are worth their time.
    switchable: bool,
    /// The sentence, with what this case has for names and numbers.
    sentence: fn(&Case) -> Option<String>,
}

/// The most particular ones come first.
const CATALOGUE: &[Entry] = &[
    Entry {
        name: "memory-beyond-the-host",
        kind: Kind::Patch,
        source: "KVM x86.c kvm_arch_prepare_memory_region(), mmu.h kvm_mmu_max_gfn()",
        switchable: true,
        sentence: memory_beyond_the_host,
    },
    Entry {
        name: "unmappable-address",
        kind: Kind::Silicon,
        source: "Intel, 5-Level Paging and 5-Level EPT; KVM mmu/mmu.c kvm_mmu_get_tdp_level()",
        switchable: true,
        sentence: unmappable_address,
    },
    Entry {
        name: "impossible-error-code",
        kind: Kind::Patch,
        source: "SDM vol. 3A 4.7 Page-Fault Exceptions: bit 3 (RSVD) is set only if bit 0 (P) is",
        switchable: true,
        sentence: impossible_error_code,
    },
    Entry {
        name: "accessed-before-nested-fault",
        kind: Kind::Silicon,
        source: "KVM svm/svm.c svm_hardware_setup(), commit 3edd68399dc1",
        switchable: true,
        sentence: accessed_before_nested_fault,
    },
    Entry {
        name: "role-without-width",
        kind: Kind::Patch,
        source: "KVM include/asm/kvm_host.h union kvm_mmu_page_role; commit 63f5a1909f9e",
        switchable: true,
        sentence: role_without_width,
    },
    Entry {
        name: "emulator-knows-not",
        kind: Kind::Patch,
        source: "KVM x86.c handle_emulation_failure(), prepare_emulation_failure_exit()",
        switchable: false,
        sentence: emulator_knows_not,
    },
    Entry {
        name: "width-of-silicon",
        kind: Kind::Clause,
        source: "SDM vol. 3A 4.7 Page-Fault Exceptions; APM 5.6.1 Page-Translation Exceptions, 15.25.6",
        switchable: true,
        sentence: width_of_silicon,
    },
    Entry {
        name: "large-pages-of-silicon",
        kind: Kind::Clause,
        source: "SDM vol. 3A 4.5.4 Linear-Address Translation with 4-Level Paging; KVM cpuid.c kvm_vcpu_after_set_cpuid()",
        switchable: true,
        sentence: large_pages_of_silicon,
    },
    Entry {
        name: "pse-36",
        kind: Kind::Patch,
        source: "KVM mmu/mmu.c __reset_rsvds_bits_mask(): rsvd_bits(17, 21); APM 5.2.2 Normal (Non-PAE) Paging, 4-Mbyte pages",
        switchable: false,
        sentence: pse_36,
    },
    Entry {
        name: "delivery-onto-page-tables",
        kind: Kind::Patch,
        source: "KVM mmu/mmu.c kvm_mmu_write_protect_fault(), x86.c x86_emulate_instruction()",
        switchable: false,
        sentence: delivery_onto_page_tables,
    },
    Entry {
        name: "device-access-without-a-walk",
        kind: Kind::Silicon,
        source: "SDM vol. 3A 4.8 Accessed and Dirty Flags, vol. 3C 29.3.3; KVM x86.c emulator_read_write_onepage(), \
                 mmu/paging_tmpl.h update_accessed_dirty_bits()",
        switchable: true,
        sentence: device_access_without_a_walk,
    },
    Entry {
        name: "system-call-outside-64-bit-mode",
        kind: Kind::Clause,
        source: "SDM vol. 2B SYSCALL, SYSRET; APM vol. 3 (24594) SYSCALL, SYSENTER",
        switchable: false,
        sentence: system_call,
    },
    Entry {
        name: "push-of-a-selector",
        kind: Kind::Silicon,
        source: "SDM vol. 2B PUSH, Description: a 16-bit move; APM vol. 3 (24594) PUSH",
        switchable: false,
        sentence: push_of_a_selector,
    },
    Entry {
        name: "int1-intercepted",
        kind: Kind::Patch,
        source: "KVM vmx/vmx.c handle_exception_nmi(), is_icebp(); SDM vol. 3C 26.1.3, APM 15.12.2 #DB (Debug)",
        switchable: false,
        sentence: int1_intercepted,
    },
    Entry {
        name: "protection-keys-without-nested-paging",
        kind: Kind::Patch,
        source: "KVM cpuid.c kvm_set_cpu_caps(): PKU only with tdp_enabled",
        switchable: false,
        sentence: protection_keys,
    },
    Entry {
        name: "tables-without-memory",
        kind: Kind::Patch,
        source: "KVM mmu/paging_tmpl.h walk_addr_generic(): an entry that cannot be read is not present; APM 15.25.6, SDM vol. 3C 29.3.3.2",
        switchable: false,
        sentence: tables_without_memory,
    },
    Entry {
        name: "accessed-bits-of-a-faulting-walk",
        kind: Kind::Clause,
        source: "SDM vol. 3A 4.8 Accessed and Dirty Flags; APM 5.4.2 Notes on Accessed and Dirty Bits",
        switchable: false,
        sentence: accessed_bits_of_a_faulting_walk,
    },
];

/// A side's silicon uses a translation that the guest's tables no longer have, as a trial has shown.
pub fn stale_translation(side: &str) -> Cause {
    Cause {
        kind: Kind::Clause,
        name: "translation-made-before".to_owned(),
        sentence: format!(
            "the guest has changed its tables without invalidating what was translated before: {side} still uses it, as a processor may"
        ),
        source: "SDM vol. 3A 4.10.2.3, 4.10.4 Invalidation of TLBs and Paging-Structure Caches; APM 5.5.2 TLB Management".to_owned(),
        confirmed: Some(format!("{side} with an empty TLB before the instruction: both sides are equal here")),
    }
}

/// The first entry that knows the case.
pub fn find(case: &Case) -> Option<Cause> {
    look_up(case).map(|(cause, _)| cause)
}

/// As [`find`], and whether trials may confirm it.
pub fn look_up(case: &Case) -> Option<(Cause, bool)> {
    CATALOGUE.iter().find_map(|entry| {
        let sentence = (entry.sentence)(case)?;
        let cause = Cause {
            kind: entry.kind,
            name: entry.name.to_owned(),
            sentence,
            source: entry.source.to_owned(),
            confirmed: None,
        };
        Some((cause, entry.switchable))
    })
}

fn memory_beyond_the_host(case: &Case) -> Option<String> {
    let result = case.what.strip_prefix("ioctl:KVM_SET_USER_MEMORY_REGION:")?;
    let (expected, actual) = result.split_once('>')?;
    let refuses = if expected == "0" { case.actual } else { case.expected };
    ((expected == "0") != (actual == "0")).then(|| {
        format!(
            "KVM on {} refuses memory beyond what its tables can map: the host's {} bits under nested paging, 52 without",
            refuses.name, refuses.widths.host
        )
    })
}

/// Address bits that four levels do not translate begin here.
const FOUR_LEVELS: u32 = 48;

fn unmappable_address(case: &Case) -> Option<String> {
    case.sides().into_iter().find_map(|side| {
        let stuck = matches!(side.outcome, Outcome::Endless)
            || matches!(side.outcome, Outcome::Left(resume) if resume.kind != ResumeKind::SHUTDOWN);
        let gpa = last_exit(side)?.gpa;
        (stuck && gpa >> FOUR_LEVELS != 0).then(|| {
            format!(
                "four levels of nested tables translate address bits 47:0 only, so no entry that KVM can install maps \
                 {gpa:#x} on {}: {}",
                side.name, side.outcome
            )
        })
    })
}

fn last_exit(side: &Seen) -> Option<&Exit> {
    side.observations.iter().rev().find_map(|observation| match observation {
        Observation::Event(Event::Exit(exit)) => Some(&exit.exit),
        _ => None,
    })
}

fn impossible_error_code(case: &Case) -> Option<String> {
    case.sides().into_iter().find_map(|side| {
        let fault = side.outcome.page_fault()?;
        let code = fault.into_bits();
        (fault.rsvd() && !fault.p()).then(|| {
            format!(
                "KVM on {} makes up the page fault from the guest physical address alone: error code {code:#x} has RSVD \
                 without P, and CR2 is no linear address",
                side.name
            )
        })
    })
}

fn accessed_before_nested_fault(case: &Case) -> Option<String> {
    if !case.what.starts_with("entry:") {
        return None;
    }
    // An access that completes in memory sets them rightly.
    let faulted = case.sides().into_iter().filter(|side| side.outcome != Outcome::Completes);
    faulted.into_iter().find_map(|side| {
        let changed = |walk: &&Walk| {
            walk.verdict == Verdict::EXIT && walk.entries.iter().any(|entry| entry.before != entry.after)
        };
        let walk = walks(side).find(changed)?;
        let entry = walk.entries.last().filter(|entry| entry.before != entry.after)?;
        let place = entry.gpa.map_or(String::new(), |gpa| format!(" at {gpa:#x}"));
        let bits = if Pte::from_bits(entry.before ^ entry.after).d() { "accessed and dirty bits" } else { "accessed bit" };
        Some(format!(
            "silicon of {} sets the {bits} of the guest's entry{place} before the final address {:#x} has a nested \
             translation; it has none, and KVM cannot take that back",
            side.name,
            Pte::from_bits(entry.before).address()
        ))
    })
}

fn walks(side: &Seen) -> impl Iterator<Item = &Walk> {
    side.observations.iter().filter_map(|observation| match observation {
        Observation::Walk(walk) => Some(&**walk),
        _ => None,
    })
}

/// One side faults by the guest's width, the other one has a shadow page that was built by the rules of another width.
fn role_without_width(case: &Case) -> Option<String> {
    let (strict, lax) = case.strict_and_lax()?;
    let bit = lax.illegal_bit()?;
    let walked = walks(lax).any(|walk| !walk.entries.is_empty() && Some(walk.access.gva) == case.focus)
        || lax.observations.iter().any(is_kvm_walk);
    (!walked).then(|| {
        format!(
            "{} uses a translation that was made when bit {bit} was legal, because a shadow page's role does not hold the \
             guest's MAXPHYADDR; {} walks anew with {} bits",
            lax.name, strict.name, strict.widths.guest
        )
    })
}

fn is_kvm_walk(observation: &Observation) -> bool {
    matches!(observation, Observation::Event(Event::Note { note: Note::WalkerError { .. }, .. }))
}

fn emulator_knows_not(case: &Case) -> Option<String> {
    /// KVM_INTERNAL_ERROR_EMULATION.
    const EMULATION: u64 = 1;
    let gives_up = |resume: &Resume| resume.kind == ResumeKind::INTERNAL_ERROR && resume.data[0] == EMULATION;
    // Behind an exception that the guest was to take first it is the end of the run.
    let at_last = |observation: &Observation| matches!(observation, Observation::Event(Event::Resume { resume, .. }) if gives_up(resume));
    let gave_up = |side: &&Seen| match &side.outcome {
        Outcome::Left(resume) => gives_up(resume),
        _ => case.what == "end" && side.observations.iter().any(at_last),
    };
    case.sides().into_iter().find(gave_up).map(|side| {
        format!(
            "KVM on {} has to emulate the instruction and its emulator does not know it, or cannot fetch it: \
             KVM_EXIT_INTERNAL_ERROR, suberror 1",
            side.name
        )
    })
}

/// An event's delivery writes to a page that the guest may write and KVM protects, and KVM emulates what was interrupted.
fn delivery_onto_page_tables(case: &Case) -> Option<String> {
    if case.expected.outcome.word() == case.actual.outcome.word() {
        return None;
    }
    case.sides().into_iter().find(|side| delivers_onto_page_tables(side)).map(|side| {
        format!(
            "an event is to be delivered onto a page of the guest's own page tables, which KVM on {} shadows and so protects: giving \
             the page free does not last, so it emulates the instruction at RIP instead, which has raised its event already",
            side.name
        )
    })
}

fn delivers_onto_page_tables(side: &Seen) -> bool {
    let Some(at) = side.observations.iter().position(is_write_of_a_delivery) else { return false };
    let Observation::Event(Event::Exit(exit)) = &side.observations[at] else { return false };
    let notes: Vec<&Note> = side.observations[at + 1..]
        .iter()
        .take_while(|after| !matches!(after, Observation::Event(Event::Exit(_))))
        .filter_map(|after| match after {
            Observation::Event(Event::Note { note, .. }) => Some(note),
            _ => None,
        })
        .collect();
    let emulated = notes.iter().position(|note| matches!(note, Note::EmulateInsn { .. }));
    let fault = &notes[..emulated.unwrap_or(notes.len())];
    let any = |is: fn(&Note) -> bool| fault.iter().any(|note| is(note));
    let is_refused = any(|note| matches!(note, Note::WalkerError { .. }));
    let is_device = any(|note| matches!(note, Note::MarkMmioSpte { .. } | Note::Mmio { .. }));
    // The page is mapped and may not be written, or KVM maps memory and still has to emulate.
    let maps_memory = any(|note| matches!(note, Note::SpteRequested { .. })) && !is_device;
    let is_protected = PageFaultError::from_bits(exit.exit.exception.error_code).p() || maps_memory;
    let is_emulated = emulated.is_some();
    !is_refused && is_protected && (is_emulated || side.outcome == Outcome::Endless)
}

/// A page fault of shadow tables by a write, in the delivery of an event.
fn is_write_of_a_delivery(observation: &Observation) -> bool {
    let Observation::Event(Event::Exit(exit)) = observation else { return false };
    let fault = exit.exit.exception;
    let code = PageFaultError::from_bits(fault.error_code);
    fault.vector == Vector::PF && code.w() && !code.rsvd() && exempt::interrupts_delivery(&exit.exit)
}

fn width_of_silicon(case: &Case) -> Option<String> {
    let (strict, lax) = case.strict_and_lax()?;
    let bit = lax.illegal_bit().or_else(|| strict.illegal_bit())?;
    let Seen { name, widths, outcome, .. } = lax;
    let saw = match outcome.page_fault() {
        Some(fault) => {
            format!("it goes on to the permissions and reports {:#x}, without RSVD", fault.into_bits())
        }
        None => format!("it finds no fault, and {outcome}"),
    };
    Some(format!(
        "bit {bit} is reserved by the {} bits of the guest and an ordinary address bit by the {} bits of {name}, whose \
         silicon walks the guest's tables: {saw}",
        strict.widths.guest, widths.host
    ))
}

/// One side faults at a page of 1 GiB, in which nothing is reserved for a processor that has such pages.
fn large_pages_of_silicon(case: &Case) -> Option<String> {
    /// The level of page-directory-pointer entries.
    const GIB: u8 = 3;
    let (strict, lax) = case.strict_and_lax()?;
    let leaf = strict.tables.iter().chain(&lax.tables).find(|entry| entry.level == GIB)?;
    let pte = Pte::from_bits(leaf.before);
    (pte.p() && pte.ps() && !is_malformed(leaf, strict.widths.guest)).then(|| {
        format!(
            "the guest's CPUID has no 1 GiB pages, so KVM on {} takes the page-size bit of {:#x} for a reserved one; \
             silicon of {} has such pages and walks the guest's tables itself",
            strict.name, leaf.before, lax.name
        )
    })
}

/// One side faults at a page of 4 MiB that lies beyond 36 bits.
fn pse_36(case: &Case) -> Option<String> {
    /// The level of page-directory entries, and those bits of a 32-bit one that are address bits 39:36 or reserved.
    const DIRECTORY: u8 = 2;
    const BEYOND_36: u64 = bits(17, 21);
    let (strict, lax) = case.strict_and_lax()?;
    let leaf = strict.tables.iter().chain(&lax.tables).find(|entry| entry.level == DIRECTORY)?;
    let pte = Pte::from_bits(leaf.before);
    let is_beyond = pte.p() && pte.ps() && leaf.before >> 32 == 0 && leaf.before & BEYOND_36 != 0;
    is_beyond.then(|| {
        format!(
            "the page of 4 MiB that {:#x} maps lies beyond 36 address bits, which is all that KVM on {} gives such pages; silicon of {} \
             has more of them",
            leaf.before, strict.name, lax.name
        )
    })
}

/// Intel has SYSCALL in 64-bit mode only, AMD has SYSENTER in legacy mode only.
fn system_call(case: &Case) -> Option<String> {
    let name = match case.insn {
        [0x0f, 0x05, ..] => "SYSCALL",
        [0x0f, 0x07, ..] => "SYSRET",
        [0x0f, 0x34, ..] => "SYSENTER",
        [0x0f, 0x35, ..] => "SYSEXIT",
        _ => return None,
    };
    let undefined = |side: &Seen| matches!(side.outcome, Outcome::Exception { vector: Vector::UD, .. });
    let (a, b) = (case.expected, case.actual);
    (a.vendor != b.vendor && undefined(a) != undefined(b)).then(|| {
        let (lacks, has) = if undefined(a) { (a, b) } else { (b, a) };
        format!(
            "{name} in this mode is an instruction of {} processors and #UD on those of {}",
            has.vendor, lacks.vendor
        )
    })
}

/// PUSH of a segment register with an operand of more than 16 bits.
fn push_of_a_selector(case: &Case) -> Option<String> {
    const OPERAND_SIZE: u8 = 0x66;
    let insn = case.insn.strip_prefix(&[OPERAND_SIZE]).unwrap_or(case.insn);
    let pushes = matches!(insn, [0x06 | 0x0e | 0x16 | 0x1e, ..] | [0x0f, 0xa0 | 0xa8, ..]);
    let differ = case.expected.vendor != case.actual.vendor && case.what == "memory";
    (pushes && differ).then(|| {
        "Intel's processors write the selector alone and leave the rest of the stack's slot as it was, AMD's write zeros there"
            .to_owned()
    })
}

/// INT1, behind which Intel's guest stands with its #DB still to come.
fn int1_intercepted(case: &Case) -> Option<String> {
    const INT1: u8 = 0xf1;
    let debug = |side: &Seen| matches!(side.outcome, Outcome::Exception { vector: Vector::DB, .. });
    let (a, b) = (case.expected, case.actual);
    let differ = case.insn.first() == Some(&INT1) && a.vendor != b.vendor && debug(a) != debug(b);
    differ.then(|| {
        let later = if debug(a) { b } else { a };
        format!(
            "INT1 exits on {}, where KVM intercepts #DB: it goes behind the instruction, and delivers the #DB before the next one",
            later.name
        )
    })
}

fn protection_keys(case: &Case) -> Option<String> {
    let by_key = |side: &Seen| side.outcome.page_fault().is_some_and(|fault| fault.pk());
    let (strict, lax) = match (by_key(case.expected), by_key(case.actual)) {
        (true, false) => (case.expected, case.actual),
        (false, true) => (case.actual, case.expected),
        _ => return None,
    };
    Some(format!(
        "the page's protection key forbids the access, which silicon of {} checks; {} runs on KVM's own tables, where \
         entries have no keys, and KVM would not offer PKU to a guest there",
        strict.name, lax.name
    ))
}

/// Both sides make a device access of it, and the entries on the way tell who walked to the end.
fn device_access_without_a_walk(case: &Case) -> Option<String> {
    let devices = case.sides().into_iter().all(|side| matches!(side.outcome, Outcome::Mmio { .. }));
    if !devices || !case.what.starts_with("entry:") {
        return None;
    }
    let set = |side: &Seen| side.tables.iter().filter(|entry| Pte::from_bits(entry.before).a()).count();
    let (walker, other) = match set(case.actual) > set(case.expected) {
        true => (case.actual, case.expected),
        false => (case.expected, case.actual),
    };
    (set(walker) > set(other)).then(|| {
        format!(
            "the device access sets accessed bits on {}, where a walk of the guest's tables comes to its end; on {} \
             silicon's walk faults at the final address before it sets any, and KVM takes the address from the exit",
            walker.name, other.name
        )
    })
}

fn accessed_bits_of_a_faulting_walk(case: &Case) -> Option<String> {
    let same = case.expected.outcome.word() == case.actual.outcome.word();
    let faults = matches!(case.expected.outcome, Outcome::Exception { .. });
    (case.what.starts_with("entry:") && same && faults).then(|| {
        "a walk that ends in a fault may leave accessed bits set in the entries that it used, or not: both are right"
            .to_owned()
    })
}

/// KVM finds no memory behind a table of the guest's, for which silicon has left the guest.
fn tables_without_memory(case: &Case) -> Option<String> {
    case.sides().into_iter().find_map(|side| {
        let left_for = side.observations.iter().position(is_exit_for_a_table)?;
        let walked = side.observations[left_for..].iter().any(is_kvm_walk);
        let Observation::Event(Event::Exit(exit)) = &side.observations[left_for] else { return None };
        walked.then(|| {
            format!(
                "a table of the guest's lies at {:#x}, where no memory is: silicon of {} exits in its own walk, as often as it walks; \
                 KVM's walk takes what it cannot read there for an entry that is not present",
                exit.exit.gpa, side.name
            )
        })
    })
}

/// An exit of a nested walk, for an entry of the guest's and not for what it leads to.
fn is_exit_for_a_table(observation: &Observation) -> bool {
    let Observation::Event(Event::Exit(exit)) = observation else { return false };
    let Exit { isa, reason, info1, .. } = exit.exit;
    match isa {
        Isa::SVM => SvmExitCode(reason) == SvmExitCode::NPF && info1 & NPF_IN_WALK != 0,
        Isa::VMX => {
            VmxReason(reason) == VmxReason::EPT_VIOLATION && info1 & EPT_LINEAR_TRANSLATED == EPT_LINEAR
        }
        _ => false,
    }
}

/// EXITINFO1: the fault was in the walk of the guest's tables. See: APM 15.25.6 Nested versus Guest Page Faults
const NPF_IN_WALK: u64 = 1 << 33;
/// Exit qualification: there is a linear address, and the access is to its translation. See: SDM vol. 3C Table 28-7
const EPT_LINEAR: u64 = 1 << 7;
const EPT_LINEAR_TRANSLATED: u64 = EPT_LINEAR | 1 << 8;

impl Case<'_> {
    pub fn sides(&self) -> [&Seen; 2] {
        [self.actual, self.expected]
    }

    /// The side that reports a reserved bit, and the one that does not.
    fn strict_and_lax(&self) -> Option<(&Seen, &Seen)> {
        let rsvd = |side: &Seen| side.first_page_fault().is_some_and(|fault| fault.rsvd());
        match (rsvd(self.expected), rsvd(self.actual)) {
            (true, false) => Some((self.expected, self.actual)),
            (false, true) => Some((self.actual, self.expected)),
            _ => None,
        }
    }
}

impl Seen {
    /// The error code of the page fault that it is about: the outcome, or what came of it first where more followed.
    fn first_page_fault(&self) -> Option<PageFaultError> {
        let of_event = |observation: &Observation| match observation {
            Observation::Inject(event, _) if event.kind == EventKind::HARDWARE_EXCEPTION => {
                Some((Vector(event.vector), event.error_code))
            }
            _ => None,
        };
        let first = self.observations.iter().find_map(of_event);
        let followed = matches!(self.outcome, Outcome::Endless | Outcome::Left(_));
        match first {
            Some((Vector::PF, code)) if followed => Some(PageFaultError::from_bits(code)),
            _ => self.outcome.page_fault(),
        }
    }

    /// The address bit that the guest's width does not allow and the host's does.
    fn illegal_bit(&self) -> Option<u32> {
        self.tables.iter().find_map(|entry| {
            let present = Pte::from_bits(entry.before).p();
            let legal_here = illegal_bit(entry.before, self.widths.host).is_none();
            illegal_bit(entry.before, self.widths.guest).filter(|_| present && legal_here)
        })
    }
}
