//! Compiled blocks: made, chained and run.

use crate::{
    enter::{self, Gate},
    interface::{BlockId, Entry, Exit, Guest, Link, Refused, Tag, WIDEST},
    links::Links,
    memory::CodeMemory,
    translate::{self, Leaving},
};
use iced_x86::Instruction;

/// A block's addresses.
struct Compiled {
    entry: u64,
    /// For each instruction, where the code goes on with it after the interpreter has executed the one before.
    resume: Box<[Option<u64>]>,
    /// For each instruction, where it is entered again.
    retry: Box<[Option<u64>]>,
}

/// The compiler of one virtual processor, and all code that it has made.
pub struct Compiler {
    memory: CodeMemory,
    gate: Gate,
    blocks: Vec<Compiled>,
    links: Links,
}

impl Compiler {
    /// `None`: nothing is compiled on this host.
    pub fn new() -> Option<Self> {
        // LAHF and SAHF in 64-bit mode. See: SDM vol. 2A CPUID, leaf 80000001H
        const LAHF_LM: u32 = 1;
        let present = std::arch::x86_64::__cpuid(0x8000_0001).ecx & LAHF_LM != 0;
        let mut compiler = Self {
            memory: CodeMemory::default(),
            gate: Gate::default(),
            blocks: Vec::new(),
            links: Links::new(),
        };
        (present && compiler.open_gate()).then_some(compiler)
    }

    fn open_gate(&mut self) -> bool {
        let Some((code, exit)) = enter::gate() else { return false };
        let Some(enter) = self.memory.add(&code) else { return false };
        self.gate = Gate { enter, exit: enter + exit };
        true
    }

    /// Forgets all code. Every [`BlockId`] is void.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.links.clear();
        self.memory.clear();
        self.gate = Gate::default();
        self.open_gate();
    }

    /// Makes code of a block of 64-bit code at `rip`, in a flat code segment. What has no template, an invalid instruction too,
    /// is left to the interpreter. `counts`: changes of memory are counted.
    pub fn compile(&mut self, rip: u64, insns: &[Instruction], counts: bool) -> Result<BlockId, Refused> {
        if self.gate.enter == 0 {
            return Err(Refused::Block);
        }
        let id = self.blocks.len() as u32;
        let first_link = self.links.slots.len() as u32;
        let code = translate::block(id, first_link, rip, insns, counts).ok_or(Refused::Block)?;
        let Some(entry) = self.memory.add(&code.bytes) else {
            self.clear();
            return Err(Refused::Full);
        };
        let links = self.links.slots.len() + code.links as usize;
        self.links.slots.resize(links, Default::default());
        let places =
            |offsets: &[Option<usize>]| offsets.iter().map(|at| at.map(|at| entry + at as u64)).collect();
        self.blocks.push(Compiled { entry, resume: places(&code.resume), retry: places(&code.retry) });
        Ok(BlockId(id))
    }

    /// Whether [`Compiler::run`] can begin with this instruction of a block.
    pub fn resumes(&self, block: BlockId, at: usize) -> bool {
        self.address(block, Entry::At(at)).is_some()
    }

    fn address(&self, block: BlockId, at: Entry) -> Option<u64> {
        let block = self.blocks.get(block.0 as usize)?;
        match at {
            Entry::At(0) => Some(block.entry),
            Entry::At(at) => *block.resume.get(at)?,
            Entry::Again(at) => *block.retry.get(at)?,
        }
    }

    /// From now on a way out leads straight to a block, as long as the tag holds.
    pub fn link(&mut self, link: Link, tag: Tag, to: BlockId) {
        if let Some(code) = self.address(to, Entry::At(0)) {
            self.links.set(link, tag, code);
        }
    }

    /// From now on indirect branches find a block, as long as the tag holds.
    pub fn announce(&mut self, rip: u64, tag: Tag, block: BlockId) {
        if let Some(code) = self.address(block, Entry::At(0)) {
            self.links.announce(rip, tag, code);
        }
    }

    /// Runs a block from an instruction on, of which [`Compiler::resumes`] is true, and what follows.
    ///
    /// `budget` is how many instructions may still begin, less those of this block unless it is begun anew; and so it is after it.
    pub fn run(&mut self, block: BlockId, at: Entry, guest: Guest<'_>, tag: Tag, budget: &mut i64) -> Exit {
        let code = self.address(block, at).filter(|_| guest.ram.len() >= WIDEST);
        let Some(code) = code else {
            return match at {
                Entry::At(0) => Exit::Budget { block },
                Entry::At(at) | Entry::Again(at) => Exit::Handler { block, at },
            };
        };
        let left = enter::enter(self.gate, code, &self.links, guest, tag, budget);
        match translate::leaving(left.code) {
            Leaving::Link(link) => Exit::Left { rip: left.rip, link: Link(link) },
            Leaving::Handler(block, at) => Exit::Handler { block: BlockId(block), at },
            Leaving::Miss(block, at) => Exit::Miss { block: BlockId(block), at, miss: left.miss },
            Leaving::Budget(block) => Exit::Budget { block: BlockId(block) },
        }
    }
}
