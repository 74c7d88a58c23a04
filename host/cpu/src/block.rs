//! The cache of decoded blocks, keyed by host physical address and mode, and valid for one generation of the page's
//! code.

use crate::{
    core::Core, dispatch, emulate::decode_as_kvm, env::Interrupted, features::Features, insn::Insn, ram::Ram,
};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, host::Vendor};
use vmtape_jit::BlockId;

/// Instructions in a block.
const MAX_BLOCK: usize = 32;
/// See: SDM vol. 2A 2.3.11 AVX Instruction Length; the limit is that of all instructions.
const MAX_INSN: usize = 15;
/// Decoded instructions kept; beyond, the cache starts anew.
const CAPACITY: usize = 1 << 19;
const JUMPS: usize = 1 << 12;

/// A run of decoded instructions on one page. All but the last leave RIP alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block {
    pub(crate) start: u32,
    pub(crate) len: u32,
    /// Bytes of code.
    pub(crate) bytes: u32,
    generation: u32,
    page: u64,
    /// How often it was executed, or what became of it.
    pub(crate) heat: Heat,
}

/// How hot a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heat {
    /// It was interpreted so often.
    Interpreted(u8),
    Compiled(BlockId),
    /// It stays interpreted.
    Refused,
}

/// Where a linear address led last time.
#[derive(Clone, Copy)]
struct Jump {
    gva: u64,
    key: u64,
    block: Block,
}

/// Multiplies by a constant: the keys are addresses, and nothing iterates over the map.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

impl Default for Heat {
    fn default() -> Self {
        Self::Interpreted(0)
    }
}

/// An instruction that lies on two pages, as it was decoded last.
#[derive(Clone, Copy)]
struct Crossing {
    insn: Insn,
    /// Host physical addresses of its first byte and of its first byte on the second page, and the mode.
    place: (u64, u64, u8),
    generations: (u32, u32),
}

/// Page boundaries for which the crossing instruction is remembered.
const CROSSINGS: usize = 64;

pub(crate) struct Blocks {
    /// The first is scratch: an instruction that is executed once.
    pub(crate) insns: Vec<Insn>,
    index: HashMap<u64, Block, BuildHasherDefault<AddressHasher>>,
    jumps: Box<[Jump; JUMPS]>,
    crossings: Vec<Option<Crossing>>,
    features: Features,
}

