//! Loading a guest: memory as it arrives, state when all of it is there.

use crate::{
    Error,
    points::{MovePoint, Points},
    report::Loaded,
    source::MODELS,
    stream::{Pages, Record, Run},
};
use vmtape_abi::{Errno, MemoryRegion};
use vmtape_arch::{PAGE_SIZE, cpuid::CpuidEntry, state::StateKind};
use vmtape_machine::Machine;

/// What has arrived of the state.
#[derive(Default)]
pub(super) struct Load {
    slots: Option<Vec<MemoryRegion>>,
    devices: Option<Vec<u8>>,
    books: Option<Vec<u8>>,
    states: Vec<(u32, StateKind, Vec<u8>)>,
    /// Pages that come when they are asked for.
    discard: Vec<(u32, Vec<(u64, u64)>)>,
    pub(super) follows: bool,
}

impl Load {
    pub(super) fn take(
        &mut self,
        machine: &mut Machine,
        record: Record,
        loaded: &mut Loaded,
    ) -> Result<(), Error> {
        match record {
            Record::Pages(runs) => runs.iter().try_for_each(|run| self.pages(machine, run, loaded)),
            Record::Discard { slot, runs } => {
                self.discard.push((slot, runs));
                Ok(())
            }
            Record::Slots(slots) => once(&mut self.slots, slots, "slots"),
            Record::Devices { version, bytes } => {
                known(version, "devices")?;
                once(&mut self.devices, bytes, "devices")
            }
            Record::Books { version, bytes } => {
                known(version, "books")?;
                once(&mut self.books, bytes, "books")
            }
            Record::State { vcpu, kind, bytes } => {
                self.states.push((vcpu, kind, bytes));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What was discarded is not here, whatever was sent of it before.
    fn follow(&mut self, machine: &mut Machine) -> Result<(), Error> {
        for (slot, runs) in std::mem::take(&mut self.discard) {
            for (first, count) in runs {
                let block = machine.blocks().into_iter().find(|block| block.slot == slot);
                let end = block.map_or(0, |block| block.pages);
                let legal = first.checked_add(count).is_some_and(|last| last <= end);
                if !legal || !(first..first + count).all(|page| machine.page_follows(slot, page)) {
                    return Err(Error::Refused(format!("slot {slot} has no pages {first:#x} + {count}")));
                }
                self.follows = true;
            }
        }
        Ok(())
    }

    fn pages(&self, machine: &mut Machine, run: &Run, loaded: &mut Loaded) -> Result<(), Error> {
        let block = machine.blocks().into_iter().find(|block| block.slot == run.slot);
        let end = block.map_or(0, |block| block.pages);
        if run.first + run.count() > end {
            let text =
                format!("slot {} has {end} pages, none at {:#x} + {}", run.slot, run.first, run.count());
            return Err(Error::Refused(text));
        }
        let zero = [0; PAGE_SIZE as usize];
        let pages = run.first..run.first + run.count();
        let written = match &run.pages {
            // Memory of a machine that was just built holds what its loader has put there.
            Pages::Zero(_) => pages
                .filter(|page| machine.page(run.slot, *page).is_some_and(|bytes| bytes != zero))
                .collect::<Vec<_>>()
                .into_iter()
                .all(|page| machine.set_page(run.slot, page, &zero)),
            Pages::Bytes(bytes) => {
                pages.zip(bytes).all(|(page, bytes)| machine.set_page(run.slot, page, bytes))
            }
        };
        loaded.pages += run.count();
        if written {
            Ok(())
        } else {
            Err(Error::Refused(format!("memory of slot {} cannot be written", run.slot)))
        }
    }

    /// Everything has arrived: slots, CPUID, the VMM's own, then state in the order in which it was sent, which is the list's.
    pub(super) fn finish(
        &mut self,
        machine: &mut Machine,
        cpuid: &[Vec<CpuidEntry>],
        points: &Points,
        loaded: &mut Loaded,
    ) -> Result<(), Error> {
        let lacks = |what| Error::Refused(format!("the stream has no {what}"));
        machine.take_slots(&self.slots.take().ok_or_else(|| lacks("slots"))?)?;
        let devices = self.devices.take().ok_or_else(|| lacks("devices"))?;
        match points.ask(MovePoint::APIC_OF_KERNEL, 0, 0) {
            None => machine.take_devices(&devices)?,
            Some(_) => machine.take_devices_but_apics(&devices)?,
        }
        machine.take_books(&self.books.take().ok_or_else(|| lacks("books"))?)?;
        self.follow(machine)?;
        for (vcpu, cpuid) in (0..).zip(cpuid) {
            machine.take_cpuid(vcpu, cpuid)?;
        }
        for kind in StateKind::ALL.into_iter().filter(|kind| *kind != StateKind::NESTED_STATE) {
            let all = (0..cpuid.len() as u32)
                .all(|n| self.states.iter().any(|(vcpu, sent, _)| (*vcpu, *sent) == (n, kind)));
            if !all {
                return Err(lacks(kind.name().unwrap_or("state")));
            }
        }
        let mut states = std::mem::take(&mut self.states);
        if points.are_asked() {
            disturb(&mut states, points);
        }
        for (n, (vcpu, kind, bytes)) in (0..).zip(&states) {
            let refused = points.ask(MovePoint::STATE_REFUSED, place(*vcpu, *kind), n);
            let taken = match refused {
                Some(0) => continue,
                Some(errno) => Err(Errno(errno as i32)),
                None => machine.take_state(*vcpu, *kind, bytes),
            };
            let failed =
                |errno| vmtape_machine::Error::Backend { what: format!("{kind} of vCPU {vcpu}"), errno };
            let msrs = taken.map_err(failed)?;
            loaded.dropped.extend(msrs.iter().map(|msr| format!("MSR {msr:#x} of vCPU {vcpu}")));
        }
        machine.arrived();
        Ok(())
    }
}

/// A part of a vCPU's state, as the fault points name it.
fn place(vcpu: u32, kind: StateKind) -> u64 {
    u64::from(vcpu) << 32 | u64::from(kind.0)
}

/// What may happen to state between its arrival and its loading.
fn disturb(states: &mut Vec<(u32, StateKind, Vec<u8>)>, points: &Points) {
    let mut order: Vec<(usize, usize)> = Vec::new();
    let sent = std::mem::take(states);
    let mut kept = Vec::new();
    for (n, (vcpu, kind, mut bytes)) in sent.into_iter().enumerate() {
        let ask = |point| points.ask(point, place(vcpu, kind), n as u64);
        if ask(MovePoint::STATE_LOST).is_some() {
            continue;
        }
        if let Some(word) = ask(MovePoint::STATE_ZERO) {
            let words = bytes.as_chunks_mut::<8>().0;
            if let Some(word) = words.get_mut(usize::try_from(word).unwrap_or(usize::MAX)) {
                *word = [0; 8];
            }
        }
        let later = usize::try_from(ask(MovePoint::STATE_LATER).unwrap_or(0)).unwrap_or(usize::MAX);
        // Behind those that have the same place by themselves.
        order.push((n.saturating_add(later), usize::from(later != 0)));
        kept.push((vcpu, kind, bytes));
    }
    let mut both: Vec<_> = order.into_iter().zip(kept).collect();
    both.sort_by_key(|(order, _)| *order);
    states.extend(both.into_iter().map(|(_, state)| state));
}

fn once<T>(into: &mut Option<T>, what: T, name: &str) -> Result<(), Error> {
    match into.replace(what) {
        None => Ok(()),
        Some(_) => Err(Error::Refused(format!("the stream has {name} twice"))),
    }
}

fn known(version: u32, what: &str) -> Result<(), Error> {
    if version == MODELS {
        return Ok(());
    }
    Err(Error::Refused(format!("its {what} are of version {version}, this program knows {MODELS}")))
}
