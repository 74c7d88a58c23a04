//! What a tape shows of the addresses and features that its guest uses.

use super::tables::{self, Entry};
use crate::{
    Error,
    player::{Create, Player},
    spec,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use vmtape_arch::{
    PAGE_SIZE,
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, maxphyaddr},
    note::Note,
    paging::Pte,
};
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_traces::hex;
use vmtape_traces::{Event, ExitGroup, Exits, Tape, event::Control};

/// What kind of thing an address stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A paging entry of the guest.
    Entry,
    /// A device's registers, or nothing: no memory slot is there.
    Device,
    /// A memory slot.
    Slot,
    /// A page that the guest reached, of which a trace does not tell what it is.
    Page,
}

/// Something with an address, and where the tape shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Place {
    pub kind: Kind,
    /// The last address that belongs to it: what a width has to reach.
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    pub address: u64,
    /// Of an entry: its level and value, and where it stands, if that is known. Of a slot: where it begins.
    #[serde(rename = "paging_level")]
    pub level: Option<u8>,
    #[serde(serialize_with = "hex::word_or_null")]
    #[schemars(with = "Option<String>")]
    pub value: Option<u64>,
    #[serde(serialize_with = "hex::word_or_null")]
    #[schemars(with = "Option<String>")]
    pub at: Option<u64>,
    /// The first exit that shows it.
    pub exit: Option<u64>,
    /// Where no exit does: instructions before the one that does. Neither: it is there at the end of the tape.
    pub instruction: Option<u64>,
}

impl Place {
    /// Address bits that it needs.
    pub fn bits(&self) -> u8 {
        (u64::BITS - self.address.leading_zeros()) as u8
    }

    pub fn entry(entry: Entry, exit: Option<u64>) -> Self {
        Self {
            kind: Kind::Entry,
            address: Pte::from_bits(entry.value).address(),
            level: Some(entry.level),
            value: Some(entry.value),
            at: Some(entry.at),
            exit,
            instruction: None,
        }
    }

    /// An entry of which no event tells where it stands.
    pub fn nowhere(self) -> Self {
        Self { at: None, ..self }
    }

    pub fn device(gpa: u64, exit: u64) -> Self {
        let exit = Some(exit);
        Self { kind: Kind::Device, address: gpa, level: None, value: None, at: None, exit, instruction: None }
    }

    pub fn slot(gpa: u64, size: u64) -> Self {
        let last = gpa.saturating_add(size.saturating_sub(1));
        let at = Some(gpa);
        Self { kind: Kind::Slot, address: last, level: None, value: None, at, exit: None, instruction: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Entry => {
                write!(f, "the level {} paging entry", self.level.unwrap_or(0))?;
                if let Some(at) = self.at {
                    write!(f, " at {at:#x}")?;
                }
                write!(f, " ({:#x})", self.value.unwrap_or(self.address))?;
            }
            Kind::Device => write!(f, "the device address (BAR) {:#x}", self.address)?,
            Kind::Page => write!(f, "the guest physical address {:#x}", self.at.unwrap_or(self.address))?,
            Kind::Slot => write!(f, "the memory slot {:#x}-{:#x}", self.at.unwrap_or(0), self.address)?,
        }
        match (self.exit, self.instruction) {
            (Some(exit), _) => write!(f, ", first seen at exit {exit}"),
            (None, Some(instruction)) => write!(f, ", after {instruction} instructions"),
            (None, None) if self.kind == Kind::Slot => Ok(()),
            (None, None) => f.write_str(", there at the end of the tape"),
        }
    }
}

/// The first place for every number of address bits that is needed.
#[derive(Clone, Debug, Default)]
pub struct Reach(BTreeMap<u8, Place>);

impl Reach {
    pub fn add(&mut self, place: Place) {
        let order = |place: &Place| place.exit.unwrap_or(u64::MAX);
        let known = self.0.entry(place.bits()).or_insert_with(|| place.clone());
        // The same entry, seen again, may tell where it stands.
        let same = (known.level, known.value) == (place.level, place.value);
        let at = if same { known.at.or(place.at) } else { None };
        if order(&place) < order(known) {
            *known = Place { at: place.at.or(at), ..place };
        } else if same {
            known.at = at;
        }
    }

