//! `struct kvm_lapic_state`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct kvm_lapic_state`: the registers of the xAPIC page, each at its offset.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct LapicState {
    /// One register in the first of each four words.
    pub words: [u32; 256],
}

const _: () = assert!(size_of::<LapicState>() == 1024);

impl LapicState {
    pub fn new() -> Self {
        Self { words: [0; 256] }
    }

    /// The register at an offset in the page.
    pub fn get(&self, offset: u32) -> u32 {
        self.words[offset as usize / 4]
    }

    pub fn set(&mut self, offset: u32, value: u32) {
        self.words[offset as usize / 4] = value;
    }
}

impl Default for LapicState {
    fn default() -> Self {
        Self::new()
    }
}
