//! Answers of the backend that it would give again, so that it need not be asked.
//!
//! Unlike silicon's paging-structure caches these cannot be seen: whatever an answer was read from is looked at anew, and it goes
//! with the backend's number for everything else (`Answer::epoch`).

use super::Services;
use vmtape_arch::{
    PAGE_SHIFT, PAGE_SIZE,
    access::{Access, Answer, Mapping, MappingKind, Verdict},
    vcpu::VcpuState,
};
use vmtape_cpu::Ram;

/// Answers that are remembered at first, and at most, which is more than the interpreter's TLB has pages; powers of two.
const FEW: usize = 1 << 8;
const MANY: usize = 1 << 14;
/// Entries that a walk reads, of five levels. One in two dimensions reads more, and is not remembered.
const READS: usize = 5;
/// Address spaces that are told apart.
const SPACES: usize = 8;

/// The registers that an answer hangs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Space {
    vcpu: u32,
    pkru: u32,
    control: [u64; 4],
    pdptr: [u64; 4],
    pat: u64,
    ac: bool,
}

impl Space {
    fn of(vcpu: u32, state: &VcpuState) -> Self {
        let VcpuState { cr0, cr3, cr4, efer, pdptr, pat, pkru, .. } = *state;
        Self { vcpu, pkru, control: [cr0, cr3, cr4, efer], pdptr, pat, ac: state.rflags().ac() }
    }
}

/// An entry of the guest's tables: where it is in the host, and what it was.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    hpa: u64,
    value: u64,
}

/// One answer. An epoch of zero is none.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    epoch: u64,
    /// The page, and in the low bits the kind of access.
    access: u64,
    space: u32,
    len: u8,
    /// Bytes of an entry.
    width: u8,
    reads: [Read; READS],
    mapping: Mapping,
}

/// What the backend has answered.
#[derive(Default)]
pub(crate) struct Walks {
    answers: Vec<Known>,
    /// The last one first, and their numbers, of which none is given again.
    spaces: Vec<(Space, u32)>,
    given: u32,
    /// The backend's number; zero where it has been asked for something else since.
    epoch: u64,
    /// What the answer is made from that is being asked for, and how many entries; `None`: it will not be remembered.
    reads: [Read; READS],
    len: Option<u8>,
    width: u8,
}

impl Walks {
    /// The backend is asked for something that is not a translation: what it would answer is not known.
    pub(crate) fn expire(&mut self) {
        self.epoch = 0;
    }

    /// The backend reads guest memory.
    #[inline]
    pub(super) fn read(&mut self, hpa: u64, bytes: &[u8]) {
        let Some(len) = self.len else { return };
        let alike = len == 0 || usize::from(self.width) == bytes.len();
        if usize::from(len) == READS || !alike || !matches!(bytes.len(), 4 | 8) {
            self.len = None;
            return;
        }
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.reads[usize::from(len)] = Read { hpa, value: u64::from_le_bytes(value) };
        (self.len, self.width) = (Some(len + 1), bytes.len() as u8);
    }

    /// The backend writes guest memory: what it has read is not what is there.
    pub(super) fn wrote(&mut self) {
        self.len = None;
    }

    fn slot(&self, access: u64) -> usize {
        let page = access >> PAGE_SHIFT;
        (page ^ page >> MANY.ilog2()) as usize & (self.answers.len() - 1)
    }

    fn space(&mut self, space: &Space) -> u32 {
        match self.spaces.first() {
            Some((last, number)) if last == space => *number,
            _ => self.other_space(space),
        }
    }

    #[cold]
    fn other_space(&mut self, space: &Space) -> u32 {
        let entry = match self.spaces.iter().position(|(known, _)| known == space) {
            Some(at) => self.spaces.remove(at),
            None => {
                self.given += 1;
                (*space, self.given)
            }
        };
        self.spaces.insert(0, entry);
        self.spaces.truncate(SPACES);
        entry.1
    }

    fn find(&mut self, space: &Space, access: u64, ram: &Ram) -> Option<Mapping> {
        if self.epoch == 0 || self.answers.is_empty() {
            return None;
        }
        let space = self.space(space);
        let known = &self.answers[self.slot(access)];
        if known.epoch != self.epoch || known.access != access || known.space != space {
            return None;
        }
        let reads = &known.reads[..usize::from(known.len)];
        let same = match known.width {
            4 => reads.iter().all(|read| ram.word::<4>(read.hpa) == Some(read.value)),
            _ => reads.iter().all(|read| ram.word::<8>(read.hpa) == Some(read.value)),
        };
        same.then_some(known.mapping)
    }

