//! What is compared, and what is exempt and why. The one place for both.
//!
//! Two runs of one backend are compared in everything: no exemption applies. A recording of the real KVM is compared
//! with a run of ours exit by exit, less the exemptions of [`RECORDING`]. Two backends are compared in what the guest
//! can observe; everything else is cost.

use vmtape_arch::{
    PAGE_SIZE,
    exit::{Exit, Isa, ResumeKind, SvmExitCode, VmxReason},
    msr::{Msr, ReachedPat},
    note::{Note, NoteKind},
    state::NestedState,
};
use vmtape_traces::{Event, event::Control};

/// Something that is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemption {
    /// A short name, for counts.
    pub name: &'static str,
    pub what: &'static str,
    pub why: &'static str,
}

/// The first schema of tapes whose exits tell all that they read.
pub const READS_SCHEMA: u32 = 3;
pub const OLDER_READS: Exemption = Exemption {
    name: "registers and reads of an older tape",
    what: "registers, reads and memory types on tapes of schemas 1 and 2, where a machine repeats its own tape",
    why: "those tapes left out what an earlier exit had told, today's do not; everything else is compared",
};

pub const TIMESTAMPS: Exemption = Exemption {
    name: "timestamps",
    what: "the time of every event",
    why: "a recording's clock is the recording host's; ours is a function of retired instructions",
};
pub const FRAME_NUMBERS: Exemption = Exemption {
    name: "host frames",
    what: "host frame numbers (pfn) in kvm_mmu_spte_requested, and entries that contain them",
    why: "where the host kernel found a free page says nothing about the guest",
};
pub const HOST_SCHEDULING: Exemption = Exemption {
    name: "host scheduling",
    what: "exits for the host's own interrupts and NMIs, and the preemption timer, with what they did, and events that are injected \
           again after an exit that did not interrupt their delivery",
    why: "they come from the recording host's devices and scheduler, at times of its wall clock",
};
pub const FPU_SWITCH: Exemption = Exemption {
    name: "host FPU",
    what: "kvm_fpu and other lines without a decoded form",
    why: "the host's own registers and bookkeeping are switched around KVM_RUN; the guest sees none of it",
};
pub const REFAULT: Exemption = Exemption {
    name: "refaults",
    what: "page faults of the recording on pages after kvm_unmap_hva_range",
    why: "the recording host took pages back (compaction, NUMA balancing, huge-page collapse); ours never does",
};
pub const FIRMWARE: Exemption = Exemption {
    name: "firmware",
    what: "everything before the guest's entry point",
    why: "the recording's VMM ran a firmware first; our loader starts the guest as a multiboot loader hands over",
};
pub const FIRMWARE_TOUCHED: Exemption = Exemption {
    name: "firmware's pages",
    what: "our page faults on pages, and kinds of pages, that the recording's firmware had touched before the entry",
    why: "their entries existed when the recorded guest began",
};
pub const FIRMWARE_APIC: Exemption = Exemption {
    name: "firmware's APIC",
    what: "values that the guest reads of registers of its local APIC before it has written them, after a firmware",
    why: "the recording's firmware has programmed the APIC; our loader starts the guest with one that was reset",
};
pub const NOT_TRACED: Exemption = Exemption {
    name: "not traced",
    what: "kinds of events that the recording contains nowhere, and exits that did nothing else",
    why: "the recording was made with a reduced set of trace events",
};
pub const APIC_BY_ITSELF: Exemption = Exemption {
    name: "interrupts of timers and lines",
    what: "kvm_apic_accept_irq of an interrupt that no processor sent in the same exit",
    why: "when a timer or a device interrupts depends on the recording host's clock",
};
pub const SKIPPED_INT: Exemption = Exemption {
    name: "length of INT n",
    what: "the walk and the kvm_emulate_insn of an INT n that is injected again",
    why: "KVM emulates it to learn its length where silicon saves no next RIP; the model keeps the length",
};
pub const AFTER_RECORDING: Exemption = Exemption {
    name: "after the recording",
    what: "exits of ours after the last one of the recording",
    why: "a recording may be limited in length; ours goes on to the guest's end",
};
pub const TIME_VALUES: Exemption = Exemption {
    name: "time values",
    what: "values of time-stamp counters, deadlines and timer counts",
    why: "they are readings of the recording host's clock",
};
pub const USER_DEVICES: Exemption = Exemption {
    name: "userspace devices",
    what: "values of port I/O",
    why: "the serial port and its like are models of the recording's VMM; ours start with other register values",
};
pub const MODEL_NOTES: Exemption = Exemption {
    name: "model notes",
    what: "steps of the silicon's walk, rules, and warnings of ours",
    why: "they are no trace events of KVM; a recording cannot have them",
};

