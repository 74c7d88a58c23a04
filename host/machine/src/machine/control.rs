//! The VMM's ioctls, made at their moments and told to the recorder like everything else.

use super::{Machine, configuration::max_gpa};
use crate::{
    model::{CpuidChange, silicon_cpuid},
    services::answers,
    vmm::{Action, NestedChange, Step},
};
use std::ops::Range;
use vmtape_abi::{DirtyGfn, Errno, MemoryRegion};
use vmtape_arch::{PAGE_SIZE, cpuid::CpuidEntry, memory::Supply, state::StateKind};
use vmtape_traces::{
    event::{Control, Event},
    ioctl::{NestedBytes, Pages, RingEntry},
};

/// The result of an ioctl as the tape has it.
fn code(result: &Result<(), Errno>) -> i32 {
    result.err().map_or(0, |errno| errno.0)
}

/// A value and the result of the ioctl that gives it.
fn value(read: Result<u64, Errno>) -> (u64, i32) {
    match read {
        Ok(value) => (value, 0),
        Err(errno) => (0, errno.0),
    }
}

impl Machine {
    /// Does what the script has for this moment.
    pub(super) fn run_script(&mut self) {
        let icount = self.services.clock.icount;
        if !self.script.is_due(self.exits, icount) {
            return;
        }
        for action in self.script.take_due(self.exits, icount) {
            let control = self.ioctl_of(&action);
            let _ = self.control(&control);
        }
    }

    /// Does what the script has for the time before there are vCPUs.
    pub(super) fn run_script_before_vcpus(&mut self) {
        for action in self.script.before_vcpus() {
            let control = self.ioctl_of(&action);
            let done = self.ioctl(control);
            self.script.created(done);
        }
    }

    /// An ioctl from a tape. What the VMM does about a full ring is this machine's own affair, as its ring is.
    pub(super) fn control_fed(&mut self, control: &Control) {
        let of_ring = matches!(control, Control::HarvestDirtyRing { .. } | Control::ResetDirtyRings { .. });
        if !of_ring || self.script.empties_rings() {
            let _ = self.control(control);
        }
    }

    /// What the VMM does about KVM_EXIT_DIRTY_RING_FULL: it takes what is in the rings of all vCPUs, and resets them. False:
    /// nothing is free after it.
    pub(super) fn empty_rings(&mut self) -> bool {
        for vcpu in 0..self.vcpus.len() as u32 {
            let _ = self.control(&Action::HarvestDirtyRing { vcpu }.control());
        }
        self.control(&Action::ResetDirtyRings {}.control()).result() > 0
    }

    /// The ioctl that an action stands for here and now, its results still open.
    fn ioctl_of(&mut self, action: &Action) -> Control {
        let mut control = action.control();
        match (action, &mut control) {
            (Action::SetCpuid { vcpu, change }, Control::SetCpuid { entries, .. }) => {
                // The text was checked when the machine was built.
                let change = change.parse::<CpuidChange>().unwrap_or_default();
                *entries = change.apply(&self.services.cpuid[*vcpu as usize]);
            }
            (Action::SetMemoryRegion { slot, .. }, Control::SetMemoryRegion { hpa, .. }) => {
                *hpa = self.services.memory.backing(*slot).unwrap_or(0);
            }
            (Action::ClearDirtyLog { set: text, .. }, Control::ClearDirtyLog { set, .. }) => {
                *set = Pages::parse(text).unwrap_or_default();
            }
            (Action::SetNestedState { vcpu, change }, Control::SetNestedState { state, .. }) => {
                let change = change.parse::<NestedChange>().unwrap_or_default();
                // Of a backend that has none the change is made to nothing, and refused.
                let now = self.get_state(*vcpu, StateKind::NESTED_STATE).unwrap_or_default();
                *state = NestedBytes(change.apply(now));
            }
            _ => {}
        }
        control
    }

    /// Makes an ioctl with the arguments of `control`, tells the recorder, and gives it back with this backend's results.
    /// One of a vCPU that does not exist comes from a damaged tape and does nothing.
    pub fn control(&mut self, control: &Control) -> Control {
        let icount = self.services.clock.icount;
        let done = self.script.next_created().unwrap_or_else(|| self.ioctl(control.clone()));
        self.script.log(self.exits, done.clone());
        self.services.tape.event(Event::Control { icount, control: done.clone() });
        done
    }

