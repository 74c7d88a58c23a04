//! How compiled blocks find each other without the interpreter.

use crate::interface::{Link, Tag};

/// Where a way out leads, under one tag.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Slot {
    pub(crate) tag: u64,
    pub(crate) code: u64,
}

/// The block at an address, for branches whose target is known only when they are taken.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Target {
    pub(crate) rip: u64,
    pub(crate) tag: u64,
    pub(crate) code: u64,
    pad: u64,
}

/// Targets that are remembered; a power of two.
pub(crate) const TARGETS: usize = 4096;

pub(crate) struct Links {
    pub(crate) slots: Vec<Slot>,
    pub(crate) targets: Box<[Target]>,
}

impl Links {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), targets: vec![Target::default(); TARGETS].into_boxed_slice() }
    }

    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.targets.fill(Target::default());
    }

    pub(crate) fn set(&mut self, link: Link, tag: Tag, code: u64) {
        if let Some(slot) = self.slots.get_mut(link.0 as usize) {
            *slot = Slot { tag: tag.0, code };
        }
    }

    pub(crate) fn announce(&mut self, rip: u64, tag: Tag, code: u64) {
        self.targets[target_index(rip)] = Target { rip, tag: tag.0, code, pad: 0 };
    }
}

/// As compiled code computes it.
fn target_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % TARGETS
}
