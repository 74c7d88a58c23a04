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
const MANY: usize = 1 << 16;
/// Leaves for which there is a branch, at least.
const LEAVES: usize = 8;
/// Pages whose last entries lie together.
const REGION_SHIFT: u32 = PAGE_SHIFT + 9;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Read {
    hpa: u64,
    value: u64,
}

/// What the answers for neighbouring pages have in common: all entries but the last ones, and what else they hang on. Its number is
/// given once; zero is none's.
#[derive(Clone, Copy, Debug, Default)]
struct Branch {
    number: u64,
    epoch: u64,
    space: u32,
    /// Bytes of an entry; zero where none is read.
    width: u8,
    len: u8,
    reads: [Read; READS - 1],
}

impl Branch {
    /// Whether an answer that hangs on this one hangs on the other.
    fn is_as(&self, other: &Self) -> bool {
        let what = |branch: &Self| (branch.epoch, branch.space, branch.width, branch.len, branch.reads);
        what(self) == what(other)
    }
}

/// One answer: what it was read from last, and what hangs on more is the branch's.
#[derive(Clone, Copy, Debug, Default)]
struct Leaf {
    branch: u64,
    /// The page, and in the low bits the kind of access.
    access: u64,
    read: Read,
    mapping: Mapping,
}

/// What the backend has answered.
#[derive(Default)]
pub(crate) struct Walks {
    leaves: Vec<Leaf>,
    branches: Vec<Branch>,
    /// Branches that were given a number.
    numbered: u64,
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

    /// Places of a leaf and of its branch.
    fn slots(&self, access: u64) -> (usize, usize) {
        let place = |number: u64, len: usize| (number ^ number >> MANY.ilog2()) as usize & (len - 1);
        (place(access >> PAGE_SHIFT, self.leaves.len()), place(access >> REGION_SHIFT, self.branches.len()))
    }

    fn resize(&mut self, leaves: usize) {
        self.leaves = vec![Leaf::default(); leaves];
        self.branches = vec![Branch::default(); leaves / LEAVES];
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
        if self.epoch == 0 || self.leaves.is_empty() {
            return None;
        }
        let space = self.space(space);
        let (leaf, branch) = self.slots(access);
        let (leaf, branch) = (&self.leaves[leaf], &self.branches[branch]);
        if leaf.access != access || leaf.branch != branch.number {
            return None;
        }
        if branch.epoch != self.epoch || branch.space != space {
            return None;
        }
        let mut reads = branch.reads[..usize::from(branch.len)].iter().chain([&leaf.read]);
        let same = match branch.width {
            0 => true,
            4 => reads.all(|read| ram.word::<4>(read.hpa) == Some(read.value)),
            _ => reads.all(|read| ram.word::<8>(read.hpa) == Some(read.value)),
        };
        same.then_some(leaf.mapping)
    }

    fn put(&mut self, space: &Space, access: u64, answer: &Answer) {
        self.epoch = if answer.verdict == Verdict::NATIVE { answer.epoch } else { 0 };
        let Some(len) = self.len.take() else { return };
        if self.epoch == 0 || answer.mapping.kind != MappingKind::RAM {
            return;
        }
        if self.leaves.is_empty() {
            self.resize(FEW);
        }
        let displaced = self.leaves[self.slots(access).0];
        if displaced.branch != 0 && displaced.access != access && self.leaves.len() < MANY {
            self.resize(2 * self.leaves.len());
        }
        let (leaf, at) = self.slots(access);
        let above = usize::from(len.saturating_sub(1));
        let mut branch = Branch {
            number: self.branches[at].number,
            epoch: self.epoch,
            space: self.space(space),
            width: if len == 0 { 0 } else { self.width },
            len: above as u8,
            reads: [Read::default(); READS - 1],
        };
        branch.reads[..above].copy_from_slice(&self.reads[..above]);
        if branch.number == 0 || !branch.is_as(&self.branches[at]) {
            self.numbered += 1;
            branch.number = self.numbered;
            self.branches[at] = branch;
        }
        let read = self.reads[above];
        self.leaves[leaf] = Leaf { branch: branch.number, access, read, mapping: answer.mapping };
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
