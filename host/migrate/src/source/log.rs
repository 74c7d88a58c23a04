//! Which pages the guest has written, by the log that its machine has.

use crate::{
    Error,
    points::{MovePoint, Points},
};
use std::{collections::BTreeSet, fmt, str::FromStr};
use vmtape_abi::MemoryRegion;
use vmtape_machine::{Machine, vmm::Action};
use vmtape_traces::{
    event::Control,
    ioctl::{Pages, RingEntry},
};

const MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
const DIRTY_LOG_RING: [u32; 2] = [192, 223];
/// KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY.
const LOG: u32 = 1;
const READ_ONLY: u32 = 2;

/// How the log is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogMode {
    /// KVM_GET_DIRTY_LOG, which clears what it gives.
    #[default]
    Legacy,
    /// KVM_GET_DIRTY_LOG, then KVM_CLEAR_DIRTY_LOG.
    Manual,
    /// The vCPUs' rings: of a machine that was built with them.
    Ring,
}

impl fmt::Display for LogMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Manual => "manual",
            Self::Ring => "ring",
        })
    }
}

impl FromStr for LogMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named =
            [Self::Legacy, Self::Manual, Self::Ring].into_iter().find(|mode| mode.to_string() == text);
        named.ok_or_else(|| format!("`{text}` is none of legacy, manual, ring"))
    }
}

/// A page of a slot.
pub type Page = (u32, u64);

/// Logging, while it is on.
pub struct DirtyLog {
    mode: LogMode,
    /// The slots as they were before.
    slots: Vec<MemoryRegion>,
    /// Ioctls of the machine's own VMM that were looked at: it empties rings that are full.
    controls: usize,
    points: Points,
}

impl DirtyLog {
    /// Switches logging on. The machine decides where it has only one way: rings where it was built with them, manual protection
    /// where its VMM has enabled it.
    pub fn start(machine: &mut Machine, mode: LogMode, points: Points) -> Result<Self, Error> {
        let caps = machine.capabilities();
        let rings = caps.iter().any(|enabled| DIRTY_LOG_RING.contains(&enabled.cap));
        let manual =
            caps.iter().any(|enabled| enabled.cap == MANUAL_DIRTY_LOG_PROTECT2 && enabled.arg & 1 != 0);
        let mode = match mode {
            _ if rings => LogMode::Ring,
            LogMode::Ring => {
                let text = "the machine was built without dirty rings (record it with --enable-cap 192,arg=0x4000,create)";
                return Err(Error::Guest(text.to_owned()));
            }
            _ if manual => LogMode::Manual,
            mode => mode,
        };
        if mode == LogMode::Manual && !manual {
            let enable = Action::EnableCap { flags: 0, arg: 1, cap: MANUAL_DIRTY_LOG_PROTECT2 };
            let done = machine.control_of_move(&enable.control());
            if done.result() != 0 {
                return Err(Error::Guest(format!("manual protection of the dirty log: {done}")));
            }
        }
        let mut log = Self { mode, slots: Vec::new(), controls: machine.controls().len(), points };
        log.protect(machine)?;
        Ok(log)
    }

    pub fn mode(&self) -> LogMode {
        self.mode
    }

    /// Logs every slot that does not yet. Gives those that were not known: all of their pages count as written.
    fn protect(&mut self, machine: &mut Machine) -> Result<Vec<MemoryRegion>, Error> {
        let mut new = Vec::new();
        for slot in machine.slots() {
            let same = |known: &MemoryRegion| {
                (known.slot, known.gpa, known.size) == (slot.slot, slot.gpa, slot.size)
            };
            if self.slots.iter().any(same) {
                continue;
            }
            self.slots.retain(|known| known.slot != slot.slot);
            self.slots.push(slot);
            new.push(slot);
            if slot.flags & (LOG | READ_ONLY) == 0 {
                set_flags(machine, &slot, slot.flags | LOG)?;
            }
        }
        Ok(new)
    }

    /// The pages that were written since the last call.
    pub fn take(&mut self, machine: &mut Machine) -> Result<BTreeSet<Page>, Error> {
        let mut pages = BTreeSet::new();
        // A slot that the VMM's script has made or moved in the meantime.
        for slot in self.protect(machine)? {
            pages.extend((0..slot.size >> 12).map(|page| (slot.slot, page)));
        }
        match self.mode {
            LogMode::Ring => self.take_rings(machine, &mut pages),
            _ => self.take_bitmaps(machine, &mut pages)?,
        }
        Ok(pages)
    }

