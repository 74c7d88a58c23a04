//! Pages that are not there: they go, and come back when they are waited for.

use super::Services;
use std::ops::Range;
use vmtape_abi::MemoryStatus;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, access::MappingKind, memory::Supply};
use vmtape_cpu::Flush;
use vmtape_traces::event::{Event, FaultIn};

impl Services {
    /// Whoever needs a range waits for its pages, one after the other. Each wait is told.
    pub(super) fn wait_for(&mut self, hpa: u64, size: u64) -> MemoryStatus {
        while let Some((page, supply)) = self.memory.absent.first_in(hpa, size) {
            let icount = self.clock.icount;
            let answer = match supply.answer() {
                MemoryStatus::READY if self.memory.remote.contains(&page) => self.fetch(page),
                answer => answer,
            };
            let gpa = self.memory.gpa(page >> PAGE_SHIFT).unwrap_or(page);
            self.tape.event(Event::FaultIn(FaultIn { icount, gpa, answer }));
            if answer == MemoryStatus::MISSING && self.memory.remote.contains(&page) {
                self.stranded = Some(gpa);
            }
            if answer != MemoryStatus::READY {
                return answer;
            }
            self.memory.absent.put(page..page + PAGE_SIZE);
        }
        MemoryStatus::READY
    }

    /// Pages go. Nothing that was translated leads to them any more.
    pub(crate) fn take_pages(&mut self, range: Range<u64>, supply: Supply) {
        self.memory.absent.take(range, supply);
        self.flushes.iter().for_each(|handle| handle.request(Flush::All));
    }

    /// Pages that a tape's machine has waited for are there.
    pub(crate) fn follow_pages(&mut self, told: &[FaultIn]) {
        for page in told.iter().filter(|page| page.answer == MemoryStatus::READY) {
            if let Some(hpa) = self.memory.hpa(page.gpa) {
                self.memory.absent.put(hpa..hpa + PAGE_SIZE);
            }
        }
    }

    /// Whether a page that a backend maps for the guest is there. A backend that has not asked has the host wait for it, as an
    /// access through its own page tables would.
    pub(super) fn may_map(&mut self, kind: MappingKind, hpa: u64) -> bool {
        kind != MappingKind::RAM || self.memory.absent.is_empty() || {
            let status = self.wait_for(hpa & !(PAGE_SIZE - 1), PAGE_SIZE);
            self.unmapped = (status != MemoryStatus::READY).then_some(status);
            self.unmapped.is_none()
        }
    }
}
