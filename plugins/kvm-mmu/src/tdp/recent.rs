//! Translations that a walk of the nested tables has just given.
//!
//! Unlike silicon's paging-structure caches these cannot be seen: a translation is remembered until any of KVM's private
//! tables changes, and only once a walk for it has nothing left to set.

use super::nested::Nested;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, access::AccessKind};

/// The address bits within a frame.
const OFFSET: u64 = PAGE_SIZE - 1;

/// Which walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key {
    pub root: u64,
    pub levels: u8,
    pub kind: AccessKind,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: Key,
    gfn: u64,
    /// How many changes of the tables came before it, and one.
    version: u64,
    frame: Nested,
}

/// Translations by frame and kind of access. They are no part of any state: all are equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    entries: Vec<Entry>,
    changes: u64,
}

impl PartialEq for Recent {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Recent {}

impl Recent {
    const LEN: usize = 256;

    fn slot(key: &Key, gfn: u64) -> usize {
        (gfn as usize * 4 + usize::from(key.kind.0)) % Self::LEN
    }

    /// A table has changed.
    pub(crate) fn forget(&mut self) {
        self.changes += 1;
    }

    /// Changes so far.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn get(&self, key: &Key, gpa: u64) -> Option<Nested> {
        let gfn = gpa >> PAGE_SHIFT;
        let entry = self.entries.get(Self::slot(key, gfn))?;
        let known = entry.version == self.changes + 1 && entry.gfn == gfn && entry.key == *key;
        known.then_some(Nested { hpa: entry.frame.hpa | gpa & OFFSET, ..entry.frame })
    }

    pub(crate) fn put(&mut self, key: &Key, gpa: u64, nested: &Nested) {
        if self.entries.is_empty() {
            self.entries.resize(Self::LEN, Entry::default());
        }
        let (gfn, version) = (gpa >> PAGE_SHIFT, self.changes + 1);
        let frame = Nested { hpa: nested.hpa & !OFFSET, ..*nested };
        self.entries[Self::slot(key, gfn)] = Entry { key: *key, gfn, version, frame };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_translation_is_known_until_a_table_changes() {
        let mut recent = Recent::default();
        let key = Key { root: 0xc000_0000, levels: 4, kind: AccessKind::READ };
        let nested = Nested { hpa: 0x7123, read: true, ..Nested::default() };
        recent.put(&key, 0x5123, &nested);
        assert_eq!(recent.get(&key, 0x5fff), Some(Nested { hpa: 0x7fff, ..nested }));
        for other in [
            Key { root: 0xc000_1000, ..key },
            Key { levels: 5, ..key },
            Key { kind: AccessKind::WRITE, ..key },
        ] {
            assert_eq!(recent.get(&other, 0x5123), None);
        }
        assert_eq!(recent.get(&key, 0x5123 + (Recent::LEN as u64) * 0x1000), None);
        recent.forget();
        assert_eq!(recent.get(&key, 0x5123), None);
    }
}
