//! What a trace of the real KVM tells of another host, without the guest: no registers, no memory, no machine to run.
//!
//! Each exit is judged by what it and its events say: the address of a fault or of a device, the entries of a walk, a CPUID
//! leaf, an MSR, a control register. What that host would do about it follows from its widths, levels, features and KVM
//! ([`Target`]). An exit that does not tell enough is left open, with the reason; nothing is guessed, and nothing is said of
//! what happens between exits ([`LIMITS`]).

mod faults;
mod found;
mod judge;
mod slots;
mod steps;
mod target;
pub mod verdict;

pub use found::Found;
pub use target::Target;

use crate::report::Cost;
use judge::{Answer, Judge};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use steps::{Step, Steps};
use vmtape_arch::exit::Isa;
use vmtape_traces::{Result, Tape};

/// Where the evidence of every trace ends.
pub const LIMITS: [&str; 4] = [
    "what the guest did between its exits: walks of silicon alone, features that it uses without asking",
    "registers and extended state, which no event of KVM tells",
    "the values that devices and MSRs gave, but for the bits of CPUID",
    "everything before the trace began and after it ended",
];

/// What a trace shows of a guest on a host.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Evidence {
    pub exits: u64,
    /// Exits that tell enough; of them those about which the host does the same, those that it takes otherwise without the guest
    /// seeing it, and those of which the guest sees a difference.
    pub judged: u64,
    pub alike: u64,
    pub otherwise: u64,
    pub differ: u64,
    /// Exits that have nothing to do with a host's width, levels and features, by name.
    pub exempt: BTreeMap<&'static str, u64>,
    /// Exits that do not tell enough, by what is missing.
    pub open: BTreeMap<String, u64>,
    /// Those of them that a host's width and levels bear on: faults, and what a guest's guest does.
    pub open_faults: u64,
    /// Events that were judged, those outside exits among them.
    pub events: u64,
    /// Events outside exits that do not tell enough, by what is missing.
    pub open_events: BTreeMap<String, u64>,
    /// Memory slots that the trace tells of.
    pub slots: u64,
    /// MAXPHYADDR of the guest, where it has asked for it.
    pub guest_phys_bits: Option<u8>,
    /// What the evidence says nothing about.
    pub limits: Vec<&'static str>,
    /// Exits by reason where that host takes others.
    #[serde(skip)]
    pub cost: BTreeMap<String, Cost>,
    #[serde(skip)]
    pub found: Vec<Found>,
}

impl Evidence {
    /// Whether nothing on the trace could be judged.
    pub fn is_nothing(&self) -> bool {
        self.judged == 0 && self.slots == 0 && (self.exits > 0 || self.events == 0)
    }

    /// Exits that do not tell enough.
    pub fn left_open(&self) -> u64 {
        self.open.values().sum()
    }

    /// In one sentence, what was judged and what was not.
    pub fn summary(&self) -> String {
        let exempt: u64 = self.exempt.values().sum();
        let mut text = format!("{} of {} exits were judged", self.judged, self.exits);
        if exempt > 0 {
            text += &format!(", {exempt} have nothing to do with the host");
        }
        match self.left_open() {
            0 if self.exits > 0 => text += ", none was left open",
            0 => text += &format!("; {} events were", self.events),
            open => text += &format!(", {open} do not tell enough"),
        }
        text
    }
}

/// Judges a trace. `progress` hears of every few thousand exits.
pub fn judge(tape: &Tape, target: &Target, progress: &mut dyn FnMut(u64)) -> Result<Evidence> {
    const PROGRESS: u64 = 4096;
    let mut evidence = Evidence { limits: LIMITS.to_vec(), ..Evidence::default() };
    let mut judge = Judge::new(target, vmtape_traces::import::cpuid_table(tape)?);
    for step in Steps::new(tape.events()) {
        let step = step?;
        match &step {
            Step::Exit(group) => {
                if group.number.is_multiple_of(PROGRESS) {
                    progress(group.number);
                }
                evidence.exits += 1;
                let answer = judge.exit(group);
                evidence.count(answer);
                judge.is_at(group.exit.vcpu, group.exit.rip, group.exit.icount);
            }
            Step::Loose { note, .. } => match judge.loose(note) {
                Ok(()) => {}
                Err(why) => *evidence.open_events.entry(why.to_owned()).or_default() += 1,
            },
            Step::Line(text) => {
                evidence.slots += u64::from(slots::parse(text).is_some_and(|s| judge.slot(s)))
            }
        }
    }
    evidence.guest_phys_bits = judge.guest_phys_bits();
    evidence.events = judge.events;
    evidence.found = judge.into_found();
    Ok(evidence)
}

impl Evidence {
    fn count(&mut self, answer: Answer) {
        match answer {
            Answer::Exempt(name) => *self.exempt.entry(name).or_default() += 1,
            Answer::Open(why) => {
                self.open_faults += u64::from(judge::OF_WIDTH.contains(&why.as_str()));
                *self.open.entry(why).or_default() += 1;
            }
            Answer::Alike => (self.judged, self.alike) = (self.judged + 1, self.alike + 1),
            Answer::Differs => (self.judged, self.differ) = (self.judged + 1, self.differ + 1),
            Answer::Otherwise { here, there } => {
                (self.judged, self.otherwise) = (self.judged + 1, self.otherwise + 1);
                self.cost.entry(here).or_default().expected += 1;
                self.cost.entry(there).or_default().actual += 1;
            }
        }
    }
}

/// The vendor whose exits a trace has.
pub fn isa(tape: &Tape) -> Result<Option<Isa>> {
    for step in Steps::new(tape.events()) {
        if let Step::Exit(group) = step? {
            return Ok(Some(group.exit.exit.isa));
        }
    }
    Ok(None)
}