impl Blocks {
    pub(crate) fn new(features: Features) -> Self {
        let none = Jump { gva: 0, key: u64::MAX, block: Block::default() };
        let jumps = vec![none; JUMPS].into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!());
        let mut blocks =
            Self { insns: Vec::new(), index: HashMap::default(), jumps, crossings: Vec::new(), features };
        blocks.clear();
        blocks
    }

    pub(crate) fn set_features(&mut self, features: Features) {
        self.features = features;
        self.clear();
    }

    pub(crate) fn clear(&mut self) {
        self.insns.clear();
        self.insns.push(Insn::new(&Instruction::default(), dispatch::undefined));
        self.index.clear();
        self.crossings = vec![None; CROSSINGS];
        for jump in self.jumps.iter_mut() {
            jump.key = u64::MAX;
        }
    }

    /// The block at RIP, if it was executed lately.
    #[inline(always)]
    pub(crate) fn recent(&self, core: &Core<'_>) -> Option<&Block> {
        let gva = core.code_address();
        let jump = &self.jumps[slot(gva)];
        let current = jump.gva == gva
            && jump.key == key(core)
            && core.ram.generation(jump.block.page) == jump.block.generation;
        current.then_some(&jump.block)
    }

    /// The block at RIP, decoded if need be.
    #[cold]
    #[inline(never)]
    pub(crate) fn find(&mut self, core: &mut Core<'_>) -> Result<Block, Interrupted> {
        core.check_code_limit(1)?;
        let gva = core.code_address();
        let Some(hpa) = core.fetch(gva)? else {
            return Ok(self.scratch(core, &[]));
        };
        let generation = core.ram.generation(hpa >> PAGE_SHIFT);
        // A flush has parted the jump from its block, which is where it was.
        let jump = &mut self.jumps[slot(gva)];
        let same = jump.gva == gva
            && jump.key & MODE == u64::from(core.mode)
            && jump.block.page == hpa >> PAGE_SHIFT
            && jump.block.generation == generation;
        if same {
            jump.key = key(core);
            return Ok(jump.block);
        }
        let index = hpa << 2 | u64::from(core.mode);
        let known = self.index.get(&index).filter(|block| block.generation == generation);
        let block = match known {
            Some(block) => *block,
            None => {
                let block = self.build(core, gva, hpa)?;
                if block.start == 0 {
                    return Ok(block);
                }
                self.index.insert(index, block);
                block
            }
        };
        self.jumps[slot(gva)] = Jump { gva, key: key(core), block };
        Ok(block)
    }

    /// The next block that is decoded is the first of a new cache. Whoever keeps blocks forgets them before.
    pub(crate) fn is_full(&self) -> bool {
        self.insns.len() > CAPACITY
    }

    fn build(&mut self, core: &mut Core<'_>, gva: u64, hpa: u64) -> Result<Block, Interrupted> {
        if self.is_full() {
            self.clear();
        }
        let mut buffer = [0; MAX_BLOCK * MAX_INSN];
        let room = (PAGE_SIZE - hpa % PAGE_SIZE) as usize;
        let bytes = &mut buffer[..room.min(MAX_BLOCK * MAX_INSN)];
        if !core.ram.read(hpa, bytes) {
            return Ok(self.scratch(core, &[]));
        }
        let start = self.insns.len();
        let mut at = 0;
        while self.insns.len() - start < MAX_BLOCK && at < bytes.len() {
            let window = &bytes[at..bytes.len().min(at + MAX_INSN)];
            let Some(insn) = self.decode(core, core.state.rip.wrapping_add(at as u64), window) else {
                break;
            };
            at += insn.len as usize;
            self.insns.push(insn);
            if insn.ends_block {
                break;
            }
        }
        if at == 0 {
            return self.crossing(core, gva, hpa, bytes);
        }
        core.ram.mark_code(hpa, hpa + at as u64);
        core.tlb.sync(core.ram.epoch());
        Ok(Block {
            start: start as u32,
            len: (self.insns.len() - start) as u32,
            bytes: at as u32,
            generation: core.ram.generation(hpa >> PAGE_SHIFT),
            page: hpa >> PAGE_SHIFT,
            heat: Heat::default(),
        })
    }

    /// An instruction whose last bytes lie on the next page: a block of its own, which hangs on two pages.
    fn crossing(
        &mut self,
        core: &mut Core<'_>,
        gva: u64,
        hpa: u64,
        head: &[u8],
    ) -> Result<Block, Interrupted> {
        core.check_code_limit(head.len() as u64 + 1)?;
        let next = gva.wrapping_add(head.len() as u64) & core.linear_mask;
        let Some(next) = core.fetch(next)? else {
            return Ok(self.scratch(core, head));
        };
        let place = (hpa, next, core.mode);
        let generations = |ram: &Ram| (ram.generation(hpa >> PAGE_SHIFT), ram.generation(next >> PAGE_SHIFT));
        let remembered = (hpa >> PAGE_SHIFT) as usize % CROSSINGS;
        if let Some(known) = self.crossings[remembered]
            && known.place == place
            && known.generations == generations(&core.ram)
        {
            self.insns[0] = known.insn;
            return Ok(scratch_block(&known.insn));
        }
        let mut bytes = [0; MAX_INSN];
        bytes[..head.len()].copy_from_slice(head);
        if !core.ram.read(next, &mut bytes[head.len()..]) {
            return Ok(self.scratch(core, head));
        }
        let block = self.scratch(core, &bytes);
        let insn = self.insns[0];
        core.ram.mark_code(hpa, hpa + head.len() as u64);
        core.ram.mark_code(next, next + MAX_INSN as u64);
        core.tlb.sync(core.ram.epoch());
        let generations = generations(&core.ram);
        self.crossings[remembered] = Some(Crossing { insn, place, generations });
        Ok(block)
    }

    fn scratch(&mut self, core: &Core<'_>, bytes: &[u8]) -> Block {
        let undefined = || Insn::new(&Instruction::default(), dispatch::undefined);
        self.insns[0] = self.decode(core, core.state.rip, bytes).unwrap_or_else(undefined);
        scratch_block(&self.insns[0])
    }

    /// Notes what became of the block at RIP, which is the recent one.
    pub(crate) fn set_heat(&mut self, core: &Core<'_>, heat: Heat) {
        let gva = core.code_address();
        let block = &mut self.jumps[slot(gva)].block;
        block.heat = heat;
        let index = (block.page << PAGE_SHIFT) | (gva % PAGE_SIZE);
        if matches!(heat, Heat::Compiled(_) | Heat::Refused)
            && let Some(known) = self.index.get_mut(&(index << 2 | u64::from(core.mode)))
        {
            known.heat = heat;
        }
    }

    /// The instructions of the block at RIP as the decoder has them.
    pub(crate) fn instructions(&self, core: &Core<'_>, block: &Block) -> Option<Vec<Instruction>> {
        let mut bytes = vec![0; block.bytes as usize];
        let hpa = (block.page << PAGE_SHIFT) | (core.code_address() % PAGE_SIZE);
        if !core.ram.read(hpa, &mut bytes) {
            return None;
        }
        let mut at = 0;
        let insns = self.insns[block.start as usize..][..block.len as usize].iter();
        let decoded = insns.map(|insn| {
            let (instruction, _) =
                self.instruction(core, core.state.rip.wrapping_add(at as u64), &bytes[at..]);
            at += usize::from(insn.len);
            (instruction.len() == usize::from(insn.len)).then_some(instruction)
        });
        decoded.collect()
    }

    /// Decodes one instruction; `None`: the bytes end too early.
    pub(crate) fn decode(&self, core: &Core<'_>, rip: u64, bytes: &[u8]) -> Option<Insn> {
        let (instruction, error) = self.instruction(core, rip, bytes);
        if instruction.code() != Code::INVALID {
            return Some(dispatch::insn(&instruction, &self.features));
        }
        let handler = match error {
            DecoderError::NoMoreBytes => return None,
            _ if instruction.len() >= MAX_INSN => dispatch::too_long,
            _ => dispatch::undefined,
        };
        let mut insn = Insn::new(&instruction, handler);
        insn.len = insn.len.max(1);
        insn.ends_block = true;
        Some(insn)
    }

    fn instruction(&self, core: &Core<'_>, rip: u64, bytes: &[u8]) -> (Instruction, DecoderError) {
        let bits = 16 << core.mode;
        // AMD lets an operand-size prefix cut near branches in 64-bit mode; Intel ignores it.
        let vendor =
            if core.model.vendor == Vendor::AMD { DecoderOptions::AMD } else { DecoderOptions::NONE };
        if core.emulating {
            return decode_as_kvm(bits, bytes, rip, DecoderOptions::FORCE_RESERVED_NOP);
        }
        let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::FORCE_RESERVED_NOP | vendor);
        (decoder.decode(), decoder.last_error())
    }
}

/// The block that consists of the scratch instruction.
fn scratch_block(insn: &Insn) -> Block {
    Block { start: 0, len: 1, bytes: u32::from(insn.len), generation: 0, page: u64::MAX, heat: Heat::Refused }
}

#[inline(always)]
fn slot(gva: u64) -> usize {
    (gva ^ gva >> 12) as usize % JUMPS
}

/// The mode in a [`key`].
const MODE: u64 = 3;

/// What a remembered jump hangs on besides its address.
#[inline(always)]
pub(crate) fn key(core: &Core<'_>) -> u64 {
    core.tlb.version() << 3 | u64::from(core.state.cpl == 3) << 2 | u64::from(core.mode)
}
