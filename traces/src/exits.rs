//! Exits as wholes: each with its stimulus, its notes and its end, whoever recorded it.

use crate::{
    codec::Decoder,
    error::Result,
    event::{
        Control, Data, EntryEvent, Event, ExitEvent, Fault, FaultIn, NO_VCPU, PcpuKind, RegisterChanges,
        Registers,
    },
    flat::tag,
};
use std::collections::{BTreeMap, VecDeque};
use vmtape_arch::{
    exit::{Resume, ResumeKind},
    level::{Level, Place},
    note::Note,
};

/// An exit with everything that belongs to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExitGroup {
    /// The exit's number on the tape; the first is 0.
    pub number: u64,
    /// Notes of the vCPU since its last entry and before this exit: nothing, on most tapes.
    pub before: Vec<Note>,
    /// Entries among them, each with the number of notes that came before its end: those that did more than go on.
    pub entries: Vec<(usize, EntryEvent)>,
    /// How many of `before` and of `entries` come before an exit of another vCPU, and stand with it as well.
    pub earlier: (usize, usize),
    /// What other vCPUs entered with since the exit before this one.
    pub others: Vec<Elsewhere>,
    /// What the VMM did since the entry before this exit, or before the first one.
    pub controls_before: Vec<Control>,
    /// Faults since the entry before this exit: of silicon, of what the VMM did, or of entries of their own.
    pub faults_before: Vec<Fault>,
    /// Pages that were waited for since the exit before.
    pub pages_before: Vec<FaultIn>,
    /// The CPUs that the vCPU moved to since then.
    pub cpus_before: Vec<u32>,
    pub exit: ExitEvent,
    pub registers: Vec<Registers>,
    pub reads: Vec<(u64, Data)>,
    /// What was done about the exit, up to and with the entry that followed.
    pub notes: Vec<Note>,
    /// Those of `notes` that are not L1's own: their index, and where they belong. See [`ExitGroup::place`].
    pub places: Vec<(usize, Place)>,
    /// How many of `notes` came before the end of the handling; the rest belong to the entry.
    pub handled: usize,
    /// What the VMM did between the end of the handling and the entry.
    pub controls: Vec<Control>,
    /// Faults from the exit up to the entry.
    pub faults: Vec<Fault>,
    /// Pages that were waited for in its handling and the entry.
    pub pages: Vec<FaultIn>,
    /// The CPUs that the vCPU moved to before its entry.
    pub cpus: Vec<u32>,
    /// The end of the handling, unless the tape ends before it.
    pub resume: Option<Resume>,
    /// What the handling changed in registers, and the entry before.
    pub changes: RegisterChanges,
}

/// Entries of a vCPU before an exit of another one: what they took waited for them then, and not later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Elsewhere {
    pub vcpu: u32,
    /// As `ExitGroup::before`, of the vCPU's next exit, up to its last entry so far.
    pub before: Vec<Note>,
    /// As `ExitGroup::entries`, for these notes.
    pub entries: Vec<(usize, EntryEvent)>,
}

/// What a tape has behind its last exit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rest {
    /// Entries that no exit followed.
    pub entered: Vec<Elsewhere>,
    /// What all changes of registers make together at the end, by vCPU.
    pub chains: Vec<(u32, u64)>,
    /// As `ExitGroup::controls_before`, `faults_before` and `pages_before`.
    pub controls: Vec<Control>,
    pub faults: Vec<Fault>,
    pub pages: Vec<FaultIn>,
}

impl Rest {
    /// Whether it is known what came after what: ioctls and one entry come in that order.
    pub fn is_ordered(&self) -> bool {
        let entries =
            |other: &Elsewhere| other.before.iter().filter(|note| matches!(note, Note::Entry { .. })).count();
        self.controls.is_empty() || self.entered.iter().map(entries).sum::<usize>() <= 1
    }
}

/// Groups events into exits. A group is given out when the vCPU enters the guest again, exits again, or the tape ends.
/// Of events that belong to no vCPU's exits, lines without a decoded form, what devices saw, and the end go to `other`.
pub struct Exits<I> {
    events: I,
    groups: Grouping,
    /// Events outside exits that were read for the last exit given out, or at the end of the tape.
    pub other: Vec<Event>,
    failed: bool,
}

impl<I: Iterator<Item = Result<Event>>> Exits<I> {
    /// The exits of a stream of events whose first exit has this number.
    pub fn new(events: I, first: u64) -> Self {
        Self { events, groups: Grouping::new(first), other: Vec::new(), failed: false }
    }

    /// Notes that no exit followed, by vCPU: all there is where a trace has no exits. Complete at the end.
    pub fn loose(&self) -> impl Iterator<Item = (u32, &[Note])> {
        self.groups.open.iter().map(|(vcpu, group)| (vcpu, &group.loose[..]))
    }
}

