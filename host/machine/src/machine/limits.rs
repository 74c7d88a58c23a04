//! When a run ends that does not end by itself.

/// When to stop a guest that does not stop by itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub instructions: u64,
    pub exits: u64,
    /// Exits in a row without a retired instruction.
    pub no_progress: u64,
    /// The instruction count at which whoever recorded the run wanted it to end.
    pub interrupted: Option<u64>,
}

/// No run is longer than this, whatever its caller says: some hours.
const MOST_INSTRUCTIONS: u64 = 1_000_000_000_000;
const MOST_EXITS: u64 = 10_000_000_000;

impl Default for Limits {
    fn default() -> Self {
        Self { instructions: MOST_INSTRUCTIONS, exits: MOST_EXITS, no_progress: 1_000, interrupted: None }
    }
}

impl Limits {
    pub(super) fn bounded(&self) -> Self {
        Self {
            instructions: self.instructions.min(MOST_INSTRUCTIONS),
            exits: self.exits.min(MOST_EXITS),
            ..*self
        }
    }
}
