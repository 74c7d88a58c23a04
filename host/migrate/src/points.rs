//! Where a migration asks whether something goes wrong. Who decides is the [`Faults`] of the run; what was decided is kept, so that
//! it can be told.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};
use vmtape_machine::{Asked, Decision, Faults, Phase};
use vmtape_traces::event::{Fault, NO_VCPU, Skip};

vmtape_arch::open_enum! {
    /// Fault points of a migration. Their numbers are a space of their own; what they mean stands in [`MovePoint::table`].
    pub struct MovePoint(u32) {
        SEND_CUT = 0x8000_1000 => "move-send-cut",
        SEND_LOST = 0x8000_1001 => "move-send-lost",
        SEND_FLIP = 0x8000_1002 => "move-send-flip",
        SEND_TWICE = 0x8000_1003 => "move-send-twice",
        KILL_SOURCE = 0x8000_1004 => "move-kill-source",
        KILL_DESTINATION = 0x8000_1005 => "move-kill-destination",
        GO_EPOCH = 0x8000_1006 => "move-go-epoch",
        STATE_LOST = 0x8000_1010 => "move-state-lost",
        STATE_LATER = 0x8000_1011 => "move-state-later",
        STATE_ZERO = 0x8000_1012 => "move-state-zero",
        STATE_REFUSED = 0x8000_1013 => "move-state-refused",
        EXIT_UNCOMPLETED = 0x8000_1014 => "move-exit-uncompleted",
        MSR_LOST = 0x8000_1015 => "move-msr-lost",
        APIC_OF_KERNEL = 0x8000_1016 => "move-apic-of-kernel",
        LOG_FAILED = 0x8000_1020 => "move-log-failed",
        LOG_WORD = 0x8000_1021 => "move-log-word",
        LOG_CLEAR = 0x8000_1022 => "move-log-clear",
        PAGE_LOST = 0x8000_1030 => "move-page-lost",
        PAGE_ZERO = 0x8000_1031 => "move-page-zero",
        PAGE_LATE = 0x8000_1032 => "move-page-late",
        PAGE_SHIFTED = 0x8000_1033 => "move-page-shifted",
        REQUEST_LOST = 0x8000_1050 => "move-request-lost",
        REQUEST_NEVER = 0x8000_1051 => "move-request-never",
        REQUEST_ZERO = 0x8000_1052 => "move-request-zero",
        RETRY_DIRTY = 0x8000_1060 => "move-retry-dirty",
    }
}

const SECTION: &str = "a: the section's kind; b: its bytes; ";
const MOMENT: &str =
    "a: the moment (1 before READY, 2 before GO, 3 within GO, 4 after GO, 5 after DONE); b: 0; answer: any";
const STATE: &str = "a: the vCPU in the upper half and the kind in the lower; b: its place in the order; ";
const PAGE: &str = "a: the slot; b: the page's number in it; ";

impl MovePoint {
    /// Each point with its name, what goes wrong, and what its words and its answer mean.
    pub fn table() -> Vec<(Self, &'static str, &'static str, String)> {
        let row = |(point, name): &(Self, &'static str)| {
            let (text, words) = point.said();
            (*point, *name, text, words)
        };
        Self::NAMED.iter().map(row).collect()
    }