pub const IO_ADDRESS_SIZE: Exemption = Exemption {
    name: "address size of string I/O",
    what: "address size and segment in EXITINFO1 of INS and OUTS, where the recording names no address size",
    why: "a processor names one; QEMU's software CPU, the silicon under the kvm_amd recordings, leaves both fields empty, \
          and KVM reads neither",
};

pub const SILICON_BITS: Exemption = Exemption {
    name: "entries that only silicon touched",
    what: "kvm_mmu_set_spte, and that a dirty ring is full, where exits are fed without their guest",
    why: "KVM does not trace an entry that stays as it is, and without a guest no silicon sets the entry's accessed and \
          dirty bits in between, nor logs writes that a ring is told of",
};

/// Whether an event depends on what silicon did between exits ([`SILICON_BITS`]).
pub fn is_of_silicon_between_exits(event: &Event) -> bool {
    let Event::Note { note, .. } = event else { return false };
    match note {
        Note::SetSpte { .. } => true,
        Note::UserspaceExit { reason, .. } => ResumeKind(*reason) == ResumeKind::DIRTY_RING_FULL,
        _ => false,
    }
}

pub const DIRTY_PAGES: Exemption = Exemption {
    name: "dirty pages",
    what: "between backends, and between parameters of one: which pages a dirty log tells, and when a full ring is emptied and \
           how many entries that frees",
    why: "a log may tell of pages that were not written, and each backend has others; that it tells of each that was written \
          is no question of one run being like another. Releases and patches under the same parameters are compared",
};

pub const NESTED_REGISTERS: Exemption = Exemption {
    name: "registers in nested state",
    what: "what follows the header that KVM_GET_NESTED_STATE gives, between backends and where exits are fed without their guest",
    why: "it has registers of the hypervisor that no exit tells, and each vendor's layout. Runs of one backend are compared whole",
};

/// An ioctl as it is compared ([`DIRTY_PAGES`], [`NESTED_REGISTERS`]). `logs_alike`: both sides see writes in the same way. `None`: it is exempt.
pub fn comparable_control(mut control: Control, logs_alike: bool) -> Option<Control> {
    match &mut control {
        _ if logs_alike => {}
        Control::GetDirtyLog { pages, .. } => *pages = Default::default(),
        Control::GetNestedState { state, .. } => state.0.truncate(size_of::<NestedState>()),
        Control::HarvestDirtyRing { .. } | Control::ResetDirtyRings { .. } => return None,
        _ => {}
    }
    Some(control)
}

pub const TLB_CONTENTS: Exemption = Exemption {
    name: "TLB contents",
    what: "between a guest that moved and its twin: accessed and dirty bits of the guest's tables that are the same where the twin \
           loses its TLB at the same instruction",
    why: "a guest that moves arrives with an empty TLB and walks its tables again; manuals let a processor forget what it has \
          translated at any time",
};
pub const MIGRATION_COST: Exemption = Exemption {
    name: "cost of a migration",
    what: "between a guest that moved and its twin: exits, faults after its arrival, write faults while its memory was logged",
    why: "only the host sees them",
};
pub const LOGGED_FOR_MIGRATION: Exemption = Exemption {
    name: "logs of a migration",
    what: "between a guest that moved and its twin: ioctls by which its memory was logged and read",
    why: "they are the VMM's that moves it, and no part of what the guest's own script does",
};
pub const DOWNTIME: Exemption = Exemption {
    name: "downtime",
    what: "nothing: while a guest stands still no virtual time passes, so clocks, timers and counters are compared",
    why: "a guest that has lost time would differ by it everywhere; what it takes is reported beside",
};

/// The exemptions between a guest that moved and its twin, which [`crate::migration`] applies.
pub const MIGRATION: [Exemption; 5] =
    [TLB_CONTENTS, MIGRATION_COST, LOGGED_FOR_MIGRATION, DOWNTIME, DIRTY_PAGES];

/// The exemptions between a recording of the real KVM and a run of ours.
pub const RECORDING: [Exemption; 16] = [
    TIMESTAMPS,
    FRAME_NUMBERS,
    HOST_SCHEDULING,
    FPU_SWITCH,
    REFAULT,
    FIRMWARE,
    FIRMWARE_TOUCHED,
    FIRMWARE_APIC,
    APIC_BY_ITSELF,
    SKIPPED_INT,
    NOT_TRACED,
    AFTER_RECORDING,
    TIME_VALUES,
    USER_DEVICES,
    MODEL_NOTES,
    IO_ADDRESS_SIZE,
];

/// Whether an exit is the host's own business ([`HOST_SCHEDULING`]).
pub fn is_host_exit(exit: &Exit) -> bool {
    match exit.isa {
        Isa::VMX => matches!(
            VmxReason(exit.reason & 0xffff),
            VmxReason::EXTERNAL_INTERRUPT | VmxReason::PREEMPTION_TIMER
        ),
        Isa::SVM => matches!(
            SvmExitCode(exit.reason),
            SvmExitCode::INTR | SvmExitCode::NMI | SvmExitCode::SMI | SvmExitCode::INIT
        ),
        _ => false,
    }
}