    fn take_bitmaps(&mut self, machine: &mut Machine, pages: &mut BTreeSet<Page>) -> Result<(), Error> {
        let now: Vec<_> = machine.slots().into_iter().filter(|slot| slot.flags & LOG != 0).collect();
        for region in now {
            let slot = region.slot;
            let got = machine.control_of_move(&Action::GetDirtyLog { slot }.control());
            let Control::GetDirtyLog { pages: set, result, .. } = got else { continue };
            let failed = |errno: i64| Error::DirtyLog { slot, errno };
            if result != 0 {
                return Err(failed(result.into()));
            }
            let count = region.size >> 12;
            let mut bits = set.bitmap(0, count);
            if self.points.are_asked() {
                let dirty = bits.iter().map(|word| u64::from(word.count_ones())).sum();
                // What was read is lost with the call: the kernel has cleared it.
                if let Some(errno) = self.points.ask(MovePoint::LOG_FAILED, slot.into(), dirty) {
                    return Err(failed(errno as i64));
                }
                for (n, word) in (0..).zip(&mut bits).filter(|(_, word)| **word != 0) {
                    *word &= !self.points.ask(MovePoint::LOG_WORD, slot.into(), n).unwrap_or(0);
                }
            }
            if self.mode == LogMode::Manual {
                self.clear(machine, &region, set);
            }
            // The guest's own VMM logs too: what was taken away from it is kept for it.
            if self.slots.iter().any(|known| known.slot == slot && known.flags & LOG != 0) {
                machine.keep_dirty(slot, &bits);
            }
            pages.extend(Pages::of_bitmap(&bits).iter().map(|page| (slot, page)));
        }
        Ok(())
    }

    fn clear(&self, machine: &mut Machine, region: &MemoryRegion, set: Pages) {
        let (slot, num_pages) = (region.slot, (region.size >> 12) as u32);
        if self.points.ask(MovePoint::LOG_CLEAR, slot.into(), num_pages.into()).is_some() {
            return;
        }
        machine.control_of_move(&Control::ClearDirtyLog { num_pages, first_page: 0, slot, set, result: 0 });
    }

    fn take_rings(&mut self, machine: &mut Machine, pages: &mut BTreeSet<Page>) {
        let mut entries: Vec<RingEntry> = Vec::new();
        for (_, control) in &machine.controls()[self.controls.min(machine.controls().len())..] {
            if let Control::HarvestDirtyRing { entries: emptied, .. } = control {
                entries.extend(emptied);
            }
        }
        self.controls = machine.controls().len();
        for vcpu in 0..machine.spec().vcpus {
            let got = machine.control_of_move(&Action::HarvestDirtyRing { vcpu }.control());
            if let Control::HarvestDirtyRing { entries: harvested, .. } = got {
                entries.extend(harvested);
            }
        }
        machine.control_of_move(&Action::ResetDirtyRings {}.control());
        pages.extend(entries.iter().map(|entry| (entry.slot, entry.offset)));
    }

    /// The slots as the guest's own VMM has them.
    pub fn original(&self, machine: &Machine) -> Vec<MemoryRegion> {
        let flags = |slot: &MemoryRegion| {
            self.slots.iter().find(|known| known.slot == slot.slot).map_or(slot.flags, |known| known.flags)
        };
        machine.slots().iter().map(|slot| MemoryRegion { flags: flags(slot), ..*slot }).collect()
    }

    /// Switches logging off again.
    pub fn stop(self, machine: &mut Machine) -> Result<(), Error> {
        let original = self.original(machine);
        for (slot, now) in original.iter().zip(machine.slots()).filter(|(slot, now)| slot.flags != now.flags)
        {
            set_flags(machine, &now, slot.flags)?;
        }
        Ok(())
    }
}

/// Changes the flags of a slot, and nothing else.
fn set_flags(machine: &mut Machine, slot: &MemoryRegion, flags: u32) -> Result<(), Error> {
    let done = machine.set_slot_flags(slot.slot, flags);
    done.map_err(|errno| {
        Error::Guest(format!("flags {flags:#x} of memory slot {}: errno {}", slot.slot, errno.0))
    })
}
