//! The bitmap of a slot.

use serde::{Deserialize, Serialize};

/// A bit for each page of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bitmap(pub Vec<u64>);

impl Bitmap {
    pub fn new(pages: u64, set: bool) -> Self {
        let mut bitmap = Self(vec![0; pages.div_ceil(64) as usize]);
        if set {
            (0..pages).for_each(|page| bitmap.set(page));
        }
        bitmap
    }

    pub fn set(&mut self, page: u64) {
        if let Some(word) = self.0.get_mut((page / 64) as usize) {
            *word |= 1 << (page % 64);
        }
    }
}
