//! A backend that is watched: what crosses its boundary is written down, in order with what the recorder hears; walks of
//! the guest's tables that lead to no exit, and exceptions that silicon gives the guest itself, stand nowhere else.

use std::{cell::RefCell, rc::Rc};
use vmtape_abi::{Backend, BackendObserver, Errno, Host, HostObserver, MemoryRegion, MemoryStatus};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    event::{Event as GuestEvent, EventKind},
    exception::{Exception, Vector},
    exit::{Exit, Resume, StimulusKind},
    note::Note,
    paging::PagingMode,
    sensitive::Sensitive,
    vcpu::VcpuState,
};
use vmtape_traces::{Event, ExitGroup};

/// Something that crossed the boundary.
#[derive(Clone, Debug)]
pub enum Observation {
    /// Silicon was asked to translate an access.
    Walk(Box<Walk>),
    /// Silicon gives the guest an exception; an exit that follows at once takes it away again.
    Fault(Exception),
    /// What the next entry delivers, with the value of CR2 where it is known.
    Inject(GuestEvent, Option<u64>),
    /// What the recorder heard: exits, notes, ends of handling.
    Event(Event),
}

impl Observation {
    /// What a tape tells of an exit. The silicon's walk is on it only where it led to the exit.
    pub fn of(group: &ExitGroup) -> Vec<Self> {
        let exit = &group.exit.exit;
        let steps: Vec<_> = group.walk().filter_map(Entry::of).collect();
        let walk = (exit.stimulus == StimulusKind::ACCESS && !steps.is_empty()).then(|| Walk {
            access: exit.access,
            paged: true,
            entries: steps,
            verdict: Verdict::EXIT,
            gpa: None,
            fault: Exception::default(),
        });
        let vcpu = group.exit.vcpu;
        let walk = walk.map(|walk| Self::Walk(Box::new(walk)));
        let notes = group.notes.iter().enumerate().flat_map(|(index, note)| {
            let event = Self::Event(Event::Note { vcpu, place: group.place(index), note: *note });
            [Some(event), injected(note)].into_iter().flatten()
        });
        let resume =
            group.resume.map(|resume| Self::Event(Event::Resume { vcpu, resume, changes: group.changes }));
        let exit = Self::Event(Event::Exit(Box::new(group.exit)));
        walk.into_iter().chain([exit]).chain(notes).chain(resume).collect()
    }
}

/// What a tracepoint tells of the next entry.
fn injected(note: &Note) -> Option<Observation> {
    let Note::InjException { vector, has_error, error_code, reinjected: false } = *note else { return None };
    let event = GuestEvent {
        valid: true.into(),
        kind: EventKind::HARDWARE_EXCEPTION,
        vector: vector.0,
        has_error_code: has_error.into(),
        error_code,
        ..GuestEvent::default()
    };
    Some(Observation::Inject(event, None))
}

/// A walk of the guest's tables by silicon.
#[derive(Clone, Debug)]
pub struct Walk {
    pub access: Access,
    /// CR0.PG: without it there are no tables.
    pub paged: bool,
    /// The entries that it read, in order.
    pub entries: Vec<Entry>,
    pub verdict: Verdict,
    /// The guest physical address that it found, if it found one.
    pub gpa: Option<u64>,
    pub fault: Exception,
}

/// A paging entry of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub level: u8,
    pub gpa: Option<u64>,
    pub before: u64,
    pub after: u64,
}

impl Entry {
    fn of(note: &Note) -> Option<Self> {
        match *note {
            Note::SiliconStep { gpa, before, after, level } => {
                Some(Self { level, gpa: Some(gpa), before, after })
            }
            _ => None,
        }
    }
}

/// The level of the first entry that a walk reads: PAE's four pointers are cached. Zero without paging.
pub fn top_level(state: &VcpuState) -> u8 {
    match state.paging_mode() {
        PagingMode::Pae => 2,
        mode => mode.levels(),
    }
}

/// What was written down, shared with whoever asks.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Logged>>);

#[derive(Default)]
struct Logged {
    on: bool,
    observations: Vec<Observation>,
    page_faults: Vec<PageFault>,
}

/// A page fault that a guest took, whoever found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    pub vcpu: u32,
    pub icount: u64,
    pub code: u32,
    pub cr2: u64,
}

impl Log {
    pub fn push(&self, observation: Observation) {
        let mut log = self.0.borrow_mut();
        if log.on {
            log.observations.push(observation);
        }
    }

    /// Writes down from here on, or no longer.
    pub fn switch(&self, on: bool) {
        self.0.borrow_mut().on = on;
    }

    pub fn is_on(&self) -> bool {
        self.0.borrow().on
    }

    /// The guest's page faults since the last call, written down always.
    pub fn take_page_faults(&self) -> Vec<PageFault> {
        std::mem::take(&mut self.0.borrow_mut().page_faults)
    }

    fn page_fault(&self, vcpu: u32, icount: u64, code: u32, cr2: u64) {
        self.0.borrow_mut().page_faults.push(PageFault { vcpu, icount, code, cr2 });
    }