    pub(super) fn ioctl(&mut self, mut control: Control) -> Control {
        match &mut control {
            Control::SetCpuid { vcpu, entries, result } => {
                if let Some(done) = self.set_cpuid(*vcpu, entries) {
                    *result = code(&done);
                }
            }
            Control::SetMemoryRegion { slot, flags, gpa, size, hpa, result } => {
                let region = MemoryRegion { slot: *slot, flags: *flags, gpa: *gpa, size: *size, hpa: *hpa };
                *result = code(&self.set_memory_region(&region));
            }
            Control::SetMsr { vcpu, index, data, result } => {
                let Some(v) = self.vcpus.get_mut(*vcpu as usize) else { return control };
                let done = self.backend.set_msr(*vcpu, &mut v.state, *index, *data, &mut self.services);
                v.needs_entry = true;
                *result = code(&done);
            }
            Control::CheckExtension { cap, result } => *result = self.backend.check_extension(*cap),
            Control::GetCpuid { vcpu, entries, .. } => {
                if (*vcpu as usize) < self.vcpus.len() {
                    *entries = self.backend.get_cpuid(*vcpu);
                }
            }
            Control::GetSupportedCpuid { entries, .. } => {
                *entries = self.backend.supported_cpuid(&silicon_cpuid(&self.spec.silicon));
            }
            Control::GetMsr { vcpu, index, data, result } => {
                let Some(v) = self.vcpus.get_mut(*vcpu as usize) else { return control };
                let read = self.backend.get_msr(*vcpu, &mut v.state, *index, &mut self.services);
                (*data, *result) = value(read);
            }
            Control::Query { query, vcpu, value: found, result } => {
                if (*vcpu as usize) < self.vcpus.len() {
                    (*found, *result) = value(self.backend.query(*vcpu, *query));
                }
            }
            Control::EnableCap { cap, flags, arg, result } => {
                *result = code(&self.backend.enable_cap(*cap, *flags, *arg));
            }
            Control::GetDirtyLog { slot, pages, result } => {
                match self.backend.get_dirty_log(*slot, &mut self.services) {
                    Ok(mut bits) => {
                        let size = self.services.memory.slots().iter().find(|s| s.slot == *slot & 0xffff);
                        if let Some(size) = size.map(|slot| slot.size) {
                            self.services.is_right(answers::dirty_log(bits.len(), size));
                        }
                        let cleared = !self.script.protects_manually();
                        self.carried.add_log(*slot, &mut bits, cleared);
                        *pages = Pages::of_bitmap(&bits);
                    }
                    Err(errno) => *result = errno.0,
                }
            }
            Control::ClearDirtyLog { slot, first_page, num_pages, set, result } => {
                // No slot is larger than memory, and larger counts are refused.
                let most = self.services.ram().len() / PAGE_SIZE + 64;
                let bits = set.bitmap(*first_page, most.min((*num_pages).into()));
                let done =
                    self.backend.clear_dirty_log(*slot, *first_page, *num_pages, &bits, &mut self.services);
                if done.is_ok() {
                    self.carried.clear_log(*slot, *first_page, &bits);
                }
                *result = code(&done);
            }
            Control::HarvestDirtyRing { vcpu, entries, result } => {
                let entry = |gfn: DirtyGfn| RingEntry { slot: gfn.slot, offset: gfn.offset };
                match self.backend.harvest_dirty_ring(*vcpu, &mut self.services) {
                    Ok(harvested) => {
                        *entries = harvested.into_iter().map(entry).collect();
                        self.carried.add_ring(*vcpu, entries);
                    }
                    Err(errno) => *result = errno.0,
                }
            }
            Control::GetNestedState { vcpu, state, result } => {
                match self.get_state(*vcpu, StateKind::NESTED_STATE) {
                    Ok(bytes) => *state = NestedBytes(bytes),
                    Err(errno) => *result = errno.0,
                }
            }
            Control::SetNestedState { vcpu, state, result } => {
                *result = code(&self.set_state(*vcpu, StateKind::NESTED_STATE, &state.0));
            }
            Control::TakePages { supply, gpa, size, result } => {
                *result = code(&self.take_pages(*gpa, *size, *supply));
            }
            Control::SupplyPages { gpa, size, result } => {
                let found = self.page_ranges(*gpa, *size);
                *result = code(&found.map(|ranges| {
                    ranges.into_iter().for_each(|range| self.services.memory.absent.put(range));
                }));
            }
            Control::ResetDirtyRings { result } => {
                *result = match self.backend.reset_dirty_rings(&mut self.services) {
                    Ok(count) => count.try_into().unwrap_or(i32::MAX),
                    Err(errno) => errno.0,
                };
            }
        }
        control
    }

    /// Silicon that executes CPUID itself answers from the table that was accepted last.
    pub(super) fn set_cpuid(&mut self, n: u32, entries: &[CpuidEntry]) -> Option<Result<(), Errno>> {
        let vcpu = self.vcpus.get_mut(n as usize)?;
        let done = self.backend.set_cpuid(n, &mut vcpu.state, entries, &mut self.services);
        vcpu.needs_entry = true;
        if done.is_ok() {
            self.services.cpuid[n as usize] = entries.to_vec();
            self.services.devices.set_max_gpa(n, max_gpa(entries));
        }
        Some(done)
    }

    fn set_memory_region(&mut self, region: &MemoryRegion) -> Result<(), Errno> {
        // No script asks for memory that the arena has no place for; a damaged tape may.
        if !self.services.memory.is_backed(region.hpa, region.size) {
            return Err(Errno::EFAULT);
        }
        self.backend.set_memory_region(region, &mut self.services)?;
        self.services.memory.set_slot(region);
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.needs_entry = true);
        Ok(())
    }

    /// Pages go, and KVM's MMU notifier hears of it.
    fn take_pages(&mut self, gpa: u64, size: u64, supply: Supply) -> Result<(), Errno> {
        for range in self.page_ranges(gpa, size)? {
            self.services.take_pages(range.clone(), supply);
            self.backend.invalidate_range(range.start, range.end - range.start, &mut self.services);
        }
        Ok(())
    }

    /// Where whole pages of RAM lie. -EINVAL: they are none, or not all of them are RAM.
    fn page_ranges(&self, gpa: u64, size: u64) -> Result<Vec<Range<u64>>, Errno> {
        let whole = size != 0 && (gpa | size).is_multiple_of(PAGE_SIZE);
        if !whole || !self.services.memory.covers(gpa, size) {
            return Err(Errno::EINVAL);
        }
        Ok(self.services.memory.ranges(gpa, size))
    }

    /// What the VMM has done so far, each with the number of exits before it.
    pub fn controls(&self) -> &[(u64, Control)] {
        self.script.logged()
    }

    /// Steps of the script whose moment has not come.
    pub fn steps_left(&self) -> impl Iterator<Item = &Step> {
        self.script.left()
    }
}