    /// The first place that addresses of so many bits do not reach.
    pub fn beyond(&self, bits: u8) -> Option<&Place> {
        let places = self.0.range(bits.saturating_add(1)..).map(|(_, place)| place);
        places.min_by_key(|place| place.exit.unwrap_or(u64::MAX))
    }

    /// Address bits that everything needs.
    pub fn bits(&self) -> u8 {
        self.0.last_key_value().map_or(0, |(bits, _)| *bits)
    }
}

/// The guest of a tape, as far as other hosts matter.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    pub exits: u64,
    /// Exits and instructions before the guest moves.
    pub moves_at_exit: u64,
    pub moves_at_instruction: u64,
    pub entries: Reach,
    pub devices: Reach,
    pub slots: Reach,
    /// Slots by where they begin, and pages of devices: all of them.
    pub ranges: BTreeMap<u64, Place>,
    /// CPUID leaves (with their index) that the guest has read, and the first exit at which it did.
    pub cpuid: BTreeMap<(u32, u32), u64>,
    /// Model-specific registers that it has read.
    pub msrs: BTreeMap<u32, u64>,
    /// The extended state components that it has enabled (XCR0), by the end.
    pub xcr0: u64,
    /// Values that it has written to CR4, together.
    pub cr4: u64,
    /// Widths that the VMM has given its vCPUs on the way.
    pub widths: BTreeSet<u8>,
}

impl Footprint {
    /// Reads the tape, and runs it once more for its state: at its end, and when the guest moves. Addresses count from then
    /// on; what the guest has read before it still knows.
    pub fn of(tape: &Tape, machine: &MachineSpec, at: When, create: Create) -> Result<Self, Error> {
        let mut player =
            Player::new(machine.clone(), Box::new(spec::inputs(tape)?), spec::budget(tape), create, false)?;
        let mut footprint = Self::default();
        if at != When::Start {
            if !player.come_to_rest(at)? {
                return Err(Error::NobodyMoves { tape: tape.name().to_owned(), at });
            }
            (footprint.moves_at_exit, footprint.moves_at_instruction) =
                (player.machine.exits(), player.machine.icount());
        }
        footprint.state(&player, Some(footprint.moves_at_exit));
        let mut exits = Exits::new(tape.events(), 0);
        while let Some(group) = exits.next().transpose()? {
            footprint.group(&group);
            exits.other.drain(..).for_each(|event| footprint.event(&event));
        }
        exits.other.drain(..).for_each(|event| footprint.event(&event));
        while player.end.is_none() {
            player.advance(u64::MAX, u64::MAX)?;
        }
        footprint.state(&player, None);
        Ok(footprint)
    }

    /// What is there now, without anybody having to look at it.
    fn state(&mut self, player: &Player, exit: Option<u64>) {
        for slot in player.machine.memory().slots() {
            self.slot(slot.gpa, slot.size);
        }
        for vcpu in 0..player.machine.spec().vcpus {
            self.xcr0 |= player.machine.state(vcpu).map_or(0, |state| state.xcr0);
            tables::scan(&player.machine, vcpu, &mut |entry| self.entries.add(Place::entry(entry, exit)));
        }
    }

