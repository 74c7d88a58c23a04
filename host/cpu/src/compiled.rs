//! Hot blocks as host code, between the interpreter's handlers.
//!
//! What a guest sees is the same as without it, and decided in the same places: code is fetched at the beginning of each block
//! (chains hang on all that a fetch could depend on), blocks begin and end where the decoder says, and whatever compiled code
//! does not do itself is done by the handler of the instruction, from the exact state before it.

use crate::{
    block::{Block, Blocks, Heat, key},
    core::{Core, Leave},
    cpu::Engine,
    env::Interrupted,
    execute::{execute as interpret, handle},
    insn::Insn,
    tlb::Geometry,
};
use vmtape_arch::vcpu::seg;
use vmtape_jit::{BlockId, Changes, Compiler, Entry, Exit, Guest, Link, Miss, Refused, Tag};

/// How often a block is interpreted before it is compiled.
const HOT: u8 = 16;
/// The mode of [`Core::mode`] that is compiled.
const MODE_64: u8 = 2;

/// A compiled block's place in the guest.
struct Place {
    rip: u64,
    block: Block,
    /// Offset of each instruction.
    offsets: Box<[u16]>,
}

pub(crate) struct Compiled {
    compiler: Compiler,
    /// By [`BlockId`].
    places: Vec<Place>,
    tags: Tags,
    /// The way out that was taken last, and where it led.
    left: Option<(Link, u64)>,
    /// There was no room for a block.
    full: bool,
    /// Changes of memory are counted, by all code that there is.
    counts: bool,
    compiled: u64,
    entered: u64,
}

impl Compiled {
    /// `None`: everything is interpreted. So it is with [`Geometry::DirectMapped`], where a guest can tell which blocks were executed
    /// lately.
    pub(crate) fn new(engine: Engine, tlb: Geometry) -> Option<Self> {
        if engine != Engine::Compiler || tlb != Geometry::SetAssociative {
            return None;
        }
        Some(Self {
            compiler: Compiler::new()?,
            places: Vec::new(),
            tags: Tags::default(),
            left: None,
            full: false,
            counts: false,
            compiled: 0,
            entered: 0,
        })
    }

    /// To be called when decoded blocks are forgotten.
    pub(crate) fn clear(&mut self) {
        self.compiler.clear();
        self.places.clear();
        self.left = None;
        self.full = false;
    }

    /// Blocks compiled, and blocks entered.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.compiled, self.entered)
    }

    /// The host code of the block at RIP, once it is hot.
    fn code(&mut self, core: &Core<'_>, blocks: &mut Blocks, block: &Block) -> Option<BlockId> {
        match block.heat {
            Heat::Refused => return None,
            Heat::Compiled(id) if self.places[id.0 as usize].rip == core.state.rip => return Some(id),
            Heat::Interpreted(HOT) => {}
            Heat::Interpreted(times) => {
                blocks.set_heat(core, Heat::Interpreted(times + 1));
                return None;
            }
            // The same code at another address has its own constants, and gets as hot as this one first.
            Heat::Compiled(_) => {
                blocks.set_heat(core, Heat::Interpreted(1));
                return None;
            }
        }
        let heat = match self.compile(core, blocks, block) {
            Ok(id) => Heat::Compiled(id),
            Err(Refused::Block) => Heat::Refused,
            Err(Refused::Full) => {
                self.full = true;
                return None;
            }
        };
        blocks.set_heat(core, heat);
        if let Heat::Compiled(id) = heat { Some(id) } else { None }
    }

    fn compile(&mut self, core: &Core<'_>, blocks: &Blocks, block: &Block) -> Result<BlockId, Refused> {
        let end = core.state.rip.checked_add(u64::from(block.bytes)).ok_or(Refused::Block)?;
        if end > core.code_end {
            return Err(Refused::Block);
        }
        let insns = blocks.instructions(core, block).ok_or(Refused::Block)?;
        let id = self.compiler.compile(core.state.rip, &insns, self.counts)?;
        let mut at = 0;
        let offsets = insns.iter().map(|insn| {
            let offset = at;
            at += insn.len() as u16;
            offset
        });
        self.places.push(Place { rip: core.state.rip, block: *block, offsets: offsets.collect() });
        self.compiled += 1;
        Ok(id)
    }
}

/// Executes the block at RIP, and where it is compiled the blocks that follow it without anything between.
pub(crate) fn execute(
    core: &mut Core<'_>,
    blocks: &mut Blocks,
    compiled: &mut Compiled,
    left: u64,
    chains: bool,
) -> Result<(), Interrupted> {
    if compiled.full || blocks.is_full() || compiled.counts != core.keeps_changes {
        blocks.clear();
        compiled.clear();
        compiled.counts = core.keeps_changes;
    }
    let block = match blocks.recent(core) {
        Some(block) => *block,
        None => blocks.find(core)?,
    };
    if core.mode != MODE_64 || block.start == 0 {
        return interpret(core, &blocks.insns, &block, left);
    }
    match compiled.code(core, blocks, &block) {
        Some(id) => run(core, &blocks.insns, compiled, id, left, chains),
        None => interpret(core, &blocks.insns, &block, left),
    }
}

