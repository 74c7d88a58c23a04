//! What an interpreter and compiled code tell each other.

use std::cell::Cell;

/// Pages of a table that compiled code looks in.
pub const TLB_ENTRIES: usize = 1024;

/// Bytes of the widest access. Memory has at least as many.
pub const WIDEST: usize = 16;

/// One page: a tag per kind of access, and what to add to a linear address for the host physical one. A tag is the page's
/// linear address with an epoch in its low bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TlbEntry {
    pub read: u64,
    pub write: u64,
    pub fetch: u64,
    pub addend: u64,
}

/// A compiled block, until the compiler is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockId(pub u32);

/// A way out of a compiled block that always leads to the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub u32);

/// What the chains between blocks hang on: mode, translations of code, contents of code. A chain that was made under one tag is
/// followed under that tag only. Zero is no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

/// A change of memory weighs the mixed product of its quadword's number and its instruction's, each XORed with one of these.
/// See: wyhash, Wang Yi, final version 4: `wymix`, and the first two of its secrets
pub const WEIGHTS: [u64; 2] = [0x2d35_8dcc_aa6c_78a5, 0x8bb8_4b93_962e_acc9];

/// The count of all changes of memory, where it is kept.
pub struct Changes<'a> {
    pub sum: &'a mut u128,
    /// The instruction count at which the budget is used up.
    pub until: u64,
    /// The memory that is counted from its beginning; elsewhere the interpreter counts.
    pub ram: std::ops::Range<u64>,
}

/// What compiled code works on.
pub struct Guest<'a> {
    pub gpr: &'a mut [u64; 16],
    pub rflags: &'a mut u64,
    /// By page number modulo its length.
    pub tlb: &'a [TlbEntry; TLB_ENTRIES],
    /// What valid tags have in their low bits.
    pub read_epoch: u64,
    pub write_epoch: u64,
    /// Host physical memory.
    pub ram: &'a [Cell<u8>],
    pub fs_base: u64,
    pub gs_base: u64,
    pub xmm: &'a mut [[u64; 2]; 16],
    pub mxcsr: &'a mut u32,
    /// SSE raises no exception by the control registers.
    pub sse: bool,
    /// `Some` exactly if the code was compiled so.
    pub changes: Option<Changes<'a>>,
}

/// What an instruction does with its operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Read,
    Write,
    /// It reads it and writes it.
    Modify,
}

/// An access whose page the table does not have, or not for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    pub gva: u64,
    pub size: u8,
    pub to: Use,
    /// The instruction's handler would make this very access, and none before it that can miss.
    pub exact: bool,
}

/// Where in a block compiled code is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// At an instruction, the one before it being the interpreter's; zero is the beginning.
    At(usize),
    /// At an instruction that has come back with a [`Miss`].
    Again(usize),
}

/// Why compiled code came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest goes on at `rip`, and no chain leads there yet.
    Left { rip: u64, link: Link },
    /// An instruction of a block, by its number, is the interpreter's. It has had no effect, and the budget is less by all of the
    /// block.
    Handler { block: BlockId, at: usize },
    /// An instruction of a block, as in [`Exit::Handler`], misses a page. It may be entered [`Entry::Again`].
    Miss { block: BlockId, at: usize, miss: Miss },
    /// The block is longer than the budget. None of it was executed.
    Budget { block: BlockId },
}

/// Why a block was not compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The interpreter is as fast.
    Block,
    /// There was no room: all code was forgotten, and every [`BlockId`] is void.
    Full,
}