    /// Forgets what was written down.
    pub fn clear(&self) {
        let mut log = self.0.borrow_mut();
        log.observations.clear();
        log.page_faults.clear();
    }

    /// What was written down since the last call.
    pub fn take(&self) -> Vec<Observation> {
        std::mem::take(&mut self.0.borrow_mut().observations)
    }
}

/// The watched backend.
pub struct Observer {
    inner: Box<dyn Backend>,
    log: Log,
    slots: Vec<MemoryRegion>,
}

fn gpa_of(slots: &[MemoryRegion], hpa: u64) -> Option<u64> {
    let slot = slots.iter().find(|slot| (slot.hpa..slot.hpa + slot.size).contains(&hpa))?;
    Some(slot.gpa + (hpa - slot.hpa))
}

impl Observer {
    pub fn new(inner: Box<dyn Backend>, log: Log) -> Self {
        Self { inner, log, slots: Vec::new() }
    }
}

/// The host as the watched backend sees it.
struct ObservedHost<'a> {
    inner: &'a mut dyn Host,
    /// Host physical addresses of what silicon reads, with the values before and after.
    reads: Vec<(u64, u64, u64)>,
}

impl HostObserver for ObservedHost<'_> {
    fn inner(&self) -> &dyn Host {
        self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Host {
        self.inner
    }

    fn try_read(&mut self, hpa: u64, buf: &mut [u8]) -> MemoryStatus {
        let done = self.inner.try_read(hpa, buf);
        if done == MemoryStatus::READY && matches!(buf.len(), 4 | 8) {
            let mut word = [0; 8];
            word[..buf.len()].copy_from_slice(buf);
            let value = u64::from_le_bytes(word);
            self.reads.push((hpa, value, value));
        }
        done
    }

    fn try_cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> MemoryStatus {
        let done = self.inner.try_cmpxchg(hpa, old, new, size);
        if done == MemoryStatus::READY
            && let Some((.., after)) = self.reads.iter_mut().rev().find(|(read, ..)| *read == hpa)
        {
            *after = new;
        }
        done
    }
}

impl BackendObserver for Observer {
    fn inner(&self) -> &dyn Backend {
        &*self.inner
    }

    fn inner_mut(&mut self) -> &mut dyn Backend {
        &mut *self.inner
    }

    fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        self.inner.set_memory_region(region, host)?;
        self.slots.retain(|slot| slot.slot != region.slot);
        if region.size != 0 {
            self.slots.push(*region);
        }
        Ok(())
    }

    fn access(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        let mut host = ObservedHost { inner: host, reads: Vec::new() };
        let answer = self.inner.access(vcpu, state, access, &mut host, exit);
        let fault = answer.fault;
        if answer.verdict == Verdict::FAULT && fault.vector == Vector::PF {
            self.log.page_fault(vcpu, state.icount, fault.error_code, fault.payload);
        }
        if !self.log.is_on() {
            return answer;
        }
        let mapped = answer.verdict == Verdict::NATIVE;
        let top = top_level(state);
        let entry = |(n, (hpa, before, after)): (u8, (u64, u64, u64))| Entry {
            level: top.saturating_sub(n).max(1),
            gpa: gpa_of(&self.slots, hpa),
            before,
            after,
        };
        let entries = (0..).zip(host.reads).map(entry).collect();
        self.log.push(Observation::Walk(Box::new(Walk {
            access: *access,
            paged: state.cr0().pg(),
            entries,
            verdict: answer.verdict,
            gpa: mapped.then_some(answer.mapping.gpa),
            fault: answer.fault,
        })));
        if answer.verdict == Verdict::FAULT {
            self.log.push(Observation::Fault(answer.fault));
        }
        answer
    }

    fn sensitive(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        insn: &Sensitive,
        host: &mut dyn Host,
        exit: &mut Exit,
        fault: &mut Exception,
    ) -> Verdict {
        let verdict = self.inner.sensitive(vcpu, state, insn, host, exit, fault);
        if verdict == Verdict::FAULT {
            self.log.push(Observation::Fault(*fault));
        }
        verdict
    }

    fn exception(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        exception: &Exception,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        let verdict = self.inner.exception(vcpu, state, exception, host, exit);
        if verdict == Verdict::EXIT && exception.vector == Vector::PF {
            // It is not the guest's, or not as silicon found it.
            self.log.0.borrow_mut().page_faults.pop();
        }
        if verdict == Verdict::NATIVE {
            self.log.push(Observation::Fault(*exception));
        }
        verdict
    }

    fn enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let resume = self.inner.enter(vcpu, state, host);
        let event = state.inject;
        if event.valid.is_set()
            && event.kind == EventKind::HARDWARE_EXCEPTION
            && Vector(event.vector) == Vector::PF
            && !event.reinjected
        {
            self.log.page_fault(vcpu, state.icount, event.error_code, state.cr2);
        }
        if event.valid.is_set() {
            self.log.push(Observation::Inject(event, Some(state.cr2)));
        }
        resume
    }
}