fn run(
    core: &mut Core<'_>,
    insns: &[Insn],
    compiled: &mut Compiled,
    mut id: BlockId,
    left: u64,
    chains: bool,
) -> Result<(), Interrupted> {
    let until = core.state.icount + left;
    let mut tag = compiled.tags.current(core);
    if chains {
        let rip = core.state.rip;
        if let Some((link, to)) = compiled.left.take()
            && to == rip
        {
            compiled.compiler.link(link, tag, id);
        }
        compiled.compiler.announce(rip, tag, id);
    } else {
        tag = Tags::NONE;
    }
    compiled.entered += 1;
    let mut budget = i64::try_from(left).unwrap_or(i64::MAX);
    let until = until.min(core.state.icount + budget as u64);
    let mut at = Entry::At(0);
    // Where an access has missed, and with which budget: an instruction with two of them is not entered again for ever.
    let mut missed = None;
    core.leave = Leave::No;
    core.outcome = false;
    loop {
        let mut changes = core.ram.changes();
        let exit = compiled.compiler.run(id, at, guest(core, until, &mut changes), tag, &mut budget);
        if compiled.counts {
            core.ram.set_changes(changes);
        }
        let (block, from, miss) = match exit {
            Exit::Left { rip, link } => {
                (core.state.rip, core.next_rip) = (rip, rip);
                core.state.icount = until - budget as u64;
                compiled.left = Some((link, rip));
                return Ok(());
            }
            Exit::Budget { block } => {
                let place = &compiled.places[block.0 as usize];
                (core.state.rip, core.next_rip) = (place.rip, place.rip);
                core.state.icount = until - budget as u64;
                return if budget == 0 {
                    Ok(())
                } else {
                    interpret(core, insns, &place.block, budget as u64)
                };
            }
            Exit::Handler { block, at } => (block, at, None),
            Exit::Miss { block, at, miss } => (block, at, Some(miss)),
        };
        let place = &compiled.places[block.0 as usize];
        let rest = u64::from(place.block.len) - from as u64;
        core.state.icount = until - (budget as u64 + rest);
        let remaining = &insns[place.block.start as usize..][from..place.block.len as usize];
        let rip = place.rip.wrapping_add(u64::from(place.offsets[from]));
        let (compiler, tags) = (&compiled.compiler, &mut compiled.tags);
        let mut goes_on = |core: &Core<'_>| tag == Tags::NONE || tags.current(core) == tag;
        if let Some(miss) = miss
            && missed.replace((block, from, budget)) != Some((block, from, budget))
            && refill(core, &remaining[0], rip, &miss)?
            && goes_on(core)
        {
            (id, at) = (block, Entry::Again(from));
            continue;
        }
        let resumes = |core: &Core<'_>, at| compiler.resumes(block, from + at) && goes_on(core);
        let next = handle(core, remaining, rip, resumes);
        core.ahead = None;
        let Some(next) = next? else { return Ok(()) };
        (id, at) = (block, Entry::At(from + next));
    }
}

/// Lets an instruction that misses a page have it: see [`Core::refill`].
fn refill(core: &mut Core<'_>, insn: &Insn, rip: u64, miss: &Miss) -> Result<bool, Interrupted> {
    core.state.rip = rip;
    core.next_rip = rip.wrapping_add(u64::from(insn.len));
    core.refill(miss)
}

fn guest<'a>(core: &'a mut Core<'_>, until: u64, sum: &'a mut u128) -> Guest<'a> {
    let changes = core.keeps_changes.then(|| Changes { sum, until, ram: core.ram.common() });
    let sse = core.check_sse().is_ok();
    let (tlb, read_epoch, write_epoch) = core.tlb.table(core.fast_context);
    Guest {
        gpr: &mut core.state.gpr,
        rflags: &mut core.state.rflags,
        tlb,
        read_epoch,
        write_epoch,
        ram: core.ram.bytes(),
        fs_base: core.segments[seg::FS].base,
        gs_base: core.segments[seg::GS].base,
        xmm: &mut core.state.fpu.xmm,
        mxcsr: &mut core.state.fpu.mxcsr,
        sse,
        changes,
    }
}

/// What the chains between blocks hang on, as tags: mode, privilege and translations of code, and all code in memory.
#[derive(Default)]
struct Tags {
    /// The last one first.
    known: Vec<((u64, u64), Tag)>,
    given: u64,
}

impl Tags {
    /// No chain has it.
    const NONE: Tag = Tag(u64::MAX);
    /// A guest and its kernel, and what they were when it was last elsewhere.
    const KNOWN: usize = 8;

    fn current(&mut self, core: &Core<'_>) -> Tag {
        let what = (key(core), core.ram.code_changes());
        match self.known.first() {
            Some((last, tag)) if *last == what => *tag,
            _ => self.change(what),
        }
    }

    #[cold]
    fn change(&mut self, what: (u64, u64)) -> Tag {
        let found = self.known.iter().position(|(known, _)| *known == what);
        let entry = match found {
            Some(at) => self.known.remove(at),
            None => {
                self.given += 1;
                (what, Tag(self.given))
            }
        };
        self.known.insert(0, entry);
        self.known.truncate(Self::KNOWN);
        entry.1
    }
}
