//! The memory type that each page is accessed with. It is an outcome: the guest sees it in its devices' data and in its speed.
//!
//! The interpreter asks silicon where its TLB has nothing. How often that is depends on the backend, so only a change is worth
//! telling: a page is write-back until it is accessed with another type.

use super::Services;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_abi::Host;
use vmtape_arch::{
    PAGE_SIZE,
    access::{Mapping, MappingKind},
    memory_type::MemoryType,
    note::{Note, NoteKind},
};
use xxhash_rust::xxh3::xxh3_64;

/// A page as a vCPU reaches it. Address spaces may have it twice, with other types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TypedPage {
    pub vcpu: u32,
    pub gva: u64,
    pub gpa: u64,
}

/// A type, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    pub memory_type: MemoryType,
    /// By the guest's own tables and PAT alone; untold where nobody asks them.
    pub guest: MemoryType,
}

impl Typed {
    const WRITE_BACK: Self = Self { memory_type: MemoryType::WB, guest: MemoryType::UNTOLD };
}

/// What every page was last accessed with, where that or what the guest asks for is or was not write-back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MemoryTypes {
    pages: BTreeMap<TypedPage, Typed>,
    /// Silicon says of its accesses what type they have.
    tells: bool,
    /// Digest of the changes.
    #[serde(skip)]
    sum: u64,
}

impl MemoryTypes {
    /// Takes an access into account. True: its type is not the last one.
    fn learn(&mut self, page: TypedPage, typed: Typed, icount: u64) -> bool {
        let memory_type = typed.memory_type;
        if memory_type == MemoryType::UNTOLD {
            return false;
        }
        self.tells = true;
        let plain =
            memory_type == MemoryType::WB && matches!(typed.guest, MemoryType::WB | MemoryType::UNTOLD);
        if plain && !self.pages.contains_key(&page) {
            return false;
        }
        let known = self.of(&page).memory_type;
        self.pages.insert(page, typed);
        if known == memory_type {
            return false;
        }
        let words = [page.vcpu.into(), page.gva, page.gpa, memory_type.0.into(), icount];
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        self.sum = self.sum.wrapping_add(xxh3_64(&bytes));
        true
    }

    /// The digest of all changes so far: the same for guests whose accesses have had the same types.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }

    /// The pages that are not write-back, by silicon or by the guest's own tables, or were not at some time.
    pub fn pages(&self) -> &BTreeMap<TypedPage, Typed> {
        &self.pages
    }

    /// Whether silicon tells types at all.
    pub fn is_told(&self) -> bool {
        self.tells
    }

    /// What a page was last accessed with.
    pub fn of(&self, page: &TypedPage) -> Typed {
        self.pages.get(page).copied().unwrap_or(Typed::WRITE_BACK)
    }
}

impl Services {
    /// Silicon translates an access of the guest's.
    pub(super) fn accessed(&mut self, vcpu: u32, gva: u64, mapping: &Mapping) {
        if mapping.kind != MappingKind::RAM {
            return;
        }
        let page = TypedPage { vcpu, gva: gva & !(PAGE_SIZE - 1), gpa: mapping.gpa };
        let typed = Typed { memory_type: mapping.memory_type, guest: mapping.guest_memory_type };
        let icount = self.clock.icount;
        if self.memory_types.learn(page, typed, icount) && self.wants(NoteKind::MEMORY_TYPE) {
            let (TypedPage { gva, gpa, .. }, Typed { memory_type, guest }) = (page, typed);
            self.note(vcpu, Note::MemoryType { gva, gpa, memory_type, guest, icount });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: TypedPage = TypedPage { vcpu: 0, gva: 0x7000, gpa: 0x1000 };

    fn typed(memory_type: MemoryType) -> Typed {
        Typed { memory_type, guest: memory_type }
    }

    /// However often silicon is asked, only changes count.
    #[test]
    fn only_changes_are_told() {
        let mut types = MemoryTypes::default();
        let mut told = Vec::new();
        for memory_type in
            [MemoryType::WB, MemoryType::UNTOLD, MemoryType::UC, MemoryType::UC, MemoryType::WB]
        {
            told.push(types.learn(PAGE, typed(memory_type), 7));
        }
        assert_eq!(told, [false, false, true, false, true]);
        assert_eq!(types.of(&PAGE).memory_type, MemoryType::WB);
    }

    /// When it was counts, and which page.
    #[test]
    fn digests_differ() {
        let sum = |page, icount| {
            let mut types = MemoryTypes::default();
            types.learn(page, typed(MemoryType::UC), icount);
            types.sum()
        };
        assert_eq!(sum(PAGE, 7), sum(PAGE, 7));
        assert_ne!(sum(PAGE, 7), sum(PAGE, 8));
        assert_ne!(sum(PAGE, 7), sum(TypedPage { vcpu: 1, ..PAGE }, 7));
    }
}
