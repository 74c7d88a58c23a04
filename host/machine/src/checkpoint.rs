//! The whole machine as bytes, and back.

use crate::machine::Machine;

impl Machine {
    pub(crate) fn checkpoint_if_due(&mut self) {}
}