impl<I: Iterator<Item = Result<Event>>> Iterator for Exits<I> {
    type Item = Result<ExitGroup>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.failed {
            self.other.clear();
        }
        while self.groups.done.is_empty() && !self.failed {
            match self.events.next() {
                Some(Ok(event)) => {
                    let other = self.groups.take(event);
                    self.other.extend(other.filter(|event| {
                        matches!(event, Event::Line { .. } | Event::Devices { .. } | Event::End { .. })
                    }));
                }
                Some(Err(error)) => {
                    self.failed = true;
                    return Some(Err(error));
                }
                None => {
                    self.failed = true;
                    self.groups.close_all();
                }
            }
        }
        self.groups.done.pop_front().map(|group| Ok(*group))
    }
}

/// Exits that move from hand to hand: they are large.
pub(crate) type Batch = Vec<Box<ExitGroup>>;

/// Ends of an exit's handling after which the vCPU waits for an event.
const HALTED: [ResumeKind; 2] = [ResumeKind::BLOCKED, ResumeKind::HLT];

/// Exits being put together.
pub(crate) struct Grouping {
    open: Open,
    pub(crate) done: VecDeque<Box<ExitGroup>>,
    number: u64,
    /// The vCPU whose exit the events without a vCPU belong to.
    current: u32,
    /// Of the VMM, for the next exit.
    controls: Vec<Control>,
    /// Likewise faults outside exits.
    faults: Vec<Fault>,
    /// Likewise pages.
    pages: Vec<FaultIn>,
    /// Groups whose memory may be used again.
    pub(crate) spare: Batch,
    /// Likewise the values of registers.
    values: Vec<Vec<u64>>,
    /// [`Rest::chains`]
    chains: Vec<(u32, u64)>,
}

#[derive(Default)]
struct Group {
    /// Notes outside an exit.
    loose: Vec<Note>,
    cpus: Vec<u32>,
    /// Entries among them.
    entries: Vec<(usize, EntryEvent)>,
    /// How many of both stand with an exit of another vCPU.
    earlier: (usize, usize),
    /// An entry came after them.
    entered: bool,
    exit: Option<Box<ExitGroup>>,
}

impl Group {
    /// The entries that stand with no exit so far.
    fn take_entered(&mut self, vcpu: u32) -> Elsewhere {
        let (notes, entries) = self.earlier;
        let is_entry = |note: &Note| matches!(note, Note::Entry { .. });
        let last = self.loose[notes..].iter().rposition(is_entry).map_or(notes, |at| notes + at + 1);
        let told = self.entries[entries..].iter().map(|(at, entry)| (at - notes, entry.clone())).collect();
        // What silicon did after the last one belongs to the exit.
        let last = self.entries.last().map_or(last, |(at, _)| last.max(*at));
        self.earlier = (last, self.entries.len());
        self.entered = false;
        Elsewhere { vcpu, before: self.loose[notes..last].to_vec(), entries: told }
    }
}

/// The groups of all vCPUs.
#[derive(Default)]
struct Open {
    groups: Vec<Group>,
    places: BTreeMap<u32, usize>,
    /// The vCPU that was asked for last, and where its group is: nearly always it is asked for again.
    last: Option<(u32, usize)>,
}

impl Open {
    #[inline]
    fn place(&mut self, vcpu: u32) -> Option<usize> {
        if let Some((_, at)) = self.last.filter(|(of, _)| *of == vcpu) {
            return Some(at);
        }
        let at = *self.places.get(&vcpu)?;
        self.last = Some((vcpu, at));
        Some(at)
    }

    fn get(&mut self, vcpu: u32) -> Option<&mut Group> {
        self.place(vcpu).map(|at| &mut self.groups[at])
    }

    /// Where the group of a vCPU is, which may be new.
    fn at(&mut self, vcpu: u32) -> usize {
        self.place(vcpu).unwrap_or_else(|| {
            self.groups.push(Group::default());
            self.places.insert(vcpu, self.groups.len() - 1);
            self.groups.len() - 1
        })
    }

    fn of(&mut self, vcpu: u32) -> &mut Group {
        let at = self.at(vcpu);
        &mut self.groups[at]
    }

    /// The open exit of a vCPU.
    fn exit(&mut self, vcpu: u32) -> Option<&mut ExitGroup> {
        self.get(vcpu)?.exit.as_deref_mut()
    }

    /// By vCPU.
    fn iter(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.places.iter().map(|(vcpu, at)| (*vcpu, &self.groups[*at]))
    }
}

impl Grouping {
    pub(crate) fn new(first: u64) -> Self {
        Self {
            open: Open::default(),
            done: VecDeque::new(),
            number: first,
            current: NO_VCPU,
            controls: Vec::new(),
            faults: Vec::new(),
            pages: Vec::new(),
            spare: Vec::new(),
            values: Vec::new(),
            chains: Vec::new(),
        }
    }

