//! What a machine knows whose exits come from a tape.

use super::{faults::TapedFaults, knowledge::Knowledge};
use std::collections::BTreeMap;
use vmtape_traces::{
    ExitGroup,
    event::{Data, EntryEvent, EntryOutcome},
};

/// The first schema in which an exit tells all memory that its handling reads, whatever handled the exits before it.
const EXITS_STAND_ALONE: u32 = 3;

/// What a fed machine knows, and the uses of what it does not.
#[derive(Debug)]
pub(crate) struct Feeding {
    pub(crate) knowledge: Knowledge,
    /// Memory stays known from exit to exit, and registers stay as they are: tapes before schema 3 do not tell again what
    /// their own machine had left there.
    keeps: bool,
    unknown: u64,
    /// What the tape tells of memory with an exit that halted, by vCPU, for the entry that ends the halt: it belongs to that exit, and
    /// comes with the next one.
    halted: BTreeMap<u32, Vec<(u64, Data)>>,
    /// What its exits change in registers is compared with the tape.
    compares_changes: bool,
    /// The emulator has executed an instruction.
    pub(crate) emulated: bool,
    pub(crate) faults: TapedFaults,
    /// What came of the last entry.
    pub(crate) entered: EntryOutcome,
    /// Entries of the tape of which something else came.
    pub(crate) other_entries: Vec<(EntryEvent, EntryOutcome)>,
    /// Whether all changes of registers make together what the tape has, where it told that last.
    pub(crate) chain_is_equal: Option<bool>,
}

impl Feeding {
    /// Nothing is known yet of so many vCPUs, of a tape of this schema. `same`: the machine is the tape's own.
    pub(crate) fn new(schema: u32, vcpus: u32, same: bool) -> Self {
        Self {
            knowledge: Knowledge::new(vcpus),
            keeps: schema < EXITS_STAND_ALONE,
            unknown: 0,
            halted: BTreeMap::new(),
            compares_changes: same,
            emulated: false,
            faults: TapedFaults::default(),
            entered: EntryOutcome::default(),
            other_entries: Vec::new(),
            chain_is_equal: None,
        }
    }

    pub(crate) fn keeps(&self) -> bool {
        self.keeps
    }

    /// An exit is about to be fed: its own entry may come after a halt.
    pub(crate) fn keep_for_wakeup(&mut self, group: &ExitGroup) {
        if group.is_halted() && !group.reads.is_empty() {
            self.halted.insert(group.exit.vcpu, group.reads.clone());
        }
    }

    /// What was kept for this vCPU.
    pub(crate) fn take_for_wakeup(&mut self, vcpu: u32) -> Vec<(u64, Data)> {
        self.halted.remove(&vcpu).unwrap_or_default()
    }

    pub(crate) fn compares_changes(&self) -> bool {
        self.compares_changes
    }

    /// Reads of memory that the tape did not tell, so far.
    pub(crate) fn unknown(&self) -> u64 {
        self.unknown
    }

    /// The handling reads memory.
    pub(crate) fn read(&mut self, hpa: u64, len: u64) {
        self.unknown += u64::from(!self.knowledge.memory.holds(hpa, len));
    }
}