    fn said(self) -> (&'static str, String) {
        let (text, asked, answer) = match self {
            Self::SEND_CUT => (
                "The link breaks within a section, and the sender knows",
                SECTION,
                "answer: the bytes of it that arrive",
            ),
            Self::SEND_LOST => (
                "The link breaks within a section, and the sender believes that it was sent",
                SECTION,
                "answer: the bytes of it that arrive",
            ),
            Self::SEND_FLIP => ("A bit of a section is another one", SECTION, "answer: the bit's number"),
            Self::SEND_TWICE => ("A section comes twice", SECTION, "answer: any"),
            Self::KILL_SOURCE => ("The source's process dies", MOMENT, ""),
            Self::KILL_DESTINATION => ("The destination's process dies", MOMENT, ""),
            Self::GO_EPOCH => {
                ("GO is of another attempt", "a: the epoch; b: 0; ", "answer: the epoch that is sent")
            }
            Self::STATE_LOST => ("A part of the state is not loaded", STATE, "answer: any"),
            Self::STATE_LATER => ("A part of the state is loaded later", STATE, "answer: by so many places"),
            Self::STATE_ZERO => {
                ("A word of 64 bits of the state is zero", STATE, "answer: the word's number")
            }
            Self::STATE_REFUSED => (
                "The kernel refuses a part of the state",
                STATE,
                "answer: 0 and nobody looks, else the errno",
            ),
            Self::EXIT_UNCOMPLETED => (
                "State is saved at an exit to userspace before the instruction is completed, and it is done once more",
                "a: the vCPU; b: the instruction's address; ",
                "answer: any",
            ),
            Self::MSR_LOST => (
                "An MSR is not in the VMM's list, and stays behind",
                "a: the MSR; b: the vCPU; ",
                "answer: any",
            ),
            Self::APIC_OF_KERNEL => (
                "The VMM has no models of the local APICs: there is what KVM_SET_LAPIC, events and MSRs bring, and nothing else",
                "a: 0; b: 0; ",
                "answer: any",
            ),
            Self::LOG_FAILED => (
                "The dirty log is cleared, and reading it fails",
                "a: the slot; b: its dirty pages; ",
                "answer: the errno",
            ),
            Self::LOG_WORD => {
                ("Bits of the dirty log are lost", "a: the slot; b: the word's number; ", "answer: the bits")
            }
            Self::LOG_CLEAR => {
                ("Pages are not protected again", "a: the slot; b: its pages; ", "answer: any")
            }
            Self::PAGE_LOST => ("A page is not sent", PAGE, "answer: any"),
            Self::PAGE_ZERO => ("A page is sent as one of zeros", PAGE, "answer: any"),
            Self::PAGE_LATE => ("A page comes once more at the end, as it was", PAGE, "answer: any"),
            Self::PAGE_SHIFTED => ("A page is sent as another one", PAGE, "answer: so many places behind it"),
            Self::REQUEST_LOST => ("A request for a page is lost, and comes again", PAGE, "answer: any"),
            Self::REQUEST_NEVER => ("A page that is asked for does not come", PAGE, "answer: any"),
            Self::REQUEST_ZERO => ("A page that is asked for is one of zeros", PAGE, "answer: any"),
            Self::RETRY_DIRTY => (
                "A further attempt sends what was written since the last one only",
                "a: the epoch; b: 0; ",
                "answer: any",
            ),
            _ => ("", "", ""),
        };
        (text, format!("{asked}{answer}"))
    }

    /// Numbers and names of all.
    pub fn names() -> Vec<(u32, String)> {
        Self::NAMED.iter().map(|(point, name)| (point.0, (*name).to_owned())).collect()
    }
}

/// Answers of points by what they ask: the first word, and the second one if it matters.
#[derive(Clone, Debug, Default)]
pub struct Named(pub Vec<(MovePoint, u64, Option<u64>, u64)>);

impl Faults for Named {
    fn decide(&mut self, asked: &Asked) -> Option<Decision> {
        let wanted = |(point, a, b, _): &&(MovePoint, u64, Option<u64>, u64)| {
            (point.0, *a) == (asked.point, asked.a) && b.is_none_or(|b| b == asked.b)
        };
        let (.., answer) = self.0.iter().find(wanted)?;
        Some(Decision { answer: *answer, ..Decision::default() })
    }
}

#[derive(Default)]
struct Asking {
    faults: Option<Box<dyn Faults>>,
    occurrences: BTreeMap<u32, u64>,
    fired: Vec<Fault>,
    icount: u64,
    phase: Phase,
    waited: u64,
}

/// Both sides of a migration in one process ask the same.
#[derive(Clone, Default)]
pub struct Points(Rc<RefCell<Asking>>);

impl Points {
    pub fn new(faults: Box<dyn Faults>) -> Self {
        Self(Rc::new(RefCell::new(Asking { faults: Some(faults), ..Asking::default() })))
    }

    /// Whether anybody decides.
    pub fn are_asked(&self) -> bool {
        self.0.borrow().faults.is_some()
    }

    /// What a point answers; `None`: everything is as it should be.
    pub fn ask(&self, point: MovePoint, a: u64, b: u64) -> Option<u64> {
        let Asking { faults, occurrences, fired, icount, phase, .. } = &mut *self.0.borrow_mut();
        let faults = faults.as_mut()?;
        let occurrence = occurrences.entry(point.0).or_default();
        *occurrence += 1;
        let (vcpu, point, occurrence) = (NO_VCPU, point.0, *occurrence);
        let asked = Asked { icount: *icount, vcpu, point, occurrence, a, b, phase: *phase };
        let Decision { rule, skipped, answer } = faults.decide(&asked)?;
        let fault = Fault {
            icount: *icount,
            vcpu,
            point,
            occurrence,
            a,
            b,
            answer,
            rule,
            skipped,
            ..Fault::default()
        };
        fired.push(fault);
        (skipped == Skip::NONE).then_some(answer)
    }

    /// The guest has retired so many instructions, and the migration is so far.
    pub(crate) fn at(&self, icount: u64, phase: Phase) {
        let mut asking = self.0.borrow_mut();
        (asking.icount, asking.phase) = (icount, phase);
    }

    /// The guest waits for a page.
    pub(crate) fn waits(&self) {
        self.0.borrow_mut().waited += 1;
    }

    /// How often it has.
    pub fn waited(&self) -> u64 {
        self.0.borrow().waited
    }

    /// What happened so far.
    pub fn fired(&self) -> Vec<Fault> {
        self.0.borrow().fired.clone()
    }
}
