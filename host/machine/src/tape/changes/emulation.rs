//! What KVM's emulator did in an exit.

/// What KVM's emulator did in the exit that is being handled, as masks of the tape's registers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Emulation {
    /// It was asked.
    pub(crate) asked: bool,
    /// Registers that it read, which were told.
    pub(crate) read: u32,
    /// General registers that it wrote whole, whatever was in them.
    pub(crate) written: u32,
    /// Those that it may have written otherwise.
    pub(crate) perhaps: u32,
    /// Registers of the FPU that were told.
    pub(crate) fpu: Vec<usize>,
    /// SMM was entered or left, in this exit or the entry behind it: all registers are others, and nobody who is fed knows those before.
    pub(crate) exchanged: bool,
}

impl Emulation {
    /// Another exit begins.
    pub(crate) fn begin(&mut self) {
        (self.asked, self.read, self.written, self.perhaps) = (false, 0, 0, 0);
        self.exchanged = false;
        self.fpu.clear();
    }
}