    /// Takes an event, or gives it back if it belongs to no exit.
    fn take(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Exit(exit) => self.exit(&exit),
            Event::Note { vcpu, place, note } => self.note(vcpu, place, note),
            Event::Resume { vcpu, resume, changes } => self.resume(vcpu, resume, changes),
            Event::Entry(entry) => {
                let group = self.open.of(entry.vcpu);
                group.entries.push((group.loose.len(), *entry));
                group.entered = true;
            }
            Event::Registers(registers) => self.registers(registers),
            Event::Read { hpa, data } => self.read(hpa, data),
            Event::Control { control, .. } => self.control(control),
            Event::Fault(fault) => self.fault(fault),
            Event::FaultIn(page) => self.page(page),
            Event::Pcpu(event) if event.kind == PcpuKind::LOAD => {
                let group = self.open.of(event.vcpu);
                group.exit.as_mut().map_or(&mut group.cpus, |exit| &mut exit.cpus).push(event.cpu);
            }
            other => return Some(other),
        }
        None
    }

    /// Takes the event that a decoder has reached, the frequent kinds without making events of them.
    pub(crate) fn take_decoded(&mut self, decoder: &mut Decoder) -> std::result::Result<(), &'static str> {
        decoder.advance()?;
        let (words, clock) = decoder.view();
        match words.tag {
            tag::EXIT => self.exit(&words.exit(clock)?),
            tag::RESUME => {
                let (vcpu, resume, changes) = words.resume()?;
                self.resume(vcpu, resume, changes);
            }
            tag::NOTE.. => {
                let (vcpu, place, note) = words.note()?;
                self.note(vcpu, place, note);
            }
            tag::REGISTERS => {
                let values = self.values.pop().unwrap_or_default();
                let registers = words.registers(values)?;
                self.registers(registers);
            }
            tag::READ => {
                let (hpa, data) = words.read()?;
                self.read(hpa, data);
            }
            _ => _ = self.take(decoder.event()?),
        }
        Ok(())
    }

    fn exit(&mut self, exit: &ExitEvent) {
        /// Most exits have nothing of these.
        fn hand_over<T>(from: &mut Vec<T>, to: &mut Vec<T>) {
            if !from.is_empty() {
                std::mem::swap(from, to);
            }
        }
        self.current = exit.vcpu;
        let at = self.open.at(exit.vcpu);
        self.close(at);
        self.close_halted();
        let group = &mut self.open.groups[at];
        let mut new = self.spare.pop().unwrap_or_default();
        while let Some(registers) = new.registers.pop() {
            self.values.push(registers.values);
        }
        new.start(self.number, exit);
        hand_over(&mut group.loose, &mut new.before);
        hand_over(&mut group.cpus, &mut new.cpus_before);
        hand_over(&mut group.entries, &mut new.entries);
        new.earlier = std::mem::take(&mut group.earlier);
        group.entered = false;
        hand_over(&mut self.controls, &mut new.controls_before);
        hand_over(&mut self.faults, &mut new.faults_before);
        hand_over(&mut self.pages, &mut new.pages_before);
        if self.open.groups.len() > 1 {
            for (vcpu, at) in &self.open.places {
                let group = &mut self.open.groups[*at];
                if group.entered {
                    new.others.push(group.take_entered(*vcpu));
                }
            }
        }
        self.open.groups[at].exit = Some(new);
        self.number += 1;
    }

    /// A halted vCPU lets the others go on, and is complete where one of them exits: what comes when it wakes stands before its
    /// own next exit. So exits come in their order.
    fn close_halted(&mut self) {
        // The vCPU that exits has closed its own.
        if self.open.groups.len() > 1 {
            for at in self.open.places.values() {
                self.done.extend(self.open.groups[*at].exit.take_if(|exit| exit.is_halted()));
            }
        }
    }

    fn note(&mut self, vcpu: u32, place: Place, note: Note) {
        let at = self.open.at(vcpu);
        let Group { loose, entered, exit, .. } = &mut self.open.groups[at];
        match exit {
            Some(exit) => {
                if place != Place::L1 {
                    exit.places.push((exit.notes.len(), place));
                }
                exit.notes.push(note);
            }
            None => {
                loose.push(note);
                *entered |= matches!(note, Note::Entry { .. });
            }
        }
        if matches!(note, Note::Entry { .. }) {
            self.close(at);
        }
    }

    fn registers(&mut self, registers: Registers) {
        let chain = registers.chain();
        // Behind the exits it is that of the tape's end.
        match self.open.exit(registers.vcpu).filter(|exit| chain.is_none() || exit.resume.is_none()) {
            Some(exit) => exit.registers.push(registers),
            None => self.chains.extend(chain.map(|chain| (registers.vcpu, chain))),
        }
    }

    fn read(&mut self, hpa: u64, data: Data) {
        if let Some(exit) = self.open.exit(self.current) {
            exit.reads.push((hpa, data));
        }
    }

    fn resume(&mut self, vcpu: u32, resume: Resume, changes: RegisterChanges) {
        if let Some(exit) = self.open.exit(vcpu) {
            exit.handled = exit.notes.len();
            (exit.resume, exit.changes) = (Some(resume), changes);
        }
    }

    /// The VMM acts between the end of an exit's handling and the entry; where it stops a running guest or finds it
    /// halted, what it did comes before the next exit.
    fn control(&mut self, control: Control) {
        let open = self.open.exit(self.current);
        match open.filter(|exit| exit.resume.is_some() && !exit.is_halted()) {
            Some(exit) => exit.controls.push(control),
            None => self.controls.push(control),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let vcpu = if fault.vcpu == NO_VCPU { self.current } else { fault.vcpu };
        let open = self.open.exit(vcpu);
        open.map_or(&mut self.faults, |exit| &mut exit.faults).push(fault);
    }

    fn page(&mut self, page: FaultIn) {
        let open = self.open.exit(self.current);
        open.map_or(&mut self.pages, |exit| &mut exit.pages).push(page);
    }

    /// The open exit of a vCPU's group is complete.
    fn close(&mut self, at: usize) {
        if let Some(exit) = self.open.groups[at].exit.take() {
            self.done.push_back(exit);
        }
    }

    /// What is behind the last exit, once all is closed.
    pub(crate) fn take_rest(&mut self) -> Rest {
        let Open { groups, places, .. } = &mut self.open;
        let entered = places.iter().filter(|(_, at)| groups[**at].entered).map(|(vcpu, at)| (*vcpu, *at));
        let entered: Vec<_> = entered.collect();
        Rest {
            entered: entered.into_iter().map(|(vcpu, at)| groups[at].take_entered(vcpu)).collect(),
            chains: std::mem::take(&mut self.chains),
            controls: std::mem::take(&mut self.controls),
            faults: std::mem::take(&mut self.faults),
            pages: std::mem::take(&mut self.pages),
        }
    }

    pub(crate) fn close_all(&mut self) {
        let mut rest: Vec<_> = self.open.groups.iter_mut().filter_map(|group| group.exit.take()).collect();
        rest.sort_by_key(|exit| exit.number);
        self.done.extend(rest);
    }
}

