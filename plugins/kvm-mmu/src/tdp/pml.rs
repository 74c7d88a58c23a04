//! Page-modification logging: silicon writes down the guest physical address of each page whose dirty bit it sets in EPT.
//!
//! Manual: Intel SDM 325384-087, 29.3.6 Page-Modification Logging.

use serde::{Deserialize, Serialize};

/// Entries of the log.
const ENTRIES: usize = 512;

/// The log that the PML address points to, filled from entry 511 down to 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pml {
    /// What was logged, oldest first: as many as the PML index is below 511.
    logged: Vec<u64>,
}

impl Pml {
    /// The PML index is not in the range 0 to 511: no accessed or dirty flag can be set any more.
    pub fn is_full(&self) -> bool {
        self.logged.len() >= ENTRIES
    }

    /// A dirty flag changes from 0 to 1.
    pub fn log(&mut self, gpa: u64) {
        self.logged.push(gpa & !0xfff);
    }

    /// Software's side: what is logged, oldest first, and the index back at 511.
    pub fn take(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.logged)
    }
}