/// An event that an exit of the host's own delayed ([`HOST_SCHEDULING`]).
pub fn is_reinjection(note: &Note) -> bool {
    matches!(note, Note::InjException { reinjected: true, .. } | Note::InjVirq { reinjected: true, .. })
}

/// Whether an exit interrupted the delivery of an event, which KVM then injects again.
/// See: SDM vol. 3C 26.9.3 Information for VM Exits During Event Delivery; APM vol. 2 15.20 Event Injection
pub fn interrupts_delivery(exit: &Exit) -> bool {
    /// Bit 31 of IDT-vectoring information, which is `info2` of VMX's exits, and of EXITINTINFO: it is valid.
    const VALID: u64 = 1 << 31;
    match exit.isa {
        Isa::VMX => exit.info2 & VALID != 0,
        Isa::SVM => u64::from(exit.intr_info) & VALID != 0,
        _ => false,
    }
}

/// An event whose entry the host's own work put off: KVM injects it again with no exit in between ([`HOST_SCHEDULING`]).
/// See: KVM x86.c vcpu_enter_guest(), label cancel_injection
pub fn is_injected_again(first: &Note, again: &Note) -> bool {
    match (*first, *again) {
        (
            Note::InjException { vector: a, error_code: first, .. },
            Note::InjException { vector: b, error_code: again, reinjected: true, .. },
        ) => (a, first) == (b, again),
        (Note::InjVirq { vector: a, .. }, Note::InjVirq { vector: b, reinjected: true, .. }) => a == b,
        _ => false,
    }
}

/// The notes by which KVM learns the length of an INT n that it injects again ([`SKIPPED_INT`]).
/// See: KVM svm/svm.c svm_update_soft_interrupt_rip()
pub fn skip_of_injected_again(notes: &[Note]) -> Option<std::ops::Range<usize>> {
    const INT_N: u8 = 0xcd;
    let injected =
        notes.iter().position(|note| matches!(note, Note::InjVirq { soft: true, reinjected: true, .. }))?;
    let emulated = injected.checked_sub(1)?;
    let Note::EmulateInsn { insn, .. } = notes[emulated] else { return None };
    let walked = emulated.checked_sub(1).filter(|at| matches!(notes[*at], Note::PagetableWalk { .. }));
    (insn as u8 == INT_N).then(|| walked.unwrap_or(emulated)..injected)
}

/// EXITINFO1 of both exits as it is compared, and whether [`IO_ADDRESS_SIZE`] had a part in it.
// See: APM vol. 2 15.10.2 IN and OUT Behavior, Figure 15-2
pub fn comparable_info1(recorded: &Exit, own: &Exit) -> ([u64; 2], bool) {
    const STRING: u64 = 1 << 2;
    const ADDRESS_SIZE: u64 = 0b111 << 7;
    const SEGMENT: u64 = 0b111 << 10;
    let both = [recorded.info1, own.info1];
    let is_io = recorded.isa == Isa::SVM && SvmExitCode(recorded.reason) == SvmExitCode::IOIO;
    if is_io && recorded.info1 & STRING != 0 && recorded.info1 & ADDRESS_SIZE == 0 {
        return (both.map(|info| info & !(ADDRESS_SIZE | SEGMENT)), true);
    }
    (both, false)
}

/// The kinds that are compared with a recording; the rest of KVM's trace events is MMU bookkeeping that follows from
/// the compared ones, or host state.
pub const COMPARED_NOTES: [NoteKind; 17] = [
    NoteKind::PAGE_FAULT,
    NoteKind::CPUID,
    NoteKind::MSR,
    NoteKind::CR,
    NoteKind::INJ_EXCEPTION,
    NoteKind::INJ_VIRQ,
    NoteKind::SPTE_REQUESTED,
    NoteKind::PIO,
    NoteKind::MMIO,
    NoteKind::EMULATE_INSN,
    NoteKind::PAGETABLE_WALK,
    NoteKind::WALKER_ERROR,
    NoteKind::SET_SPTE,
    NoteKind::FAST_PAGE_FAULT,
    NoteKind::APIC,
    NoteKind::APIC_IPI,
    NoteKind::APIC_ACCEPT_IRQ,
];

