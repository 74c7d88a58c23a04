//! Hosts for which nothing is compiled.

use crate::interface::{BlockId, Entry, Exit, Guest, Link, Refused, Tag};
use iced_x86::Instruction;
use std::convert::Infallible;

/// Never there.
pub struct Compiler(Infallible);

impl Compiler {
    pub fn new() -> Option<Self> {
        None
    }

    pub fn clear(&mut self) {
        match self.0 {}
    }

    pub fn compile(&mut self, _rip: u64, _insns: &[Instruction], _counts: bool) -> Result<BlockId, Refused> {
        match self.0 {}
    }

    pub fn resumes(&self, _block: BlockId, _at: usize) -> bool {
        match self.0 {}
    }

    pub fn link(&mut self, _link: Link, _tag: Tag, _to: BlockId) {
        match self.0 {}
    }

    pub fn announce(&mut self, _rip: u64, _tag: Tag, _block: BlockId) {
        match self.0 {}
    }

    pub fn run(
        &mut self,
        _block: BlockId,
        _at: Entry,
        _guest: Guest<'_>,
        _tag: Tag,
        _budget: &mut i64,
    ) -> Exit {
        match self.0 {}
    }
}