    /// The first exit at which the guest has read an entry of its CPUID table.
    pub fn read_at(&self, entry: &CpuidEntry) -> Option<u64> {
        if entry.flags & CPUID_FLAG_SIGNIFICANT_INDEX != 0 {
            return self.cpuid.get(&(entry.function, entry.index)).copied();
        }
        self.cpuid.range((entry.function, 0)..=(entry.function, u32::MAX)).map(|(_, exit)| *exit).min()
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Control { control: Control::SetMemoryRegion { gpa, size, result: 0, .. }, icount }
                if *size > 0 && *icount >= self.moves_at_instruction =>
            {
                self.slot(*gpa, *size);
            }
            Event::Control { control: Control::SetCpuid { entries, result: 0, .. }, .. } => {
                self.widths.insert(maxphyaddr(entries));
            }
            _ => {}
        }
    }

    fn group(&mut self, group: &ExitGroup) {
        let exit = group.number;
        // KVM's walk that is going on: its address, and the table that its last entry leads to.
        let (mut walked, mut table) = (0, None);
        self.exits = exit + 1;
        let moved = exit >= self.moves_at_exit;
        for note in group.before.iter().chain(&group.notes) {
            match *note {
                Note::SiliconStep { gpa, before, level, .. } if moved => {
                    self.step(Entry { level, at: gpa, value: before }, exit);
                }
                Note::PagetableWalk { address, .. } => (walked, table) = (address, None),
                Note::PagingElement { pte, level } => {
                    let place = Place::entry(Entry { level, at: 0, value: pte }, Some(exit));
                    let at = table.map(|table: u64| table + tables::offset(walked, level));
                    table = Some(place.address);
                    if Pte::from_bits(pte).p() && moved {
                        self.entries.add(Place { at, ..place });
                    }
                }
                Note::Mmio { gpa, .. } if moved => self.device(Place::device(gpa, exit)),
                Note::Cpuid { function, index, .. } => {
                    self.cpuid.entry((function, index)).or_insert(exit);
                }
                Note::Msr { write: false, index, .. } => {
                    self.msrs.entry(index).or_insert(exit);
                }
                Note::Cr { write: true, number: 4, value } => self.cr4 |= value,
                _ => {}
            }
        }
    }

    fn slot(&mut self, gpa: u64, size: u64) {
        let place = Place::slot(gpa, size);
        let known = self.ranges.entry(gpa).or_insert_with(|| place.clone());
        if known.address < place.address {
            known.clone_from(&place);
        }
        self.slots.add(place);
    }

    fn device(&mut self, place: Place) {
        self.ranges.entry(place.address & !(PAGE_SIZE - 1)).or_insert_with(|| place.clone());
        self.devices.add(place);
    }

    fn step(&mut self, entry: Entry, exit: u64) {
        if Pte::from_bits(entry.value).p() {
            self.entries.add(Place::entry(entry, Some(exit)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_that_a_width_does_not_reach() {
        let mut reach = Reach::default();
        reach.add(Place::device(0xfee0_0000, 1));
        reach.add(Place::device(1 << 45, 9));
        reach.add(Place::device(1 << 40, 20));
        reach.add(Place::device((1 << 40) + 0x1000, 15));
        assert_eq!(reach.bits(), 46);
        let first = |bits| reach.beyond(bits).map(|place| (place.address, place.exit));
        assert_eq!(first(39), Some((1 << 45, Some(9))), "the earliest, not the lowest");
        assert_eq!(first(45), Some((1 << 45, Some(9))));
        assert_eq!(first(46), None);
        let mut later = Reach::default();
        later.add(Place::device(1 << 40, 20));
        later.add(Place::device((1 << 40) + 0x1000, 15));
        assert_eq!(later.beyond(40).and_then(|place| place.exit), Some(15));
    }

    #[test]
    fn an_entry_is_better_known_with_its_own_address() {
        let entry = Entry { level: 1, at: 0x2000, value: 1 << 40 | 1 };
        let mut reach = Reach::default();
        reach.add(Place { at: None, ..Place::entry(entry, Some(4)) });
        reach.add(Place::entry(entry, None));
        assert_eq!(
            reach.beyond(40).map(ToString::to_string).as_deref(),
            Some("the level 1 paging entry at 0x2000 (0x10000000001), first seen at exit 4")
        );
    }

    #[test]
    fn nothing_overflows() {
        assert_eq!(Place::slot(u64::MAX - 1, 4096).bits(), 64);
        assert_eq!(Place::slot(0, 0).bits(), 0);
    }
}
