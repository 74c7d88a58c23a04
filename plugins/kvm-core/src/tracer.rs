//! KVM's tracepoints as notes.

use vmtape_abi::Host;
use vmtape_arch::{level::Place, note::Note};

/// Whose notes are written: a vCPU at the level that it is at.
#[derive(Clone, Copy, Debug)]
pub struct Tracer {
    pub vcpu: u32,
    pub place: Place,
}

impl Tracer {
    /// Puts a note on the tape.
    pub fn note(self, note: Note, host: &mut dyn Host) {
        host.note_at(self.vcpu, self.place, note);
    }
}
