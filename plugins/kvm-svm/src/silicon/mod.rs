//! What AMD's silicon does: VMRUN, intercepts, and the exits that they become.

pub mod checks;
pub mod exits;
pub mod vls;
pub mod vmcb;
pub mod vmrun;
