//! Guest pages that a stretch of a recording mapped.

use std::collections::BTreeSet;
use vmtape_arch::{PAGE_SHIFT, note::Note};
use vmtape_traces::ExitGroup;

/// The deepest level of the guest's mappings, with five levels of tables.
const LEVELS: u8 = 5;

/// Mapped guest frames, by the level of the mapping and its first frame: as many as the guest has memory, however often
/// they were mapped.
#[derive(Debug, Default)]
pub(super) struct Pages(BTreeSet<(u8, u64)>);

impl Pages {
    pub fn add(&mut self, group: &ExitGroup) {
        self.0.extend(group.notes.iter().filter_map(mapped));
    }

    pub fn contains(&self, gpa: u64) -> bool {
        (1..=LEVELS).any(|level| self.0.contains(&(level, first_frame(gpa >> PAGE_SHIFT, level))))
    }
}

/// The mapping that a note tells of.
fn mapped(note: &Note) -> Option<(u8, u64)> {
    let (gfn, level) = match *note {
        Note::SpteRequested { gfn, level, .. } => (gfn, level.clamp(1, LEVELS)),
        Note::MarkMmioSpte { gfn, .. } | Note::HandleMmioPageFault { gfn, .. } => (gfn, 1),
        _ => return None,
    };
    Some((level, first_frame(gfn, level)))
}

/// The first frame of the mapping of a level that holds a frame.
fn first_frame(gfn: u64, level: u8) -> u64 {
    let bits = 9 * u32::from(level - 1);
    gfn >> bits << bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_mapping_holds_its_frames() {
        let mut pages = Pages::default();
        let notes = vec![Note::SpteRequested { gfn: 0x1234, pfn: 0, level: 2 }];
        pages.add(&ExitGroup { notes, ..ExitGroup::default() });
        assert!(pages.contains(0x120_0000) && pages.contains(0x13f_ffff));
        assert!(!pages.contains(0x11f_ffff) && !pages.contains(0x140_0000));
    }
}
