//! A moment that a machine goes back to, again and again: a short run from it costs what it touches, and not the machine.
//!
//! A checkpoint is bytes, for a machine that was just built. A snapshot stays in memory and belongs to the machine that made it,
//! which puts back what was written since.

use super::{Machine, checkpoint::damaged, halt::Halt};
use crate::{
    Error,
    memory::is_zero,
    tape::{Recorder, Tape},
    time::{InputStream, Inputs},
};
use std::collections::BTreeMap;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE};
use vmtape_cpu::Mark;

const PAGE: usize = PAGE_SIZE as usize;

/// Where a machine was: see [`Machine::snapshot`].
pub struct Snapshot {
    /// As a checkpoint has it: everything but memory.
    state: Vec<u8>,
    /// The pages that were written before, but for those that are zero.
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Pages that were written after it are to be put back.
    mark: Mark,
    /// Ioctls of the VMM so far.
    controls: usize,
    used: bool,
}

impl Machine {
    /// Keeps this moment, for [`Machine::rewind`]. It costs a copy of the pages that were written so far. What silicon has cached is
    /// no part of it, so that is forgotten here and there.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        self.drop_caches();
        self.services.tape.forget();
        self.page_hashes.update(&self.services.memory);
        let state = self.save_state()?;
        let mark = self.services.memory.mark();
        let mut pages = BTreeMap::new();
        let mut bytes = [0; PAGE];
        for page in self.services.memory.ram().pages_since(Mark::START) {
            if self.services.ram().read(page << PAGE_SHIFT, &mut bytes) && !is_zero(&bytes) {
                pages.insert(page, Box::new(bytes));
            }
        }
        Ok(Snapshot { state, pages, mark, controls: self.script.logged().len(), used: self.used })
    }

    /// Goes back to a moment of this machine, from where it runs on as it did the first time: with inputs of which nothing was
    /// taken, a recorder that has heard nothing yet, and digests that begin anew. The run since may have ended in any way.
    ///
    /// A snapshot of another machine is refused. So is one after which the backend was set up otherwise: capabilities cannot be
    /// taken back.
    pub fn rewind(
        &mut self,
        snapshot: &Snapshot,
        inputs: Box<dyn Inputs>,
        recorder: Option<Box<dyn Recorder>>,
    ) -> Result<(), Error> {
        // What is put back is no change.
        self.begin_anew(inputs, recorder);
        let memory = &self.services.memory;
        // A fault may have led the guest to pages of the host that no slot has.
        for page in memory.ram().pages_since(snapshot.mark) {
            let bytes = snapshot.pages.get(&page).map_or(&[0; PAGE], |bytes| &**bytes);
            memory.ram().write(page << PAGE_SHIFT, bytes);
        }
        self.page_hashes.update(&self.services.memory);
        self.script.forget_since(snapshot.controls);
        self.used = snapshot.used;
        let saved = postcard::from_bytes(&snapshot.state).map_err(|_| damaged())?;
        self.restore_state(saved)
    }

    /// Nobody was told anything yet, and nothing was taken from outside.
    fn begin_anew(&mut self, inputs: Box<dyn Inputs>, recorder: Option<Box<dyn Recorder>>) {
        let services = &mut self.services;
        services.inputs = InputStream::new(inputs);
        services.tape = Tape::new(recorder, self.vcpus.len() as u32, self.spec.register_changes);
        services.forget_run();
        self.halt = Halt::default();
        self.attended = 0;
    }

    /// Puts memory back as it was when the machine was built, and begins anew with other inputs: then [`Machine::restore`] goes to
    /// any checkpoint of the run, earlier ones too.
    pub fn start_over(
        &mut self,
        inputs: Box<dyn Inputs>,
        recorder: Option<Box<dyn Recorder>>,
    ) -> Result<(), Error> {
        let memory = &self.services.memory;
        for page in memory.ram().pages_since(self.marks.start) {
            memory.ram().write(page << PAGE_SHIFT, &[0; PAGE]);
        }
        crate::loader::load(&self.spec, memory)?;
        self.page_hashes.update(&self.services.memory);
        self.begin_anew(inputs, recorder);
        self.script.forget_since(0);
        Ok(())
    }
}
