//! The two sides of a comparison.

use crate::{migration::Way, player::Create, spec};
use vmtape_abi::Description;
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_traces::Tape;

/// The two sides of a comparison.
pub struct Sides<'a> {
    pub tape: &'a Tape,
    pub expected: MachineSpec,
    pub actual: MachineSpec,
    pub create: Create<'a>,
    /// What the tape's backend says of itself, and the other one.
    pub expected_plugin: &'a Description,
    pub plugin: &'a Description,
    pub context: usize,
    /// When the guest moves from the tape's machine to the other one.
    pub at: When,
    /// How it moves, where it does so by a migration; `at` is its own then.
    pub way: Option<Way<'a>>,
    /// Whether to look for the cause: other runs, each with one thing changed.
    pub explain: bool,
    pub reproduce: String,
    /// The tape whose inputs and faults the other machine takes, where they are not the same tape's.
    pub inputs: Option<&'a Tape>,
}

impl Sides<'_> {
    /// Both machines for people: backend, host, and what tells two of one backend apart.
    pub fn names(&self) -> [String; 2] {
        names(&self.expected, &self.actual)
    }
}

/// Two machines for people: backend and host; for two of one backend also the options in which they differ.
pub fn names(expected: &MachineSpec, actual: &MachineSpec) -> [String; 2] {
    /// Options that are named; with more, the release says it.
    const NAMED: usize = 2;
    let name = |machine: &MachineSpec, other: &MachineSpec| {
        let same = machine.backend == other.backend;
        let mut own: Vec<_> =
            machine.options.iter().filter(|option| same && !other.options.contains(option)).collect();
        if own.len() > NAMED {
            own.retain(|(key, _)| key == spec::PROFILE);
        }
        let options: String = own.iter().map(|(key, value)| format!(",{key}={value}")).collect();
        format!("{}{options} on {}", machine.backend, machine.host)
    };
    [name(expected, actual), name(actual, expected)]
}
