//! Guest pages that a stretch of a recording mapped.

use std::collections::BTreeSet;
use vmtape_arch::{PAGE_SHIFT, note::Note};
use vmtape_traces::ExitGroup;

/// The deepest level of the guest's mappings, with five levels of tables.
const LEVELS: u8 = 5;

/// Mapped guest frames, by the level of the mapping and its first frame: as many as the guest has memory, however often
/// they were mapped.
#[derive(Debug, Default)]
pub(super) struct Pages {
    mapped: BTreeSet<(u8, u64)>,
    /// Regions in which a page fault was taken, where no event tells what was mapped: a large page at most.
    faulted: BTreeSet<u64>,
}

/// The level of a large page.
const LARGE: u8 = 2;

impl Pages {
    pub fn add(&mut self, group: &ExitGroup) {
        self.mapped.extend(group.notes.iter().filter_map(mapped));
        self.faulted.extend(group.notes.iter().filter_map(|note| match *note {
            Note::PageFault { address, .. } => Some(first_frame(address >> PAGE_SHIFT, LARGE)),
            _ => None,
        }));
    }

    pub fn contains(&self, gpa: u64) -> bool {
        if self.mapped.is_empty() {
            // A reduced set of events.
            return self.faulted.contains(&first_frame(gpa >> PAGE_SHIFT, LARGE));
        }
        (1..=LEVELS).any(|level| self.mapped.contains(&(level, first_frame(gpa >> PAGE_SHIFT, level))))
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

    #[test]
    fn faults_tell_where_mappings_are_not_traced() {
        let fault = |address| Note::PageFault { address, code: 0 };
        let group = |notes| ExitGroup { notes, ..ExitGroup::default() };
        let mut pages = Pages::default();
        pages.add(&group(vec![fault(0x123_4000)]));
        assert!(pages.contains(0x120_0000) && !pages.contains(0x140_0000));
        pages.add(&group(vec![fault(0x800_0000), Note::SpteRequested { gfn: 0x8000, pfn: 0, level: 1 }]));
        assert!(pages.contains(0x800_0000) && !pages.contains(0x800_1000) && !pages.contains(0x120_0000));
    }
}