/// A note as it is compared with a recording: exempt fields are zero. `None`: the note is exempt.
pub fn comparable(note: &Note) -> Option<Note> {
    let kind = note.to_raw().kind;
    if !COMPARED_NOTES.contains(&kind) {
        return None;
    }
    Some(match *note {
        Note::SpteRequested { gfn, level, .. } => Note::SpteRequested { gfn, pfn: 0, level },
        Note::SetSpte { gfn, level, .. } => Note::SetSpte { gfn, spte: 0, level },
        Note::Apic { write, register, .. } if is_apic_time(register) => {
            Note::Apic { write, register, value: 0 }
        }
        Note::Msr { .. } if !is_traced(note) => return None,
        Note::Msr { write, index, data, exception, host_initiated, passed, .. } => {
            let (data, pat) = (if is_time(Msr(index)) { 0 } else { data }, ReachedPat::ONLY);
            Note::Msr { write, index, data, exception, host_initiated, passed, pat }
        }
        Note::Pio { write, port, size, count, .. } => Note::Pio { write, port, size, count, value: 0 },
        other => other,
    })
}

/// Whether KVM's own tracepoint shows an access to an MSR: it has only those that exits brought to KVM's emulation.
pub fn is_traced(note: &Note) -> bool {
    matches!(note, Note::Msr { host_initiated: false, passed: false, .. })
}

/// The timer's initial and current count.
fn is_apic_time(register: u32) -> bool {
    matches!(register, 0x380 | 0x390)
}

fn is_time(msr: Msr) -> bool {
    /// x2APIC registers: initial count and current count of the timer.
    const X2APIC_TIMER: [u32; 2] = [0x838, 0x839];
    matches!(msr, Msr::IA32_TSC | Msr::IA32_TSC_DEADLINE | Msr::IA32_TSC_ADJUST)
        || X2APIC_TIMER.contains(&msr.0)
}

/// Between backends: whether a note tells of an access to the local APIC, by its page or its MSRs.
///
/// Exempt, because the backend decides how a guest reaches its APIC: with virtualized APIC registers most accesses leave
/// no trace at all. What the APIC answered is in the guest's registers, which are compared.
pub fn is_apic_access(note: &Note) -> bool {
    /// The default of IA32_APIC_BASE.
    const APIC_PAGE: u64 = 0xfee0_0000;
    match *note {
        Note::Mmio { gpa, .. } => gpa & !(PAGE_SIZE - 1) == APIC_PAGE,
        Note::Msr { index, exception: false, .. } => {
            (Msr::X2APIC_FIRST.0..=Msr::X2APIC_LAST.0).contains(&index)
        }
        _ => false,
    }
}

/// The register of the local APIC that a note tells of, and whether it is written.
pub fn apic_register(note: &Note) -> Option<(u32, bool)> {
    const APIC_PAGE: u64 = 0xfee0_0000;
    const MMIO_WRITE: u8 = 2;
    match *note {
        Note::Apic { write, register, .. } => Some((register, write)),
        Note::Mmio { kind, gpa, .. } if gpa & !(PAGE_SIZE - 1) == APIC_PAGE => {
            Some(((gpa - APIC_PAGE) as u32, kind == MMIO_WRITE))
        }
        _ => None,
    }
}

/// A note without the value that was read.
pub fn without_value(note: &Note) -> Note {
    match *note {
        Note::Apic { write, register, .. } => Note::Apic { write, register, value: 0 },
        Note::Mmio { kind, len, gpa, .. } => Note::Mmio { kind, len, gpa, value: 0 },
        other => other,
    }
}

/// Whether an event of a recording shows that the host took pages back ([`REFAULT`]).
pub fn unmaps(event: &Event) -> bool {
    matches!(event, Event::Line { text, .. } if text.starts_with("kvm_unmap_hva_range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::exception::Vector;

    #[test]
    fn only_an_event_that_was_just_injected_is_injected_again() {
        let exception = |error_code, reinjected| Note::InjException {
            vector: Vector::PF,
            has_error: true,
            error_code,
            reinjected,
        };
        assert!(is_injected_again(&exception(4, false), &exception(4, true)));
        assert!(!is_injected_again(&exception(4, false), &exception(4, false)));
        assert!(!is_injected_again(&exception(4, false), &exception(6, true)));
        let interrupt = Note::InjVirq { vector: 0x20, soft: true, reinjected: true };
        assert!(!is_injected_again(&exception(4, false), &interrupt));
    }

    #[test]
    fn only_string_io_without_an_address_size_loses_it() {
        let io = |info1| Exit { isa: Isa::SVM, reason: SvmExitCode::IOIO.0, info1, ..Default::default() };
        let (without, with) = (io(0x3f8_001c), io(0x3f8_0e1c));
        assert_eq!(comparable_info1(&without, &with), ([0x3f8_001c; 2], true));
        assert_eq!(comparable_info1(&with, &io(0x3f8_0a1c)), ([0x3f8_0e1c, 0x3f8_0a1c], false));
        assert_eq!(comparable_info1(&io(0x3f8_0010), &io(0x3f8_0210)), ([0x3f8_0010, 0x3f8_0210], false));
    }
}