    fn put(&mut self, space: &Space, access: u64, answer: &Answer) {
        self.epoch = if answer.verdict == Verdict::NATIVE { answer.epoch } else { 0 };
        let Some(len) = self.len.take() else { return };
        if self.epoch == 0 || answer.mapping.kind != MappingKind::RAM {
            return;
        }
        let (epoch, space) = (self.epoch, self.space(space));
        let (reads, width, mapping) = (self.reads, self.width, answer.mapping);
        if self.answers.is_empty() {
            self.answers = vec![Known::default(); FEW];
        }
        let mut slot = self.slot(access);
        let displaced = self.answers[slot];
        if displaced.epoch == epoch && displaced.access != access && self.answers.len() < MANY {
            self.answers = vec![Known::default(); 2 * self.answers.len()];
            slot = self.slot(access);
        }
        self.answers[slot] = Known { epoch, access, space, len, width, reads, mapping };
    }
}

/// An access as far as its answer hangs on it.
fn key(access: &Access) -> u64 {
    let whose = u64::from(access.user.is_set()) | u64::from(access.implicit.is_set()) << 1;
    access.gva & !(PAGE_SIZE - 1) | whose << 2 | u64::from(access.kind.0)
}

impl Services {
    /// The mapping that the backend would answer with.
    pub(super) fn known_walk(&mut self, vcpu: u32, state: &VcpuState, access: &Access) -> Option<Mapping> {
        // Where pages may be missing or something may go wrong, it is asked.
        if !self.memory.absent.is_empty() || self.inputs.has_faults() || self.fed.is_some() {
            return None;
        }
        self.walks.find(&Space::of(vcpu, state), key(access), self.memory.ram())
    }

    /// The backend is about to be asked.
    pub(super) fn begin_walk(&mut self) {
        self.walks.len = Some(0);
    }

    /// It has answered, with these registers.
    pub(super) fn end_walk(&mut self, vcpu: u32, state: &VcpuState, access: &Access, answer: &Answer) {
        self.walks.put(&Space::of(vcpu, state), key(access), answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x1008;

    /// Asks for a page, and reads one entry for it.
    fn ask(walks: &mut Walks, ram: &Ram, access: u64, epoch: u64) {
        let mapping = Mapping { hpa: access & !0xfff, ..Mapping::default() };
        walks.len = Some(0);
        walks.read(ENTRY, &ram.word::<8>(ENTRY).unwrap().to_le_bytes());
        walks.put(&Space::default(), access, &Answer { mapping, epoch, ..Answer::default() });
    }

    #[test]
    fn an_answer_is_known_while_all_that_it_was_made_from_stays() {
        let (ram, mut walks) = (Ram::leaked(0x2000), Walks::default());
        let space = Space::default();
        ask(&mut walks, &ram, 0x5000, 7);
        assert_eq!(walks.find(&space, 0x5000, &ram).map(|mapping| mapping.hpa), Some(0x5000));
        let others = [Space { vcpu: 1, ..space }, Space { ac: true, ..space }, Space { pat: 1, ..space }];
        assert!(others.iter().all(|other| walks.find(other, 0x5000, &ram).is_none()));
        for access in [0x5001, 0x5004, 0x6000, 0x5000 + ((MANY as u64) << PAGE_SHIFT)] {
            assert!(walks.find(&space, access, &ram).is_none());
        }
        ram.write(ENTRY, &[1]);
        assert!(walks.find(&space, 0x5000, &ram).is_none(), "the entry has changed");
        ram.write(ENTRY, &[0]);
        assert!(walks.find(&space, 0x5000, &ram).is_some());
        walks.expire();
        assert!(walks.find(&space, 0x5000, &ram).is_none(), "the backend may have changed");
        ask(&mut walks, &ram, 0x6000, 7);
        assert!(walks.find(&space, 0x5000, &ram).is_some(), "it has not");
        ask(&mut walks, &ram, 0x6000, 8);
        assert!(walks.find(&space, 0x5000, &ram).is_none(), "it has");
    }

    #[test]
    fn what_has_effects_is_not_remembered() {
        let (ram, mut walks) = (Ram::leaked(0x2000), Walks::default());
        let answer = |epoch, verdict| Answer { epoch, verdict, ..Answer::default() };
        walks.len = Some(0);
        walks.wrote();
        walks.put(&Space::default(), 0x5000, &answer(7, Verdict::NATIVE));
        walks.len = Some(0);
        (0..=READS as u64).for_each(|n| walks.read(ENTRY + 8 * n, &[0; 8]));
        walks.put(&Space::default(), 0x6000, &answer(7, Verdict::NATIVE));
        walks.len = Some(0);
        walks.put(&Space::default(), 0x7000, &answer(7, Verdict::FAULT));
        ask(&mut walks, &ram, 0x8000, 7);
        for access in [0x5000, 0x6000, 0x7000] {
            assert!(walks.find(&Space::default(), access, &ram).is_none(), "{access:x}");
        }
    }
}