/// Where the last walk begins among notes.
pub fn last_walk(notes: &[Note], level: Level) -> usize {
    let steps = notes.iter().enumerate().filter_map(|(n, note)| Some((n, step_level(note)?)));
    let (mut begin, mut below) = (notes.len(), 0);
    for (n, step) in steps.rev() {
        if step <= below && level == Level::L1 {
            break;
        }
        (begin, below) = (n, step);
    }
    begin
}

/// The level of an entry that silicon read.
fn step_level(note: &Note) -> Option<u8> {
    match note {
        Note::SiliconStep { level, .. } => Some(*level),
        _ => None,
    }
}

impl ExitGroup {
    /// Whether the vCPU waits for an event after it.
    pub fn is_halted(&self) -> bool {
        self.resume.is_some_and(|resume| HALTED.contains(&resume.kind))
    }

    /// The steps of silicon's walk that led to this exit: those of walks before it that went on natively are no part of it. Of a
    /// guest's guest all steps, whose dimensions are mixed.
    pub fn walk(&self) -> impl Iterator<Item = &Note> {
        let begin = last_walk(&self.before, self.exit.exit.level);
        self.before[begin..].iter().filter(|note| step_level(note).is_some())
    }

    /// Where one of `notes` belongs.
    pub fn place(&self, note: usize) -> Place {
        let found = self.places.binary_search_by_key(&note, |(index, _)| *index);
        found.map_or(Place::L1, |at| self.places[at].1)
    }

    /// Begins anew, in the memory that the group has.
    fn start(&mut self, number: u64, exit: &ExitEvent) {
        (self.number, self.handled, self.resume) = (number, 0, None);
        self.changes = RegisterChanges::NONE;
        self.exit = *exit;
        self.before.clear();
        self.entries.clear();
        self.earlier = (0, 0);
        self.others.clear();
        self.controls_before.clear();
        self.registers.clear();
        self.reads.clear();
        self.notes.clear();
        self.places.clear();
        self.controls.clear();
        self.faults_before.clear();
        self.faults.clear();
        self.pages_before.clear();
        self.pages.clear();
        self.cpus_before.clear();
        self.cpus.clear();
    }
}
